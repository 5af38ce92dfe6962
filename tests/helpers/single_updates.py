"""One update of a small model of every kind, in float64."""

import hybrids
import tiny
import torch

from refine_pl.advantages import GroupRelative
from refine_pl.backbones import GatedDeltaNet
from refine_pl.losses import ClippedPolicy
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights, RefineStep
from refine_pl.rewards import EmbeddingSimilarity, ExactMatch
from refine_pl.rollouts import Forked
from refine_pl.selectors import Entropy
from refine_pl.training.settings import Settings
from refine_pl.training.sizes import Sizes
from refine_pl.training.updater import Updater

LENGTHS = [140, 97, 33, 12]  # the last one is too short for any position
WEIGHTS = LossWeights(1.0, 0.7, 0.0)


def gated_delta_net(seed=0, **options):
    torch.manual_seed(seed)
    return GatedDeltaNet(**tiny.SMALL | {"head_dim": 8} | options).double()


MODELS = {
    "DeltaNet": tiny.delta_net,
    "GatedDeltaNet": gated_delta_net,
    "LaCT": tiny.lact,
    "Qwen35": hybrids.qwen35,
    "OlmoHybrid": hybrids.olmo_hybrid,
}


def update(kind, policy, batch, *, plan=(3, 2, 4), weights=WEIGHTS, microbatch=2, **parts):
    """The loss, the gradients and the logged means of one update."""
    selector = parts.pop("selector", Entropy(min_prefix=8, min_suffix=8))
    rewards = {"similarity": EmbeddingSimilarity(), "match": ExactMatch()}
    step = RefineStep(
        selector,
        parts.pop("generator", None) or Forked(),
        rewards,
        GroupRelative(),
        parts.pop("loss", None) or ClippedPolicy(),
    )
    draw_batch = parts.pop("draw_batch", "auto")
    sizes = Sizes(None, microbatch, "minibatch", kind, draw_batch)
    sgd = torch.optim.SGD(policy.parameters(), 0.0)
    updater = Updater(policy, step, sgd, sizes, seed=5, **parts)
    settings = Settings(RolloutPlan(*plan), weights)
    policy.zero_grad()
    if kind == "joined":
        assert updater.joins(settings)
        loss = updater.join(batch, settings)
    else:
        assert not updater.joins(settings)
        loss = updater.accumulate(updater.draw(batch, settings), settings)
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return loss, gradients, updater.tally.means(updater.device, lambda values: values)
