"""flash-linear-attention's ``attn`` option: some layers of a model are softmax attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_pl.backbones.attention_layer import AttentionShape
from refine_pl.backbones.option_values import MOST, check_value
from refine_pl.backbones.rope import Rope
from refine_pl.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One entry of the option: layers, and what they are."""

    layers: list[int]
    num_heads: PositiveInt
    num_kv_heads: PositiveInt | None = None
    qkv_bias: bool = False
    window_size: PositiveInt | None = None
    rope_theta: PositiveFloat = 10000.0

    def shape(self, hidden_size: int) -> AttentionShape:
        """Of a layer in a model of this width."""
        width = hidden_size // self.num_heads
        return AttentionShape(
            hidden_size=hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_width=width,
            rope=Rope(width, float(self.rope_theta)),
            qkv_bias=self.qkv_bias,
            window=self.window_size,
        )


def attention_specs(option: Any, num_layers: int, hidden_size: int) -> tuple[AttentionSpec, ...]:
    """The entries of the option ``attn``: none, one, or a list of them.

    Raises:
        ConfigError: naming the entry's field.
    """
    entries = option if isinstance(option, list) else [] if option is None else [option]
    specs = tuple(_spec(entry, num_layers, hidden_size) for entry in entries)
    seen: set[int] = set()
    for layer in (layer for spec in specs for layer in spec.layers):
        if layer in seen:
            raise ConfigError(
                f"layer {layer} is named twice", where="backbone option attn", allowed="once"
            )
        seen.add(layer)
    return specs


def _spec(entry: Mapping[str, Any], num_layers: int, hidden_size: int) -> AttentionSpec:
    hints = get_type_hints(AttentionSpec)
    for name in entry:
        if name not in hints:
            raise ConfigError(
                f"attn has a field {name!r:.60} that is not known",
                where="backbone option attn",
                allowed=", ".join(hints),
                way_out=did_you_mean(str(name), hints),
            )
    for field in fields(AttentionSpec):
        if field.name not in entry and field.name in ("layers", "num_heads"):
            raise ConfigError(f"attn has no {field.name}", where="backbone option attn")
        most = 2**40 if field.name in ("window_size", "rope_theta") else MOST
        if field.name in entry and not (field.name == "layers" and entry["layers"] == []):
            check_value(f"attn.{field.name}", entry[field.name], hints[field.name], most)
    spec = AttentionSpec(**entry)
    heads, kv_heads = spec.num_heads, spec.num_kv_heads or spec.num_heads
    problem = None
    if outside := [layer for layer in spec.layers if not 0 <= layer < num_layers]:
        problem, allowed = f"names layer {outside[0]}", f"0 to {num_layers - 1}"
    elif hidden_size % heads or hidden_size // heads % 2:
        problem = f"has num_heads {heads} for hidden_size {hidden_size}"
        allowed = "heads of an even whole width"
    elif heads % kv_heads:
        problem = f"has num_kv_heads {kv_heads} for num_heads {heads}"
        allowed = "a divisor of num_heads"
    if problem is not None:
        raise ConfigError(f"attn {problem}", where="backbone option attn", allowed=allowed)
    return spec
