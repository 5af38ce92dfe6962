"""Advantages: which rollouts are compared, and how."""

from refine_pl.advantages.base import AdvantageEstimator, GroupBy
from refine_pl.advantages.group_relative import GroupRelative
from refine_pl.advantages.groups import Groups, GroupStatistics, group, group_statistics
from refine_pl.advantages.leave_one_out import LeaveOneOut

__all__ = [
    "AdvantageEstimator",
    "GroupBy",
    "GroupRelative",
    "GroupStatistics",
    "Groups",
    "LeaveOneOut",
    "group",
    "group_statistics",
]
