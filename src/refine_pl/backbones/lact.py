"""LaCT (arXiv 2505.23884): window attention beside fast weights that large chunks update.

f_W(x) = W1 (silu(W0 x) * (W2 x));  a chunk is read with the W from before it, then
W <- rescale(W + direction that increases the sum of rate_i <f_W(k_i), v_i> over the chunk)
"""

from __future__ import annotations

from typing import Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_kernels.backends import CompiledBackend
from refine_kernels.lact_update import UpdateRule
from refine_pl.backbones.lact_mixer import LaCTMixer
from refine_pl.backbones.stack import StackedLM, intermediate_size_for, require
from refine_pl.errors import ConfigError

NewtonSchulzDtype = Literal["bfloat16", "float32"]


class LaCT(StackedLM):
    """LaCT with the published configuration fields and parameter names.

    Args:
        vocab_size: number of tokens.
        hidden_size: model width ``D``.
        num_hidden_layers: number of blocks.
        num_attn_heads: heads of the window attention.
        num_lact_heads: heads of the fast weights.
        inter_multi: inner width of the fast weights, in widths of their heads.
        window_size: tokens that a token attends to, itself included.
        lact_chunk_size: tokens of one update of the fast weights.
        hidden_ratio: MLP width in model widths (times two thirds, rounded up to 256).
        intermediate_size: MLP width; computed from ``hidden_ratio`` if left out.
        qkv_bias: of the projection to q, k and v.
        attn_qk_norm: normalise q and k over the model width.
        qkv_silu: SiLU on the fast q, k and v.
        no_v_silu: but not on v.
        lr_dim: rates of a token, per head and matrix: 1, or the head's width if inter_multi is 1.
        use_muon: orthogonalise the direction.
        use_momentum: add the last chunk's direction, times a learned factor.
        learnable_ttt_scale: scale the fast branch by a learned factor.
        ttt_prenorm: keep an unnormalised copy of the fast weights, and normalise what is applied.
        ttt_nope: no rotary positions in the fast branch.
        w0_w2_low_rank: rank of the initial W0 and W2; below 1 they are plain parameters.
        fw_init_gain: of fresh low-rank parameters.
        rope_theta: base of the rotary positions.
        norm_eps: of the blocks' norms; those inside the mixer have 1e-5.
        newton_schulz_dtype: of the iteration of use_muon; bfloat16 as published, which rounds the
            result noticeably. float32 means float64 for float64 weights.
        tie_word_embeddings: use the embeddings as the head's weight.
        initializer_range: standard deviation of fresh weights.
        bos_token_id: written to exported configurations.
        eos_token_id: ends an answer.
        pad_token_id: written to exported configurations; padding here is by length.
        max_position_embeddings: written to exported configurations; any length can be read.
        hidden_act: of the MLP; swish.
        lr_parameterization: of the rates; mamba is the only published one.
        ttt_loss_type: dot_product is the only published one.
        elementwise_affine: weights in the norms; always.
        fp32_states: no effect: the fast weights are always float32, or float64.
        use_fused_kernel: no effect here, as the next five: how the published code computes it.
        use_cache: no effect.
        fuse_norm: no effect.
        last_layer_fuse_norm: no effect.
        fuse_swiglu: no effect.
        fuse_cross_entropy: no effect.
        backend: of the element-wise work between the fast weights' products: compiled, torch
            (uncompiled), or auto, which compiles for long rows in float32 on a CPU.
        activation_checkpointing: keep only each block's input for the backward pass.
    """

    def __init__(
        self,
        vocab_size: PositiveInt = 32000,
        hidden_size: PositiveInt = 2048,
        num_hidden_layers: PositiveInt = 24,
        num_attn_heads: PositiveInt = 32,
        num_lact_heads: PositiveInt = 4,
        inter_multi: PositiveFloat = 1,
        window_size: PositiveInt = 2048,
        lact_chunk_size: PositiveInt = 2048,
        hidden_ratio: PositiveFloat | None = 4,
        intermediate_size: PositiveInt | None = None,
        qkv_bias: bool = False,
        attn_qk_norm: bool = False,
        qkv_silu: bool = True,
        no_v_silu: bool = False,
        lr_dim: PositiveInt = 1,
        use_muon: bool = False,
        use_momentum: bool = True,
        learnable_ttt_scale: bool = True,
        ttt_prenorm: bool = False,
        ttt_nope: bool = False,
        w0_w2_low_rank: int = -1,
        fw_init_gain: PositiveFloat = 0.5,
        rope_theta: PositiveFloat = 10000.0,
        norm_eps: PositiveFloat = 1e-6,
        newton_schulz_dtype: NewtonSchulzDtype = "bfloat16",
        tie_word_embeddings: bool = False,
        initializer_range: PositiveFloat = 0.006,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        pad_token_id: int | None = None,
        max_position_embeddings: PositiveInt = 2048,
        hidden_act: str = "swish",
        lr_parameterization: str = "mamba",
        ttt_loss_type: str = "dot_product",
        elementwise_affine: bool = True,
        fp32_states: bool = False,
        use_fused_kernel: bool = False,
        use_cache: bool = True,
        fuse_norm: bool = True,
        last_layer_fuse_norm: bool = True,
        fuse_swiglu: bool = True,
        fuse_cross_entropy: bool = True,
        backend: CompiledBackend = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        fields = {k: v for k, v in locals().items() if k not in _NOT_PUBLISHED}
        if newton_schulz_dtype == "bfloat16":
            del fields["newton_schulz_dtype"]  # no published field
        require("hidden_act", hidden_act, ("swish", "silu"), "the MLP is a SwiGLU")
        require("lr_parameterization", lr_parameterization, ("mamba",), "no other one is known")
        require("ttt_loss_type", ttt_loss_type, ("dot_product",), "no other one is known")
        require("elementwise_affine", elementwise_affine, (True,), "the norms have weights")
        require(
            "newton_schulz_dtype", newton_schulz_dtype, ("bfloat16", "float32"), "not a type for it"
        )
        _check_widths(hidden_size, num_attn_heads, num_lact_heads, inter_multi, lr_dim)
        muon = getattr(torch, newton_schulz_dtype) if use_muon else None
        super().__init__(
            lambda: LaCTMixer(
                hidden_size=hidden_size,
                num_attn_heads=num_attn_heads,
                num_lact_heads=num_lact_heads,
                inter_multi=inter_multi,
                window_size=window_size,
                qkv_bias=qkv_bias,
                attn_qk_norm=attn_qk_norm,
                qkv_silu=qkv_silu,
                no_v_silu=no_v_silu,
                lr_dim=lr_dim,
                use_momentum=use_momentum,
                learnable_ttt_scale=learnable_ttt_scale,
                ttt_nope=ttt_nope,
                w0_w2_low_rank=w0_w2_low_rank,
                fw_init_gain=fw_init_gain,
                rope_theta=rope_theta,
                rule=UpdateRule(lact_chunk_size, ttt_prenorm, muon),
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
            fields={"model_type": "lact_swiglu", "architectures": ["LaCTForCausalLM"], **fields},
        )


def _check_widths(
    hidden_size: int, num_attn_heads: int, num_lact_heads: int, inter_multi: float, lr_dim: int
) -> None:
    for name, heads in (("num_attn_heads", num_attn_heads), ("num_lact_heads", num_lact_heads)):
        if hidden_size % heads:
            raise ConfigError(
                f"hidden_size {hidden_size} is not a multiple of {name} {heads}",
                allowed="heads of a whole width",
            )
    if hidden_size // num_attn_heads % 2:
        raise ConfigError(
            f"attention heads of width {hidden_size // num_attn_heads} cannot be rotated",
            allowed="an even width, hidden_size / num_attn_heads",
        )
    width = hidden_size // num_lact_heads
    if int(width * inter_multi) < 1:
        raise ConfigError(f"inter_multi {inter_multi:g} leaves fast weights without a width")
    if lr_dim != 1 and (lr_dim != width or int(width * inter_multi) != width):
        raise ConfigError(
            f"lr_dim {lr_dim} does not fit fast heads of width {width}",
            allowed=f"1, or {width} if inter_multi is 1",
        )


_NOT_PUBLISHED = {"self", "__class__", "activation_checkpointing", "backend"}
