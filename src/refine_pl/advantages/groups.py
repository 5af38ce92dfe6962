"""Groups of rollouts that are compared with each other, and their statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from refine_pl.advantages.base import GroupBy


class Groups(NamedTuple):
    """The members of each group, in a layout that broadcasts over ``[B, S, N]``."""

    rewards: Tensor  # [B, S, N] float64, 0 where not a member
    member: Tensor  # [B, S, N] bool
    total: Tensor  # [B, 1, 1] or [B, S, 1] float64
    num_members: Tensor  # like total, int64
    zero_spread: Tensor  # like total, bool: one member, or equal rewards
    dims: tuple[int, ...]  # those that a group extends over

    def mean(self) -> Tensor:
        """``[B, 1, 1]`` or ``[B, S, 1]`` float64."""
        return self.total / self.num_members.clamp_min(1)

    def std(self, ddof: int) -> Tensor:
        """Square root of the summed squares over (members - ``ddof``); 0 for a group of one."""
        deviation = (self.rewards - self.mean()) * self.member
        squares = deviation.square().sum(dim=self.dims, keepdim=True)
        std = (squares / (self.num_members - ddof).clamp_min(1)).sqrt()
        return std.where(~self.zero_spread, 0.0)

    def where_rewards_differ(self, advantages: Tensor) -> Tensor:
        """``advantages`` in float32, exactly 0 where not valid and in groups without spread."""
        return advantages.where(self.member & ~self.zero_spread, 0.0).float()


def group(rewards: Tensor, valid: Tensor, group_by: GroupBy) -> Groups:
    """Sort rewards into groups.

    Args:
        rewards: ``[B, S, N]``; what it holds where not valid is not read.
        valid: ``[B, S]`` bool.
        group_by: ``position``: the N rollouts of one position; ``sequence``: all of one sequence;
            ``auto``: ``sequence`` for N = 1 and ``position`` otherwise.
    """
    if group_by == "auto":
        group_by = "sequence" if rewards.shape[2] == 1 else "position"
    dims = (1, 2) if group_by == "sequence" else (2,)
    member = valid.unsqueeze(-1).expand_as(rewards)
    # In float64 the sum of equal float32 numbers is exact, and so is their mean.
    values = rewards.detach().double()
    values = values.where(member, 0.0)
    largest = values.masked_fill(~member, -torch.inf).amax(dim=dims, keepdim=True)
    smallest = values.masked_fill(~member, torch.inf).amin(dim=dims, keepdim=True)
    return Groups(
        values,
        member,
        values.sum(dim=dims, keepdim=True),
        member.sum(dim=dims, keepdim=True),
        largest <= smallest,
        dims,
    )


class GroupStatistics(NamedTuple):
    """One entry for each of the ``G`` groups that have a valid member."""

    std: Tensor  # [G] float32, unbiased (ddof 1); 0 for a group of one
    zero_spread: Tensor  # [G] bool: one member or equal rewards, hence no advantage and no gradient


def group_statistics(rewards: Tensor, valid: Tensor, group_by: GroupBy) -> GroupStatistics:
    """How much rewards differ within their groups, for the log; arguments as in :func:`group`."""
    groups = group(rewards, valid, group_by)
    exists = groups.num_members > 0
    return GroupStatistics(groups.std(ddof=1)[exists].float(), groups.zero_spread[exists])
