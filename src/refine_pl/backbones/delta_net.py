"""DeltaNet (arXiv 2406.06484): the delta rule after short convolutions.

S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,   o_t = S_t^T q_t / sqrt(d_k)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor, nn

from refine_pl.backbones.delta_rule_layer import DeltaRuleLM, DeltaRuleMixer
from refine_pl.backbones.delta_rule_options import DeltaRuleOptions, DeltaRuleShape
from refine_pl.backbones.options import whole


@dataclass(frozen=True, kw_only=True)
class DeltaNetOptions(DeltaRuleOptions):
    """DeltaNet's published configuration fields.

    Args:
        num_heads: heads of the delta rule.
        expand_k: width of all keys, in model widths.
        expand_v: width of all values, in model widths.
        use_beta: learn write strengths; 1 otherwise.
        use_gate: gate the output.
        qk_activation: of q and k; with another one than silu their convolutions have none.
        qk_norm: l2 divides q and k by their L2 norms, sum by the sums of their magnitudes.
    """

    model_type = "delta_net"
    architecture = "DeltaNetForCausalLM"
    without_effect: ClassVar = {**DeltaRuleOptions.without_effect, "use_output_norm": True}
    most: ClassVar = {**DeltaRuleOptions.most, "expand_k": 2**10}

    num_heads: PositiveInt = 16
    expand_k: PositiveFloat = 1.0
    expand_v: PositiveFloat = 1.0
    use_beta: bool = True
    use_gate: bool = False
    qk_activation: Literal["silu", "relu", "elu", "identity"] = "silu"
    qk_norm: Literal["l2", "sum"] = "l2"

    @property
    def key_width(self) -> int:
        """Of a head."""
        return self._head_width("expand_k")

    @property
    def value_width(self) -> int:
        """Of a head."""
        return self._head_width("expand_v")

    @property
    def shape(self) -> DeltaRuleShape:
        """What the mixers are made from."""
        return replace(super().shape, learned_strengths=self.use_beta)

    def _head_width(self, expand: str) -> int:
        hidden_size, factor, heads = self.hidden_size, getattr(self, expand), self.num_heads
        return whole(
            f"hidden_size {hidden_size} x {expand} {factor:g} / num_heads {heads}",
            hidden_size * factor / heads,
            way_out="choose num_heads so that it divides the width",
        )


class DeltaNetMixer(DeltaRuleMixer):
    """The mixer of one DeltaNet layer."""

    def __init__(self, options: DeltaNetOptions) -> None:
        super().__init__(options.shape, silu_qk=options.qk_activation == "silu")
        self.qk_activation, self.qk_norm = options.qk_activation, options.qk_norm
        self.normalize_qk = options.qk_norm == "l2"

    def add_strengths(self, shape: DeltaRuleShape) -> None:
        """See :class:`DeltaRuleMixer`."""
        size = shape.hidden_size, shape.num_heads
        self.b_proj = nn.Linear(*size, bias=False) if shape.learned_strengths else None

    def strengths(self, x: Tensor) -> tuple[Tensor, None]:
        """See :class:`DeltaRuleMixer`."""
        if self.b_proj is None:
            return x.new_ones(x.shape[0], self.num_heads), None
        return self.b_proj(x).sigmoid(), None

    def activate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`DeltaRuleMixer`."""
        if self.qk_activation == "relu":
            q, k = F.relu(q), F.relu(k)
        elif self.qk_activation == "elu":
            q, k = F.elu(q) + 1, F.elu(k) + 1
        if self.qk_norm == "sum":
            q, k = _sum_normalize(q), _sum_normalize(k)
        return q, k


def _sum_normalize(x: Tensor) -> Tensor:
    return F.normalize(x, p=1, dim=-1, eps=1e-6).to(x.dtype)  # autocast makes it float32


class DeltaNet(DeltaRuleLM):
    """DeltaNet, with the published parameter names. Its arguments: :class:`DeltaNetOptions`."""

    options_class = DeltaNetOptions

    def __init__(self, **fields: Any) -> None:
        super().__init__(DeltaNetOptions(**fields), DeltaNetMixer)
