"""The scalars of a run as a report shows them: groups, units and formats.

``refine_pl.training.tally.METRICS`` is the list of all names; it cannot be imported here without
Lightning, and a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """A scalar; ``<name>`` in its name stands for a reward."""

    name: str
    title: str
    unit: str = ""
    form: str = "{:.4f}"
    spread: str = ""  # the scalar that is drawn as a band around it
    exact: bool = False  # drawn as it is: a mean over time would say something else

    def matches(self, scalar: str) -> bool:
        """Whether ``scalar`` is this one."""
        pattern = re.escape(self.name).replace("<name>", "[^/]+")
        return re.fullmatch(pattern, scalar) is not None


_PERCENT = "{:.2%}"
CURVES: dict[str, tuple[Metric, ...]] = {
    "Losses": (
        Metric("train/ntp_loss", "next-token loss", "nats per token"),
        Metric("train/policy_loss", "policy loss", "per rollout token"),
        Metric("train/sft_loss", "loss of the answers", "nats per answer token"),
        Metric("train/answer_accuracy", "most likely answer tokens", "share", _PERCENT),
        Metric("train/answer_policy_loss", "policy loss of answers", "per sampled token"),
        Metric("train/kl", "KL to the reference", "nats per rollout token"),
        Metric("train/loss", "weighted sum of the losses"),
    ),
    "Validation": (
        Metric("val/ntp_loss", "next-token loss", "nats per token"),
        Metric("val/accuracy", "accuracy, most likely token", "share", _PERCENT),
        Metric("val/sampled_accuracy", "accuracy of a sample", "share", _PERCENT),
        Metric("val/exact_match", "exact match of rollout tokens", "share", _PERCENT),
        Metric("val/score", "score of answers", "share", _PERCENT),
        Metric("val/sft_loss", "loss of the answers", "nats per answer token"),
        Metric("val/answer_accuracy", "most likely answer tokens", "share", _PERCENT),
        Metric("val/reward", "reward of rollouts"),
        Metric("val/reward_<name>", "one reward, before its weight"),
    ),
    "Rewards": (
        Metric("reward/total/mean", "sum of the rewards", spread="reward/total/std"),
        Metric("reward/<name>/mean", "one reward, before its weight", spread="reward/<name>/std"),
        Metric("reward/total/group_std", "standard deviation inside a group"),
        Metric("advantage/magnitude", "mean size of an advantage"),
        Metric("advantage/zero_spread_groups", "groups without spread", "share", _PERCENT),
    ),
    "Answers": (
        Metric("answer/score", "score of sampled answers", "share", _PERCENT),
        Metric("answer/num_tokens", "tokens of a sampled answer", form="{:,.1f}"),
        Metric("answer/zero_spread_groups", "prompts without spread", "share", _PERCENT),
        Metric("answer/ratio", "probability now / when sampled"),
        Metric("answer/clip_fraction", "clipped answer tokens", "share", _PERCENT),
    ),
    "Policy": (
        Metric("policy/entropy", "entropy at rollout tokens", "nats"),
        Metric("policy/ratio", "probability now / when sampled"),
        Metric("policy/approx_kl", "approximate KL", "nats per rollout token"),
        Metric("policy/clip_fraction", "clipped rollout tokens", "share", _PERCENT),
        Metric("policy/dual_clip_fraction", "dual clip binds", "share", _PERCENT),
        Metric("policy/<name>", "a number of the policy loss"),
    ),
    "Optimizer": (
        Metric("optim/lr", "learning rate", form="{:.2e}", exact=True),
        Metric("optim/grad_norm", "gradient norm before clipping"),
        Metric("optim/skipped_steps", "skipped steps", form="{:,.0f}"),
    ),
    "Time and memory": (
        Metric("time/tokens_per_s", "sequence tokens per second", form="{:,.0f}"),
        Metric("time/prefill_s", "reading the sequences", "seconds"),
        Metric("time/select_s", "choosing positions", "seconds"),
        Metric("time/rollout_s", "sampling", "seconds"),
        Metric("time/reward_s", "rewards and advantages", "seconds"),
        Metric("time/answer_s", "sampling and scoring answers", "seconds"),
        Metric("time/update_s", "forward, backward, optimizer", "seconds"),
        Metric("memory/peak_gib", "peak memory", "GiB", "{:.2f}", exact=True),
    ),
}

PHASE = "run/stage"

# Logged, and shown by other means or not worth a figure of its own.
NO_CURVE: tuple[Metric, ...] = (
    Metric("reward/total/std", "standard deviation of the sum"),
    Metric("reward/<name>/std", "standard deviation of one reward"),
    Metric("optim/updates", "optimizer steps", form="{:,.0f}"),
    Metric("run/tokens_seen", "sequence tokens since the start", form="{:,.0f}"),
    Metric(PHASE, "number of the phase", form="{:.0f}"),
)
# Nearly always one straight line; drawn when it is not.
ONLY_WHEN_CHANGING = (
    "policy/ratio",
    "policy/approx_kl",
    "policy/clip_fraction",
    "answer/ratio",
    "answer/clip_fraction",
    "policy/dual_clip_fraction",
    "optim/skipped_steps",
)


def metric_of(scalar: str) -> Metric | None:
    """What is known about a scalar; that of the sum is not taken for that of a reward."""
    known = [*NO_CURVE, *(metric for group in CURVES.values() for metric in group)]
    return next((metric for metric in known if metric.matches(scalar)), None)


def shown(scalar: str, value: float | None) -> str:
    """A value in the format of its scalar."""
    if value is None:
        return "–"
    metric = metric_of(scalar)
    text = (metric.form if metric else "{:.4g}").format(value)
    return text.removeprefix("-") if not text.strip("-0.%") else text


def title_of(scalar: str) -> str:
    """What a scalar is called in tables."""
    metric = metric_of(scalar)
    if metric is None:
        return scalar
    if "<name>" in metric.name:
        return f"reward {scalar.removeprefix('val/reward_')}"
    return metric.title + (f", {metric.unit}" if metric.unit not in ("", "share") else "")
