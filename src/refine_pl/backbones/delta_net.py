"""DeltaNet (arXiv 2406.06484): the delta rule behind short convolutions.

S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,   o_t = S_t^T q_t / sqrt(d_k)
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor, nn

from refine_kernels.backends import FlaBackend
from refine_pl.backbones.delta_rule_layer import DeltaRuleMixer, ShortConv
from refine_pl.backbones.stack import RMSNorm, StackedLM, intermediate_size_for, require
from refine_pl.errors import ConfigError

QKActivation = Literal["silu", "relu", "elu", "identity"]
QKNorm = Literal["l2", "sum"]


class DeltaNetMixer(DeltaRuleMixer):
    """The mixer of one DeltaNet layer. Arguments as in :class:`DeltaNet`."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        expand_k: float,
        expand_v: float,
        use_beta: bool,
        use_gate: bool,
        use_short_conv: bool,
        conv_size: int,
        allow_neg_eigval: bool,
        qk_activation: QKActivation,
        qk_norm: QKNorm,
        norm_eps: float,
        backend: FlaBackend,
    ) -> None:
        super().__init__()
        self.key_width = _head_width("expand_k", hidden_size, expand_k, num_heads)
        self.value_width = _head_width("expand_v", hidden_size, expand_v, num_heads)
        key_size, value_size = num_heads * self.key_width, num_heads * self.value_width
        self.num_heads = num_heads
        self.beta_scale = 2.0 if allow_neg_eigval else 1.0
        self.qk_activation = qk_activation
        self.qk_norm = qk_norm
        self.normalize_qk = qk_norm == "l2"
        self.backend = backend
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False) if use_beta else None
        silu = qk_activation == "silu"
        self.q_conv1d = ShortConv(key_size, conv_size, silu) if use_short_conv else None
        self.k_conv1d = ShortConv(key_size, conv_size, silu) if use_short_conv else None
        self.v_conv1d = ShortConv(value_size, conv_size, True) if use_short_conv else None
        self.g_proj = nn.Linear(hidden_size, value_size, bias=False) if use_gate else None
        self.o_norm = RMSNorm(self.value_width, norm_eps)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """See :class:`DeltaRuleMixer`."""
        if self.b_proj is None:
            beta = x.new_ones(x.shape[0], self.num_heads)
        else:
            beta = self.b_proj(x).sigmoid()
        return self.q_proj(x), self.k_proj(x), self.v_proj(x), beta * self.beta_scale, None

    def enter(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`DeltaRuleMixer`."""
        if self.v_conv1d is None:  # the convolutions bring their own SiLU
            v = F.silu(v)
            if self.qk_activation == "silu":
                q, k = F.silu(q), F.silu(k)
        q = q.unflatten(-1, (self.num_heads, self.key_width))
        k = k.unflatten(-1, (self.num_heads, self.key_width))
        if self.qk_activation == "relu":
            q, k = F.relu(q), F.relu(k)
        elif self.qk_activation == "elu":
            q, k = F.elu(q) + 1, F.elu(k) + 1
        if self.qk_norm == "sum":
            q, k = _sum_normalize(q), _sum_normalize(k)
        return q, k, v.unflatten(-1, (self.num_heads, self.value_width))

    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """See :class:`DeltaRuleMixer`."""
        output = self.o_norm(output)
        if self.g_proj is not None:
            output = output * F.silu(self.g_proj(x)).view_as(output)
        return self.o_proj(output.flatten(-2))


def _sum_normalize(x: Tensor) -> Tensor:
    return F.normalize(x, p=1, dim=-1, eps=1e-6).to(x.dtype)  # autocast makes it float32


def _head_width(name: str, hidden_size: int, expand: float, num_heads: int) -> int:
    width = hidden_size * expand / num_heads
    if width < 1 or width != int(width):
        raise ConfigError(
            f"hidden_size {hidden_size} x {name} {expand:g} / num_heads {num_heads} = {width:g} "
            "is not a whole head width",
            allowed="a positive integer",
            way_out="choose num_heads so that it divides the width",
        )
    return int(width)


class DeltaNet(StackedLM):
    """DeltaNet with the published configuration fields and parameter names.

    Args:
        vocab_size: number of tokens.
        hidden_size: model width ``D``.
        num_hidden_layers: number of blocks.
        num_heads: heads of the delta rule.
        expand_k: width of all keys, in model widths.
        expand_v: width of all values, in model widths.
        hidden_ratio: MLP width in model widths (times two thirds, rounded up to 256).
        intermediate_size: MLP width; computed from ``hidden_ratio`` if left out.
        use_beta: learn write strengths; 1 otherwise.
        use_gate: gate the output.
        use_short_conv: convolve q, k and v.
        conv_size: taps of the convolutions.
        allow_neg_eigval: write strengths up to 2 instead of 1.
        qk_activation: of q and k; with another one than silu their convolutions have none.
        qk_norm: l2 divides q and k by their L2 norms, sum by the sums of their magnitudes.
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
        attn_mode: no effect here, as the next six: how the published code computes the same.
        use_cache: no effect.
        use_output_norm: no effect; the published code always normalises.
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
        num_hidden_layers: PositiveInt = 24,
        num_heads: PositiveInt = 16,
        expand_k: PositiveFloat = 1.0,
        expand_v: PositiveFloat = 1.0,
        hidden_ratio: PositiveFloat | None = 4,
        intermediate_size: PositiveInt | None = None,
        use_beta: bool = True,
        use_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: PositiveInt = 4,
        allow_neg_eigval: bool = False,
        qk_activation: QKActivation = "silu",
        qk_norm: QKNorm = "l2",
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
        use_output_norm: bool = True,
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
        super().__init__(
            lambda: DeltaNetMixer(
                hidden_size=hidden_size,
                num_heads=num_heads,
                expand_k=expand_k,
                expand_v=expand_v,
                use_beta=use_beta,
                use_gate=use_gate,
                use_short_conv=use_short_conv,
                conv_size=conv_size,
                allow_neg_eigval=allow_neg_eigval,
                qk_activation=qk_activation,
                qk_norm=qk_norm,
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
            fields={"model_type": "delta_net", "architectures": ["DeltaNetForCausalLM"], **fields},
        )


_NOT_PUBLISHED = {"self", "__class__", "activation_checkpointing", "backend"}
