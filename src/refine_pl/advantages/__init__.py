"""Advantages: which rollouts are compared, and how."""

from refine_pl.advantages.base import AdvantageEstimator, GroupBy
from refine_pl.advantages.group_relative import GroupRelative, group_relative
from refine_pl.advantages.groups import GroupStatistics, group_statistics
from refine_pl.advantages.leave_one_out import LeaveOneOut, leave_one_out

__all__ = [
    "AdvantageEstimator",
    "GroupBy",
    "GroupRelative",
    "GroupStatistics",
    "LeaveOneOut",
    "group_relative",
    "group_statistics",
    "leave_one_out",
]
