"""What ``refine-pl test`` and ``predict`` add to the command line.

A configuration for an evaluation names rows, and may leave out what the model knows: its tokenizer.
``predict --prompts FILE`` needs no configuration at all.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from refine_pl.callbacks import Evaluation
from refine_pl.callbacks.evaluation import find_evaluation
from refine_pl.commands import lightning_cli
from refine_pl.commands.callback_keys import evaluation_callbacks
from refine_pl.commands.checkpoints import tokenizer_of
from refine_pl.commands.config_classes import find_class
from refine_pl.commands.config_sources import Source, last_value, name_of_run, since_class
from refine_pl.errors import ConfigError

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
        KeyboardInterrupt: the run was interrupted; its text says how to go on.
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
        self._argv = list(argv)
        self._sources: Sequence[Source] = ()
        self._notes: list[str] = []
        super().__init__(argv)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that Lightning does not know."""
        super().add_arguments_to_parser(parser)
        command = self._name
        parser.add_argument(
            "--out",
            type=str | None,
            default=None,
            help=f"run folder; the next free runs/{command}/<name of the config>/version_<n> "
            "if left out; that of an interrupted run goes on",
        )
        if command == "predict":
            parser.add_argument(
                "--prompts",
                type=str | None,
                default=None,
                help="a file of prompts: .txt (one per line), .jsonl or .parquet (column prompt); "
                "needs no configuration",
            )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.set_defaults({"verbose": False})  # Lightning has no metrics to show a table of
        else:
            parser.set_defaults({"return_predictions": False})  # all of them, in memory
        return parser

    def completion(
        self, sources: Sequence[Source], checkpoint: Mapping[str, Any] | None
    ) -> tuple[list[str], list[str]]:
        """Options for data and tokenizer, where they were left out and can be found.

        Raises:
            ConfigError: there is no model, no data, or no tokenizer to be found.
        """
        self._sources = sources
        _check_model(sources)
        data = _data_class(self._name, sources)
        before = [] if data in _given_data(sources) else [f"--data={data}"]
        behind = _options_for_prompts(sources)
        if _needs_tokenizer(data, sources):
            tokenizer, origin = find_tokenizer(sources, checkpoint)
            behind.append(f"--{_TOKENIZER}={json.dumps(tokenizer)}")
            name = (tokenizer.get("init_args") or {}).get("name")
            label = tokenizer["class_path"].rpartition(".")[2] + (f" {name}" if name else "")
            self._notes = [f"tokenizer: {label}, {origin}"]
        return before, behind

    def defaults_for(self, sources: Sequence[Source]) -> dict[str, Any]:
        """What the run is called after: its last configuration file."""
        name = name_of_run(sources) or "prompts"
        evaluation = "refine_pl.callbacks.Evaluation"
        return {"evaluation": {"class_path": evaluation, "init_args": {"name": name}}}

    def needed_callbacks(self, given: Sequence[Callback]) -> list[Callback]:
        """As in training; the evaluation is told how it was started."""
        needed = super().needed_callbacks(given)
        evaluation = next(c for c in (*needed, *given) if isinstance(c, Evaluation))
        config = self.config[self._name]
        if config.out is not None:
            evaluation.folder = Path(config.out)
        evaluation.command = ["refine-pl", *self._argv]
        evaluation.config_text = self._parser(self._name).dump(config, skip_none=False)
        return needed

    def interruption(self) -> str:
        """How many rows are answered, and how to go on."""
        evaluation = find_evaluation(self.trainer)
        assert evaluation is not None
        return evaluation.progress()

    def _run_subcommand(self, subcommand: str) -> None:
        for note in self._notes if self.trainer.is_global_zero else ():
            sys.stdout.write(f"{note}\n")
        super()._run_subcommand(subcommand)


def _check_model(sources: Sequence[Source]) -> None:
    keys = ("ckpt_path", "model.pretrained", "model.backbone")
    if all(last_value(sources, key) is None for key in keys):
        raise ConfigError(
            "no model is given",
            allowed="--ckpt_path FILE, a checkpoint of a run; or --model.pretrained, a folder in "
            "the published layout or a name on the hub",
        )


def _given_data(sources: Sequence[Source]) -> list[str]:
    """The class of the data module, if it is given."""
    found = [last_value(sources, key) for key in ("data.class_path", "data")]
    return [path for path in found if isinstance(path, str)]


def _data_class(command: str, sources: Sequence[Source]) -> str:
    """The class of the data module; ``--prompts`` alone stands for rows of tasks."""
    given = _given_data(sources)
    if given:
        return given[0]
    if last_value(sources, "prompts") is not None:
        return _DATA
    way_out = "--prompts FILE" if command == "predict" else "--config configs/eval/ruler_niah.yaml"
    raise ConfigError(
        "no data are given",
        allowed=f"data.class_path: {_DATA}, with rows under {command}",
        way_out=way_out,
    )


def _options_for_prompts(sources: Sequence[Source]) -> list[str]:
    prompts = last_value(sources, "prompts")
    if prompts is None:
        return []
    rows = {
        "class_path": "refine_pl.data.RowFiles",
        "init_args": {"paths": [str(prompts)], "require_answers": False},
    }
    return [f"--data.init_args.predict={json.dumps({'prompts': rows})}"]


def _needs_tokenizer(path: str, sources: Sequence[Source]) -> bool:
    keys = (_TOKENIZER, "data.tokenizer")
    own = since_class(sources, "data")
    if any(last_value(own, key) is not None for key in keys):
        return False
    cls = find_class(LightningDataModule, path, "data.class_path", "data.class_path")
    return cls is not None and "tokenizer" in inspect.signature(cls).parameters


def find_tokenizer(
    sources: Sequence[Source], checkpoint: Mapping[str, Any] | None
) -> tuple[dict[str, Any], str]:
    """The tokenizer of the model, and where it was found."""
    for key in _LOADED:
        name = last_value(sources, key)
        if name is not None:
            return _of_pretrained(str(name)), "of the model"
    path = last_value(sources, "ckpt_path")
    if checkpoint is not None:
        found = tokenizer_of(checkpoint, Path(str(path)))
        if found is not None:
            return found, "of the run that wrote the checkpoint"
    raise _no_tokenizer("the model does not say which one it was trained with")


def _of_pretrained(name: str) -> dict[str, Any]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any(folder.glob("tokenizer*")):
            raise _no_tokenizer(f"{name} holds none")
        where = name
    else:
        where = "/".join(name.split("/")[:2])  # a repository that holds several models in folders
    return {"class_path": "refine_pl.data.HubTokenizer", "init_args": {"name": where}}


def _no_tokenizer(why: str) -> ConfigError:
    return ConfigError(
        f"no tokenizer is given, and {why}",
        where=_TOKENIZER,
        allowed="a class_path of a Tokenizer: refine_pl.data.HubTokenizer, refine_pl.data.Bytes",
        way_out=f"--{_TOKENIZER}.class_path refine_pl.data.Bytes, or what the model was trained "
        "with",
    )
