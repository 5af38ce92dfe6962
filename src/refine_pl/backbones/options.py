"""What every backbone's options share. A model's options are the fields of its ``config.json``.

One dataclass per model states each field and its default once: the constructor, the YAML keys,
``config.json`` and the export are all made from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_pl.backbones.option_values import MOST, check_value, same
from refine_pl.errors import ConfigError, did_you_mean

# Options of this project's own: they are not written to config.json.
_UNPUBLISHED = ("activation_checkpointing", "around", "backend", "idle", "precision")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ABC):
    """Options of every model that is a stack of blocks.

    Subclasses add fields, under their published names, and set the class attributes: ``model_type``
    and ``architecture``, as published; ``fixed``, published fields of which only the first of the
    given values is meant, and why; ``without_effect``, published fields that change nothing here,
    with their published defaults; ``kept``, published fields that are kept for the export where
    they are given, with the values that change nothing here (None: any); ``most``, the largest
    value of a number where that is not the usual one. Of stored weights: ``unused_weights``, a
    pattern of those that are left out; ``carried``, of those of other parts, which the export has
    again; ``renamed``, patterns of names and what they become.

    Args:
        vocab_size: number of tokens.
        hidden_size: model width ``D``.
        num_hidden_layers: number of blocks.
        tie_word_embeddings: use the embeddings as the head's weight.
        initializer_range: standard deviation of fresh weights.
        bos_token_id: written to exported configurations.
        eos_token_id: written to exported configurations; each id of a list ends an answer, beside
            that of the tokenizer.
        pad_token_id: written to exported configurations; padding here is by length.
        max_position_embeddings: written to exported configurations; any length can be read.
        activation_checkpointing: keep only each block's input, and run the block again in the
            backward pass.
        idle: published fields without effect here, where they differ from their defaults; they are
            kept for the export.

    Raises:
        ConfigError: a value of another type or out of its range, or one that this implementation
            would get wrong.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    fixed: ClassVar[dict[str, tuple[tuple[object, ...], str]]] = {
        "hidden_act": (("swish", "silu"), "the MLP is a SwiGLU"),
    }
    without_effect: ClassVar[dict[str, Any]] = {"use_cache": True}
    kept: ClassVar[dict[str, tuple[object, ...] | None]] = {}
    unused_weights: ClassVar[str | None] = None
    carried: ClassVar[str | None] = None
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()
    # What is far beyond every use is a slip, and must not end as an overflow or a full memory.
    most: ClassVar[dict[str, float]] = {
        "num_hidden_layers": 2**10,
        "initializer_range": 100,
        "max_position_embeddings": 2**40,
    }

    vocab_size: PositiveInt = 32000
    hidden_size: PositiveInt = 2048
    num_hidden_layers: PositiveInt = 24
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    max_position_embeddings: PositiveInt = 2048
    activation_checkpointing: bool = False
    idle: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in (field.name for field in fields(self)):
            check_value(name, getattr(self, name), hints[name], self.most.get(name, MOST))
        for name, value in (self.idle or {}).items():
            if name in self.kept:
                allowed = self.kept[name]
                if allowed is not None:
                    require(name, value, allowed, "it would change what is computed")
                continue
            if name not in self.without_effect:
                raise ConfigError(
                    f"{name} is not a published field without effect",
                    where="backbone option idle",
                    allowed=", ".join(sorted(self.without_effect)),
                    way_out=did_you_mean(name, self.without_effect.keys()),
                )
            check_value(name, value, type(self.without_effect[name]) | None)

    @property
    @abstractmethod
    def mlp_width(self) -> int:
        """Of the MLPs' hidden layers."""

    @property
    @abstractmethod
    def norm_eps(self) -> float:
        """Of the blocks' norms."""

    @property
    def untrained_token(self) -> int | None:
        """Whose embedding gets no gradient where it is read."""
        return None

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """What each block is; blocks of one kind have the same parameters."""
        return ("block",) * self.num_hidden_layers

    @classmethod
    def unfolded(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A published configuration whose fields are those of this class."""
        return dict(config)

    def config(self) -> dict[str, Any]:
        """The fields under their published names, ``model_type`` among them; plain values."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _UNPUBLISHED}
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            **{name: allowed[0] for name, (allowed, _) in self.fixed.items()},
            **self.without_effect,
            **(self.idle or {}),
            **{name: _plain(value) for name, value in own.items()},
        }


@dataclass(frozen=True, kw_only=True)
class StackOptions(ModelOptions):
    """Options of a stack under the names that flash-linear-attention gives them.

    Args:
        hidden_ratio: MLP width in model widths (times two thirds, rounded up to 256).
        intermediate_size: MLP width; computed from ``hidden_ratio`` if left out.
        norm_eps: of the blocks' norms.
    """

    without_effect: ClassVar = {
        **ModelOptions.without_effect,
        "fuse_norm": True,
        "fuse_swiglu": True,
        "fuse_cross_entropy": True,
    }
    most: ClassVar = {**ModelOptions.most, "hidden_ratio": 2**10, "norm_eps": 1}

    hidden_ratio: PositiveFloat | None = 4
    intermediate_size: PositiveInt | None = None
    norm_eps: PositiveFloat = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.mlp_width <= MOST:
            raise ConfigError(
                f"hidden_ratio={self.hidden_ratio} makes an MLP of width {self.mlp_width:,}",
                allowed=f"a width from 1 to {MOST:,}: hidden_ratio, or intermediate_size",
            )

    @property
    def mlp_width(self) -> int:
        """``intermediate_size``, or by the published rule two thirds of ``hidden_ratio`` widths."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        ratio = 4 if self.hidden_ratio is None else self.hidden_ratio
        return 256 * -(-int(self.hidden_size * ratio * 2 / 3) // 256)


def require(name: str, value: object, allowed: tuple[object, ...], why: str) -> None:
    """Refuse an option whose value this implementation would get wrong.

    Raises:
        ConfigError: ``value`` is not among the ``allowed`` ones.
    """
    if not any(same(value, option) for option in allowed):
        raise ConfigError(
            f"{name}={value!r:.60} is not supported: {why}",
            where=f"backbone option {name}",
            allowed=", ".join(repr(option) for option in allowed),
        )


def whole(what: str, width: float, way_out: str | None = None) -> int:
    """A ``width`` that must be a positive integer, but for the rounding of a published factor.

    Raises:
        ConfigError: it is not; ``what`` says how it came about.
    """
    if not 1 <= width <= MOST or not math.isclose(width, round(width), rel_tol=1e-5):
        raise ConfigError(
            f"{what} = {width:g} is not a whole head width",
            allowed=f"a whole number from 1 to {MOST:,}",
            way_out=way_out,
        )
    return round(width)


def _plain(value: Any) -> Any:
    """A number of a restricted type, as the parser makes them, as a plain one."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value
