"""GatedDeltaNet (arXiv 2412.06464): the delta rule with a decay that depends on the token.

S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - e^{g_t} S_{t-1}^T k_t)^T,   o_t = S_t^T q_t / sqrt(d_k)
g_t = -e^{A_log} softplus(a_proj x_t + dt_bias)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor, nn

from refine_kernels.backends import FlaBackend
from refine_pl.backbones.delta_rule_layer import DeltaRuleMixer, ShortConv
from refine_pl.backbones.stack import RMSNorm, StackedLM, intermediate_size_for, require
from refine_pl.errors import ConfigError

OutputGateActivation = Literal["swish", "silu", "sigmoid"]

# Fresh decays: e^{A_log} uniform below the first; softplus(dt_bias) log-uniform between the others.
_MAX_RATE = 16.0
_MIN_STEP, _MAX_STEP = 1e-3, 1e-1


class GatedDeltaNetMixer(DeltaRuleMixer):
    """The mixer of one GatedDeltaNet layer. Arguments as in :class:`GatedDeltaNet`."""

    def __init__(
        self,
        *,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_v_heads: int | None,
        expand_v: float,
        use_gate: bool,
        use_short_conv: bool,
        conv_size: int,
        allow_neg_eigval: bool,
        output_gate_activation: OutputGateActivation,
        norm_eps: float,
        backend: FlaBackend,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_v_heads = _value_heads(num_heads, num_v_heads)
        self.key_width, self.value_width = head_dim, _value_width(head_dim, expand_v)
        key_size, value_size = num_heads * head_dim, self.num_v_heads * self.value_width
        self.beta_scale = 2.0 if allow_neg_eigval else 1.0
        self.sigmoid_gate = output_gate_activation == "sigmoid"
        self.normalize_qk = True
        self.backend = backend
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.a_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False)
        self.b_proj = nn.Linear(hidden_size, self.num_v_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.num_v_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.num_v_heads))
        self.q_conv1d = ShortConv(key_size, conv_size, True) if use_short_conv else None
        self.k_conv1d = ShortConv(key_size, conv_size, True) if use_short_conv else None
        self.v_conv1d = ShortConv(value_size, conv_size, True) if use_short_conv else None
        self.g_proj = nn.Linear(hidden_size, value_size, bias=False) if use_gate else None
        self.o_norm = RMSNorm(self.value_width, norm_eps)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False)
        self._initialize_decay()

    @torch.no_grad()
    def _initialize_decay(self) -> None:
        self.A_log.uniform_(0, _MAX_RATE).log_()
        self.dt_bias.uniform_(math.log(_MIN_STEP), math.log(_MAX_STEP)).exp_()
        self.dt_bias.add_((-torch.expm1(-self.dt_bias)).log())  # the inverse of softplus

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """See :class:`DeltaRuleMixer`."""
        beta = self.b_proj(x).sigmoid() * self.beta_scale
        # Sums of many decays are taken: never in 16 bits.
        dtype = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(self.a_proj(x).to(dtype) + self.dt_bias.to(dtype))
        log_decay = -self.A_log.to(dtype).exp() * step
        return self.q_proj(x), self.k_proj(x), self.v_proj(x), beta, log_decay

    def enter(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`DeltaRuleMixer`."""
        if self.v_conv1d is None:  # the convolutions bring their own SiLU
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        q = q.unflatten(-1, (self.num_heads, self.key_width))
        k = k.unflatten(-1, (self.num_heads, self.key_width))
        served = self.num_v_heads // self.num_heads  # value heads next to each other share q and k
        if served > 1:
            q, k = q.repeat_interleave(served, -2), k.repeat_interleave(served, -2)
        return q, k, v.unflatten(-1, (self.num_v_heads, self.value_width))

    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """See :class:`DeltaRuleMixer`."""
        output = self.o_norm(output)
        if self.g_proj is not None:
            gate = self.g_proj(x).view_as(output)
            output = output * (gate.sigmoid() if self.sigmoid_gate else F.silu(gate))
        return self.o_proj(output.flatten(-2))


def _value_heads(num_heads: int, num_v_heads: int | None) -> int:
    value_heads = num_heads if num_v_heads is None else num_v_heads
    if value_heads % num_heads:
        raise ConfigError(
            f"num_v_heads {value_heads} is not a multiple of num_heads {num_heads}",
            allowed="every head of q and k serves the same number of value heads",
            way_out="leave num_v_heads out for one value head each",
        )
    return value_heads


def _value_width(head_dim: int, expand_v: float) -> int:
    width = round(head_dim * expand_v)
    if width < 1 or not math.isclose(width, head_dim * expand_v, rel_tol=1e-5):
        raise ConfigError(
            f"head_dim {head_dim} x expand_v {expand_v:g} = {head_dim * expand_v:g} is not a whole "
            "width of a value head",
            allowed="a positive integer",
        )
    return width


