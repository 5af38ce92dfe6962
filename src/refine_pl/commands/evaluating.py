"""What ``refine-pl test`` and ``predict`` add to the command line.

A configuration for an evaluation names rows, and may leave out what the model knows: its tokenizer.
``predict --prompts FILE`` needs no configuration at all, and ``--prompts -`` prints the answers.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from refine_pl.callbacks import Evaluation
from refine_pl.commands import lightning_cli
from refine_pl.commands.callback_keys import evaluation_callbacks
from refine_pl.commands.checkpoints import tokenizer_of
from refine_pl.commands.config_rules import find_class
from refine_pl.commands.config_sources import Source, last_value, name_of_run, since_class
from refine_pl.data.standard_input import STANDARD_INPUT
from refine_pl.errors import ConfigError
from refine_pl.tokenizers import Tokenizer
from refine_pl.training.trusted_classes import check_settings

_TRAINER_DEFAULTS: dict[str, Any] = {
    "use_distributed_sampler": False,  # the data module gives every rank its own rows
    "logger": False,  # the run folder is that of the evaluation
    "inference_mode": False,  # test-time training needs gradients
}

_HELP = """Rows are answered, in test also scored; answers are written to a run folder as they come,
and an interrupted run goes on with --out FOLDER. The model: --ckpt_path FILE of a run, or
--model.pretrained FOLDER_OR_NAME. Its tokenizer is found if the configuration names none."""

_DATA = "refine_pl.data.TaskData"
_TOKENIZER = "data.init_args.tokenizer"

MODEL_OPTIONS = (
    "--ckpt_path FILE, a checkpoint of a run; or {}pretrained, a folder in the published layout or "
    "a name on the hub"
)

# Where the name of a published model may stand.
_LOADED = (
    "model.pretrained",
    "model.backbone.init_args.path_or_name",
    "model.backbone.path_or_name",
)


def main(argv: Sequence[str]) -> int:
    """Run ``test`` or ``predict``.

    Args:
        argv: the command and its options.

    Raises:
        UserError: something that the user gave cannot be used.
        Interrupted: the run was interrupted; its text says how to go on.
    """
    # The callbacks of the training run are not those of an evaluation.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    # Rows are not shuffled: one process that reads them is all it takes.
    warnings.filterwarnings("ignore", message="The .*dataloader.* does not have many workers")
    # All rows may be answered already.
    warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
    return lightning_cli.main(argv, EvaluationCLI)


class EvaluationCLI(lightning_cli.RefineCLI):
    """The command line of ``test`` and ``predict``.

    Args:
        argv: the command and its options.
    """

    own_trainer_defaults = _TRAINER_DEFAULTS
    description = _HELP
    callbacks = staticmethod(evaluation_callbacks)

    def __init__(self, argv: Sequence[str]) -> None:
        self._note = ""
        super().__init__(argv)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that Lightning does not know."""
        super().add_arguments_to_parser(parser)
        options = {
            "--out": f"run folder; the next free runs/{self._name}/<name of the config>/version_<n>"
            " if left out; that of an interrupted run goes on"
        }
        if self._name == "predict":
            options["--prompts"] = (
                "a file of prompts: .txt (one per line), .jsonl or .parquet (column prompt); or -, "
                "standard input: answers are then printed, as JSON lines; needs no configuration"
            )
        for option, text in options.items():
            parser.add_argument(option, type=str | None, default=None, help=text)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # Lightning has no metrics to show a table of, and would keep all predictions in memory.
        parser.set_defaults({"verbose" if subcommand == "test" else "return_predictions": False})
        return parser

    def completion(
        self, sources: Sequence[Source], checkpoint: Mapping[str, Any] | None
    ) -> tuple[list[str], list[str]]:
        """Options for data and tokenizer, where they were left out and can be found.

        Raises:
            ConfigError: there is no model, no data, or no tokenizer to be found.
        """
        prompts = last_value(sources, "prompts")
        data = _first(sources, "data.class_path", "data", kind=str)
        if _first(sources, "ckpt_path", "model.pretrained", "model.backbone") is None:
            raise ConfigError("no model is given", allowed=MODEL_OPTIONS.format("--model."))
        if data is None and prompts is None:
            recipe = "--config configs/eval/ruler_niah.yaml"
            raise ConfigError(
                "no data are given",
                allowed=f"data.class_path: {_DATA}, with rows under {self._name}",
                way_out="--prompts FILE" if self._name == "predict" else recipe,
            )
        before = [] if data else [f"--data={_DATA}"]
        after = []
        if prompts is not None:
            arguments = {"paths": [str(prompts)], "require_answers": False}
            rows = {"class_path": "refine_pl.data.RowFiles", "init_args": arguments}
            after.append(f"--data.init_args.predict={json.dumps({'prompts': rows})}")
        if _needs_tokenizer(str(data or _DATA), sources):
            path = None if checkpoint is None else Path(str(last_value(sources, "ckpt_path")))
            tokenizer, origin = find_tokenizer(_first(sources, *_LOADED), checkpoint, path)
            after.append(f"--{_TOKENIZER}={json.dumps(tokenizer)}")
            name = (tokenizer.get("init_args") or {}).get("name")
            label = tokenizer["class_path"].rpartition(".")[2] + (f" {name}" if name else "")
            self._note = f"tokenizer: {label}, {origin}"
        return before, after

    def defaults_for(self, sources: Sequence[Source]) -> dict[str, Any]:
        """What the run is called after: its last configuration file."""
        name = name_of_run(sources) or "prompts"
        evaluation = "refine_pl.callbacks.Evaluation"
        own = {"evaluation": {"class_path": evaluation, "init_args": {"name": name}}}
        return {**own, **self.defaults_of_launch()}

    def unneeded(self, sources: Sequence[Source]) -> tuple[str, ...]:
        """Answers are scored by the rules of their tasks, unless the phase trains."""
        return ("rewards",) if last_value(sources, "phase") is None else ()

    def needed_callbacks(self, given: Sequence[Callback]) -> list[Callback]:
        """As in training; the evaluation is told how it was started."""
        needed = super().needed_callbacks(given)
        self._evaluation = next(c for c in (*needed, *given) if isinstance(c, Evaluation))
        config = self.config[self._name]
        if config.out is not None:
            self._evaluation.folder = Path(config.out)
        self._evaluation.command = ["refine-pl", *self._argv]
        self._evaluation.config_text = self._parser(self._name).dump(config, skip_none=False)
        return needed

    def interruption(self) -> str:
        """How many rows are answered, and how to go on."""
        return self._evaluation.progress()

    def _run_subcommand(self, subcommand: str) -> None:
        if self.config[self._name].get("prompts") == STANDARD_INPUT:
            self._refuse_processes()
            self._evaluation.stream = sys.stdout
            with contextlib.redirect_stdout(sys.stderr):  # lines of answers are all that goes there
                self._run_here(subcommand)
        else:
            self._run_here(subcommand)

    def _run_here(self, subcommand: str) -> None:
        if self._note and self.trainer.is_global_zero:
            sys.stdout.write(f"{self._note}\n")
        super()._run_subcommand(subcommand)

    def _refuse_processes(self) -> None:
        if self.trainer.world_size > 1:
            raise ConfigError(
                f"prompts come from standard input, and {self.trainer.world_size} processes would "
                "share it",
                where="--prompts",
                allowed="a file, or one process",
                way_out="--trainer.devices 1, or --prompts FILE",
            )


