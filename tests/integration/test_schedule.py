import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from runs import Curve, RowsData, assert_same_parameters, every_batch, module, train, trainer

from refine_pl.callbacks import RunSummary
from refine_pl.callbacks.progress import ProgressBar
from refine_pl.errors import ConfigError
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights
from refine_pl.rewards import ExactMatch
from refine_pl.selectors import Entropy
from refine_pl.training import PostTraining, Schedule, Stage
from refine_pl.training.settings import Settings

OWN = Settings(RolloutPlan(8, 1, 5), LossWeights(1.0, 0.2, 0.0))


def test_what_a_phase_leaves_out_is_the_models():
    assert Stage(3).settings_at(OWN, 1) == OWN
    stage = Stage(3, policy_weight=0.0, rollouts_per_position=4, lr=1e-3)
    settings = stage.settings_at(OWN, 1)
    assert settings.plan == RolloutPlan(8, 4, 5)
    assert settings.weights == LossWeights(1.0, 0.0, 0.0)
    assert settings.lr == 1e-3


def test_ramps_run_from_the_first_to_the_last_value():
    stage = Stage(5, ramp={"policy_weight": (0.0, 0.2), "rollout_length": (1, 3)})
    settings = [stage.settings_at(OWN, i) for i in range(5)]
    assert [s.weights.policy_weight for s in settings] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [s.plan.rollout_length for s in settings] == [1, 2, 2, 2, 3]
    assert Stage(1, ramp={"lr": (0.0, 1.0)}).settings_at(OWN, 0).lr == 1.0


def schedule(**options):
    return Schedule(
        {
            "warm-up": Stage(3, policy_weight=0.0),
            "refine": Stage(2, ramp={"lr": (1e-2, 1e-3)}),
            "long": Stage(2, rollouts_per_position=4),
        },
        **options,
    )


def test_phases_follow_one_another_with_validation_in_between():
    model, plan = module(), schedule()
    curve = train(model, iterations=99, callbacks=[plan], limit_val_batches=1.0)
    assert model.iteration == plan.num_iterations == 7
    assert [iteration for iteration, _ in curve.validations] == [0, 3, 5, 7]
    assert curve["run/stage"] == [0, 0, 0, 1, 1, 2, 2]
    assert curve["optim/lr"] == pytest.approx([1e-2] * 4 + [1e-3] + [1e-2] * 2)
    assert ["reward/total/mean" in values for values in curve.values] == [False] * 3 + [True] * 4
    losses = [values["val/ntp_loss"] for _, values in curve.validations]
    assert losses[-1] < losses[0]
    assert model.policy.training
    assert [plan.boundary(i) for i in (0, 2, 3, 7)] == [
        "before",
        None,
        "after warm-up",
        "after long",
    ]


def test_validation_changes_nothing():
    one, other = module(), module()
    with_it = train(one, iterations=99, callbacks=[schedule()], limit_val_batches=1.0)
    without = train(other, iterations=99, callbacks=[schedule(validate=False)])
    assert without.validations == []
    assert with_it["train/loss"] == without["train/loss"]
    assert_same_parameters(one, other, rtol=0, atol=0)


