"""From the names of stored weights to those of a model: renamed ones, unused ones, other parts'."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from refine_pl.backbones.options import ModelOptions
from refine_pl.errors import CheckpointError


class Carried(dict[str, Tensor]):
    """Weights that a model does not use, by their published names. Copies of a model share them."""

    def __deepcopy__(self, memo: Any) -> Carried:
        return self


def sort_weights(
    options: type[ModelOptions], stored: Mapping[str, Tensor], where: Path
) -> tuple[dict[str, Tensor], Carried]:
    """A model's weights by its own names, in float32; and what is carried through, as stored.

    Raises:
        CheckpointError: two stored names mean the same weight.
    """
    weights: dict[str, Tensor] = {}
    carried = Carried()
    unused = []
    for name, tensor in stored.items():
        if options.carried and re.fullmatch(options.carried, name):
            carried[name] = tensor
            continue
        own = name
        for pattern, replacement in options.renamed:
            own = re.sub(pattern, replacement, own)
        if options.unused_weights and re.fullmatch(options.unused_weights, own):
            unused.append(name)
        elif own in weights:
            raise CheckpointError(
                f"{name} is {own}, which is there already",
                where=str(where),
                way_out="remove the one that is out of date",
            )
        else:
            weights[own] = tensor.float()
    if unused:
        warnings.warn(
            f"{where}: left out {some(unused)}, which no version of the model uses", stacklevel=3
        )
    return weights, carried


def some(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