def _first(sources: Sequence[Source], *keys: str, kind: type = object) -> Any:
    """The value of the first of the keys that is given, as a ``kind``."""
    found = (last_value(sources, key) for key in keys)
    return next((v for v in found if v is not None and isinstance(v, kind)), None)


def _needs_tokenizer(path: str, sources: Sequence[Source]) -> bool:
    if _first(since_class(sources, "data"), _TOKENIZER, "data.tokenizer") is not None:
        return False
    cls = find_class(LightningDataModule, path, "data.class_path", "data.class_path")
    return cls is not None and "tokenizer" in inspect.signature(cls).parameters


def find_tokenizer(
    pretrained: str | None,
    checkpoint: Mapping[str, Any] | None,
    path: Path | None,
    *,
    by_option: bool = False,
) -> tuple[dict[str, Any], str]:
    """The tokenizer of a model, and where it was found.

    Args:
        pretrained: the folder or the name that the model is loaded from, if it is.
        checkpoint: of the run that made the model otherwise.
        path: of the checkpoint.
        by_option: whether the command has an option ``--tokenizer``, and no configuration.

    Returns:
        ``class_path`` and ``init_args``, and words for people.

    Raises:
        ConfigError: there is none.
    """
    if pretrained is not None:
        folder = Path(pretrained).expanduser()
        # A repository on the hub may hold several models in folders, and one tokenizer.
        name = pretrained if folder.is_dir() else "/".join(pretrained.split("/")[:2])
        found: dict[str, Any] | None = {
            "class_path": "refine_pl.data.HubTokenizer",
            "init_args": {"name": name},
        }
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            found = None
        origin, lack = "of the model", f"{pretrained} holds none"
    else:
        found = None if checkpoint is None or path is None else tokenizer_of(checkpoint, path)
        if found is not None:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(Tokenizer, "tokenizer")
            check_settings(parser, "tokenizer", found, option=_TOKENIZER)
        origin = "of the run that wrote the checkpoint"
        lack = "the model does not say which one it was trained with"
    if found is None and by_option:
        raise ConfigError(
            f"no tokenizer is given, and {lack}",
            where="--tokenizer",
            allowed="a folder, a name on the hub, or Bytes",
            way_out="--tokenizer Bytes, or what the model was trained with",
        )
    if found is None:
        raise ConfigError(
            f"no tokenizer is given, and {lack}",
            where=_TOKENIZER,
            allowed="a class_path of a Tokenizer: refine_pl.data.HubTokenizer, "
            "refine_pl.data.Bytes",
            way_out=f"--{_TOKENIZER}.class_path refine_pl.data.Bytes, or what the model was "
            "trained with",
        )
    return found, origin
