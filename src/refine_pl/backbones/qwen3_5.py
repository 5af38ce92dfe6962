"""Qwen3.5: gated delta rules with a layer of gated attention after every third.

A delta rule reads one projection and one convolution for q, k and v; norms multiply by 1 + weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn

from refine_pl.backbones.attention_layer import AttentionMixer, AttentionShape
from refine_pl.backbones.delta_rule_layer import (
    DeltaRuleCore,
    DeltaRuleShape,
    ShortConv,
    convolve_together,
)
from refine_pl.backbones.gated_delta_net import log_decay, shared_heads
from refine_pl.backbones.hybrid_options import FULL, LINEAR, HybridOptions
from refine_pl.backbones.rope_parameters import rope_of
from refine_pl.backbones.stack import Block, BlockForm, Mixer, RMSNorm, StackedLM

_PARTIAL = 0.25  # of a head's channels turn, if the configuration does not say it


class OffsetRMSNorm(RMSNorm):
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)`` over the last dimension."""

    def __init__(self, size: int, eps: float, for_products: bool = False) -> None:
        super().__init__(size, eps, for_products)
        nn.init.zeros_(self.weight)

    def factors(self) -> Tensor:
        """See :class:`RMSNorm`."""
        return 1 + self.weight


@dataclass(frozen=True, kw_only=True)
class Qwen35Options(HybridOptions):
    """The fields of Qwen3.5's text configuration.

    Args:
        full_attention_interval: without layer_types, every so many layers the last is attention.
        head_dim: width of a head of the attention.
    """

    model_type = "qwen3_5_text"
    architecture = "Qwen3_5ForCausalLM"
    fixed: ClassVar = {
        **HybridOptions.fixed,
        "attn_output_gate": ((True,), "the attention's output is gated"),
        "mlp_only_layers": (([], None), "every layer mixes tokens"),
    }
    kept: ClassVar = {
        "mtp_num_hidden_layers": None,
        "mtp_use_dedicated_embeddings": None,
        "mamba_ssm_dtype": ("float32",),
        "output_gate_type": ("swish", "silu"),
    }
    carried = r"mtp\..*|model\.visual\..*"
    renamed = ((r"^model\.language_model\.", "model."),)

    vocab_size: PositiveInt = 248320
    hidden_size: PositiveInt = 4096
    num_hidden_layers: PositiveInt = 32
    max_position_embeddings: PositiveInt = 32768
    intermediate_size: PositiveInt = 12288
    num_attention_heads: PositiveInt = 16
    num_key_value_heads: PositiveInt = 4
    head_dim: PositiveInt = 256
    full_attention_interval: PositiveInt = 4
    linear_num_key_heads: PositiveInt = 16
    linear_num_value_heads: PositiveInt = 32
    linear_key_head_dim: PositiveInt = 128
    linear_value_head_dim: PositiveInt = 128

    def default_kinds(self) -> list[str]:
        """See :class:`HybridOptions`."""
        every = self.full_attention_interval
        return [LINEAR if (i + 1) % every else FULL for i in range(self.num_hidden_layers)]

    @property
    def attention_shape(self) -> AttentionShape:
        """See :class:`HybridOptions`."""
        return AttentionShape(
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_width=self.head_dim,
            rope=rope_of(self.rope_parameters, self.head_dim, _PARTIAL),
            qkv_bias=self.attention_bias,
            out_bias=self.attention_bias,
            gated=True,
            qk_norm="head",
            norm=OffsetRMSNorm,
            norm_eps=self.rms_norm_eps,
        )

    @property
    def delta_shape(self) -> DeltaRuleShape:
        """See :class:`HybridOptions`."""
        return DeltaRuleShape(
            hidden_size=self.hidden_size,
            num_heads=self.linear_num_key_heads,
            value_heads=self.linear_num_value_heads,
            key_width=self.linear_key_head_dim,
            value_width=self.linear_value_head_dim,
            conv_size=self.linear_conv_kernel_dim,
            use_gate=True,
            strength_scale=1.0,
            norm_eps=self.rms_norm_eps,
            backend=self.backend,
        )


class Qwen35DeltaMixer(DeltaRuleCore):
    """The mixer of a layer of ``linear_attention``."""

    def __init__(self, shape: DeltaRuleShape) -> None:
        super().__init__(shape)
        size, heads = shape.hidden_size, shape.value_heads
        self.sizes = shape.sizes
        value_size = self.sizes[-1]
        self.conv1d = ShortConv(sum(self.sizes), self.conv_size, True)
        self.dt_bias = nn.Parameter(torch.ones(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(0.01, 16).log_())
        self.norm = RMSNorm(shape.value_width, shape.norm_eps, for_products=True)
        self.out_proj = nn.Linear(value_size, size, bias=False)
        self.in_proj_qkv = nn.Linear(size, sum(self.sizes), bias=False)
        self.in_proj_z = nn.Linear(size, value_size, bias=False)
        self.in_proj_b = nn.Linear(size, heads, bias=False)
        self.in_proj_a = nn.Linear(size, heads, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor]:
        """See :class:`DeltaRuleCore`."""
        return (self.in_proj_qkv(x),)

    def strengths(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`DeltaRuleCore`."""
        beta = self.in_proj_b(x).sigmoid()
        return beta, log_decay(self.in_proj_a(x), self.A_log, self.dt_bias)

    def convolve(
        self, inputs: tuple[Tensor, ...], tails: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`DeltaRuleCore`."""
        return convolve_together(self.conv1d, self.sizes, inputs, tails)

    def activate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Value heads next to each other share q and k."""
        return shared_heads(self.num_value_heads // self.num_heads, q, k)

    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """See :class:`DeltaRuleCore`."""
        gate = self.in_proj_z(x).view_as(output)
        return self.out_proj(self.norm(output, gate, "silu").flatten(-2))


class Qwen35(StackedLM):
    """Qwen3.5's text model, published parameter names. Its arguments: :class:`Qwen35Options`."""

    options_class = Qwen35Options
    embeddings_name = "embed_tokens"

    def __init__(self, **fields: Any) -> None:
        super().__init__(Qwen35Options(**fields))

    def make_block(self, layer: int) -> Block:
        """See :class:`StackedLM`."""
        assert isinstance(self.options, Qwen35Options)
        full = self.options.layer_kinds[layer] == FULL
        form = BlockForm(
            mixer="self_attn" if full else "linear_attn",
            before_mixer="input_layernorm",
            before_mlp="post_attention_layernorm",
            norm=OffsetRMSNorm,
        )
        mixer: Mixer
        if full:
            mixer = AttentionMixer(self.options.attention_shape)
        else:
            mixer = Qwen35DeltaMixer(self.options.delta_shape)
        return Block(mixer, self.options, form)
