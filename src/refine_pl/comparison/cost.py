"""What an update costs in token passes, so that a baseline can be given as much computing.

One unit is one token read forward; a backward pass is two. Per sequence of ``T`` tokens, next-token
training costs ``3 T``. ReFINE adds drawing, ``S N L`` tokens, and rollouts in the update,
``3 S N (L - 1)`` tokens (nothing is predicted from the last one); in two passes ``T`` more, and
with a KL the reference's reading, ``T + S N (L - 1)``. Selecting, rewards and optimizer are left
out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refine_pl.errors import ConfigError
from refine_pl.parts import build_part
from refine_pl.records import RolloutPlan
from refine_pl.training.run_folder import stages_of

_PLAN = ("num_segments", "rollouts_per_position", "rollout_length")


def times_plain(config: Mapping[str, Any], stage: Mapping[str, Any] | None = None) -> float:
    """How many times the cost of a plain update a ReFINE update has.

    Args:
        config: the settings of a run.
        stage: of its schedule, whose settings take precedence.

    Raises:
        ConfigError: sequences have no fixed length, or prefixes are recomputed.
    """
    model, data = config["model"], config["data"].get("init_args") or {}
    given = {**model, **{k: v for k, v in (stage or {}).items() if v is not None}}
    if not (given["policy_weight"] or given["kl_weight"]):
        return 1.0
    length = data.get("sequence_length")
    if not isinstance(length, int):
        raise ConfigError(
            "computing cannot be matched: the data have no sequence_length",
            where="--compute_matched",
            allowed="refine_pl.data.TextData",
        )
    if not str(model["generator"]["class_path"]).endswith("Forked"):
        raise ConfigError(
            f"computing cannot be matched for {model['generator']['class_path']}",
            where="--compute_matched",
            allowed="refine_pl.rollouts.Forked",
        )
    plan = RolloutPlan(*(given[name] for name in _PLAN))
    rollouts = build_part(model["selector"]).count(length, plan) * plan.rollouts_per_position
    read_again = rollouts * (plan.rollout_length - 1)
    added = rollouts * plan.rollout_length + 3 * read_again + length * _two_passes(config)
    if given["kl_weight"]:
        added += length + read_again
    return 1 + added / (3 * length)


def _two_passes(config: Mapping[str, Any]) -> float:
    """The share of updates that read the sequences once more."""
    model = config["model"]
    if model["update"] == "two_pass":
        return 1.0
    if model["rollouts_per"] == "minibatch" or model["steps"] == "per_batch":
        return 0.0
    batch = (config["data"].get("init_args") or {}).get("batch_size") or model["minibatch_size"]
    return 1 - min(1.0, float(model["minibatch_size"]) / float(batch))


def times_plain_run(config: Mapping[str, Any]) -> float:
    """How many times the cost of plain training with as many steps a run has.

    Raises:
        ConfigError: as :func:`times_plain`.
    """
    stages = stages_of(config).values()
    total = sum(stage["iterations"] for stage in stages)
    if not total:
        return times_plain(config)
    return sum(stage["iterations"] * times_plain(config, stage) for stage in stages) / total


def longer_options(arm: Mapping[str, Any]) -> list[str]:
    """Options that let plain training run for as much computing as an arm takes.

    Args:
        arm: the settings of the arm.

    Raises:
        ConfigError: it has no schedule whose stages could be made longer.
    """
    return list(_longer(arm))


def _longer(arm: Mapping[str, Any]) -> Iterator[str]:
    stages = stages_of(arm)
    if not stages:
        raise ConfigError(
            "computing cannot be matched: the recipe has no schedule",
            where="--compute_matched",
            allowed="schedule.stages, whose iterations can be multiplied",
        )
    for name, stage in stages.items():
        iterations = round(stage["iterations"] * times_plain(arm, stage))
        yield from (f"--schedule.stages.{name}.iterations", str(iterations))
