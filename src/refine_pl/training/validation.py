"""What a validation measures: sums over held-out sequences and rows of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from refine_pl.backbones.base import FastWeightLM
from refine_pl.faults import NotFiniteError, PartError
from refine_pl.losses import ntp_targets
from refine_pl.objectives.supervised import answer_statistics
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, RolloutPlan
from refine_pl.refine_step import RefineStep
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import Answer, TaskBatch
from refine_pl.training.metrics import GROUPS
from refine_pl.training.sizes import cut
from refine_pl.training.tally import Tally

VALIDATION_SUMS = tuple(m.name for m in GROUPS["Validation"] if "<name>" not in m.name)


class Validation:
    """Sums of one validation, the same on every process, even on one that gets no batch.

    Nothing here depends on where training is: rollouts come from streams that are the same every
    time.

    Args:
        policy: the model that is measured.
        step: the parts that draw rollouts and judge them.
        plan: how many rollouts, and how long.
        seed: names the random streams.
        microbatch_size: rows of a forward pass.
    """

    def __init__(
        self,
        policy: FastWeightLM,
        step: RefineStep,
        plan: RolloutPlan,
        seed: int,
        microbatch_size: int,
    ) -> None:
        from refine_pl.evaluation.metrics import AnswerScore  # brings torchmetrics, which is slow

        self.policy, self.step, self.plan = policy, step, plan
        self.seed, self.microbatch_size = seed, microbatch_size
        self.tally, self.score = Tally(VALIDATION_SUMS), AnswerScore()
        self._failed: PartError | None = None
        for name in step.reward.parts():
            self.tally.add(f"val/reward_{name}", 0.0, 0)

    def add_sequences(self, batch: Batch) -> None:
        """Next-token loss and accuracy, and the rewards of rollouts."""
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
        tally = self.tally
        prefill = self.step.prefill(self.policy, batch)
        targets = ntp_targets(batch).flatten()
        stats = self.policy.head(prefill.hidden.flatten(0, 1), targets, correct=True)
        real = targets >= 0
        tally.add_values("val/ntp_loss", -stats.logprob[real])
        tally.add_values("val/accuracy", stats.correct[real])
        tally.add_values("val/sampled_accuracy", stats.logprob[real].exp())
        random = RowRandom(self.seed, 0, batch.rows, "validation")
        try:
            experience = self.step.draw(
                self.policy, batch, self.plan, random, Stopwatch(enabled=False), prefill
            )
        except NotFiniteError:  # the loss says it
            return
        except PartError as error:
            # All processes come to the end of a validation; there they agree to stop.
            self._failed = error
            return
        rollouts = experience.rollouts
        equal = rollouts.tokens == rollouts.targets[:, :, None]
        tally.add_values("val/exact_match", equal[rollouts.valid])
        tally.add_values("val/reward", experience.rewards[rollouts.valid])
        for name, part in experience.reward_parts.items():
            tally.add_values(f"val/reward_{name}", part[rollouts.valid])
