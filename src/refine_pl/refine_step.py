"""The ReFINE update: prefill, positions, rollouts, rewards, advantages, loss.

This file is the whole algorithm (paper, section 3). Each step is a part from its own folder; what
passes between them is described in ``records.py``. Nothing here steps an optimizer or logs:
``training/updater.py`` does.

The sequences are read twice, without gradients by :meth:`RefineStep.prefill` and with them by
:meth:`RefineStep.loss`; or once for both, by :meth:`RefineStep.open`, where the weights do not
change in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from refine_kernels.host import on_host
from refine_pl.advantages.base import AdvantageEstimator
from refine_pl.backbones.base import FastWeightLM
from refine_pl.errors import ConfigError
from refine_pl.faults import (
    blame,
    check_is_made,
    check_positions,
    check_prefill,
    check_rollouts,
    checked_advantages,
    copied,
    is_own,
)
from refine_pl.losses import (
    LossSum,
    PolicyLoss,
    count_ntp_tokens,
    kl_to_reference,
    ntp_targets,
)
from refine_pl.parts import CLIPPED, ENTROPY, FORKED, GROUP_RELATIVE, SIMILARITY, build_part
from refine_pl.randomness import RowRandom
from refine_pl.records import (
    Batch,
    Drawn,
    Experience,
    Positions,
    Prefill,
    Reading,
    RolloutPlan,
)
from refine_pl.rewards.base import Reward
from refine_pl.rewards.weighted_sum import WeightedSum
from refine_pl.rollouts.base import RolloutGenerator
from refine_pl.selectors.base import PositionSelector
from refine_pl.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class LossWeights:
    """``loss = ntp_weight * NTP + policy_weight * policy + kl_weight * KL``."""

    ntp_weight: float = 1.0
    policy_weight: float = 0.2
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ntp_weight", "policy_weight", "kl_weight"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ConfigError(f"{name} is {value}", where=name, allowed="a finite number")

    @property
    def needs_rollouts(self) -> bool:
        """Without a policy or KL term the update is plain NTP training, and nothing is drawn."""
        return self.policy_weight != 0 or self.kl_weight != 0


Number = TypeVar("Number", Tensor, float)


class Counts(NamedTuple, Generic[Number]):
    """What sums are divided by: those of one micro-batch, or of a whole optimizer step."""

    ntp_tokens: Number  # next-token targets
    policy: Number  # what the policy loss counts: rollout tokens, or rollouts
    rollout_tokens: Number  # what the KL counts


class Passed(NamedTuple):
    """What the losses are made of, differentiable: a pass over sequences and rollouts."""

    logprob: Tensor  # [B, T] of the next tokens
    rollout_hidden: Tensor | None  # [B, S, N, L, D], as in RolloutGenerator.replay


PUBLISHED_WEIGHTS = LossWeights()


class RefineStep(nn.Module):
    """The parts of the algorithm, and the order they are called in; by default the published ones.

    Args:
        selector: where rollouts start.
        generator: how they are drawn, and read again in the update.
        rewards: how good they are; a dict of named rewards is summed by their weights.
        advantage: who is compared with whom.
        policy_loss: what the update does with the advantages.
    """

    def __init__(
        self,
        selector: PositionSelector = ENTROPY,
        generator: RolloutGenerator = FORKED,
        rewards: Mapping[str, Reward] = SIMILARITY,
        advantage: AdvantageEstimator = GROUP_RELATIVE,
        policy_loss: PolicyLoss = CLIPPED,
    ) -> None:
        super().__init__()
        self.selector = build_part(selector)
        self.generator = build_part(generator)
        self.reward = WeightedSum({name: build_part(reward) for name, reward in rewards.items()})
        self.advantage = build_part(advantage)
        self.policy_loss = build_part(policy_loss)
        for name in ("selector", "generator", "advantage"):
            check_is_made(f"model.{name}", getattr(self, name))

    def draw(
        self,
        policy: FastWeightLM,
        batch: Batch,
        plan: RolloutPlan,
        generator: RowRandom | None = None,
        stopwatch: Stopwatch | None = None,
        prefill: Prefill | None = None,
    ) -> Experience:
        """Steps 1 to 5: everything that happens under the policy as it is now.

        Args:
            policy: draws the rollouts.
            batch: the sequences.
            plan: how many rollouts, and how long.
            generator: the rows' random streams; those of seed 0 and update 0 if left out.
            stopwatch: is told the seconds of each step.
            prefill: is not made again if it was made already.

        Raises:
            NotFiniteError: the model computes NaN or infinite numbers.
            PartError: a part raised, or returned what cannot be used.
        """
        stopwatch = Stopwatch(enabled=False) if stopwatch is None else stopwatch
        drawn = self.roll(policy, batch, plan, generator, stopwatch, prefill)
        return self.judge(drawn, stopwatch)

    @torch.no_grad()
    def roll(
        self,
        policy: FastWeightLM,
        batch: Batch,
        plan: RolloutPlan,
        generator: RowRandom | None,
        stopwatch: Stopwatch,
        prefill: Prefill | None = None,
    ) -> Drawn:
        """Steps 1 to 3, as :meth:`draw`: rows do not depend on each other."""
        generator = RowRandom(0, 0, batch.rows) if generator is None else generator
        with stopwatch("prefill"):
            prefill = prefill or self.prefill(policy, batch)
        with stopwatch("select"):
            check_prefill(prefill.entropy, batch.num_tokens)  # or a part would be blamed for it
            positions = choose_positions(
                self.selector, "model.selector", prefill, batch, plan, generator
            )
        with stopwatch("rollout"), blame("model.generator", self.generator):
            rollouts = self.generator.generate(policy, prefill, batch, positions, plan, generator)
            check_rollouts(rollouts, "model.generator", self.generator, positions)
        return Drawn(batch, rollouts, prefill.entropy)

    @torch.no_grad()
    def judge(self, drawn: Drawn, stopwatch: Stopwatch) -> Experience:
        """Steps 4 and 5, as :meth:`draw`: parts of your own may look across the rows."""
        with stopwatch("reward"):
            rewards, parts = self.reward.score_parts(drawn.rollouts)
            advantages = self._estimate(rewards, drawn.rollouts.valid)
        return Experience(drawn.batch, drawn.rollouts, parts, rewards, advantages, drawn.entropy)

    def _estimate(self, rewards: Tensor, valid: Tensor) -> Tensor:
        part = self.advantage
        with blame("model.advantage", part):
            found = part.estimate(copied(rewards), copied(valid))
        return checked_advantages(found, "model.advantage", part, valid, rewards.shape)

    @torch.no_grad()
    def prefill(self, policy: FastWeightLM, batch: Batch) -> Prefill:
        """Step 1: one pass over the sequences, and the entropy of every next token."""
        output = policy(batch.tokens, batch.num_tokens, keep_trail=True)
        assert output.trail is not None
        stats = policy.head(output.hidden.flatten(0, 1), entropy=True)
        return Prefill(output.hidden, stats.entropy.view(batch.tokens.shape), output.trail)

    def open(self, policy: FastWeightLM, batch: Batch) -> Reading:
        """One pass that gives what :meth:`prefill` does, and with gradients what the update needs.

        Drawing takes ``reading.prefill()``; :meth:`close` adds the rollouts.
        """
        opened = policy.open_pass(batch.tokens, batch.num_tokens)
        targets = ntp_targets(batch).flatten()
        stats = policy.head(opened.hidden.flatten(0, 1), targets, entropy=True)
        logprob, entropy = (x.view(batch.tokens.shape) for x in (stats.logprob, stats.entropy))
        return Reading(opened, opened.hidden, logprob, entropy.detach())

    def close(self, policy: FastWeightLM, reading: Reading, experience: Experience) -> Passed:
        """The pass of :meth:`open`, and the rollouts that were drawn from it."""
        rollouts = experience.rollouts
        hidden = self.generator.follow(policy, reading, rollouts.positions, rollouts.tokens)
        return Passed(reading.logprob, hidden)

    def _pass(self, policy: FastWeightLM, micro_batch: Experience | Batch) -> Passed:
        """A pass over sequences and rollouts that were drawn before."""
        if isinstance(micro_batch, Batch):
            batch, rollout_hidden = micro_batch, None
            hidden = policy(batch.tokens, batch.num_tokens).hidden
        else:
            batch, rollouts = micro_batch.batch, micro_batch.rollouts
            hidden, rollout_hidden = self.generator.replay(
                policy, batch, rollouts.positions, rollouts.tokens
            )
        logprob = policy.head(hidden.flatten(0, 1), ntp_targets(batch).flatten()).logprob
        return Passed(logprob.view(batch.tokens.shape), rollout_hidden)

    def expected_counts(self, batch: Batch, plan: RolloutPlan) -> Counts[Tensor]:
        """What :meth:`counts` will be once the rollouts of a batch are drawn: lengths decide it.

        On the host, so that a GPU is not waited for.
        """
        positions = self.expected_positions(batch, plan)
        slot = torch.arange(int(positions.max()), device=positions.device)
        valid = slot < positions[:, None]
        shape = (*valid.shape, plan.rollouts_per_position, plan.rollout_length)
        mask = valid[:, :, None, None].expand(shape)
        ntp_tokens = count_ntp_tokens(on_host(batch.num_tokens))
        return Counts(ntp_tokens, self.policy_loss.count(mask), mask.sum())

    def expected_positions(self, batch: Batch, plan: RolloutPlan) -> Tensor:
        """How many positions each row will get ``[B]`` on the host, as the selector says."""
        lengths: list[int] = on_host(batch.num_tokens).tolist()
        counted = {length: self.selector.count(length, plan) for length in set(lengths)}
        return torch.tensor([counted[length] for length in lengths])

    def counts(self, micro_batch: Experience | Batch) -> Counts[Tensor]:
        """What the sums of a micro-batch are taken over: three scalars, of a batch on the host."""
        if isinstance(micro_batch, Batch):
            none = torch.zeros((), dtype=torch.int64)
            return Counts(count_ntp_tokens(on_host(micro_batch.num_tokens)), none, none)
        loss_mask = micro_batch.rollouts.loss_mask
        return Counts(
            count_ntp_tokens(micro_batch.batch.num_tokens),
            self.policy_loss.count(loss_mask),
            loss_mask.sum(),
        )

    def loss(
        self,
        policy: FastWeightLM,
        experience: Experience | Batch,
        counts: Counts[float] | None = None,
        weights: LossWeights = PUBLISHED_WEIGHTS,
        reference: FastWeightLM | None = None,
        passed: Passed | None = None,
    ) -> LossSum:
        """Step 6: this micro-batch's share of the loss, and sums for the log.

        Args:
            policy: the model being optimised.
            experience: rollouts with their advantages, or a bare batch for plain NTP training.
            counts: of the whole optimizer step, over its micro-batches and processes; those of
                this micro-batch if left out.
            weights: of the terms.
            reference: the frozen model that the KL term compares with.
            passed: a pass over both that was made already (:meth:`close`); made here if left out.
        """
        local = self.counts(experience)
        counts = Counts(*map(float, local)) if counts is None else counts
        logprob, rollout_hidden = passed or self._pass(policy, experience)
        ntp = -logprob.sum()
        total = weights.ntp_weight * ntp / counts.ntp_tokens
        sums = {"ntp_loss": (ntp.detach(), local.ntp_tokens)}
        if isinstance(experience, Batch) or rollout_hidden is None:
            return LossSum(total, sums)

        batch, rollouts = experience.batch, experience.rollouts
        positions, tokens = rollouts.positions, rollouts.tokens
        stats = policy.head(rollout_hidden.flatten(0, -2), tokens.flatten(), entropy=True)
        logprobs, loss_mask = stats.logprob.view(tokens.shape), rollouts.loss_mask
        reinforced = self.policy_loss(
            logprobs, rollouts.old_logprobs, experience.advantages[..., None], loss_mask
        )
        total = total + weights.policy_weight * reinforced.total / counts.policy
        entropy = stats.entropy.view(tokens.shape).where(loss_mask, 0).sum()
        sums |= reinforced.sums | {"entropy": (entropy.detach(), local.rollout_tokens)}
        if reference is not None and weights.kl_weight != 0:
            with torch.no_grad():
                _, hidden = self.generator.replay(reference, batch, positions, tokens)
                frozen = reference.head(hidden.flatten(0, -2), tokens.flatten()).logprob
            kl = kl_to_reference(logprobs, frozen.view(tokens.shape), loss_mask)
            total = total + weights.kl_weight * kl / counts.rollout_tokens
            sums["kl"] = (kl.detach(), local.rollout_tokens)
        return LossSum(total, sums)


def choose_positions(
    part: PositionSelector,
    key: str,
    prefill: Prefill,
    batch: Batch,
    plan: RolloutPlan,
    generator: RowRandom,
) -> Positions:
    """Step 2: what a selector chooses, checked if it is not of this package.

    Args:
        part: the selector.
        key: of the configuration that names it.
        prefill: of the batch.
        batch: the sequences.
        plan: how many segments, and the rollout length.
        generator: the rows' random streams.

    Raises:
        PartError: it raised, or returned what cannot be used.
    """
    entropy, lengths = prefill.entropy.clone(), batch.num_tokens.clone()
    with blame(key, part):
        positions = part.select(entropy, lengths, plan, generator)
    if not is_own(part):
        check_positions(positions, key, part, batch.num_tokens, plan.rollout_length)
    return positions
