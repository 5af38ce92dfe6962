"""What an evaluation was made with: enough to repeat it, and to refuse to mix two of them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Trainer

from refine_pl.evaluation.tasks import rule_of
from refine_pl.training.module import RefineModule

# What two sessions of one evaluation must share. The source of the model is not among them: the
# same weights may lie in another place.
_SHARED = (
    *("stage", "precision", "model.weights_hash", "decoding", "data.hash", "rules"),
    *("data.chat_template", "test_time_training"),
)
_ABSENT = "absent"


def describe(
    trainer: Trainer, module: RefineModule, stage: str, tasks: Iterable[str], training: Any
) -> dict[str, Any]:
    """The card, without what is only known when the weights are loaded.

    Args:
        trainer: with a data module that describes its rows.
        module: the model, and how it answers.
        stage: ``test`` or ``predict``.
        tasks: whose rules score the answers.
        training: the test-time training, if there is one.

    Raises:
        ConfigError: no rule scores one of the tasks.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    decoding = module.answering.describe()
    if decoding["decoding"] == "sample":
        decoding["seed"] = module.seed
    rules = [(task, rule_of(task)) for task in dict.fromkeys(tasks)]
    trained = None
    if training is not None:  # what a row is answered with depends on the rows beside it
        trained = {"batch_size": data.test_batch_size, "seed": module.seed}
        trained |= training.card(module)
    return {
        "stage": stage,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("refine-pl", "lightning", "transformers")},
            "torch": torch.__version__,  # with the CUDA that it was built for
        },
        "model": {
            "source": None,
            "class": type(module.policy).__name__,
            "parameters": sum(p.numel() for p in module.policy.parameters()),
            "config": module.policy.config(),
        },
        "decoding": decoding,
        "data": {"hash": data.data_hash, **data.describe()},
        "rules": {
            task: rule.name if rule.cut == "whole" else f"{rule.name} of {rule.cut}"
            for task, rule in rules
        },
        "test_time_training": trained,
        "precision": str(trainer.precision),
        "device": str(module.device.type),
        "processes": trainer.world_size,
        "command": [],
        "started": now(),
        "finished": None,
        "seconds": 0.0,
        "tokens": 0,
        "tokens_per_s": None,
    }


def source(trainer: Trainer, module: RefineModule) -> str:
    """Where the weights come from, for people."""
    if trainer.ckpt_path:
        return str(trainer.ckpt_path)
    backbone = module.hparams.get("backbone")
    arguments = backbone.get("init_args") if isinstance(backbone, dict) else None
    name = module.hparams.get("pretrained") or (arguments or {}).get("path_or_name")
    return str(name) if name else "fresh random weights"


def now() -> str:
    """The time of a card, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def differences(earlier: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """What two cards disagree in although they should not, one text each.

    A part that ``card`` does not have yet is not compared.
    """
    written = json.loads(json.dumps(card))  # as it would be read
    pairs = [(name, _part(earlier, name), _part(written, name)) for name in _SHARED]
    return [text for pair in pairs if pair[2] != _ABSENT for text in _compare(*pair)]


def _part(card: Any, name: str) -> Any:
    for key in name.split("."):
        card = card.get(key, _ABSENT) if isinstance(card, Mapping) else _ABSENT
    return card


def _compare(name: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        pairs = [(f"{name}.{k}", before.get(k, _ABSENT), after.get(k, _ABSENT)) for k in keys]
        return [text for pair in pairs for text in _compare(*pair)]
    return [] if before == after else [f"{name} was {_word(before)}, is {_word(after)}"]


def _word(part: Any) -> Any:
    return "given" if isinstance(part, Mapping) else "none" if part is None else part
