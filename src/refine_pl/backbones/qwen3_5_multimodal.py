"""Qwen3.5 as it is published: a text model beside a vision tower. The text model is trained.

The tower's weights, and those for predicting several tokens, are carried through to the export.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from refine_pl.backbones.qwen3_5 import Qwen35, Qwen35Options
from refine_pl.backbones.stack import StackedLM
from refine_pl.errors import ConfigError

_TEXT = "text_config"
# Said by the model itself, or of no effect.
_OUTSIDE = ("model_type", "architectures", "dtype", "torch_dtype", "tie_word_embeddings", _TEXT)


@dataclass(frozen=True, kw_only=True)
class Qwen35MultimodalOptions(Qwen35Options):
    """The text model's fields, and the rest of the configuration as it is.

    Args:
        around: what the configuration says beside the text model: of vision, and special tokens.
    """

    model_type = "qwen3_5"
    architecture = "Qwen3_5ForConditionalGeneration"

    around: dict[str, Any] | None = None

    @classmethod
    def unfolded(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`ModelOptions`. The head is tied if the outer configuration says so."""
        text = config.get(_TEXT)
        if not isinstance(text, dict):
            raise ConfigError(
                f"{_TEXT}={text!r:.60} is not a mapping",
                where=_TEXT,
                allowed="the fields of qwen3_5_text",
            )
        around = {name: value for name, value in config.items() if name not in _OUTSIDE}
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        return super().unfolded(text) | {"around": around, "tie_word_embeddings": tied}

    def config(self) -> dict[str, Any]:
        """See :class:`ModelOptions`."""
        text = super().config()
        outside = {name: text.pop(name) for name in ("model_type", "architectures")}
        text["model_type"] = Qwen35Options.model_type
        tied = {"tie_word_embeddings": self.tie_word_embeddings}
        return {**(self.around or {}), **outside, **tied, _TEXT: text}


class Qwen35Multimodal(Qwen35):
    """The text model. Its arguments: :class:`Qwen35MultimodalOptions`."""

    options_class = Qwen35MultimodalOptions

    def __init__(self, **fields: Any) -> None:
        StackedLM.__init__(self, Qwen35MultimodalOptions(**fields))

    def published(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`StackedLM`."""
        inside = re.compile(r"^model\.")
        return {inside.sub("model.language_model.", name): t for name, t in weights.items()}
