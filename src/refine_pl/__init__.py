"""ReFINE training of fast-weight language models, with forked states, on PyTorch Lightning.

Models       DeltaNet, GatedDeltaNet, LaCT; load_pretrained and save_pretrained for folders and the
             Hugging Face hub
One update   RefineStep makes Experience (with its Rollouts) of a policy, a Batch and a RolloutPlan,
             and a loss of it, weighted by LossWeights; RowRandom draws, Stopwatch times
Training     RefineModule, a LightningModule around all of it
Text         Bytes and HubTokenizer
Parts        selectors, rollouts, rewards, advantages, losses, objectives: a class for each choice;
             backbones, data, callbacks, evaluation, training

The names are loaded when they are first used. The command line is `refine-pl`. How a step is made
and looked at in a few lines is in docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refine_pl.lazy import lazy_names

if TYPE_CHECKING:
    from refine_pl.backbones import DeltaNet as DeltaNet
    from refine_pl.backbones import GatedDeltaNet as GatedDeltaNet
    from refine_pl.backbones import LaCT as LaCT
    from refine_pl.backbones import load_pretrained as load_pretrained
    from refine_pl.backbones import save_pretrained as save_pretrained
    from refine_pl.randomness import RowRandom as RowRandom
    from refine_pl.records import Batch as Batch
    from refine_pl.records import Experience as Experience
    from refine_pl.records import RolloutPlan as RolloutPlan
    from refine_pl.records import Rollouts as Rollouts
    from refine_pl.refine_step import LossWeights as LossWeights
    from refine_pl.refine_step import RefineStep as RefineStep
    from refine_pl.stopwatch import Stopwatch as Stopwatch
    from refine_pl.tokenizers import Bytes as Bytes
    from refine_pl.tokenizers import HubTokenizer as HubTokenizer
    from refine_pl.training.module import RefineModule as RefineModule

__version__ = "0.1.0"

_HOMES = {
    "backbones": "DeltaNet GatedDeltaNet LaCT load_pretrained save_pretrained",
    "randomness": "RowRandom",
    "records": "Batch Experience RolloutPlan Rollouts",
    "refine_step": "LossWeights RefineStep",
    "stopwatch": "Stopwatch",
    "tokenizers": "Bytes HubTokenizer",
    "training.module": "RefineModule",
}
_PACKAGES = (
    "selectors", "rollouts", "rewards", "advantages", "losses", "objectives",
    "backbones", "data", "callbacks", "evaluation", "training",
)  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__,
    {name: home for home, names in _HOMES.items() for name in names.split()},
    _PACKAGES,
)
