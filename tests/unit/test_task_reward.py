"""GRPO on answers with any policy loss: what is summed, what is counted, what is logged."""

import pytest
import tiny
import torch

from refine_pl.advantages import LeaveOneOut
from refine_pl.losses import ClippedPolicy, ClippedWeights, LossSum, Reinforce, SequenceRatio
from refine_pl.objectives import TaskReward
from refine_pl.objectives.task_reward import SampledAnswers
from refine_pl.task_records import TaskBatch

LENGTHS = [[3, 1, 5], [2, 0, 4]]  # tokens of each answer; one ended before it began


def sampled(policy, advantage):
    """Two prompts with three answers each, of unequal length, sampled by a policy that was."""
    prompts = tiny.batch([17, 9])
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 23, (2, 1, 3, 5), generator=generator)
    scores = torch.rand(2, 1, 3, generator=generator)
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None, :, None]
    old = logprobs_of(policy, prompts, tokens) + 0.4 * torch.randn(
        tokens.shape, generator=generator
    )
    advantages = advantage.estimate(scores, torch.ones(2, 1, dtype=torch.bool))
    batch = TaskBatch(prompts, (None, None), (0, 0))
    return SampledAnswers(
        batch, tokens, old.masked_fill(~mask, torch.nan), mask, scores, advantages
    )


def logprobs_of(policy, prompts, tokens):
    """By reading every prompt with every answer from the start."""
    found = torch.zeros(tokens.shape, dtype=torch.float64)
    for b in range(2):
        prompt = prompts.tokens[b, : prompts.num_tokens[b]]
        for n in range(3):
            text = torch.cat([prompt, tokens[b, 0, n]])[None]
            hidden = policy(text).hidden[0, len(prompt) - 1 : -1]
            logprobs = (hidden @ policy.lm_head.weight.T).log_softmax(-1)
            found[b, 0, n] = logprobs.gather(-1, tokens[b, 0, n, :, None])[:, 0].detach()
    return found


def rows(prepared):
    """The same as two micro-batches."""
    for b in (0, 1):
        narrow = slice(b, b + 1)
        yield SampledAnswers(
            prepared.batch.narrow(b, b + 1),
            prepared.tokens[narrow],
            prepared.old_logprobs[narrow],
            prepared.loss_mask[narrow],
            prepared.scores[narrow],
            prepared.advantages[narrow],
        )


LOSSES = [
    ClippedPolicy(),
    ClippedPolicy(counts="sequences"),
    SequenceRatio(0.1, 0.1),
    ClippedWeights(),
    Reinforce(counts="sequences"),
]


@pytest.mark.parametrize("policy_loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_any_policy_loss_and_any_advantage(policy_loss):
    policy = tiny.delta_net(seed=1)
    objective = TaskReward(3, advantage=LeaveOneOut(), policy_loss=policy_loss)
    prepared = sampled(policy, LeaveOneOut())
    made = objective.loss(policy, prepared)
    count = objective.count(prepared)
    assert count == (5 if policy_loss.counts == "sequences" else 3 + 1 + 5 + 2 + 4)
    now = logprobs_of(policy, prepared.batch.prompts, prepared.tokens)
    expected = policy_loss(
        now, prepared.old_logprobs, prepared.advantages[..., None], prepared.loss_mask
    )
    torch.testing.assert_close(made.total.detach(), expected.total, rtol=1e-6, atol=1e-8)
    assert made.sums["train/answer_policy_loss"] == (made.total, count)
    assert made.sums["answer/score"] == (prepared.scores.sum(), 6)
    assert made.sums["answer/num_tokens"] == (15, 6)
    for name in expected.sums.keys() - {"policy_loss"}:
        for a, b in zip(made.sums[f"answer/{name}"], expected.sums[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert not any(value.requires_grad for pair in made.sums.values() for value in pair)

    # However it is cut into micro-batches:
    parts = [(objective.loss(policy, part), objective.count(part)) for part in rows(prepared)]
    assert sum(n for _, n in parts) == count
    torch.testing.assert_close(sum(part.total for part, _ in parts), made.total)
    for name, pair in made.sums.items():
        for i, value in enumerate(pair):
            torch.testing.assert_close(sum(part.sums[name][i] for part, _ in parts), value)


def test_each_answer_counts_once_whatever_its_length():
    """As in GRPO: 1 / length weighs the tokens of a short answer more."""
    policy = tiny.delta_net(seed=1)
    prepared = sampled(policy, LeaveOneOut())
    by_sequence, by_token = (
        TaskReward(3, policy_loss=Reinforce(counts)) for counts in ("sequences", "tokens")
    )
    now = logprobs_of(policy, prepared.batch.prompts, prepared.tokens)
    for objective, share in ((by_sequence, lambda n: 1 / n), (by_token, lambda n: 1)):
        expected = 0.0
        for b in (0, 1):
            for n, length in enumerate(LENGTHS[b]):
                a = prepared.advantages[b, 0, n].item()
                expected -= sum(a * x * share(length) for x in now[b, 0, n, :length].tolist())
        made = objective.loss(policy, prepared)
        assert made.total.item() == pytest.approx(expected, rel=1e-5)


class Mine(Reinforce):
    """Logs a number of its own."""

    def loss(self, *inputs):
        made = super().loss(*inputs)
        own = torch.tensor(7.0), torch.tensor(2.0)
        return LossSum(made.total, made.sums | {"sevens": own})


def test_numbers_of_a_loss_of_your_own_are_logged():
    policy = tiny.delta_net(seed=1)
    made = TaskReward(3, policy_loss=Mine()).loss(policy, sampled(policy, LeaveOneOut()))
    assert made.sums["answer/sevens"] == (7, 2)
