"""Every scalar of a run: its name, what it means, its unit, and where it is shown.

The log, the progress bar, the closing table, the report, the sweep's table and the page "Reading a
run" are made from this list. A new scalar is two places: the line that adds it to a
:class:`~refine_pl.training.tally.Tally`, and its entry here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PERCENT = "{:.2%}"


@dataclass(frozen=True, slots=True)
class Metric:
    """A scalar. ``<name>`` in its name stands for a reward, or for another part that is named."""

    name: str
    title: str  # in tables and figures
    meaning: str  # one line, for the docs
    unit: str = ""
    form: str = "{:.4f}"  # of a value
    healthy: str = ""  # what it should do
    otherwise: str = ""  # what to try if it does not
    bar: str = ""  # its label on the progress bar; empty: it is not there
    bar_form: str = "{:.3f}"
    of_answers: bool = False  # on the bar only where the batch had answers
    closing: bool = False  # in the table at the end of a run, and in that of a sweep
    curve: bool = True  # has a figure of its own in a report
    if_changing: bool = False  # nearly always a straight line: its figure is drawn when it is not
    spread: str = ""  # the scalar that is drawn as a band around it
    exact: bool = False  # drawn as it is: a mean over time would say something else

    def matches(self, scalar: str) -> bool:
        """Whether ``scalar`` is this one."""
        pattern = re.escape(self.name).replace("<name>", "[^/]+")
        return re.fullmatch(pattern, scalar) is not None


def _share(name: str, title: str, meaning: str, **others: object) -> Metric:
    return Metric(name, title, meaning, "share", _PERCENT, **others)  # type: ignore[arg-type]


def _seconds(part: str, title: str, meaning: str, otherwise: str = "") -> Metric:
    return Metric(f"time/{part}_s", title, meaning, "seconds", otherwise=otherwise)


GROUPS: dict[str, tuple[Metric, ...]] = {
    "Losses": (
        Metric(
            "train/loss",
            "weighted sum of the losses",
            "the weighted sum of the losses below, mean over the iteration's updates",
            healthy="falls with `train/ntp_loss`",
            otherwise="look at its parts",
            bar="loss",
        ),
        Metric(
            "train/ntp_loss",
            "next-token loss",
            "next-token cross-entropy of the sequences",
            "nats per token",
            healthy="falls; in a stage with rollouts it must not rise for long",
            otherwise="lower `policy_weight`, or more `rollouts_per_position`",
        ),
        Metric(
            "train/policy_loss",
            "policy loss",
            "the policy loss",
            "per rollout token or rollout, as the loss counts",
            healthy="near 0 with either sign: advantages cancel inside a group",
            otherwise="it measures no progress; look at the rewards",
        ),
        Metric(
            "train/kl",
            "KL to the reference",
            "KL estimate against the frozen reference; with `kl_weight` only",
            "nats per rollout token",
            healthy="rises slowly and levels off",
            otherwise="raise `kl_weight`",
        ),
    ),
    "Rewards and advantages": (
        Metric(
            "reward/total/mean",
            "sum of the rewards",
            "weighted sum of the rewards, mean over rollouts",
            healthy="rises slowly; noisy, because documents and positions change",
            otherwise="use `val/reward` to compare",
            bar="reward",
            spread="reward/total/std",
        ),
        Metric(
            "reward/total/std",
            "standard deviation of the sum",
            "its standard deviation over all rollouts of the iteration",
            healthy="above 0",
            curve=False,
        ),
        Metric(
            "reward/total/group_std",
            "standard deviation inside a group",
            "its standard deviation inside a group, mean over groups",
            healthy="clearly above 0",
            otherwise="as for groups without spread",
        ),
        Metric(
            "reward/<name>/mean",
            "one reward, before its weight",
            "one reward before its weight, mean over rollouts",
            healthy="which part moves",
            otherwise="a part that never moves can be turned off",
            spread="reward/<name>/std",
        ),
        Metric(
            "reward/<name>/std",
            "standard deviation of one reward",
            "its standard deviation over all rollouts of the iteration",
            healthy="a part with a much larger one decides the sum",
            otherwise="change its weight",
            curve=False,
        ),
        Metric(
            "reward_faults/<name>",
            "faults of one reward",
            "micro-batches in which it failed and counted as 0",
        ),
        Metric(
            "advantage/magnitude",
            "mean size of an advantage",
            "mean of \\|A\\| over rollouts",
            healthy="0.7 to 0.8 when divided by the standard deviation, less by the share of "
            "groups without spread",
        ),
        _share(
            "advantage/zero_spread_groups",
            "groups without spread",
            "share of groups whose rewards are all equal: they have no advantage and no gradient",
            healthy="near 0 with a graded reward",
            otherwise="see below",
        ),
    ),
    "Policy": (
        Metric(
            "policy/ratio",
            "probability now / when sampled",
            "probability now / when sampled, mean over rollout tokens",
            healthy="1 with one update per batch, close to 1 with more",
            otherwise="far from 1: the mini-batches drift; lower the learning rate",
            if_changing=True,
        ),
        _share(
            "policy/clip_fraction",
            "clipped rollout tokens",
            "share of rollout tokens (or rollouts, as the loss counts) whose ratio is clipped",
            healthy="0 with one update per batch, small with more",
            otherwise="large: lower the learning rate, or `rollouts_per: minibatch`",
            if_changing=True,
        ),
        _share(
            "policy/dual_clip_fraction",
            "dual clip binds",
            "share of rollout tokens where the dual clip binds",
            healthy="0 or nearly",
            otherwise="as above",
            if_changing=True,
        ),
        Metric(
            "policy/approx_kl",
            "approximate KL",
            "old minus new log-probability",
            "nats per rollout token",
            healthy="near 0",
            otherwise="as above",
            if_changing=True,
        ),
        Metric(
            "policy/entropy",
            "entropy at rollout tokens",
            "entropy of the policy at the rollout tokens",
            "nats",
            healthy="falls slowly with the loss",
            otherwise="falls fast towards 0: lower `policy_weight`, or set a `kl_weight`",
        ),
        Metric("policy/<name>", "a number of the policy loss", "any other number of that loss"),
    ),
    "Answers": (
        Metric(
            "train/sft_loss",
            "loss of the answers",
            "post-training: cross-entropy of the answers",
            "nats per answer token",
            healthy="falls",
            bar="answer loss",
            of_answers=True,
        ),
        _share(
            "train/answer_accuracy",
            "most likely answer tokens",
            "share of answer tokens that are the most likely one, given the true ones before",
            healthy="rises",
        ),
        Metric(
            "train/answer_policy_loss",
            "policy loss of answers",
            "GRPO on answers: the policy loss",
            "per sampled token or answer, as the loss counts",
            healthy="near 0 with either sign",
            otherwise="it measures no progress; look at the score",
        ),
        _share(
            "answer/score",
            "score of sampled answers",
            "GRPO on answers: the task's score, mean over sampled answers",
            healthy="rises",
            otherwise="near 0: train on the answers first (`SupervisedAnswers`)",
            bar="score",
            of_answers=True,
        ),
        Metric(
            "answer/num_tokens",
            "tokens of a sampled answer",
            "tokens of a sampled answer, mean",
            form="{:,.1f}",
            healthy="near the length of the references",
            otherwise="at the budget: answers do not end; train with `answer_eos`",
        ),
        _share(
            "answer/zero_spread_groups",
            "prompts without spread",
            "share of prompts whose answers all have the same score",
            healthy="well below 1",
            otherwise="more `answers_per_prompt`, or a graded score",
        ),
        Metric(
            "answer/ratio",
            "probability now / when sampled",
            "probability now / when sampled, mean over sampled tokens",
            healthy="1: answers are drawn for each update",
            if_changing=True,
        ),
        _share(
            "answer/clip_fraction",
            "clipped answer tokens",
            "share of sampled tokens (or answers, as the loss counts) whose ratio is clipped",
            healthy="0",
            if_changing=True,
        ),
        Metric("answer/<name>", "a number of the policy loss", "any other number of that loss"),
    ),
    "Optimizer": (
        Metric(
            "optim/grad_norm",
            "gradient norm before clipping",
            "gradient norm before clipping, mean over updates with a finite one",
            healthy="steady; above `gradient_clip` for a while at the start",
            otherwise="grows without end: lower the learning rate",
        ),
        Metric(
            "optim/lr",
            "learning rate",
            "learning rate of the first parameter group",
            form="{:.2e}",
            healthy="what the stage or the schedule of the rate says",
            exact=True,
        ),
        Metric(
            "optim/updates",
            "optimizer steps",
            "optimizer steps since the start, skipped ones included",
            form="{:,.0f}",
            curve=False,
        ),
        Metric(
            "optim/skipped_steps",
            "skipped steps",
            "steps skipped since the start because the gradient norm was not finite",
            form="{:,.0f}",
            healthy="0",
            otherwise="lower the learning rate; `bf16-mixed` or `32-true`",
            if_changing=True,
        ),
    ),
    "Time and memory": (
        Metric(
            "time/tokens_per_s",
            "sequence tokens per second",
            "sequence tokens per second over all processes, smoothed; loading counts, validation "
            "does not",
            form="{:,.0f}",
            bar="tokens/s",
            bar_form="{:,.0f}",
        ),
        _seconds("prefill", "reading the sequences", "reading the sequences without gradient"),
        _seconds("select", "choosing positions", "choosing positions"),
        _seconds("rollout", "sampling", "sampling rollouts"),
        _seconds(
            "reward",
            "rewards and advantages",
            "rewards and advantages",
            "large: a reward of your own is slow",
        ),
        _seconds(
            "answer",
            "sampling and scoring answers",
            "preparing answers: sampling and scoring them, in GRPO",
            "a smaller `budget`",
        ),
        _seconds("update", "forward, backward, optimizer", "forward, backward and optimizer steps"),
        Metric(
            "memory/peak_gib",
            "peak memory",
            "peak since the start: of the GPU's allocator, or of the process on a CPU",
            "GiB",
            "{:.2f}",
            exact=True,
        ),
        Metric(
            "run/tokens_seen",
            "sequence tokens since the start",
            "sequence tokens since the start, over all processes",
            form="{:,.0f}",
            curve=False,
        ),
        Metric(
            "setting/<name>",
            "a setting of a part",
            "a setting of a part that a stage changes, by its path",
            form="{:.4g}",
            exact=True,
        ),
        Metric(
            "run/stage",
            "number of the stage",
            "number of the stage in the schedule, from 0",
            form="{:.0f}",
            curve=False,
        ),
    ),
    "Validation": (
        Metric(
            "val/ntp_loss",
            "next-token loss",
            "next-token cross-entropy of held-out documents",
            "nats per token",
            closing=True,
        ),
        _share(
            "val/accuracy",
            "accuracy, most likely token",
            "share of next tokens that are the most likely one",
            closing=True,
        ),
        _share(
            "val/sampled_accuracy",
            "accuracy of a sample",
            "share that a sample would hit: mean probability of the true token",
        ),
        _share(
            "val/exact_match",
            "exact match of rollout tokens",
            "share of rollout tokens that equal the true ones, whatever the rewards are",
            closing=True,
        ),
        Metric(
            "val/sft_loss",
            "loss of the answers",
            "cross-entropy of the answers of held-out rows",
            "nats per answer token",
            closing=True,
        ),
        _share(
            "val/answer_accuracy",
            "most likely answer tokens",
            "share of these tokens that are the most likely one, given the true ones before",
            closing=True,
        ),
        _share(
            "val/score",
            "score of own answers",
            "score of the model's own answers to these rows, by the rules of their tasks",
            closing=True,
        ),
        Metric(
            "val/reward",
            "reward of rollouts",
            "weighted sum of the rewards of rollouts from held-out documents",
            closing=True,
        ),
        Metric(
            "val/reward_<name>",
            "one reward, before its weight",
            "one reward of these rollouts, before its weight",
            closing=True,
        ),
    ),
}
"""All scalars, in the groups and in the order in which they are shown, over iterations."""
