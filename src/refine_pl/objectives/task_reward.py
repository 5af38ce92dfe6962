"""GRPO on whole answers, with the task's score as the reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from refine_pl.advantages import AdvantageEstimator, group_statistics
from refine_pl.backbones.base import FastWeightLM
from refine_pl.errors import ConfigError
from refine_pl.evaluation.generation import continue_prompts, sampling
from refine_pl.evaluation.tasks import score
from refine_pl.losses import LossSum, PolicyLoss
from refine_pl.objectives.base import AnswerObjective
from refine_pl.parts import CLIPPED, GROUP_RELATIVE, build_part
from refine_pl.randomness import RowRandom
from refine_pl.records import Positions
from refine_pl.rollouts import Forked
from refine_pl.task_records import TaskBatch
from refine_pl.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class SampledAnswers:
    """Answers of the policy that drew them; one position per prompt, its end."""

    batch: TaskBatch
    tokens: Tensor  # [B, 1, N, L] int64
    old_logprobs: Tensor  # [B, 1, N, L] float32, nats
    loss_mask: Tensor  # [B, 1, N, L] bool, tokens up to the end of each answer
    scores: Tensor  # [B, 1, N] float32, in [0, 1]
    advantages: Tensor  # [B, 1, N] float32


class TaskReward(AnswerObjective):
    """Samples whole answers, scores them by the task's rule, and reinforces the better ones.

    The answers to a prompt fork the state at its end, so the prompt is read once to sample all of
    them, and once in the update.

    Args:
        answers_per_prompt: answers that are compared with each other.
        advantage: who is compared with whom: all answers to a prompt.
        policy_loss: what the update does with the advantages.
        budget: tokens of an answer instead of the row's own ``max_gen_tokens``.
    """

    def __init__(
        self,
        answers_per_prompt: PositiveInt = 8,
        advantage: AdvantageEstimator = GROUP_RELATIVE,
        policy_loss: PolicyLoss = CLIPPED,
        budget: PositiveInt | None = None,
    ) -> None:
        if answers_per_prompt < 2:
            raise ConfigError(
                "one answer per prompt has nothing to be compared with",
                where="TaskReward.answers_per_prompt",
                allowed="2 or more",
            )
        self.answers_per_prompt = answers_per_prompt
        self.advantage = build_part(advantage)
        self.policy_loss = build_part(policy_loss)
        self.budget = budget

    @torch.no_grad()
    def prepare(
        self,
        policy: FastWeightLM,
        batch: TaskBatch,
        tokenizer: Tokenizer | None,
        generator: RowRandom,
    ) -> SampledAnswers:
        """Sample and score ``answers_per_prompt`` answers to each prompt, at temperature 1.

        Raises:
            ConfigError: there is no tokenizer to read answers with.
        """
        if tokenizer is None:
            raise ConfigError("TaskReward needs the data's tokenizer to read answers")
        rows, copies = batch.task_rows, self.answers_per_prompt
        budgets = [self.budget or row.max_gen_tokens for row in rows]
        drawn = continue_prompts(
            policy,
            batch.prompts,
            torch.tensor(budgets),
            copies=copies,
            eos_token_id=tokenizer.eos_token_id,
            ends=batch.turn_ends,
            choose=sampling(generator, max(budgets), copies=copies),
        )
        questions = [row for row in rows for _ in range(copies)]
        texts = [tokenizer.decode(drawn.spoken(i)) for i in range(len(questions))]
        values = [score(q.task, text, q.answers) for q, text in zip(questions, texts, strict=True)]
        scores = torch.tensor(values, device=drawn.tokens.device).view(len(rows), 1, copies)
        shape = (len(rows), 1, copies, drawn.tokens.shape[1])
        place = torch.arange(shape[-1], device=drawn.tokens.device)
        valid = scores.new_ones(len(rows), 1, dtype=torch.bool)
        return SampledAnswers(
            batch,
            drawn.tokens.view(shape),
            drawn.logprobs.view(shape),
            (place < drawn.num_tokens[:, None]).view(shape),
            scores,
            self.advantage.estimate(scores, valid),
        )

    def count(self, prepared: SampledAnswers) -> Tensor:
        """Sampled tokens, or answers, as the policy loss counts."""
        return self.policy_loss.count(prepared.loss_mask)

    def loss(self, policy: FastWeightLM, prepared: SampledAnswers) -> LossSum:
        """The policy loss, summed over sampled tokens or answers."""
        tokens, mask, prompts = prepared.tokens, prepared.loss_mask, prepared.batch.prompts
        valid = torch.ones_like(mask[:, :, 0, 0])
        ends = Positions(prompts.num_tokens[:, None], valid)
        _, hidden = Forked().replay(policy, prompts, ends, tokens)
        logprobs = policy.head(hidden.flatten(0, -2), tokens.flatten()).logprob.view(tokens.shape)
        made = self.policy_loss(
            logprobs, prepared.old_logprobs, prepared.advantages[..., None], mask
        )
        groups = group_statistics(prepared.scores, valid, self.advantage.group_by)
        answers = torch.tensor(prepared.scores.numel())
        log = {
            "train/answer_policy_loss": made.sums["policy_loss"],
            "answer/score": (prepared.scores.sum(), answers),
            "answer/num_tokens": (mask.sum(), answers),
            "answer/zero_spread_groups": (
                groups.zero_spread.sum(),
                torch.tensor(groups.zero_spread.numel()),
            ),
        }
        others = {name: pair for name, pair in made.sums.items() if name != "policy_loss"}
        return LossSum(made.total, log | {f"answer/{name}": pair for name, pair in others.items()})

    def describe(self) -> str:
        """What the step is on."""
        return f"1 update on {self.answers_per_prompt} sampled answers to each prompt"
