"""Sums over micro-batches and processes, of which the log shows the means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from refine_pl.advantages import GroupBy, group
from refine_pl.records import Experience
from refine_pl.refine_step import LossWeights

FAULTS = "reward_faults/"


class Tally:
    """Sums and counts by name. A mean is taken once, over all micro-batches and processes.

    Args:
        names: sums to start with, so that every process has them, even if it adds nothing.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._entries: dict[str, tuple[Tensor, Tensor]] = {}
        self._totals: set[str] = set()
        for name in names:
            self.add(name, 0.0, 0)

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum over ``count`` things to ``name``."""
        new = torch.as_tensor(total).detach().double(), torch.as_tensor(count).double()
        old = self._entries.get(name)
        if old is not None:
            new = old[0].to(new[0].device) + new[0], old[1].to(new[1].device) + new[1]
        self._entries[name] = new

    def add_total(self, name: str, total: float) -> None:
        """Add to a sum that :meth:`means` gives as it is, over all processes."""
        self.add(name, total, 1)
        self._totals.add(name)

    def add_values(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Add every element of ``values``, or those ``where`` a mask of the same shape is true.

        Indexing with the mask would be the same, but a GPU would be waited for.
        """
        count: Tensor | int = values.numel()
        if where is not None:
            values, count = values.where(where, 0), where.sum()
        self.add(name, values.double().sum(), count)

    def add_spread(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Add to ``name/mean``, and what :meth:`means` needs for ``name/std``."""
        self.add_values(f"{name}/mean", values, where)
        self.add_values(f"{name}/mean_square", values.double().square(), where)

    def means(self, device: torch.device, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of every name that counted anything.

        Args:
            device: where the sums are brought together.
            reduce: adds a tensor up over all processes, which must hold the same names.
        """
        if not self._entries:
            return {}
        pairs = [torch.stack([e.to(device) for e in entry]) for entry in self._entries.values()]
        sums = reduce(torch.stack(pairs)).tolist()
        pairs_by_name = zip(self._entries, sums, strict=True)
        means = {n: s if n in self._totals else s / c for n, (s, c) in pairs_by_name if c > 0}
        for name in [n for n in means if n.endswith("/mean_square")]:
            stem = name.removesuffix("/mean_square")
            variance = means.pop(name) - means[f"{stem}/mean"] ** 2
            means[f"{stem}/std"] = max(variance, 0.0) ** 0.5
        return means


def logged_means(means: Mapping[str, float], weights: LossWeights) -> dict[str, float]:
    """Means of an iteration under the names that they are logged as, with their weighted sum."""
    logged = {}
    if "ntp_loss" in means:
        logged["train/loss"] = weights.ntp_weight * means["ntp_loss"]
        logged["train/loss"] += weights.policy_weight * means.get("policy_loss", 0.0)
        logged["train/loss"] += weights.kl_weight * means.get("kl", 0.0)
    for name, value in means.items():
        group = "train/" if name in ("ntp_loss", "policy_loss", "kl") else "policy/"
        logged[name if "/" in name else group + name] = value
    return logged


def tally_experience(
    tally: Tally, experience: Experience, group_by: GroupBy, faults: Mapping[str, int]
) -> None:
    """Add what the log says about one micro-batch of rollouts.

    ``faults`` are those of rewards, by name, that were counted as 0.

    A number of your own is a line here, over the entries that are ``valid [B, S, N]``, and one in
    ``metric_table.py``.
    """
    rewards = experience.rewards
    valid = experience.rollouts.valid[..., None].expand_as(rewards)
    for name, part in experience.reward_parts.items():
        tally.add_spread(f"reward/{name}", part, valid)
        tally.add_total(f"{FAULTS}{name}", faults.get(name, 0))
    tally.add_spread("reward/total", rewards, valid)
    groups = group(rewards, experience.rollouts.valid, group_by)
    exists = groups.num_members > 0
    tally.add_values("reward/total/group_std", groups.std(ddof=1).float(), exists)
    tally.add_values("advantage/zero_spread_groups", groups.zero_spread, exists)
    tally.add_values("advantage/magnitude", experience.advantages.abs(), valid)
