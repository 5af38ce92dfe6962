"""What a validation measures: sums over held-out sequences and rows of tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from refine_pl.losses import ntp_targets
from refine_pl.objectives.supervised import answer_statistics
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch
from refine_pl.stopwatch import Stopwatch
from refine_pl.task_records import Answer, TaskBatch
from refine_pl.training.tally import VALIDATION_SUMS, Tally
from refine_pl.training.updater import cut

if TYPE_CHECKING:
    from refine_pl.training.module import RefineModule


def validation_sums(module: RefineModule) -> Tally:
    """All sums of a validation, still empty. A process that gets no batch has them too."""
    tally = Tally(VALIDATION_SUMS)
    for name in module.refine_step.reward.parts():
        tally.add(f"val/reward_{name}", 0.0, 0)
    return tally


def tally_sequences(tally: Tally, module: RefineModule, batch: Batch) -> None:
    """Add next-token loss and accuracy, and the rewards of rollouts.

    Rollouts come from streams that are the same every time, and follow the module's own settings,
    whatever a schedule has changed.
    """
    for micro_batch in cut(batch, module.microbatch_size):
        _tally_micro_batch(tally, module, micro_batch)


def tally_rows(
    tally: Tally, module: RefineModule, batch: TaskBatch, answers: Iterable[Answer]
) -> None:
    """Add loss and accuracy of the true answers, and the scores of the model's own ``answers``."""
    from refine_pl.evaluation import score  # brings the scoring packages

    for rows in cut(batch, module.microbatch_size):
        logprob, correct = answer_statistics(module.policy, rows)
        tally.add_values("val/sft_loss", -logprob)
        tally.add_values("val/answer_accuracy", correct)
    for answer in answers:
        tally.add("val/score", score(answer.row.task, answer.text, answer.row.answers), 1)


def _tally_micro_batch(tally: Tally, module: RefineModule, batch: Batch) -> None:
    policy, refine_step = module.policy, module.refine_step
    prefill = refine_step.prefill(policy, batch)
    targets = ntp_targets(batch).flatten()
    stats = policy.head(prefill.hidden.flatten(0, 1), targets, correct=True)
    real = targets >= 0
    tally.add_values("val/ntp_loss", -stats.logprob[real])
    tally.add_values("val/accuracy", stats.correct[real])
    tally.add_values("val/sampled_accuracy", stats.logprob[real].exp())
    experience = refine_step.draw(
        policy,
        batch,
        module.own_settings.plan,
        RowRandom(module.seed, 0, batch.rows, "validation"),
        Stopwatch(enabled=False),
        prefill,
    )
    rollouts = experience.rollouts
    equal = rollouts.tokens == rollouts.targets[:, :, None]
    tally.add_values("val/exact_match", equal[rollouts.valid])
    tally.add_values("val/reward", experience.rewards[rollouts.valid])
    for name, part in experience.reward_parts.items():
        tally.add_values(f"val/reward_{name}", part[rollouts.valid])
