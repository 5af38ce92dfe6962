"""RefineModule: what it makes of its parts and settings, and which it refuses."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import RowsData, backbone, module, parameters, train

from refine_pl.data import Bytes
from refine_pl.errors import ConfigError
from refine_pl.rewards import ExactMatch, Reward
from refine_pl.training.module import RefineModule


def test_parts_that_are_left_out_are_not_shared():
    one, other = RefineModule(backbone()), RefineModule(backbone())
    assert type(one.refine_step.selector) is type(other.refine_step.selector)
    assert one.refine_step.selector is not other.refine_step.selector
    assert (
        one.refine_step.reward.parts()["similarity"]
        is not other.refine_step.reward.parts()["similarity"]
    )
    plan = one.settings.plan
    assert (plan.num_segments, plan.rollouts_per_position, plan.rollout_length) == (8, 1, 5)


class Text(Reward):
    def score(self, rollouts):
        texts = self.decode(rollouts.tokens.flatten(0, 2))
        scores = torch.tensor([float(text.isascii()) for text in texts])
        return scores.view(rollouts.tokens.shape[:3])


def test_rewards_are_given_the_tokenizer():
    curve = train(module(rewards={"text": Text()}), iterations=1)
    assert 0 < curve["reward/text/mean"][0] < 1


class Constant(Reward):
    def score(self, rollouts):
        return torch.ones(rollouts.tokens.shape[:3])


def test_equal_rewards_are_warned_about_once():
    model = module(rewards={"constant": Constant()})
    with pytest.warns(UserWarning, match="100% of the groups had equal rewards") as caught:
        curve = train(model, iterations=41)
    assert sum("equal rewards" in str(w.message) for w in caught) == 1
    assert curve["advantage/zero_spread_groups"][-1] == 1
    assert curve["advantage/magnitude"][-1] == 0


class LongVocabulary(Bytes):
    @property
    def vocab_size(self):
        return 300


REFUSED = {
    "accumulation": ({}, {"accumulate_grad_batches": 2}, {}, "accumulate_grad_batches is 2"),
    "clipping": ({}, {"gradient_clip_val": 0.5}, {}, r"way out: model\.gradient_clip: 0\.5"),
    "float16": ({}, {"precision": "16-true"}, {}, "precision is 16-true"),
    "bfloat16": (
        {"optimizer": lambda params: torch.optim.AdamW(params, lr=1e-6)},
        {"precision": "bf16-true"},
        {},
        "learning rate 1e-06",
    ),
    "batch": ({"minibatch_size": 3}, {}, {}, "batches of 4 sequences cannot be cut into mini-b"),
    "micro-batch": ({"minibatch_size": 4, "microbatch_size": 3}, {}, {}, "micro-batches of 3"),
    "checkpoints": (
        {},
        {"callbacks": [ModelCheckpoint(every_n_train_steps=5)], "enable_checkpointing": True},
        {},
        "every_n_train_steps: 10 saves every 5 batches",
    ),
    "segments": ({"num_segments": 9}, {}, {}, "9 segments do not fit sequences of 72 tokens"),
    "reward name": ({"rewards": {"total": ExactMatch()}}, {}, {}, "named 'total'"),
    "vocabulary": (
        {},
        {},
        {"tokenizer": LongVocabulary()},
        "ids up to 299, the backbone only 257 tokens",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(case):
    options, run_options, data_options, message = REFUSED[case]
    model, data = module(**options), RowsData()
    for name, value in data_options.items():
        setattr(data, name, value)
    before = parameters(model)
    with pytest.raises(ConfigError, match=message):
        train(model, data, **run_options)
    assert model.iteration == 0
    if case != "bfloat16":
        assert all(torch.equal(value, before[name]) for name, value in parameters(model).items())


def test_how_many_refusals_are_tested():
    assert len(REFUSED) == 10


def test_bfloat16_weights_with_a_large_learning_rate_are_trained():
    curve = train(module(microbatch_size=2), iterations=1, precision="bf16-true")
    assert math.isfinite(curve["train/loss"][0])


def test_mixed_precision_is_trained():
    model = module(microbatch_size=2)
    curve = train(model, iterations=2, precision="bf16-mixed")
    assert math.isfinite(curve["train/loss"][-1])
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_parts_with_parameters_of_their_own_are_not_trained():
    class Judge(Reward):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def score(self, rollouts):
            match = rollouts.tokens == rollouts.targets[:, :, None]
            return match.float().mean(-1) * self.scale

    judge = Judge()
    model = module(rewards={"judge": judge})
    train(model, iterations=1)
    assert judge.scale == 1
    assert not judge.scale.requires_grad


def test_what_an_iteration_is_made_of_is_said_in_one_line(capsys):
    model = module(num_segments=3, rollouts_per_position=4, rollout_length=5)
    train(model, iterations=1)
    assert "4 sequences = 2 updates of 2; 48 rollouts of 5 tokens" in capsys.readouterr().out
    train(module(policy_weight=0.0, minibatch_size=4), iterations=1)
    assert "4 sequences = 1 update of 4; no rollouts" in capsys.readouterr().out
