"""What a validation measures: sums over held-out sequences and rows of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.faults import NotFiniteError, PartError, check_prefill
from refine_pl.losses import ntp_targets
from refine_pl.objectives.supervised import answer_statistics
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, Positions, Prefill, Rollouts
from refine_pl.refine_step import RefineStep, choose_positions
from refine_pl.rewards import EmbeddingSimilarity
from refine_pl.rollouts import Forked
from refine_pl.rollouts.gather import at_offsets
from refine_pl.task_records import Answer, TaskBatch
from refine_pl.training.metrics import GROUPS
from refine_pl.training.row_values import RowValues, as_numbers
from refine_pl.training.run_folder import HeldOut
from refine_pl.training.sizes import cut
from refine_pl.training.tally import Tally
from refine_pl.training.tempered import tempered
from refine_pl.training.validation_plan import ValidationPlan
from refine_pl.training.yardstick import judged_by

VALIDATION_SUMS = tuple(m.name for m in GROUPS["Validation"] if "<name>" not in m.name)
MATCH = "val/expected_match"


class Validation:
    """Sums of one validation, the same on every process, even on one that gets no batch.

    Nothing here depends on where training is, nor on how it draws: positions and random numbers are
    those of the plan, and rollouts are forked.

    Args:
        policy: the model that is measured.
        step: its rewards judge the rollouts.
        plan: which rollouts are drawn.
        microbatch_size: rows of a forward pass.
        frozen: by whose hidden states rollouts are judged; the policy's own if left out.
        decode: makes a text of tokens.

    Attributes:
        rows: what was measured of each sequence.
    """

    def __init__(
        self,
        policy: FastWeightLM,
        step: RefineStep,
        plan: ValidationPlan,
        microbatch_size: int,
        frozen: FastWeightLM | None = None,
        decode: Callable[[list[int]], str] = as_numbers,
    ) -> None:
        from refine_pl.evaluation.metrics import AnswerScore  # brings torchmetrics, which is slow

        self.policy, self.frozen = tempered(policy, plan.temperature), frozen
        self.step, self.plan, self.microbatch_size = step, plan, microbatch_size
        self.decode = decode
        self.tally, self.score = Tally(VALIDATION_SUMS), AnswerScore()
        self.rows: list[HeldOut] = []
        self._failed: PartError | None = None
        names = [f"val/reward_{name}" for name in step.reward.parts()]
        for name in (*names, *(f"{MATCH}_{length}" for length in plan.match_lengths)):
            self.tally.add(name, 0.0, 0)

    def add_sequences(self, batch: Batch) -> None:
        """Next-token loss and accuracy, and what rollouts are like."""
        for rows in cut(batch, self.microbatch_size) if self._failed is None else ():
            self._add_sequences(rows)

    def add_rows(self, batch: TaskBatch, answers: Iterable[Answer]) -> None:
        """Loss and accuracy of the true answers, and the scores of the model's own ``answers``."""
        for rows in cut(batch, self.microbatch_size):
            logprob, correct = answer_statistics(self.policy, rows)
            self.tally.add_values("val/sft_loss", -logprob)
            self.tally.add_values("val/answer_accuracy", correct)
        self.score.update(answers)

    def means(self, device: torch.device, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of everything that counted anything, over all processes; all must call it.

        Args:
            device: where sums are brought together.
            reduce: adds a tensor up over all processes.

        Raises:
            PartError: a part failed, on this process or on another one: all of them raise.
        """
        failed = torch.tensor(float(self._failed is not None), device=device)
        if float(reduce(failed)):
            error = self._failed or PartError("a part failed on another process")
            error.everywhere = True
            raise error
        means = self.tally.means(device, reduce)
        self.score.update(())  # a process without rows counts too
        score = self.score.to(device).compute()
        return means if score.isnan() else {**means, "val/score": float(score)}

    def _add_sequences(self, batch: Batch) -> None:
        values = RowValues(self.tally, batch)
        prefill = self.step.prefill(self.policy, batch)
        targets = ntp_targets(batch).flatten()
        stats = self.policy.head(prefill.hidden.flatten(0, 1), targets, correct=True)
        logprob, correct, real = (
            x.view(batch.tokens.shape) for x in (stats.logprob, stats.correct, targets >= 0)
        )
        values.add("val/ntp_loss", -logprob, real)
        values.add("val/accuracy", correct, real)
        values.add("val/sampled_accuracy", logprob.exp(), real)
        try:
            rollouts = self._draw(batch, prefill)
            self._add_rollouts(values, rollouts, correct, self._judged(batch, rollouts))
        except NotFiniteError:  # the loss says it
            pass
        except PartError as error:
            # All processes come to the end of a validation; there they agree to stop.
            self._failed = error
            return
        self.rows += values.records(self.decode)

    def _draw(self, batch: Batch, prefill: Prefill) -> Rollouts:
        """Rollouts, the same for every model: where they start, and their random numbers."""
        plan, part = self.plan.rollouts, self.plan.selector
        random = RowRandom(self.plan.seed, 0, batch.rows, "validation")
        check_prefill(prefill.entropy, batch.num_tokens)
        where = "model.validation.selector"
        positions = choose_positions(part, where, prefill, batch, plan, random)
        return Forked().generate(self.policy, prefill, batch, positions, plan, random)

    def _judged(self, batch: Batch, rollouts: Rollouts) -> Rollouts:
        return rollouts if self.frozen is None else judged_by(self.frozen, batch, rollouts)

    def _add_rollouts(
        self, values: RowValues, rollouts: Rollouts, correct: Tensor, judged: Rollouts
    ) -> None:
        valid, tokens, targets = rollouts.valid, rollouts.tokens, rollouts.targets
        mask = rollouts.loss_mask
        expected = rollouts.target_logprobs.exp()
        values.add(MATCH, expected, mask)
        for length in self.plan.match_lengths:
            values.add(f"{MATCH}_{length}", expected[..., :length], mask[..., :length])
        values.add("val/exact_match", tokens == targets[:, :, None], mask)
        values.add("val/greedy_run", greedy_runs(correct, rollouts.positions, tokens), valid)
        if self.frozen is not None:
            values.add("val/similarity", EmbeddingSimilarity().score(judged), mask[..., 0])
        rewards, parts = self.step.reward.score_parts(judged)
        values.add("val/reward", rewards, mask[..., 0])
        for name, part in parts.items():
            values.add(f"val/reward_{name}", part, mask[..., 0])
        values.keep_rollouts(rollouts, expected)


def greedy_runs(correct: Tensor, positions: Positions, tokens: Tensor) -> Tensor:
    """How many true tokens greedy decoding gives from each position before its first other one.

    As long as it gives the true tokens it reads what the text says, so the pass over the text has
    decided them all.

    Args:
        correct: ``[B, T]`` bool, whether the most likely token after ``x[0..t]`` is the true one.
        positions: where it starts, ``[B, S]``.
        tokens: ``[B, S, N, L]``; their number L is the most that is counted.

    Returns:
        ``[B, S]`` int64, from 0 to L.
    """
    right: Sequence[int] = tokens.shape
    steps = at_offsets(correct.to(torch.int64), positions, -1, right[-1])
    return steps.cumprod(-1).sum(-1)
