"""What is not finite is refused, named, or counted; groups of one are refused."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import RowsData, backbone, module, trainer

from refine_pl.advantages import AdvantageEstimator, GroupRelative, LeaveOneOut
from refine_pl.backbones import load_pretrained
from refine_pl.backbones.pretrained import save_pretrained
from refine_pl.cli import main
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.evaluation.tasks import Rule
from refine_pl.faults import NotFiniteError, PartError
from refine_pl.losses import LossSum, Reinforce
from refine_pl.selectors import Entropy
from refine_pl.training import Schedule, Stage


def spoil(policy, value=float("nan")):
    with torch.no_grad():
        policy.model.layers[1].mlp.down_proj.weight[0, :3] = value
    return policy


def fit(made, *callbacks, iterations=3, **options):
    trainer(*callbacks, iterations=iterations, **options).fit(made, RowsData())
    return made


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_are_refused_when_loaded_and_run(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight has 3 values"):
        fit(module(spoil(backbone(), value)))
    save_pretrained(spoil(backbone(), value), tmp_path / "bad")
    with pytest.raises(CheckpointError, match=r"(?s)down_proj\.weight has 3 .*model\.safetensors"):
        load_pretrained(str(tmp_path / "bad"))
    with pytest.raises(CheckpointError, match="has 3 values"):
        module().load_state_dict(module(spoil(backbone(), value)).state_dict())


class SpoilsWeights(ModelCheckpoint):
    """Makes a weight NaN after the second batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == 2:
            spoil(pl_module.policy)


def test_weights_that_become_nan_end_the_run_and_are_not_saved(tmp_path):
    saves = SpoilsWeights(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(NotFiniteError, match=r"(?s)not finite.*last good.*step=4\.ckpt"):
        fit(module(), saves, iterations=5, enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=2.ckpt", "step=4.ckpt"]


def test_skipped_steps_in_a_row_end_the_run(tmp_path):
    made = module(max_skipped_steps=5)
    made.policy.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFiniteError, match="5 steps in a row were skipped"):
        fit(made, iterations=10)
    assert made.counters.skipped_steps == made.counters.updates == 5


def test_the_reward_is_not_blamed_for_the_model():
    made = module(max_skipped_steps=4)
    made.policy.model.norm.register_forward_hook(lambda m, i, output: output * float("inf"))
    with pytest.raises(NotFiniteError, match="4 steps in a row"):
        fit(made, iterations=5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model.ntp_weight", "inf"),
        ("model.optimizer.lr", ".inf"),
        ("model.rewards.similarity.weight", "-.inf"),
        ("model.selector.selection_temperature", "inf"),
        ("model.gradient_clip", "nan"),
        ("trainer.limit_val_batches", "inf"),
    ],
)
def test_settings_are_refused_by_their_key(capsys, monkeypatch, tmp_path, option, value):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "tiny_mid", f"--{option}={value}"]) == 2
    assert option.rpartition(".")[2] in capsys.readouterr().err


class Alone(AdvantageEstimator):
    def estimate(self, rewards, valid):
        return rewards.where(valid[..., None], 0.0)


@pytest.mark.parametrize("kind", [GroupRelative, LeaveOneOut])
@pytest.mark.parametrize(("group_by", "segments"), [("position", 2), ("sequence", 1), ("auto", 1)])
def test_groups_of_one_are_refused(kind, group_by, segments):
    sizes = {"rollouts_per_position": 1, "num_segments": segments}
    with pytest.raises(ConfigError, match="only be compared with itself"):
        fit(module(advantage=kind(group_by), **sizes))
    fit(module(advantage=Alone(group_by), **sizes), iterations=1)
    fit(module(advantage=kind(group_by), policy_weight=0.0, **sizes), iterations=1)


def test_groups_of_one_are_refused_in_every_stage():
    stages = {"a": Stage(1), "b": Stage(3, ramp={"rollouts_per_position": (2, 1)})}
    made = module(advantage=GroupRelative("position"))
    with pytest.raises(ConfigError, match=r"(?s)itself.*schedule\.stages\.b"):
        fit(made, Schedule(stages, validate=False))
    fit(module(advantage=GroupRelative(), rollouts_per_position=1), iterations=1)


def part(base, method, result):
    def call(self, *args, **kwargs):
        if isinstance(result, BaseException):
            raise result
        return result

    return type("Mine", (base,), {method: call, "__module__": "mine"})()


WRONG = [None, float("nan"), [1.0], torch.zeros(2), torch.tensor(float("nan")), StopIteration()]


@pytest.mark.parametrize("result", WRONG, ids=str)
@pytest.mark.parametrize(
    ("key", "base", "method"),
    [
        ("selector", Entropy, "select"),
        ("advantage", GroupRelative, "estimate"),
        ("policy_loss", Reinforce, "loss"),
    ],
)
def test_other_parts_are_named_too(key, base, method, result):
    with pytest.raises(PartError, match=rf"model\.{key}: mine\.Mine"):
        fit(module(**{key: part(base, method, result)}))


def test_a_loss_may_give_plain_numbers_for_the_log():
    class Plain(Reinforce):
        def loss(self, *inputs):
            return LossSum(super().loss(*inputs).total, {"number": (2.0, 4)})

    fit(module(policy_loss=Plain()), iterations=1)


@pytest.mark.parametrize("result", [None, [1.0, 2.0], float("nan"), "1", StopIteration()], ids=str)
def test_a_scoring_rule_is_named(result):
    def compare(output, references):
        if isinstance(result, BaseException):
            raise result
        return result

    with pytest.raises(PartError, match=r"(?s)rule 'mine' .*compare"):
        Rule("mine", compare)("text", ["text"])
