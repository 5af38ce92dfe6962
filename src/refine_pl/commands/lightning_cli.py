"""``refine-pl fit`` and its like: configuration, module, data module and trainer."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from refine_pl.callbacks.closing import (
    ClosingValidation,
    IterationLimit,
    check_something_was_trained,
)
from refine_pl.callbacks.requeue import Requeue, newest_of_job
from refine_pl.commands.arguments import NEGATIVE
from refine_pl.commands.callback_keys import TRAINING_KEYS, training_callbacks, without_replaced
from refine_pl.commands.checkpoint_words import find_checkpoint
from refine_pl.commands.checkpoints import (
    check_is_readable,
    read_checkpoint,
    refuse_its_functions,
    use_as_defaults,
)
from refine_pl.commands.config_errors import (
    check_groups,
    check_plain_values,
    check_seed,
    explain,
    refuse_what_the_parser_lets_through,
)
from refine_pl.commands.config_sources import (
    Source,
    given_as_option,
    given_in,
    last_value,
    name_of_run,
    read_sources,
)
from refine_pl.commands.finite_settings import refuse_not_finite
from refine_pl.commands.help_page import arrange
from refine_pl.commands.library_words import arrange_them
from refine_pl.commands.own_defaults import own_defaults
from refine_pl.commands.part_errors import construction_error
from refine_pl.commands.run_errors import explained
from refine_pl.commands.save_config import WITH_FOLDER, SaveConfigOnce, default_root
from refine_pl.commands.schedule_options import check_rate, shared_out, with_whole_ramps
from refine_pl.commands.vocabulary import follow_tokenizer, printed_options
from refine_pl.errors import ConfigError
from refine_pl.launch import launched, slurm_job
from refine_pl.parts import build_part, check_one_is_given
from refine_pl.training.checkpoint_files import save_whole
from refine_pl.training.checks import check_precision
from refine_pl.training.closing_loop import close_runs
from refine_pl.training.interruption import Interruption, SignalConnector
from refine_pl.training.module import RefineModule
from refine_pl.training.run_place import refuse_taken_early
from refine_pl.training.schedule import find_schedule
from refine_pl.training.stopping import last_checkpoint
from refine_pl.training.trusted_classes import classes_alone
from refine_pl.whole_files import clean

# Settings may not name what runs commands, and a mapping that looks like a class stays a mapping
# where any value may stand.
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)

_HELP = """Settings come from --config files and from options; what comes later wins.
--config takes a file, or the name of a recipe (`refine-pl recipes` lists them).
A second --config is merged key by key, but mappings of names and lists
(model.rewards, schedule.stages, trainer.callbacks) are replaced as a whole.

  one reward or one stage   --model.rewards.mine.init_args.weight 0
                            --schedule.stages.refine.iterations 10
  the whole length          --iterations 60
  a callback of every run   --recorder false
  the options of a class    --model.selector.help Entropy

With --ckpt_path, the checkpoint's model settings are the defaults, and both
beat them."""

# Keys of callbacks that the trainer too can turn off, and what it would make if there were none.
_SWITCHES = (
    ("progress", "enable_progress_bar", ProgressBar),
    ("checkpoint", "enable_checkpointing", Checkpoint),
)

_TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    # The data module gives every rank its own rows.
    "use_distributed_sampler": False,
    # A run validates before it trains on purpose or not at all.
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}


def main(argv: Sequence[str], cli: type[RefineCLI] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the name of a method of the trainer, and its options.
        cli: what parses and runs it.

    Raises:
        UserError: something that the user gave cannot be used.
        Interrupted: a signal has come; its text says where the last checkpoint is.
    """
    arrange_them()
    (cli or RefineCLI)(argv)
    return 0


