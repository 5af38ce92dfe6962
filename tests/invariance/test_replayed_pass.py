"""A joined update whose blocks run again: its backward passes, and what it holds at once."""

import pytest
import tiny
import torch
from single_updates import LENGTHS

from refine_pl.backbones import DeltaNet
from refine_pl.backbones.base import Forks, PlainPass
from refine_pl.backbones.replay import ReplayedPass
from refine_pl.benchmark.memory import PeakMemory
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights, RefineStep
from refine_pl.rewards import ExactMatch
from refine_pl.rollouts import Forked
from refine_pl.selectors import Entropy
from refine_pl.training.settings import Settings
from refine_pl.training.sizes import Sizes
from refine_pl.training.updater import Updater

VALID = torch.ones(4, 2, dtype=torch.bool)


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_that_run_again_take_any_number_of_backward_passes(frozen):
    """Of one loss twice, or of two losses, with embeddings that need gradients or do not."""
    policy, batch = tiny.delta_net(activation_checkpointing=True), tiny.batch(LENGTHS)
    policy.embeddings.weight.requires_grad_(not frozen)
    forks = Forks(*(torch.zeros(4, 2, *more, dtype=torch.int64) for more in ((), (3, 2))), VALID)
    wanted = [p for p in policy.model.parameters() if p.requires_grad]  # the head reads nothing

    def gradients(*losses):
        found = [torch.autograd.grad(x, wanted, retain_graph=True) for x in losses]
        return [torch.stack(each).sum(0) for each in zip(*found, strict=True)]

    found = []
    for kind in (ReplayedPass, PlainPass):
        opened = kind(policy, batch.tokens, batch.num_tokens)
        hidden, (before, twice) = opened.close(forks, opened.hidden, 2 * opened.hidden)
        losses = [hidden.sin().sum(), before.cos().sum() + twice.sin().sum() * hidden.sum()]
        found.append(gradients(*losses, losses[1]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_a_graph_that_is_not_kept_is_gone():
    policy, batch = tiny.delta_net(activation_checkpointing=True), tiny.batch(LENGTHS)
    opened = policy.open_pass(batch.tokens, batch.num_tokens)
    assert type(opened) is ReplayedPass
    _, (hidden,) = opened.close(None, opened.hidden)
    hidden.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        hidden.sum().backward()


@pytest.mark.parametrize("again", [False, True])
def test_memory(again):
    """At most 1.15 times that of an update without rollouts, with or without recomputation."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 6, "num_heads": 2}
    policy = DeltaNet(**sizes, activation_checkpointing=again)
    batch = tiny.batch([2048], vocab_size=256)
    peaks = []
    for weights in (LossWeights(1.0, 0.0, 0.0), LossWeights(1.0, 0.7, 0.0)):
        step = RefineStep(Entropy(), Forked(), {"match": ExactMatch()})
        sgd = torch.optim.SGD(policy.parameters(), 0.0)
        updater = Updater(policy, step, sgd, Sizes(None, 1, "minibatch", "auto"))
        with PeakMemory() as memory:
            updater.refine(batch, Settings(RolloutPlan(8, 1, 5), weights))
        peaks.append(memory.peak_bytes)
    assert peaks[1] <= 1.15 * peaks[0]
