"""LaCT's published configuration fields, and the widths that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from refine_kernels.backends import CompiledBackend
from refine_kernels.lact_update import Precision, UpdateRule
from refine_pl.backbones.option_values import MOST
from refine_pl.backbones.options import StackOptions
from refine_pl.errors import ConfigError

_ONLY = "no other one is known"


@dataclass(frozen=True, kw_only=True)
class LaCTOptions(StackOptions):
    """LaCT's published configuration fields.

    Args:
        num_attn_heads: heads of the window attention.
        num_lact_heads: heads of the fast weights.
        inter_multi: inner width of the fast weights, in widths of their heads.
        window_size: tokens that a token attends to, itself included.
        lact_chunk_size: tokens of one update of the fast weights.
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
        newton_schulz_dtype: of the iteration of use_muon; bfloat16 as published, which rounds the
            result noticeably. float32 means float64 for float64 weights.
        backend: of the element-wise work between the fast weights' products: compiled, torch
            (uncompiled), triton, or auto, which takes Triton kernels on CUDA, and compiles for long
            rows in float32 on a CPU.
        precision: of the operands of the fast weights' products: bf16, float32, or auto, which is
            bf16 on CUDA in 16 bits or mixed precision. The fast weights and all sums are float32.
    """

    model_type = "lact_swiglu"
    architecture = "LaCTForCausalLM"
    fixed: ClassVar = {
        **StackOptions.fixed,
        "lr_parameterization": (("mamba",), _ONLY),
        "ttt_loss_type": (("dot_product",), _ONLY),
        "elementwise_affine": ((True,), "the norms have weights"),
    }
    without_effect: ClassVar = {
        **StackOptions.without_effect,
        "fp32_states": False,  # the fast weights are always float32, or float64
        "use_fused_kernel": False,
        "last_layer_fuse_norm": True,
    }
    most: ClassVar = {
        **StackOptions.most,
        "inter_multi": 2**10,
        "fw_init_gain": 100,
        "rope_theta": 2**40,
        **dict.fromkeys(("window_size", "lact_chunk_size"), 2**40),
    }

    num_attn_heads: PositiveInt = 32
    num_lact_heads: PositiveInt = 4
    inter_multi: PositiveFloat = 1
    window_size: PositiveInt = 2048
    lact_chunk_size: PositiveInt = 2048
    qkv_bias: bool = False
    attn_qk_norm: bool = False
    qkv_silu: bool = True
    no_v_silu: bool = False
    lr_dim: PositiveInt = 1
    use_muon: bool = False
    use_momentum: bool = True
    learnable_ttt_scale: bool = True
    ttt_prenorm: bool = False
    ttt_nope: bool = False
    w0_w2_low_rank: int = -1
    fw_init_gain: PositiveFloat = 0.5
    rope_theta: PositiveFloat = 10000.0
    initializer_range: PositiveFloat = 0.006
    newton_schulz_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    backend: CompiledBackend = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        hidden, width = self.hidden_size, self.fast_width
        for name in ("num_attn_heads", "num_lact_heads"):
            if hidden % getattr(self, name):
                what = f"hidden_size {hidden} is not a multiple of {name} {getattr(self, name)}"
                raise ConfigError(what, allowed="heads of a whole width")
        if self.head_width % 2:
            what = f"attention heads of width {self.head_width} cannot be rotated"
            raise ConfigError(what, allowed="an even width, hidden_size / num_attn_heads")
        if not 1 <= self.inner_width <= MOST:
            what = (
                f"inter_multi {self.inter_multi:g} makes fast weights of width {self.inner_width}"
            )
            raise ConfigError(what, allowed=f"an inner width from 1 to {MOST:,}")
        if self.lr_dim != 1 and not self.lr_dim == width == self.inner_width:
            what = f"lr_dim {self.lr_dim} does not fit fast heads of width {width}"
            raise ConfigError(what, allowed=f"1, or {width} if inter_multi is 1")

    @property
    def head_width(self) -> int:
        """Of the attention."""
        return self.hidden_size // self.num_attn_heads

    @property
    def fast_width(self) -> int:
        """Of a head of the fast weights."""
        return self.hidden_size // self.num_lact_heads

    @property
    def inner_width(self) -> int:
        """Of the fast weights' hidden layer."""
        return int(self.fast_width * self.inter_multi)

    @property
    def rule(self) -> UpdateRule:
        """How a chunk changes the fast weights."""
        muon = getattr(torch, self.newton_schulz_dtype) if self.use_muon else None
        return UpdateRule(self.lact_chunk_size, self.ttt_prenorm, muon)

    def config(self) -> dict[str, Any]:
        """See :class:`StackOptions`; a field of our own is written only where it says something."""
        config = super().config()
        if self.newton_schulz_dtype == "bfloat16":
            del config["newton_schulz_dtype"]
        return config