class RefineCLI(LightningCLI):
    """The command line of :class:`RefineModule` with any data module.

    Args:
        argv: the name of the subcommand and its options.
    """

    own_trainer_defaults = _TRAINER_DEFAULTS
    description = _HELP
    # Its parameters are keys of the configuration.
    callbacks: Callable[..., list[Callback | bool | None]] = staticmethod(training_callbacks)

    def __init__(self, argv: Sequence[str]) -> None:
        self._name = argv[0]
        self._argv = list(argv)
        self._found = ""  # says which checkpoint a word stands for
        super().__init__(
            RefineModule,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfigOnce,
            trainer_defaults=dict(self.own_trainer_defaults),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "refine-pl",
                "exit_on_error": False,
                "allow_abbrev": False,  # --model.num_seg would silently be taken
                argv[0]: {"description": self.description},
            },
            args=list(argv),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that was asked for: a parser takes a tenth of a second to build."""
        return {self._name: LightningCLI.subcommands()[self._name]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of the callbacks; those of training may stand in any configuration."""
        parser._negative_number_matcher = NEGATIVE
        self._keys = parser.add_function_arguments(self.callbacks, fail_untyped=False)
        for key in TRAINING_KEYS:
            if key not in self._keys:
                parser.add_argument(f"--{key}", type=Any, default=None, help="not used here")
        parser.add_argument(
            "--optimizer_state",
            type=Literal["checkpoint", "fresh"],
            default="checkpoint",
            help=self._of_fit(
                "of a resumed run: fresh begins with an optimizer without state, and at the start "
                "of model.lr_scheduler"
            ),
        )
        parser.add_argument(
            "--iterations",
            type=PositiveInt | None,
            default=None,
            help=self._of_fit(
                "of the whole run: the stages of a schedule keep their shares, and a run without "
                "one stops after so many"
            ),
        )

    def _of_fit(self, text: str) -> str:
        return text if self._name == "fit" else "not used here"

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with the checkpoint's hyper-parameters as defaults.

        Raises:
            UserError: the configuration or the checkpoint cannot be used.
        """
        subparser = self._parser(args[0])
        given = sources = read_sources(args[1:])
        defaults = self.defaults_for(sources)
        subparser.set_defaults(defaults)
        path = last_value(sources, "ckpt_path")
        if isinstance(path, str):
            found = find_checkpoint(path, self._name, sources, defaults)
            args = args if found == path else [*args, f"--ckpt_path={found}"]
            self._found = "" if found == path else f"checkpoint: {found}\n"
            sources = read_sources(args[1:])
        checkpoint = self._read_checkpoint(subparser, sources)
        arrange(subparser)
        if not any(arg in ("-h", "--help") or arg.endswith(".help") for arg in args):
            before, after = self.completion(sources, checkpoint)
            args = [args[0], *before, *with_whole_ramps(args[1:], sources), *after]
            sources = read_sources(args[1:])
        if checkpoint is None:
            args = [*args, *printed_options(parser, args, sources)]
        try:
            with own_defaults(), classes_alone():
                self.config = parser.parse_args(args)
            config = self.config[self._name]
            check_groups(config, subparser)
        except Exception as error:
            raise explain(error, subparser, sources) from error
        if checkpoint is None:
            follow_tokenizer(config, sources)
        refuse_what_the_parser_lets_through(subparser, sources)
        refuse_not_finite(config, sources)
        check_plain_values(config, sources)
        check_seed(config.seed_everything, sources)
        for key in self._keys:
            if config[key] is True:  # turned on again
                config[key] = subparser.get_defaults()[key]
        if "schedule" in self._keys and config.schedule is not None:
            stages = config.schedule.init_args.stages
            check_rate(sources, stages)
            if config.iterations is not None:
                lengths = {name: stage["iterations"] for name, stage in stages.items()}
                for name, length in shared_out(config.iterations, lengths).items():
                    stages[name]["iterations"] = length
        if config.iterations is not None and not given_as_option(sources, "trainer.max_epochs"):
            config.trainer.max_epochs = -1  # they are the length of the run
        if checkpoint is not None:
            refuse_its_functions(config.model, given)
        # Before models are made, which takes long.
        backbone = config.model.backbone
        check_one_is_given(backbone and backbone.class_path, config.model.pretrained)

    def defaults_for(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Defaults that follow from what is given, by key."""
        name = self._run_name = name_of_run(sources[:1]) or "refine"
        logger = "lightning.pytorch.loggers.TensorBoardLogger"
        place = {"class_path": logger, "init_args": {"save_dir": "runs", "name": name}}
        defaults: dict[str, Any] = {"trainer.logger": place}
        if last_value(sources, "schedule") is not None:
            defaults["trainer.max_epochs"] = -1  # the schedule decides when to stop
        defaults |= self.defaults_of_launch()
        if self._name == "fit" and (job := slurm_job()):
            # A job that is queued again goes on from what lies there, and no other job does.
            given = last_value(sources, "trainer.default_root_dir")
            folder = defaults["trainer.default_root_dir"] = f"runs/{name}/job_{job}"
            newest = newest_of_job(folder if given is None else str(given))
            defaults["ckpt_path"] = None if newest is None else str(newest)
        return defaults

    def defaults_of_launch(self) -> dict[str, Any]:
        """The processes that torchrun or srun has started, as the trainer counts them."""
        launch = launched()
        if launch is None:
            return {}
        return {"trainer.devices": launch.processes, "trainer.num_nodes": launch.machines}

    def completion(
        self, sources: Sequence[Source], checkpoint: Mapping[str, Any] | None
    ) -> tuple[list[str], list[str]]:
        """Options that stand for what the user left out, before and after those given; none here.

        Args:
            sources: where settings were given.
            checkpoint: what ``--ckpt_path`` names, if it is given.
        """
        return [], []

    def _read_checkpoint(
        self, parser: ArgumentParser, sources: Sequence[Source]
    ) -> dict[str, Any] | None:
        path = last_value(sources, "ckpt_path")
        if path is None:
            return None
        if not isinstance(path, str):
            where = given_in(sources, ("ckpt_path",))
            raise ConfigError(f"ckpt_path is {path!r}", where=where, allowed="the path of a file")
        clean(Path(path).parent)  # a sharded checkpoint may have been left half replaced
        weights_only = last_value(sources, "weights_only") is not False
        checkpoint = read_checkpoint(path, weights_only)
        use_as_defaults(checkpoint, parser, sources, self.unneeded(sources))
        return checkpoint

    def unneeded(self, sources: Sequence[Source]) -> tuple[str, ...]:
        """Settings of a checkpoint's model that this command has no use for; none here."""
        return ()

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint beat the configuration here."""

    def instantiate_classes(self) -> None:
        """Make the data module, the module and the trainer.

        Raises:
            UserError: one of them, or a part of one, refuses a value.
        """
        try:
            super().instantiate_classes()
        except Exception as error:
            said = construction_error(error, self.config[self._name].as_dict())
            if said is None:
                raise
            raise said from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the callbacks that every run needs."""
        settings = self._get(self.config_init, "trainer")
        if isinstance(settings["strategy"], str) and "." in settings["strategy"]:
            # A class without arguments, which the parser leaves as text; the trainer refuses others
            with suppress(ImportError, AttributeError):
                settings["strategy"] = build_part({"class_path": settings["strategy"]})
        if settings["devices"] == "auto" and (launch := launched()):
            settings["devices"] = launch.processes  # also where there are more devices, or none
        if self._name in WITH_FOLDER:
            settings["default_root_dir"] = default_root(settings, self._run_name)
        if self._name == "fit":  # here: without a GPU Lightning would take another one than given
            check_precision(str(settings["precision"]))
        given = settings["callbacks"] or []
        given = [given] if isinstance(given, Callback) else given  # one needs no list
        self.trainer_defaults["callbacks"] = self.needed_callbacks(given)
        trainer = super().instantiate_trainer(**kwargs)
        save_whole(trainer)
        trainer._signal_connector = SignalConnector(trainer)
        if self._name == "fit":
            close_runs(trainer)
            limit = self._get(self.config_init, "iterations")
            has_schedule = find_schedule(trainer) is not None
            own = [] if limit is None or has_schedule else [IterationLimit(limit)]
            trainer.callbacks += [*own, ClosingValidation(), Requeue()]  # type: ignore[attr-defined]
        return trainer

    def needed_callbacks(self, given: Sequence[Callback]) -> list[Callback]:
        """Those to add to the ones ``given`` in ``trainer.callbacks``."""
        own = {key: self._get(self.config_init, key) for key in self._keys}
        trainer = self._get(self.config_init, "trainer")
        for key, switch, kind in _SWITCHES:
            if trainer[switch] is False:
                own[key] = False
            elif own.get(key) is False and not any(isinstance(c, kind) for c in given):
                trainer[switch] = False  # or Lightning would make one of its own
        # The last one: what it saves holds the state of all others.
        return [*without_replaced(self.callbacks(**own), given), Interruption()]

    def interruption(self) -> str:
        """What to say when the run was interrupted: what is left of it, and how to go on."""
        if self._name != "fit":
            return f"to run it again: {shlex.join(['refine-pl', *self._argv])}"
        newest = last_checkpoint(self.trainer)
        left = "no checkpoint was written" if newest is None else f"the last checkpoint is {newest}"
        words = going_on(self._argv, newest)
        return f"{left}; to go on: {shlex.join(['refine-pl', *words])}"

    def _run_subcommand(self, subcommand: str) -> None:
        ckpt_path = self._get(self.config, "ckpt_path")
        check_is_readable(ckpt_path, self.trainer.strategy)
        if subcommand in WITH_FOLDER:
            refuse_taken_early(self.trainer, ckpt_path)
        if self._found and self.trainer.is_global_zero:
            sys.stdout.write(self._found)
        self.model.fresh_optimizer = self._get(self.config, "optimizer_state") == "fresh"
        with explained(ckpt_path, self._interruption_here):
            super()._run_subcommand(subcommand)
            if subcommand == "fit":
                check_something_was_trained(self.trainer)

    def _interruption_here(self) -> str:
        return self.interruption() if self.trainer.is_global_zero else ""


def going_on(argv: Sequence[str], checkpoint: Path | None) -> list[str]:
    """The arguments that go on from a checkpoint, in a run folder of their own.

    Args:
        argv: those of the interrupted run.
        checkpoint: where to go on; None for where that run had begun.
    """
    replaced = ["--trainer.logger.init_args.version"] + ["--ckpt_path"] * (checkpoint is not None)
    words: list[str] = []
    for word in argv:
        if words and words[-1] in replaced:
            words.pop()
        elif not word.startswith(tuple(f"{option}=" for option in replaced)):
            words.append(word)
    return words + (["--ckpt_path", str(checkpoint)] if checkpoint is not None else [])
