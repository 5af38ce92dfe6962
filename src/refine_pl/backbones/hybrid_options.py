"""Options of hybrids as transformers' configurations name them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_kernels.backends import DeltaBackend
from refine_pl.backbones.attention_layer import AttentionShape
from refine_pl.backbones.delta_rule_options import DeltaRuleShape
from refine_pl.backbones.options import ModelOptions, whole
from refine_pl.backbones.rope_parameters import with_rope_parameters
from refine_pl.errors import ConfigError

LINEAR, FULL = "linear_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class HybridOptions(ModelOptions):
    """Options of a stack of gated delta rules and softmax attention.

    Args:
        intermediate_size: MLP width.
        num_attention_heads: heads of the attention.
        num_key_value_heads: heads of k and v in the attention, each for as many heads of q.
        rms_norm_eps: of the norms.
        layer_types: of each layer, linear_attention (a gated delta rule) or full_attention; by the
            model's rule if left out.
        rope_parameters: rotary positions of the attention: rope_theta (10000 if left out, null for
            none), partial_rotary_factor, and rope_type default or linear with a factor.
        attention_bias: of the attention's projections.
        linear_num_key_heads: heads of q and k in a delta rule.
        linear_num_value_heads: heads of v in a delta rule, a multiple.
        linear_key_head_dim: width of a head of q and k in a delta rule.
        linear_value_head_dim: width of a head of v in a delta rule.
        linear_conv_kernel_dim: taps of a delta rule's convolutions.
        backend: of the recurrence; auto takes Triton kernels on CUDA in 16 bits, else torch.
    """

    fixed: ClassVar = {
        "hidden_act": (("silu", "swish"), "the MLP is a SwiGLU"),
        "attention_dropout": ((0.0,), "rollouts are read twice, and must be the same"),
    }
    most: ClassVar = {
        **ModelOptions.most,
        "rms_norm_eps": 1,
        "linear_conv_kernel_dim": 2**10,
    }

    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    linear_num_key_heads: PositiveInt | None = None
    linear_num_value_heads: PositiveInt | None = None
    linear_key_head_dim: PositiveInt | None = None
    linear_value_head_dim: PositiveInt | None = None
    linear_conv_kernel_dim: PositiveInt = 4
    backend: DeltaBackend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        delta, attention = self.delta_shape, self.attention_shape
        kinds = self.layer_kinds
        if len(kinds) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types names {len(kinds)} layers, num_hidden_layers is "
                f"{self.num_hidden_layers}",
                where="backbone option layer_types",
            )
        for layer, kind in enumerate(kinds):
            if kind not in (LINEAR, FULL):
                raise ConfigError(
                    f"layer {layer} is {kind!r:.60}, which is not known",
                    where="backbone option layer_types",
                    allowed=f"{LINEAR}, {FULL}",
                )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id {self.pad_token_id} is not one of {self.vocab_size:,} tokens",
                where="backbone option pad_token_id",
                allowed="a token of the vocabulary, or null",
            )
        if delta.value_heads % delta.num_heads:
            raise ConfigError(
                f"linear_num_value_heads {delta.value_heads} is not a multiple of "
                f"linear_num_key_heads {delta.num_heads}",
                allowed="every head of q and k serves the same number of value heads",
            )
        if attention.num_heads % attention.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads {attention.num_heads} is not a multiple of "
                f"num_key_value_heads {attention.num_kv_heads}",
                allowed="every head of k and v serves the same number of heads of q",
            )
        for what, size in (
            ("heads of q and k", delta.num_heads * delta.key_width),
            ("heads of v", delta.value_heads * delta.value_width),
            ("heads of the attention", attention.num_heads * attention.head_width),
        ):
            whole(what, size)

    @classmethod
    def unfolded(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`ModelOptions`."""
        return with_rope_parameters(config)

    @property
    def mlp_width(self) -> int:
        """Of the MLPs' hidden layers."""
        return self.intermediate_size

    @property
    def norm_eps(self) -> float:
        """Of the blocks' norms."""
        return self.rms_norm_eps

    @property
    def untrained_token(self) -> int | None:
        """As in transformers, that of padding."""
        return self.pad_token_id

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """``layer_types``, or the model's rule."""
        if self.layer_types is not None:
            return tuple(self.layer_types)
        return tuple(self.default_kinds())

    @abstractmethod
    def default_kinds(self) -> list[str]:
        """The model's rule for its layers."""

    @property
    @abstractmethod
    def attention_shape(self) -> AttentionShape:
        """What a layer of attention is made from."""

    @property
    @abstractmethod
    def delta_shape(self) -> DeltaRuleShape:
        """What a delta rule is made from."""

    def config(self) -> dict[str, Any]:
        """See :class:`ModelOptions`; the layers are written out."""
        return {**super().config(), "layer_types": list(self.layer_kinds)}