def test_validation_follows_the_models_own_plan_in_every_phase():
    stages = {"a": Stage(1, rollout_length=1), "b": Stage(1, num_segments=1, policy_weight=0.0)}
    frozen = module(optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    curve = train(frozen, callbacks=[Schedule(stages)], limit_val_batches=1.0)
    before, *later = [values for _, values in curve.validations]
    assert later == [before, before]


def test_an_interval_of_the_trainer_is_kept_and_the_end_is_validated_once():
    options = {"check_val_every_n_epoch": None, "val_check_interval": 2}
    curve = train(module(), callbacks=[schedule()], iterations=99, limit_val_batches=1.0, **options)
    assert [iteration for iteration, _ in curve.validations] == [0, 2, 3, 4, 5, 6, 7]


def test_a_resumed_schedule_goes_on_where_it_was(tmp_path):
    whole = module()
    curve = train(
        whole,
        iterations=99,
        callbacks=[schedule(), every_batch(tmp_path)],
        limit_val_batches=1.0,
        enable_checkpointing=True,
    )
    for stop in (2, 3, 4, 5):  # inside a phase, at its end, at the end of an epoch (3)
        resumed = module()
        rest = train(
            resumed,
            iterations=99,
            callbacks=[schedule()],
            ckpt_path=tmp_path / f"step={2 * stop}.ckpt",
            limit_val_batches=1.0,
        )
        assert rest["train/loss"] == curve["train/loss"][stop:]
        assert rest["optim/lr"] == curve["optim/lr"][stop:]
        assert rest.validations == [entry for entry in curve.validations if entry[0] > stop]
        assert_same_parameters(resumed, whole, rtol=0, atol=0)


def test_a_finished_schedule_trains_nothing_more(tmp_path):
    first = module()
    run = trainer(schedule())
    run.fit(first, datamodule=RowsData())
    run.save_checkpoint(tmp_path / "end.ckpt")
    second = module()
    with pytest.raises(ConfigError, match="nothing is left to train: the checkpoint has made 7"):
        train(second, callbacks=[schedule()], ckpt_path=tmp_path / "end.ckpt")
    assert second.iteration == 7


def test_a_resumed_run_says_once_where_it_goes_on(tmp_path, capsys):
    bar = {"enable_progress_bar": True}
    callbacks = [schedule(), every_batch(tmp_path), ProgressBar(line_every_s=1e9)]
    train(module(), iterations=5, callbacks=callbacks, enable_checkpointing=True, **bar)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    ramped = "4 sequences = 2 updates of 2; 16 rollouts of 3 tokens; lr 0.01 to 0.001"
    assert said == [
        "stage 'warm-up', 3 iterations: 4 sequences = 2 updates of 2; no rollouts",
        f"stage 'refine', 2 iterations: {ramped}",
    ]
    expected = {
        3: f"stage 'refine', 2 iterations, resumed from {tmp_path}/step=6.ckpt: {ramped}",
        4: f"stage 'refine', iteration 2 of 2, resumed from {tmp_path}/step=8.ckpt: {ramped}",
    }
    for stop, line in expected.items():
        checkpoint = tmp_path / f"step={2 * stop}.ckpt"
        callbacks = [schedule(), ProgressBar(line_every_s=1e9)]
        train(module(), iterations=6, callbacks=callbacks, ckpt_path=checkpoint, **bar)
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
        assert said == [
            line,
            "stage 'long', 2 iterations: 4 sequences = 2 updates of 2; 32 rollouts of 3 tokens",
        ]


def test_a_phase_with_a_kl_keeps_the_policy_of_the_start():
    stages = {"a": Stage(2), "b": Stage(2, kl_weight=0.1)}
    model = module()
    curve = train(model, iterations=99, callbacks=[Schedule(stages)])
    assert model.reference is not None
    assert ["train/kl" in values for values in curve.values] == [False, False, True, True]
    assert curve.values[2]["train/kl"] > 1e-6


def test_a_run_that_ends_early_says_so():
    with pytest.warns(UserWarning, match="after 3 of the schedule's 7 iterations"):
        train(module(), callbacks=[schedule()], max_epochs=1)


REFUSED = {
    "no stage": ({}, "no stages"),
    "no name": ({"": Stage(1)}, "a stage has no name"),
    "unknown ramp": ({"a": Stage(1, ramp={"polcy_weight": (0, 1)})}, "did you mean 'policy_we"),
    "unknown path": (
        {"a": Stage(1, settings={"selector.selection_temprature": 1})},
        "did you mean 'selector.selection_temperature'",
    ),
    "no number": ({"a": Stage(1, settings={"selector": 1})}, "no numeric setting 'selector'"),
    "out of range": (
        {"a": Stage(1, ramp={"selector.selection_temperature": (1, 0)})},
        r"selection_temperature is to be 0[\s\S]*where: +schedule.stages.a",
    ),
    "not finite": (
        {"a": Stage(1, settings={"rewards.similarity.weight": float("inf")})},
        "weight is to be inf",
    ),
    "negative": ({"a": Stage(1, ramp={"policy_weight": (-1, 0)})}, "from -1 to 0"),
    "both": ({"a": Stage(1, lr=1.0, ramp={"lr": (0, 1)})}, "lr is given and ramped"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schedules_that_mean_nothing_are_refused(case):
    stages, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        train(module(), callbacks=[Schedule(stages)])


def test_any_numeric_setting_of_a_part_can_be_ramped():
    """Seen by the parts while they are called; afterwards they have their own values again."""
    seen = []

    class Spy(Entropy):
        def select(self, *arguments):
            match = model.refine_step.reward.parts()["match"]
            loss = model.refine_step.policy_loss
            seen.append((self.selection_temperature, match.weight, loss.clip_ratio_high))
            return super().select(*arguments)

    model = module(
        selector=Spy(min_prefix=8, min_suffix=8),
        rewards={"match": ExactMatch(weight=3.0)},
        minibatch_size=4,
        microbatch_size=4,
    )
    ramp = {
        "selector.selection_temperature": (2.0, 1.0),
        "rewards.match.weight": (0.5, 1.5),
        "policy_loss.clip_ratio_high": (0.2, 0.4),
    }
    stages = {"first": Stage(3, ramp=ramp), "second": Stage(1)}
    curve = train(model, callbacks=[Schedule(stages, validate=False)], iterations=4)
    own = (1.0, 3.0, 0.2)
    assert seen == [
        (2.0, 0.5, 0.2),
        (1.5, 1.0, pytest.approx(0.3)),
        (1.0, 1.5, 0.4),
        own,
    ]
    assert curve["setting/rewards.match.weight"][:3] == [0.5, 1.0, 1.5]
    assert model.refine_step.selector.selection_temperature == own[0]
    assert model.part_settings.own()["rewards.match.weight"] == own[1]


class Meddler(Callback):
    """Changes a part for good, as a callback of a user's may."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.refine_step.reward.rewards[0].weight = 50.0


@pytest.mark.parametrize("change", ["a ramp", "a callback", "nothing"])
def test_validation_uses_the_models_own_settings_whatever_was_done_to_the_parts(change):
    model = module(
        optimizer=lambda params: torch.optim.SGD(params, lr=0.0),
    )
    ramp = {"rewards.similarity.weight": (50.0, 50.0)} if change == "a ramp" else None
    callbacks = [Schedule({"a": Stage(2, ramp=ramp), "b": Stage(1)})]
    callbacks += [Meddler()] if change == "a callback" else []
    curve = train(model, callbacks=callbacks, limit_val_batches=1.0)
    before, *later = [values for _, values in curve.validations]
    assert later == [before, before]
    if change != "nothing":
        return
    model.refine_step.reward.rewards[0].weight = 50.0  # the broken case: it does matter
    other = train(model, callbacks=[Schedule({"a": Stage(1)})], limit_val_batches=1.0)
    assert other.validations[0][1]["val/reward"] != before["val/reward"]


def test_segments_of_a_phase_must_fit_the_sequences():
    stages = {"a": Stage(1), "b": Stage(2, ramp={"num_segments": (2, 9)})}
    with pytest.raises(ConfigError, match=r"9 segments do not fit[\s\S]*where: +schedule.stages.b"):
        train(module(), callbacks=[Schedule(stages)])


def test_there_is_one_phase_and_it_reads_the_data():
    with pytest.raises(ConfigError, match="2 phases: PostTraining and PostTraining"):
        train(module(), callbacks=[PostTraining(), PostTraining()], iterations=1)
    with pytest.raises(ConfigError, match=r"sequences of text, and the phase is PostTraining"):
        train(module(), callbacks=[PostTraining()], iterations=1)


def test_checkpoints_are_saved_at_every_boundary_and_the_summary_survives(tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path, name="run")
    checkpoints = ModelCheckpoint(filename="{step}", save_top_k=-1)
    options = {"logger": logger, "enable_checkpointing": True, "limit_val_batches": 1.0}
    curve = train(
        module(), iterations=5, callbacks=[schedule(), RunSummary(), checkpoints], **options
    )
    folder = tmp_path / "run" / "version_0"
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step=10.ckpt", "step=6.ckpt"]
    said = capsys.readouterr().out
    assert "after warm-up" in said
    assert "after refine" in said
    assert f"tensorboard --logdir {tmp_path / 'run'}" in said.replace("\n", "")

    options["logger"] = TensorBoardLogger(tmp_path, name="run")
    train(
        module(),
        iterations=99,
        callbacks=[schedule(), RunSummary(), ModelCheckpoint(save_top_k=-1)],
        ckpt_path=folder / "checkpoints" / "step=6.ckpt",
        **options,
    )
    summary = json.loads((tmp_path / "run" / "version_1" / "summary.json").read_text())
    labels = [(entry["label"], entry["iteration"]) for entry in summary["validations"]]
    assert labels == [("before", 0), ("after warm-up", 3), ("after refine", 5), ("after long", 7)]
    first = summary["validations"][0]["metrics"]["val/ntp_loss"]
    assert first == curve.validations[0][1]["val/ntp_loss"]


def test_a_validation_right_after_the_checkpoint_survives_too(tmp_path):
    """Lightning validates at its interval after it has saved, so the checkpoint does not know."""
    checkpoints = {"filename": "{step}", "every_n_train_steps": 4, "save_top_k": -1}
    folders = [tmp_path / "run" / f"version_{i}" for i in range(3)]

    def validations(folder, ckpt_path=None):
        train(
            module(),
            iterations=4,
            callbacks=[RunSummary(), ModelCheckpoint(**checkpoints)],
            ckpt_path=ckpt_path,
            logger=TensorBoardLogger(tmp_path, name="run"),
            enable_checkpointing=True,
            limit_val_batches=1.0,
            val_check_interval=2,
            check_val_every_n_epoch=None,
        )
        return json.loads((folder / "summary.json").read_text())["validations"]

    whole = validations(folders[0])
    assert [entry["iteration"] for entry in whole] == [2, 4]
    checkpoint = folders[0] / "checkpoints" / "step=4.ckpt"
    assert validations(folders[1], checkpoint) == whole
    # A run that left no readable record is resumed all the same.
    (folders[0] / "summary.json").write_text('{"validations": [{"iter')
    assert validations(folders[2], checkpoint) == whole[1:]


def test_the_progress_reads_well_without_a_terminal(capsys):
    bar = ProgressBar(line_every_s=1e-9)
    plan = Schedule({"warm-up": Stage(1, policy_weight=0.0), "refine": Stage(1)})
    curve = Curve()
    run = trainer(curve, bar, plan, enable_progress_bar=True, limit_val_batches=1.0)
    run.fit(module(), datamodule=RowsData())
    lines = capsys.readouterr().out.splitlines()
    assert "stage 'warm-up', 1 iteration: 4 sequences = 2 updates of 2; no rollouts" in lines
    assert any(line.startswith("warm-up 1/2  loss ") and "reward" not in line for line in lines)
    reward = curve.values[-1]["reward/total/mean"]
    assert any(f"refine 2/2  loss {curve['train/loss'][-1]:.3f}" in line for line in lines)
    assert any(f"reward {reward:.3f}" in line for line in lines)
