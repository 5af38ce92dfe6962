"""What a checkpoint says about the run that wrote it."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._util import get_import_path
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.checkpoint import CheckpointException

from refine_pl.adapters import adapter_of, load_peft
from refine_pl.backbones.pretrained import class_fields, model_class
from refine_pl.commands import config_rules as rules
from refine_pl.commands.config_sources import Source, all_values, last_value, texts
from refine_pl.errors import CheckpointError, did_you_mean
from refine_pl.training.module import RefineModule
from refine_pl.training.record_files import read_yaml
from refine_pl.training.trusted_classes import check_settings

_WRITTEN = "a .ckpt file written by `refine-pl fit`"


def read_checkpoint(path: str, weights_only: bool = True) -> dict[str, Any]:
    """A training checkpoint. Its tensors stay on disk until they are used.

    Args:
        path: a file, or the folder that sharded training writes (then without the weights).
        weights_only: refuse everything but tensors and plain Python values.

    Raises:
        CheckpointError: there is none, it is damaged, or it holds code.
    """
    file = Path(path)
    if file.is_dir() and (file / "meta.pt").is_file():
        file = file / "meta.pt"
    if not file.is_file():
        raise _absent(file)
    if not zipfile.is_zipfile(file):
        raise _unusable(f"{file} is not a checkpoint, or is incomplete", _WRITTEN)
    try:
        content = torch.load(file, map_location="cpu", weights_only=weights_only, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _unusable(
            f"{file} holds more than tensors and plain values" + (f": {found[1]}" if found else ""),
            "checkpoints that can be loaded without running code from them",
            "--weights_only false, if you trust whoever wrote the file",
        ) from error
    except Exception as error:
        raise _unusable(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise _unusable(
            f"{file} is not a checkpoint of a training run",
            _WRITTEN,
            "bare weights are loaded by the backbone, not by --ckpt_path",
        )
    return content


def _unusable(what: str, allowed: str | None = None, way_out: str | None = None) -> CheckpointError:
    return CheckpointError(what, where="--ckpt_path", allowed=allowed, way_out=way_out)


def use_as_defaults(
    checkpoint: Mapping[str, Any],
    parser: ArgumentParser,
    sources: Sequence[Source] = (),
    unneeded: Collection[str] = (),
) -> None:
    """Make the checkpoint's hyper-parameters the defaults of ``parser``.

    So what a configuration file or the command line gives beats the checkpoint, and what neither
    gives is as it was when the checkpoint was written. A model that was loaded is made from its
    configuration instead, so that the folder it came from is not needed again.

    Args:
        checkpoint: as :func:`read_checkpoint` reads it.
        parser: of the subcommand.
        sources: what the user gives. Where that takes the place of a whole setting, the
            checkpoint's need not be usable.
        unneeded: settings that are left out.

    Warns:
        UserWarning: this version does not know some, which are left out.

    Raises:
        CheckpointError: one names what a checkpoint may not, or does not suit its key.
    """
    hparams = _with_a_made_backbone(checkpoint)
    if last_value(sources, "model.pretrained") is not None:
        hparams.pop("backbone", None)  # the user's takes its place
    hints = {a.dest.removeprefix("model."): a for a in parser._actions if "model." in a.dest}
    for name in [name for name in hparams if name in hints and name not in unneeded]:
        given = [(v, s) for s in sources for v in all_values(s, f"model.{name}")]
        named = {text for value, source in given for text in texts(value, source)}
        try:
            check_settings(_parser_of(name), f"model.{name}", hparams[name], named)
        except CheckpointError:
            holds_names = rules.contents(getattr(hints[name], "_typehint", None)) is not None
            if any(_is_whole(v, s, f"--model.{name}", holds_names) for v, s in given):
                continue
            raise
        parser.set_defaults({f"model.{name}": hparams[name]})
    unknown = [name for name in hparams if name not in hints and not name.startswith("_")]
    if unknown:
        what = "hyper-parameters of the checkpoint that this version does not know are left out: "
        warnings.warn(what + ", ".join(unknown), stacklevel=2)


@cache
def _parser_of(setting: str) -> ArgumentParser:
    """Of one setting of the module alone: one that knows all of them checks all of them."""
    others = {name for name in inspect.signature(RefineModule).parameters if name != setting}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RefineModule, "model", skip=others, fail_untyped=False)
    return parser


def _is_whole(value: Any, source: Source, option: str, holds_names: bool) -> bool:
    """Whether what a source gives for a setting takes the place of all of it."""
    value, _ = source.opened(value, ())
    if not isinstance(value, Mapping):
        return True
    return source.option in ("", option, "--model") if holds_names else "class_path" in value


def refuse_its_functions(model: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Refuse functions that a checkpoint names and the user does not: they would be called.

    Args:
        model: the parsed configuration of the model, the checkpoint's settings among it.
        sources: what the user gave.

    Raises:
        CheckpointError: the name of one is not written in ``sources``.
    """
    written = {
        text
        for source in sources
        for key, value in source.values.items()
        if key.partition(".")[0] == "model"
        for text in texts(value, source)
    }
    for key, function in _functions(model, "model"):
        if function not in written:
            raise CheckpointError(
                f"{key} is {function}, which only the checkpoint names",
                where="--ckpt_path",
                allowed="functions that are named by your own configuration",
                way_out=f"give it in your configuration, if you trust it: --{key} {function}",
            )


