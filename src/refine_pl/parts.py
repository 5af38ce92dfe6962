"""Parts that stand for themselves when they are left out of a configuration.

They are named, not made, so that no two modules share one.
"""

from __future__ import annotations

import importlib
from typing import Any

from refine_pl.backbones import FastWeightLM, load_pretrained
from refine_pl.errors import ConfigError


class Part(dict[str, Any]):
    """A class that is named with its arguments, as a configuration names it.

    As the default of an argument it is what the parser takes for a class, and it is shown as the
    call that it stands for: ``selector: PositionSelector = Entropy()``.
    """

    __slots__ = ()  # the parser would take an attribute dictionary for the contents

    def make(self, *arguments: Any) -> Any:
        """One of the class, with these arguments before the named ones."""
        module, name = self["class_path"].rsplit(".", 1)
        cls = getattr(importlib.import_module(module), name)
        return cls(*arguments, **self.get("init_args", {}))

    def __repr__(self) -> str:
        arguments = (f"{name}={value!r}" for name, value in self.get("init_args", {}).items())
        return f"{self['class_path'].rpartition('.')[2]}({', '.join(arguments)})"


NO_BACKBONE: Any = None  # the type of the argument then says what may be given
NO_ADAPTER: Any = None
ENTROPY: Any = Part(class_path="refine_pl.selectors.Entropy")
EVEN: Any = Part(class_path="refine_pl.selectors.Even")
FORKED: Any = Part(class_path="refine_pl.rollouts.Forked")
SIMILARITY: Any = {"similarity": Part(class_path="refine_pl.rewards.EmbeddingSimilarity")}
GROUP_RELATIVE: Any = Part(class_path="refine_pl.advantages.GroupRelative")
CLIPPED: Any = Part(class_path="refine_pl.losses.ClippedPolicy")
GREEDY: Any = Part(class_path="refine_pl.evaluation.Answering")
SUPERVISED: Any = Part(class_path="refine_pl.objectives.SupervisedAnswers")
ADAMW: Any = Part(class_path="torch.optim.AdamW", init_args={"lr": 1e-6})


def build_part(part: Any) -> Any:
    """A part that was left out, made from the name that stands for it; any other as it is."""
    return Part(part).make() if isinstance(part, dict) else part


def maker(part: Any) -> Any:
    """What is called for a part that takes arguments of the program, as an optimizer does."""
    return Part(part).make if isinstance(part, dict) else part


def choose_policy(backbone: FastWeightLM | None, pretrained: str | None) -> FastWeightLM:
    """The model itself, or the one of a folder or a name on the hub.

    Raises:
        UserError: neither or both are given, or the model does not exist.
    """
    check_one_is_given(None if backbone is None else type(backbone).__name__, pretrained)
    return load_pretrained(str(pretrained)) if backbone is None else backbone


def check_one_is_given(backbone: str | None, pretrained: str | None) -> None:
    """Refuse a model that is given in no way, or in two: its class, and where it is loaded from.

    Raises:
        ConfigError: naming both keys.
    """
    if (backbone is None) != (pretrained is None):
        return
    allowed = (
        "one of the two. model.backbone: a class_path of a FastWeightLM: "
        "refine_pl.backbones.DeltaNet, GatedDeltaNet, LaCT, Qwen35, OlmoHybrid. "
        "model.pretrained: a folder, or a name on the hub"
    )
    if backbone is None:
        raise ConfigError("model.backbone is missing, and so is model.pretrained", allowed=allowed)
    raise ConfigError(
        f"model.backbone and model.pretrained are both given ({backbone} and {pretrained})",
        allowed=allowed,
        way_out="null for the one that is not wanted",
    )
