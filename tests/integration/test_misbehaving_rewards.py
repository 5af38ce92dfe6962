"""Whatever a reward does, it is named, the state is saved, and nothing else is touched."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from misbehaving_rewards import (
    ACCEPTED,
    INTERRUPTS,
    REFUSED,
    EditsItsInput,
    Forgets,
    LeavesItsInput,
    composed,
)
from runs import Curve, RowsData, module, trainer

from refine_pl.errors import ConfigError
from refine_pl.faults import PartError
from refine_pl.rewards import ExactMatch, Reward

GENERATOR = torch.Generator().manual_seed(5)
COMPOSED = dict(composed(GENERATOR) for _ in range(12))


def fit(reward, folder=None, iterations=2, ckpt_path=None, **options):
    callbacks = [] if folder is None else [ModelCheckpoint(folder, "{step}", save_last=True)]
    curve = Curve()
    run = trainer(
        *callbacks,
        curve,
        iterations=iterations,
        enable_checkpointing=folder is not None,
        **options,
    )
    made = module(rewards={"mine": reward, "match": ExactMatch()})
    run.fit(made, RowsData(), ckpt_path=ckpt_path)
    return made, curve


def test_all_thirty_are_tried():
    assert len(REFUSED) + len(ACCEPTED) + len(INTERRUPTS) == 30
    assert len(COMPOSED) >= 8


@pytest.mark.parametrize("name", [*REFUSED, *COMPOSED])
def test_a_fault_is_named_and_the_state_is_saved(tmp_path, name):
    kind = (REFUSED | COMPOSED)[name]
    with pytest.raises(PartError) as caught:
        fit(kind(), tmp_path)
    text = str(caught.value)
    assert "reward 'mine'" in text
    assert "model.rewards.mine" in text
    assert kind.__qualname__ in text
    assert f"--ckpt_path {tmp_path / 'stopped.ckpt'}" in text
    assert "on_error: zero" in text
    assert (tmp_path / "stopped.ckpt").exists()


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_can_be_used_trains(name):
    made, _ = fit(ACCEPTED[name]())
    assert made.counters.updates == 4
    assert made.counters.skipped_steps == 0


@pytest.mark.parametrize("name", INTERRUPTS)
def test_an_interrupt_stays_one(name):
    with pytest.raises(SystemExit) as caught:
        fit(INTERRUPTS[name]())
    assert caught.value.code != 0
    assert isinstance(caught.value.__context__, KeyboardInterrupt)


def test_a_class_without_super_init():
    with pytest.raises(ConfigError, match=r"model\.rewards\.mine is a .*Forgets, whose __init__"):
        fit(Forgets())


@pytest.mark.parametrize("name", [*REFUSED, *COMPOSED])
def test_on_error_zero_counts_it_as_zero(name):
    reward = (REFUSED | COMPOSED)[name](on_error="zero")
    with pytest.warns(UserWarning, match="It counts as 0 here"):
        made, curve = fit(reward, iterations=1)
    assert made.counters.reward_faults == {"mine": 4}  # micro-batches
    assert curve["reward/mine/mean"] == [0.0]
    assert curve["reward_faults/mine"] == [4.0]


def test_what_a_reward_does_to_its_input_changes_nothing():
    weights, ratios = [], []
    for kind in (LeavesItsInput, EditsItsInput):
        made, curve = fit(kind())
        weights.append(made.policy.state_dict())
        ratios.append(curve["policy/ratio"])
    assert ratios[0] == ratios[1]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


class FailsAt(Reward):
    """Fails once, in one call."""

    def __init__(self, call=None):
        super().__init__()
        self.call, self.calls = call, 0

    def score(self, rollouts):
        self.calls += 1
        if self.calls == self.call:
            raise StopIteration
        return rollouts.tokens.float().mean(-1) / 257


@pytest.mark.parametrize("call", [1, 6, 13, 16])  # of 4 a batch, 3 batches an epoch
def test_a_run_that_failed_goes_on_as_if_it_had_not(tmp_path, call):
    straight, _ = fit(FailsAt(), iterations=6)
    with pytest.raises(PartError):
        fit(FailsAt(call), tmp_path, iterations=6)
    resumed, _ = fit(FailsAt(), iterations=6, ckpt_path=tmp_path / "stopped.ckpt")
    assert resumed.iteration == straight.iteration == 6
    for name, value in straight.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value)


def test_a_fault_in_a_validation_saves_too(tmp_path):
    reward = FailsAt(3 * 4 + 1)  # the first call after an epoch of three batches
    with pytest.raises(PartError, match=r"stopped\.ckpt"):
        fit(reward, tmp_path, iterations=6, limit_val_batches=1)
    straight, _ = fit(FailsAt(), iterations=6, limit_val_batches=1)
    stopped = tmp_path / "stopped.ckpt"
    resumed, _ = fit(FailsAt(), iterations=6, ckpt_path=stopped, limit_val_batches=1)
    assert resumed.iteration == straight.iteration == 6
    for name, value in straight.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value)


def test_without_checkpoints_the_error_says_so():
    with pytest.raises(PartError, match="no checkpoint was written"):
        fit(REFUSED["NaN"]())


def test_on_error_takes_two_words():
    with pytest.raises(ConfigError, match="on_error is 'ignore'"):
        ExactMatch(on_error="ignore")
