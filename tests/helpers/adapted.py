"""Small policies with adapters that do something, and updates of them, for tests."""

import copy

import hybrids
import tiny
import torch
from peft import LoraConfig

from refine_pl.adapters import attach, merged
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


def gated_delta_net(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    fields = tiny.SMALL | {"head_dim": 8, "num_v_heads": 4} | options
    return GatedDeltaNet(**fields).to(dtype)


WEIGHTS = LossWeights(1.0, 0.7, 0.0)
MODELS = {"DeltaNet": tiny.delta_net, "GatedDeltaNet": gated_delta_net, "LaCT": tiny.lact}


def hybrid(**options):
    """Of two layers the second is softmax attention."""
    return tiny.delta_net(attn={"layers": [1], "num_heads": 2}, **options)


HYBRIDS = {
    "DeltaNet with attention": hybrid,
    "Qwen35": hybrids.qwen35,
    "OlmoHybrid": hybrids.olmo_hybrid,
}


def adapted(policy, seed=0, **options):
    """Put an adapter on all linear maps of the policy; its B are random instead of 0."""
    torch.manual_seed(seed)
    attached = attach(policy, LoraConfig(**{"r": 3, "lora_alpha": 5} | options))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if p.requires_grad and "lora_B" in name:
                p.normal_(std=0.2)
    return attached


def merged_copy(policy):
    return merged(copy.deepcopy(policy))


def update(kind, policy, batch, weights=WEIGHTS, **parts):
    """The loss, the gradients and the logged means of one update, ``joined`` or ``two_pass``."""
    rewards = {"similarity": EmbeddingSimilarity(), "match": ExactMatch()}
    selector = Entropy(min_prefix=8, min_suffix=8)
    step = RefineStep(selector, Forked(), rewards, GroupRelative(), ClippedPolicy())
    trained = [p for p in policy.parameters() if p.requires_grad]
    sizes = Sizes(None, 2, "minibatch", kind)
    updater = Updater(policy, step, torch.optim.SGD(trained, 0.0), sizes, seed=5, **parts)
    settings = Settings(RolloutPlan(3, 2, 4), weights)
    policy.zero_grad()
    if kind == "joined":
        loss = updater.join(batch, settings)
    else:
        loss = updater.accumulate(updater.draw(batch, settings), settings)
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return loss, gradients, updater.tally.means(updater.device, lambda values: values)
