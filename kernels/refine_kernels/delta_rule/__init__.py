"""The delta rule, with and without decay."""

from refine_kernels.delta_rule.interface import DeltaRuleOutput, delta_rule
from refine_kernels.delta_rule.shared import SharedState, delta_rule_shared

__all__ = ["DeltaRuleOutput", "SharedState", "delta_rule", "delta_rule_shared"]
