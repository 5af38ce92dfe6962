"""Options of models around the delta rule, and what one of their layers is made from."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_kernels.backends import DeltaBackend
from refine_pl.backbones.attention_spec import AttentionSpec, attention_specs
from refine_pl.backbones.options import StackOptions, whole


@dataclass(frozen=True, kw_only=True)
class DeltaRuleOptions(StackOptions):
    """Options of every model whose mixer is a delta rule.

    Args:
        num_heads: heads of q and k.
        expand_v: width of the values.
        use_gate: gate the output.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolutions.
        allow_neg_eigval: write strengths up to 2 instead of 1.
        attn: layers of softmax attention instead: a mapping of layers (their numbers from 0),
            num_heads, num_kv_heads, qkv_bias, window_size and rope_theta; or a list of such.
        backend: of the recurrence; auto takes Triton kernels on CUDA in 16 bits, else torch.
    """

    fixed: ClassVar = {
        **StackOptions.fixed,
        "use_l2warp": ((False,), "it changes the gradient of the loss"),
        "attnres_block_size": ((None,), "it changes the residuals"),
    }
    without_effect: ClassVar = {
        **StackOptions.without_effect,
        "attn_mode": "chunk",
        "fuse_linear_cross_entropy": False,
    }

    most: ClassVar = {**StackOptions.most, "conv_size": 2**10, "expand_v": 2**10}

    num_heads: PositiveInt
    expand_v: PositiveFloat
    use_gate: bool
    use_short_conv: bool = True
    conv_size: PositiveInt = 4
    allow_neg_eigval: bool = False
    attn: dict[str, Any] | list[dict[str, Any]] | None = None
    backend: DeltaBackend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        attention_specs(self.attn, self.num_hidden_layers, self.hidden_size)
        what = f"heads of q and k: {self.num_heads} x {self.key_width}"
        whole(what, self.num_heads * self.key_width)  # the widths check themselves
        what = f"heads of v: {self.value_heads} x {self.value_width}"
        whole(what, self.value_heads * self.value_width)

    @property
    @abstractmethod
    def key_width(self) -> int:
        """Of a head of q and k."""

    @property
    @abstractmethod
    def value_width(self) -> int:
        """Of a head of v."""

    @property
    def value_heads(self) -> int:
        """Heads of v."""
        return self.num_heads

    def attention(self, layer: int) -> AttentionSpec | None:
        """What the layer of this number is if it is softmax attention."""
        specs = attention_specs(self.attn, self.num_hidden_layers, self.hidden_size)
        return next((spec for spec in specs if layer in spec.layers), None)

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """See :class:`ModelOptions`."""
        specs = attention_specs(self.attn, self.num_hidden_layers, self.hidden_size)
        kinds = {layer: f"attention {i}" for i, spec in enumerate(specs) for layer in spec.layers}
        return tuple(kinds.get(layer, "delta rule") for layer in range(self.num_hidden_layers))

    @property
    def shape(self) -> DeltaRuleShape:
        """What the mixers are made from."""
        return DeltaRuleShape(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            value_heads=self.value_heads,
            key_width=self.key_width,
            value_width=self.value_width,
            conv_size=self.conv_size if self.use_short_conv else None,
            use_gate=self.use_gate,
            strength_scale=2.0 if self.allow_neg_eigval else 1.0,
            norm_eps=self.norm_eps,
            backend=self.backend,
        )


@dataclass(frozen=True, kw_only=True)
class DeltaRuleShape:
    """What the mixer of one layer is made from, under whatever names a model's options have it."""

    hidden_size: int
    num_heads: int  # of q and k
    value_heads: int
    key_width: int  # of a head
    value_width: int
    conv_size: int | None  # None: no convolutions
    use_gate: bool
    strength_scale: float  # largest write strength
    norm_eps: float
    backend: DeltaBackend
    learned_strengths: bool = True

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels of q, k and v."""
        key_size = self.num_heads * self.key_width
        return key_size, key_size, self.value_heads * self.value_width
