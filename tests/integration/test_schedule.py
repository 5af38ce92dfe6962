import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from runs import Curve, RowsData, assert_same_parameters, every_batch, module, train, trainer

from refine_pl.callbacks import MidTraining, Phase, PhaseSchedule, PostTraining, RunSummary
from refine_pl.callbacks.progress import ProgressBar
from refine_pl.errors import ConfigError
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights
from refine_pl.training.updater import Settings

OWN = Settings(RolloutPlan(8, 1, 5), LossWeights(1.0, 0.2, 0.0))


def test_what_a_phase_leaves_out_is_the_models():
    assert Phase("a", 3).settings(OWN, 1) == OWN
    phase = Phase("a", 3, policy_weight=0.0, rollouts_per_position=4, lr=1e-3)
    settings = phase.settings(OWN, 1)
    assert settings.plan == RolloutPlan(8, 4, 5)
    assert settings.weights == LossWeights(1.0, 0.0, 0.0)
    assert settings.lr == 1e-3


def test_ramps_run_from_the_first_to_the_last_value():
    phase = Phase("a", 5, ramp={"policy_weight": (0.0, 0.2), "rollout_length": (1, 3)})
    settings = [phase.settings(OWN, i) for i in range(5)]
    assert [s.weights.policy_weight for s in settings] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [s.plan.rollout_length for s in settings] == [1, 2, 2, 2, 3]
    assert Phase("a", 1, ramp={"lr": (0.0, 1.0)}).settings(OWN, 0).lr == 1.0


def schedule(**options):
    return PhaseSchedule(
        [
            Phase("warm-up", 3, policy_weight=0.0),
            Phase("refine", 2, ramp={"lr": (1e-2, 1e-3)}),
            Phase("long", 2, rollouts_per_position=4),
        ],
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
    phases = [Phase("a", 1, rollout_length=1), Phase("b", 1, num_segments=1, policy_weight=0.0)]
    frozen = module(optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    curve = train(frozen, callbacks=[PhaseSchedule(phases)], limit_val_batches=1.0)
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
    curve = train(second, callbacks=[schedule()], ckpt_path=tmp_path / "end.ckpt")
    assert curve.values == []
    assert second.iteration == 7


def test_a_resumed_run_says_once_where_it_goes_on(tmp_path, capsys):
    bar = {"enable_progress_bar": True}
    callbacks = [schedule(), every_batch(tmp_path), ProgressBar(line_every_s=1e9)]
    train(module(), iterations=5, callbacks=callbacks, enable_checkpointing=True, **bar)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase ")]
    ramped = "4 sequences = 2 updates of 2; 16 rollouts of 3 tokens; lr 0.01 to 0.001"
    assert said == [
        "phase 'warm-up', 3 iterations: 4 sequences = 2 updates of 2; no rollouts",
        f"phase 'refine', 2 iterations: {ramped}",
    ]
    expected = {
        3: f"phase 'refine', 2 iterations, resumed from {tmp_path}/step=6.ckpt: {ramped}",
        4: f"phase 'refine', iteration 2 of 2, resumed from {tmp_path}/step=8.ckpt: {ramped}",
    }
    for stop, line in expected.items():
        checkpoint = tmp_path / f"step={2 * stop}.ckpt"
        callbacks = [schedule(), ProgressBar(line_every_s=1e9)]
        train(module(), iterations=6, callbacks=callbacks, ckpt_path=checkpoint, **bar)
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase ")]
        assert said == [
            line,
            "phase 'long', 2 iterations: 4 sequences = 2 updates of 2; 32 rollouts of 3 tokens",
        ]


def test_a_phase_with_a_kl_keeps_the_policy_of_the_start():
    phases = [Phase("a", 2), Phase("b", 2, kl_weight=0.1)]
    model = module()
    curve = train(model, iterations=99, callbacks=[PhaseSchedule(phases)])
    assert model.reference is not None
    assert ["train/kl" in values for values in curve.values] == [False, False, True, True]
    assert curve.values[2]["train/kl"] > 1e-6


def test_a_run_that_ends_early_says_so():
    with pytest.warns(UserWarning, match="after 3 of the schedule's 7 iterations"):
        train(module(), callbacks=[schedule()], max_epochs=1)


REFUSED = {
    "no phase": ([], "no phases"),
    "same name": ([Phase("a", 1), Phase("a", 2)], "2 phases named 'a'"),
    "no name": ([Phase("", 1)], "named ''"),
    "unknown ramp": ([Phase("a", 1, ramp={"polcy_weight": (0, 1)})], "did you mean 'policy_we"),
    "both": ([Phase("a", 1, lr=1.0, ramp={"lr": (0, 1)})], "gives 'lr' and ramps it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schedules_that_mean_nothing_are_refused(case):
    phases, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        PhaseSchedule(phases)


def test_segments_of_a_phase_must_fit_the_sequences():
    phases = [Phase("a", 1), Phase("b", 2, ramp={"num_segments": (2, 9)})]
    with pytest.raises(ConfigError, match=r"9 segments do not fit[\s\S]*where: +phase 'b'"):
        train(module(), callbacks=[PhaseSchedule(phases)])


def test_each_phase_is_given_once_and_one_of_them_reads_the_data():
    train(module(), callbacks=[MidTraining()], iterations=1)
    train(module(), callbacks=[MidTraining(), PostTraining()], iterations=1)
    with pytest.raises(ConfigError, match="MidTraining 2 times"):
        train(module(), callbacks=[MidTraining(), MidTraining()], iterations=1)
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
    plan = PhaseSchedule([Phase("warm-up", 1, policy_weight=0.0), Phase("refine", 1)])
    curve = Curve()
    run = trainer(curve, bar, plan, enable_progress_bar=True, limit_val_batches=1.0)
    run.fit(module(), datamodule=RowsData())
    lines = capsys.readouterr().out.splitlines()
    assert "phase 'warm-up', 1 iteration: 4 sequences = 2 updates of 2; no rollouts" in lines
    assert any(line.startswith("warm-up 1/2  loss ") and "reward" not in line for line in lines)
    reward = curve.values[-1]["reward/total/mean"]
    assert any(f"refine 2/2  loss {curve['train/loss'][-1]:.3f}" in line for line in lines)
    assert any(f"reward {reward:.3f}" in line for line in lines)
