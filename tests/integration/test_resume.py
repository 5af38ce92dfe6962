"""A run that is interrupted and resumed is the run that was not, bit for bit."""

import json
import random

import numpy as np
import pytest
import torch
from runs import assert_same_parameters, every_batch, module, train

from refine_pl.callbacks import RandomState, RolloutRecorder
from refine_pl.data import Bytes, Files, TextData
from refine_pl.rewards import Reward
from refine_pl.training import Schedule, Stage
from refine_pl.training.random_state import generator_states, set_generator_states, undisturbed

ITERATIONS = 9  # two epochs of four batches and a bit


class Noise(Reward):
    """A user's reward that draws from the global generators."""

    def score(self, rollouts):
        noise = torch.rand(rollouts.tokens.shape[:3])
        return noise + random.random() + float(np.random.rand())


@pytest.fixture
def data(tmp_path):
    """Makes the project's own text data, from some files."""
    generator = random.Random(0)
    for i in range(11):
        text = "".join(generator.choice("abcde \n") for _ in range(200))
        (tmp_path / f"{i:02d}.txt").write_text(text)

    def make():
        return TextData(
            corpus=Files(str(tmp_path / "*.txt")),
            tokenizer=Bytes(),
            sequence_length=72,
            batch_size=2,
            crop="random",
            num_validation_documents=2,
            cache_dir=str(tmp_path / "cache"),
        )

    return make


def callbacks(folder):
    stages = {"warm-up": Stage(2, policy_weight=0.0), "refine": Stage(ITERATIONS - 2)}
    recorder = RolloutRecorder(every_n_iterations=1, num_rows=2, directory=str(folder))
    return [recorder, RandomState(), Schedule(stages)]


def rollouts(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def test_resume_is_bit_exact_anywhere_rollouts_included(tmp_path, data):
    options = {"limit_val_batches": 1.0, "iterations": 99}
    whole = module(rewards={"noise": Noise()})
    torch.manual_seed(1)
    curve = train(
        whole,
        data(),
        callbacks=[*callbacks(tmp_path / "whole"), every_batch(tmp_path, 1)],
        enable_checkpointing=True,
        **options,
    )
    drawn = rollouts(tmp_path / "whole")
    assert {row["iteration"] for row in drawn} == set(range(3, ITERATIONS + 1))
    # In the middle of an epoch, at its end, in the first phase and at its end.
    for stop in (1, 2, 3, 4, 6, 8):
        folder = tmp_path / f"from {stop}"
        resumed = module(rewards={"noise": Noise()})
        torch.manual_seed(2)
        random.seed(2)
        np.random.seed(2)
        rest = train(
            resumed,
            data(),
            callbacks=callbacks(folder),
            ckpt_path=tmp_path / f"step={stop}.ckpt",
            **options,
        )
        names = [n for n in curve.values[-1] if not n.startswith(("time/", "val/"))]
        for before, now in zip(curve.values[stop:], rest.values, strict=True):
            assert {n: before.get(n) for n in names} == {n: now.get(n) for n in names}, stop
        assert rest.validations == [entry for entry in curve.validations if entry[0] > stop]
        assert rollouts(folder) == [row for row in drawn if row["iteration"] > stop]
        assert_same_parameters(resumed, whole, rtol=0, atol=0)


def test_without_the_random_state_a_noisy_reward_differs(tmp_path, data):
    """The counter-example: the comparison above can fail."""
    torch.manual_seed(1)
    options = {"rewards": {"noise": Noise()}}
    run = {"callbacks": [every_batch(tmp_path, 1)], "enable_checkpointing": True}
    curve = train(module(**options), data(), iterations=3, **run)
    torch.manual_seed(2)
    rest = train(module(**options), data(), iterations=3, ckpt_path=tmp_path / "step=2.ckpt")
    assert rest["train/ntp_loss"] == curve["train/ntp_loss"][2:]
    assert rest["reward/total/mean"] != curve["reward/total/mean"][2:]


def test_other_data_are_refused_on_resume(tmp_path, data):
    run = {"callbacks": [every_batch(tmp_path, 1)], "enable_checkpointing": True}
    train(module(), data(), iterations=1, **run)
    other = data()
    other.crop = "first"
    with pytest.raises(Exception, match="the data differ from those of the checkpoint"):
        train(module(), other, iterations=2, ckpt_path=tmp_path / "step=1.ckpt")


def draws():
    return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand()


def test_generator_states_are_plain_and_restore_everything(tmp_path):
    random.gauss(0, 1)
    torch.save(generator_states(), tmp_path / "states")
    first = draws()
    draws()
    set_generator_states(torch.load(tmp_path / "states", weights_only=True))
    assert draws() == first


def test_a_checkpoint_inside_an_undisturbed_block_holds_the_states_of_before():
    states = generator_states()
    first = draws()
    set_generator_states(states)
    with undisturbed():
        draws()
        inside = RandomState().state_dict()["states"][0]
    assert draws() == first
    set_generator_states(inside)
    assert draws() == first
