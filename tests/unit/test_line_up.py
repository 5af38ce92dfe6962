"""Entropy, position and rollout line up, shown with a policy whose every token is known."""

from dataclasses import dataclass

import torch

from refine_pl.advantages import GroupRelative
from refine_pl.backbones import FastWeightLM, LayerState, LayerTrail, LMOutput, State, StateTrail
from refine_pl.backbones.head import VocabHead
from refine_pl.losses import ClippedPolicy
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, RolloutPlan
from refine_pl.refine_step import RefineStep
from refine_pl.rewards import EmbeddingSimilarity, ExactMatch, LogLikelihood
from refine_pl.rollouts import Forked, Recompute
from refine_pl.selectors import Extremum, Fixed
from refine_pl.stopwatch import Stopwatch

VOCAB = 50
UNSURE = 13  # the token after which anything may follow


@dataclass(frozen=True)
class Nothing(LayerState, LayerTrail):
    def select(self, rows):
        return self

    def fork(self, n):
        return self

    def tensors(self):
        return ()

    def detach(self):
        return self

    def at(self, positions):
        return self


class Counter(FastWeightLM):
    """After token x comes x + 1, surely; after ``UNSURE`` every token is as likely."""

    def __init__(self):
        super().__init__()
        self.vocab_size = self.hidden_size = VOCAB
        self._head = VocabHead(VOCAB, VOCAB)
        self._head.weight.data = torch.eye(VOCAB)
        self.table = 200.0 * torch.eye(VOCAB).roll(1, 1)
        self.table[UNSURE] = 0

    @property
    def head(self):
        return self._head

    def config(self):
        return {}

    def forward(self, tokens, num_tokens=None, *, state=None, forks=None, keep_trail=False):
        count = torch.full((len(tokens),), tokens.shape[1])
        return LMOutput(
            hidden=self.table[tokens],
            state=State((Nothing(),), count),
            fork_hidden=None if forks is None else self.table[forks.tokens],
            trail=StateTrail((Nothing(),), count * 0) if keep_trail else None,
        )


def draw(tokens, selector, generator, plan, rewards=None):
    batch = Batch(tokens, torch.full((len(tokens),), tokens.shape[1]), tuple(range(len(tokens))))
    rewards = rewards or {"match": ExactMatch()}
    step = RefineStep(selector, generator, rewards, GroupRelative(), ClippedPolicy())
    randomness = RowRandom(0, 0, batch.rows)
    return step.draw(Counter(), batch, plan, randomness, Stopwatch())


def test_the_token_after_the_least_sure_prefix_is_the_first_of_the_rollout():
    text = torch.arange(60) % 10  # a loop of ten that the policy can follow, with one surprise
    text[33] = UNSURE
    experience = draw(text[None], Extremum(mode="argmax"), Forked(), RolloutPlan(1, 1, 1))
    # The entropy after the surprise is that of a uniform distribution, and the only one.
    assert experience.entropy[0].argmax() == 33
    torch.testing.assert_close(experience.entropy[0, 33], torch.tensor(float(VOCAB)).log())
    assert experience.entropy[0].sum() - experience.entropy[0, 33] < 1e-3
    rollouts = experience.rollouts
    assert rollouts.positions.index.tolist() == [[34]]
    assert rollouts.targets.tolist() == [[[4]]]
    torch.testing.assert_close(rollouts.old_logprobs.exp(), torch.full((1, 1, 1, 1), 1 / VOCAB))
    torch.testing.assert_close(rollouts.target_logprobs.exp(), torch.full((1, 1, 1, 1), 1 / VOCAB))


def test_offset_starts_one_token_later():
    text = torch.arange(60) % 10
    text[33] = UNSURE
    selector = Extremum(mode="argmax", offset=1)
    experience = draw(text[None], selector, Forked(), RolloutPlan(1, 1, 1))
    assert experience.rollouts.positions.index.tolist() == [[35]]


def test_rollouts_continue_the_prefix():
    text = torch.arange(60) % 10
    for generator in (Forked(), Recompute(), Recompute(use_cache=False)):
        rollouts = draw(
            text[None], Fixed(positions=[25, 30]), generator, RolloutPlan(2, 3, 4)
        ).rollouts
        # x[24] = 4: the policy says 5, 6, 7, 8. x[29] = 9: it says 10, the text begins anew at 0.
        assert rollouts.tokens[0, 0].tolist() == [[5, 6, 7, 8]] * 3
        assert rollouts.tokens[0, 1].tolist() == [[10, 11, 12, 13]] * 3
        assert rollouts.targets[0].tolist() == [[5, 6, 7, 8], [0, 1, 2, 3]]
        table = Counter().table
        torch.testing.assert_close(rollouts.hidden, table[rollouts.tokens])
        torch.testing.assert_close(rollouts.target_hidden, table[rollouts.targets])
        # Target token j after the rollout's own tokens: sure in the first row, hopeless in the
        # second.
        assert rollouts.target_logprobs[0, 0].abs().max() < 1e-6
        assert rollouts.target_logprobs[0, 1].max() < -100


def test_a_rollout_equal_to_its_target_scores_one_one_and_two():
    text = torch.arange(20, 45)[None].repeat(1, 2)
    rewards = {
        "similarity": EmbeddingSimilarity(),
        "match": ExactMatch(),
        "likelihood": LogLikelihood(weight=0.0),
    }
    experience = draw(text, Fixed(positions=[21, 24]), Forked(), RolloutPlan(2, 1, 3), rewards)
    perfect = experience.rollouts.tokens[:, :, 0] == experience.rollouts.targets
    assert perfect[0, 0].all()
    assert not perfect[0, 1].all()
    assert experience.reward_parts["similarity"][0, 0, 0] == 1
    assert experience.reward_parts["match"][0, 0, 0] == 1
    assert experience.rewards[0, 0, 0] == 2
    assert experience.rewards[0, 1, 0] < 2
    # Two positions of one sequence are one group: the better one gains what the other loses.
    advantages = experience.advantages[0, :, 0]
    torch.testing.assert_close(advantages, torch.tensor([0.7071, -0.7071]), atol=1e-3, rtol=0)