class GatedDeltaNet(StackedLM):
    """GatedDeltaNet with the published configuration fields and parameter names.

    Args:
        vocab_size: number of tokens.
        hidden_size: model width ``D``.
        num_hidden_layers: number of blocks.
        head_dim: width of a head of q and k.
        num_heads: heads of q and k.
        num_v_heads: heads of v, a multiple of ``num_heads``; as many as of q and k if left out.
        expand_v: width of a value head, in widths of a key head.
        hidden_ratio: MLP width in model widths (times two thirds, rounded up to 256).
        intermediate_size: MLP width; computed from ``hidden_ratio`` if left out.
        use_gate: gate the output.
        output_gate_activation: of the gate; swish and silu are the same.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolutions.
        allow_neg_eigval: write strengths up to 2 instead of 1.
        norm_eps: of the norms.
        tie_word_embeddings: use the embeddings as the head's weight.
        initializer_range: standard deviation of fresh weights.
        bos_token_id: written to exported configurations.
        eos_token_id: ends an answer.
        pad_token_id: written to exported configurations; padding here is by length.
        max_position_embeddings: written to exported configurations; any length can be read.
        hidden_act: of the MLP; swish.
        attn: attention layers in between; not supported.
        use_l2warp: a change of the published loss; not supported.
        attnres_block_size: attention over residuals; not supported.
        attn_mode: no effect here, as the next five: how the published code computes the same.
        use_cache: no effect.
        fuse_norm: no effect.
        fuse_swiglu: no effect.
        fuse_cross_entropy: no effect.
        fuse_linear_cross_entropy: no effect.
        activation_checkpointing: keep only each block's input for the backward pass.
        backend: of the recurrence; auto takes fla's kernels on CUDA in 16 bits, torch otherwise.
    """

    def __init__(
        self,
        vocab_size: PositiveInt = 32000,
        hidden_size: PositiveInt = 2048,
        num_hidden_layers: PositiveInt = 21,
        head_dim: PositiveInt = 256,
        num_heads: PositiveInt = 6,
        num_v_heads: PositiveInt | None = None,
        expand_v: PositiveFloat = 2.0,
        hidden_ratio: PositiveFloat | None = 4,
        intermediate_size: PositiveInt | None = None,
        use_gate: bool = True,
        output_gate_activation: OutputGateActivation = "swish",
        use_short_conv: bool = True,
        conv_size: PositiveInt = 4,
        allow_neg_eigval: bool = False,
        norm_eps: PositiveFloat = 1e-6,
        tie_word_embeddings: bool = False,
        initializer_range: PositiveFloat = 0.02,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        pad_token_id: int | None = None,
        max_position_embeddings: PositiveInt = 2048,
        hidden_act: str = "swish",
        attn: dict[str, Any] | None = None,
        use_l2warp: bool = False,
        attnres_block_size: int | None = None,
        attn_mode: str = "chunk",
        use_cache: bool = True,
        fuse_norm: bool = True,
        fuse_swiglu: bool = True,
        fuse_cross_entropy: bool = True,
        fuse_linear_cross_entropy: bool = False,
        activation_checkpointing: bool = False,
        backend: FlaBackend = "auto",
    ) -> None:
        fields = {k: v for k, v in locals().items() if k not in _NOT_PUBLISHED}
        require("hidden_act", hidden_act, ("swish", "silu"), "the MLP is a SwiGLU")
        fields["hidden_act"] = "swish"  # the only name of it that fla's classes take
        require("attn", attn, (None,), "layers of softmax attention have no fixed-size state")
        require("use_l2warp", use_l2warp, (False,), "it changes the gradient of the loss")
        require("attnres_block_size", attnres_block_size, (None,), "it changes the residuals")
        gates = ("swish", "silu", "sigmoid")
        require("output_gate_activation", output_gate_activation, gates, "no such gate is known")
        super().__init__(
            lambda: GatedDeltaNetMixer(
                hidden_size=hidden_size,
                head_dim=head_dim,
                num_heads=num_heads,
                num_v_heads=num_v_heads,
                expand_v=expand_v,
                use_gate=use_gate,
                use_short_conv=use_short_conv,
                conv_size=conv_size,
                allow_neg_eigval=allow_neg_eigval,
                output_gate_activation=output_gate_activation,
                norm_eps=norm_eps,
                backend=backend,
            ),
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            intermediate_size=intermediate_size or intermediate_size_for(hidden_size, hidden_ratio),
            norm_eps=norm_eps,
            tie_word_embeddings=tie_word_embeddings,
            initializer_range=initializer_range,
            activation_checkpointing=activation_checkpointing,
            fields={
                "model_type": "gated_deltanet",
                "architectures": ["GatedDeltaNetForCausalLM"],
                **fields,
            },
        )


_NOT_PUBLISHED = {"self", "__class__", "activation_checkpointing", "backend"}