def _functions(part: Any, key: str) -> Iterator[tuple[str, str]]:
    """The arguments below a part of a parsed configuration that name code, with their keys."""
    values = part.as_dict() if isinstance(part, Namespace) else part
    if isinstance(values, Mapping):
        module, _, name = str(values.get("class_path")).rpartition(".")
        cls = getattr(sys.modules.get(module), name, None)  # what was parsed is imported already
        for argument in getattr(cls, "code_arguments", ()):
            yield f"{key}.init_args.{argument}", str(values["init_args"][argument])
        for name, value in values.items():
            yield from _functions(value, f"{key}.{name}")


def _with_a_made_backbone(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters, with a backbone of a class in the place of one that was loaded."""
    hparams = checkpoint.get("hyper_parameters") or {}
    if not isinstance(hparams, Mapping):
        raise _unusable(
            f"the checkpoint's hyper_parameters are a {type(hparams).__name__}", _WRITTEN
        )
    hparams = dict(hparams)
    own = checkpoint.get("refine_pl") or {}
    config, adapter = own.get("backbone"), adapter_of(own)
    if adapter is not None:
        load_peft()  # the parser would say less
        lora = {"class_path": "peft.LoraConfig", "init_args": adapter["config"]}
        hparams["adapter"] = hparams.get("adapter") or lora
        if adapter["base"] is not None:  # the checkpoint has only what was trained
            if hparams.get("pretrained"):
                hparams["pretrained"] = adapter["base"]["path"]
            return hparams
    given = hparams.get("backbone") or {}
    given = given if isinstance(given, Mapping) else {"class_path": given}
    loaded = str(given.get("class_path", "")).endswith(".load_pretrained")
    if config is None or not (loaded or hparams.get("pretrained")):
        return hparams
    cls = model_class(config, "the checkpoint")
    fields = class_fields(config, "the checkpoint")
    for name, value in dict(given.get("init_args") or {}).items():
        if loaded and name in inspect.signature(cls).parameters:
            fields[name] = value
    hparams["backbone"] = {"class_path": get_import_path(cls), "init_args": fields}
    hparams["pretrained"] = None
    return hparams


def check_is_readable(path: Any, strategy: Strategy) -> None:
    """Refuse the folder of a sharded run for a run that is not sharded.

    Raises:
        CheckpointError: ``path`` is such a folder, and the strategy reads files only.
    """
    folder = isinstance(path, str) and Path(path).is_dir()
    if folder and not isinstance(strategy, ModelParallelStrategy):
        raise _unusable(
            f"{path} was written by a sharded run, and {type(strategy).__name__} reads files only",
            "a folder with ModelParallelStrategy as trainer.strategy, on any number of devices",
            "to do without it, `refine-pl export` the folder, and give what that wrote as "
            "model.pretrained",
        )


def unfit_shards(path: Any, error: CheckpointException) -> CheckpointError:
    """What the reader of a sharded checkpoint said, in one line."""
    said = str(next(iter(error.failures.values()))[0]).splitlines()[0].replace("state_dict.", "")
    if "reference." in said:
        return _unusable(
            f"{path} holds no reference model: model.kl_weight was 0 when it was written",
            way_out="model.kl_weight: 0; or `refine-pl export` it and start a new run from there",
        )
    if "yardstick." in said:
        return _unusable(
            f"{path} holds no frozen copy: model.validation.yardstick was off when it was written",
            way_out="model.validation.yardstick: false; or `refine-pl export` it and start a new "
            "run from there",
        )
    return _unusable(
        f"{path} does not fit this run: {said[:300]}",
        "a checkpoint of the same backbone with the same sizes",
        "compare model.backbone with the config.yaml of the run that wrote it",
    )


def _absent(file: Path) -> CheckpointError:
    folder = file.parent
    siblings = {path.name: str(path) for path in sorted(folder.glob("*.ckpt"))}
    others = f"checkpoints there: {', '.join(siblings) or 'none'}"
    otherwise = others if folder.is_dir() else f"there is no folder {folder} either"
    way_out = did_you_mean(file.name, siblings, otherwise)
    return _unusable(f"there is no checkpoint {file}", way_out=way_out)


def tokenizer_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The tokenizer that a run read its data with, as ``class_path`` and ``init_args``.

    Args:
        checkpoint: of the run.
        path: where it is; ``config.yaml`` of the run is looked for in the folders around it if the
            checkpoint itself does not name the tokenizer.
    """
    found = (checkpoint.get("refine_pl") or {}).get("tokenizer")
    if found is not None:
        return dict(found)
    for folder in path.resolve().parents:
        file = folder / "config.yaml"
        if file.is_file():
            return _first_tokenizer(read_yaml(file).get("data"))
    return None


def _first_tokenizer(part: Any) -> dict[str, Any] | None:
    """The first ``tokenizer`` below a part of a configuration; all sources of a run share one."""
    if not isinstance(part, Mapping):
        return None
    found = part.get("tokenizer")
    if isinstance(found, Mapping) and "class_path" in found:
        return dict(found)
    return next((t for inner in part.values() if (t := _first_tokenizer(inner))), None)
