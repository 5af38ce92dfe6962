"""GatedDeltaNet (arXiv 2412.06464): the delta rule with a decay that depends on the token.

S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - e^{g_t} S_{t-1}^T k_t)^T,   o_t = S_t^T q_t / sqrt(d_k)
g_t = -e^{A_log} softplus(a_proj x_t + dt_bias)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor, nn

from refine_pl.backbones.delta_rule_layer import DeltaRuleLM, DeltaRuleMixer
from refine_pl.backbones.delta_rule_options import DeltaRuleOptions, DeltaRuleShape
from refine_pl.backbones.options import whole
from refine_pl.errors import ConfigError

# Fresh decays: e^{A_log} uniform below the first; softplus(dt_bias) log-uniform between the others.
_MAX_RATE = 16.0
_MIN_STEP, _MAX_STEP = 1e-3, 1e-1


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetOptions(DeltaRuleOptions):
    """GatedDeltaNet's published configuration fields.

    Args:
        head_dim: width of a head of q and k.
        num_heads: heads of q and k.
        num_v_heads: heads of v, a multiple of ``num_heads``; as many as of q and k if left out.
        expand_v: width of a value head, in widths of a key head.
        use_gate: gate the output.
        output_gate_activation: of the gate; swish and silu are the same.
    """

    model_type = "gated_deltanet"
    architecture = "GatedDeltaNetForCausalLM"
    unused_weights = r"model\.layers\.\d+\.attn\.D"  # earlier published code kept it

    num_hidden_layers: PositiveInt = 21
    head_dim: PositiveInt = 256
    num_heads: PositiveInt = 6
    num_v_heads: PositiveInt | None = None
    expand_v: PositiveFloat = 2.0
    use_gate: bool = True
    output_gate_activation: Literal["swish", "silu", "sigmoid"] = "swish"

    @property
    def key_width(self) -> int:
        """Of a head of q and k."""
        return self.head_dim

    @property
    def value_width(self) -> int:
        """Of a head of v."""
        what = f"head_dim {self.head_dim} x expand_v {self.expand_v:g}"
        return whole(what, self.head_dim * self.expand_v)

    @property
    def value_heads(self) -> int:
        """Heads of v."""
        heads = self.num_heads if self.num_v_heads is None else self.num_v_heads
        if heads % self.num_heads:
            raise ConfigError(
                f"num_v_heads {heads} is not a multiple of num_heads {self.num_heads}",
                allowed="every head of q and k serves the same number of value heads",
                way_out="leave num_v_heads out for one value head each",
            )
        return heads


class GatedDeltaRuleMixer(DeltaRuleMixer):
    """The mixer of one layer, made from its shape alone."""

    def __init__(self, shape: DeltaRuleShape) -> None:
        super().__init__(shape)
        initialize_decay(self.A_log, self.dt_bias)

    def add_strengths(self, shape: DeltaRuleShape) -> None:
        """See :class:`DeltaRuleMixer`."""
        heads = shape.value_heads
        self.a_proj = nn.Linear(shape.hidden_size, heads, bias=False)
        self.b_proj = nn.Linear(shape.hidden_size, heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))

    def strengths(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`DeltaRuleCore`."""
        return self.b_proj(x).sigmoid(), log_decay(self.a_proj(x), self.A_log, self.dt_bias)

    def activate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Value heads next to each other share q and k."""
        return shared_heads(self.num_value_heads // self.num_heads, q, k)


class GatedDeltaNetMixer(GatedDeltaRuleMixer):
    """The mixer of one GatedDeltaNet layer."""

    def __init__(self, options: GatedDeltaNetOptions) -> None:
        super().__init__(options.shape)
        if options.output_gate_activation == "sigmoid":
            self.gate_activation = "sigmoid"


def shared_heads(served: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """``q, k [..., heads, K]``, each head once for every one of the ``served`` value heads."""
    if served > 1:
        q, k = q.repeat_interleave(served, -2), k.repeat_interleave(served, -2)
    return q, k


def log_decay(a: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """``-e^{A_log} softplus(a + dt_bias)`` of ``a [M, H]``."""
    # Sums of many decays are taken: never in 16 bits.
    dtype = torch.promote_types(a.dtype, torch.float32)
    return -a_log.to(dtype).exp() * F.softplus(a.to(dtype) + dt_bias.to(dtype))


@torch.no_grad()
def initialize_decay(a_log: Tensor, dt_bias: Tensor) -> None:
    """Fresh decays, as published."""
    a_log.uniform_(0, _MAX_RATE).log_()
    dt_bias.uniform_(math.log(_MIN_STEP), math.log(_MAX_STEP)).exp_()
    dt_bias.add_((-torch.expm1(-dt_bias)).log())  # the inverse of softplus


class GatedDeltaNet(DeltaRuleLM):
    """GatedDeltaNet, published parameter names. Its arguments: :class:`GatedDeltaNetOptions`."""

    options_class = GatedDeltaNetOptions

    def __init__(self, **fields: Any) -> None:
        super().__init__(GatedDeltaNetOptions(**fields), GatedDeltaNetMixer)
