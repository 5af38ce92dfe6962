"""What a training run logs: the names, and the sums that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from refine_pl.advantages import GroupBy, group_statistics
from refine_pl.records import Experience
from refine_pl.refine_step import LossWeights

METRICS: dict[str, str] = {
    "train/loss": "the weighted sum of the losses below, mean over the iteration's updates",
    "train/ntp_loss": "next-token cross-entropy of the sequences, nats per token",
    "train/policy_loss": "clipped policy loss, per rollout token",
    "train/kl": "KL estimate against the frozen reference, nats per rollout token",
    "train/sft_loss": "post-training: cross-entropy of the answers, nats per answer token",
    "train/answer_accuracy": "share of answer tokens that are the most likely one",
    "train/answer_policy_loss": "GRPO on answers: clipped policy loss, per sampled token",
    "answer/score": "GRPO on answers: the task's score, mean over sampled answers",
    "answer/num_tokens": "tokens of a sampled answer, mean",
    "answer/zero_spread_groups": "share of prompts whose answers all have the same score",
    "answer/ratio": "probability now / when sampled, mean over sampled tokens",
    "answer/clip_fraction": "share of sampled tokens whose ratio is clipped",
    "reward/total/mean": "weighted sum of the rewards, mean over rollouts",
    "reward/total/std": "its standard deviation over all rollouts of the iteration",
    "reward/total/group_std": "its standard deviation inside a group, mean over groups",
    "reward/<name>/mean": "one reward, before its weight, mean over rollouts",
    "reward/<name>/std": "its standard deviation over all rollouts of the iteration",
    "advantage/magnitude": "mean of |A| over rollouts",
    "advantage/zero_spread_groups": "share of groups whose rewards are equal: they teach nothing",
    "policy/ratio": "probability now / when sampled, mean over rollout tokens",
    "policy/clip_fraction": "share of rollout tokens whose ratio is clipped",
    "policy/dual_clip_fraction": "share of rollout tokens where the dual clip binds",
    "policy/approx_kl": "old minus new log-probability, nats per rollout token",
    "policy/entropy": "entropy of the policy at the rollout tokens, nats",
    "optim/grad_norm": "gradient norm before clipping, mean over updates with a finite one",
    "optim/lr": "learning rate of the first parameter group",
    "optim/updates": "optimizer steps since the start, skipped ones included",
    "optim/skipped_steps": "optimizer steps skipped since the start: gradient norm not finite",
    "time/prefill_s": "seconds of one iteration spent reading the sequences without gradient",
    "time/select_s": "seconds spent choosing positions",
    "time/rollout_s": "seconds spent sampling",
    "time/reward_s": "seconds spent on rewards and advantages",
    "time/answer_s": "seconds spent on preparing answers: sampling and scoring them, in GRPO",
    "time/update_s": "seconds spent on forward, backward and optimizer steps",
    "time/tokens_per_s": "sequence tokens per second over all processes, smoothed",
    "memory/peak_gib": "peak since the start: of the GPU's allocator, or of the process on a CPU",
    "run/tokens_seen": "sequence tokens since the start, over all processes",
    "run/phase": "number of the phase in the schedule, from 0",
    "val/ntp_loss": "next-token cross-entropy of held-out documents, nats per token",
    "val/accuracy": "share of next tokens that are the most likely one",
    "val/sampled_accuracy": "share that a sample would hit: mean probability of the true token",
    "val/reward": "weighted sum of the rewards of rollouts from held-out documents",
    "val/reward_<name>": "one reward of these rollouts, before its weight",
    "val/exact_match": "share of their tokens that equal the true ones",
    "val/sft_loss": "cross-entropy of held-out rows' answers, nats per answer token",
    "val/answer_accuracy": "share of these tokens that are the most likely one",
    "val/score": "score of the model's own answers to held-out rows, mean over rows, in [0, 1]",
}
"""Every scalar in TensorBoard and what it is. The x-axis counts iterations."""

VALIDATION_SUMS = (
    "val/ntp_loss",
    "val/accuracy",
    "val/sampled_accuracy",
    "val/reward",
    "val/exact_match",
    "val/sft_loss",
    "val/answer_accuracy",
    "val/score",
)

FLAT_SHARE, FLAT_ITERATIONS = 0.95, 20


class Tally:
    """Sums and counts by name. A mean is taken once, over all micro-batches and processes.

    Args:
        names: sums to start with, so that every process has them, even if it adds nothing.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._entries: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            self.add(name, 0.0, 0)

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum over ``count`` things to ``name``."""
        new = torch.as_tensor(total).detach().double(), torch.as_tensor(count).double()
        old = self._entries.get(name)
        if old is not None:
            new = old[0].to(new[0].device) + new[0], old[1].to(new[1].device) + new[1]
        self._entries[name] = new

    def add_values(self, name: str, values: Tensor) -> None:
        """Add every element of ``values``."""
        self.add(name, values.double().sum(), values.numel())

    def add_spread(self, name: str, values: Tensor) -> None:
        """Add every element to ``name/mean``, and what :meth:`means` needs for ``name/std``."""
        self.add_values(f"{name}/mean", values)
        self.add_values(f"{name}/mean_square", values.double().square())

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
        means = {n: s / c for n, (s, c) in zip(self._entries, sums, strict=True) if c > 0}
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


def tally_experience(tally: Tally, experience: Experience, group_by: GroupBy) -> None:
    """Add the rewards and advantages of one micro-batch of rollouts."""
    valid = experience.rollouts.valid
    for name, part in experience.reward_parts.items():
        tally.add_spread(f"reward/{name}", part[valid])
    tally.add_spread("reward/total", experience.rewards[valid])
    groups = group_statistics(experience.rewards, valid, group_by)
    tally.add_values("reward/total/group_std", groups.std)
    tally.add_values("advantage/zero_spread_groups", groups.zero_spread)
    tally.add_values("advantage/magnitude", experience.advantages[valid].abs())


class FlatRewards:
    """Says once that rewards have been equal inside nearly all groups for many iterations."""

    def __init__(self) -> None:
        self._iterations = 0
        self._said = False

    def watch(self, share: float) -> None:
        """Take note of the share of groups with equal rewards in one iteration."""
        self._iterations = self._iterations + 1 if share >= FLAT_SHARE else 0
        if self._iterations < FLAT_ITERATIONS or self._said:
            return
        self._said = True
        rank_zero_warn(
            f"For {FLAT_ITERATIONS} iterations {share:.0%} of the groups had equal rewards: the "
            "policy loss teaches almost nothing. Try a graded reward (embedding similarity, "
            "log-likelihood), more rollouts per position, or shorter rollouts."
        )
