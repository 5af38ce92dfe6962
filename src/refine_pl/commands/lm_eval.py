"""``refine-pl lm-eval``: EleutherAI's lm-evaluation-harness on a policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from refine_pl.commands.config_errors import explain
from refine_pl.commands.config_sources import read_sources
from refine_pl.commands.loading import Device, Precision, check_model, load_model
from refine_pl.errors import ConfigError, DataError, did_you_mean
from refine_pl.whole_files import replace_file

RESULTS = "results.json"

_HELP = """Runs tasks of EleutherAI's lm-evaluation-harness (pip install 'refine-pl[lm-eval]') on a
checkpoint of a run or on a model in the published layout. Prints the harness's table; --out keeps
the results and every sample."""


@dataclass
class HarnessOptions:
    """What is evaluated, and on what.

    Args:
        tasks: names of tasks or groups, with commas between them.
        ckpt_path: a checkpoint of `refine-pl fit`, a file or a folder.
        pretrained: a folder in the published layout, or a name on the hub.
        tokenizer: folder or name on the hub, or Bytes; the model's own if left out.
        include_path: a folder with tasks of your own.
        num_fewshot: examples before each question; the task's own number if left out.
        limit: documents of each task; below 1, that share of them.
        gen_kwargs: instead of the tasks' own, for example max_gen_toks=32,temperature=0.
        batch_size: rows that are read or continued together.
        device: where; auto takes a GPU if there is one.
        precision: auto is 32-true on a CPU and bf16-mixed on a GPU.
        seed: of tasks that sample, and of the choice of examples.
        out: folder for results.json and the samples.
    """

    tasks: str
    ckpt_path: str | None = None
    pretrained: str | None = None
    tokenizer: str | None = None
    include_path: str | None = None
    num_fewshot: NonNegativeInt | None = None
    limit: NonNegativeFloat | None = None
    gen_kwargs: str | None = None
    batch_size: PositiveInt = 8
    device: Device = "auto"
    precision: Precision = "auto"
    seed: NonNegativeInt = 0
    out: str | None = None

    def check(self) -> None:
        """Refuse what contradicts itself, or what is not there.

        Raises:
            ConfigError: naming the option.
        """
        if not self.names:
            raise ConfigError("no task is given", where="--tasks")
        check_model(self)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(f"there is no folder {self.include_path}", where="--include_path")
        if self.out is not None and Path(self.out, RESULTS).exists():
            raise ConfigError(
                f"{self.out} already holds results", where="--out", way_out="choose another folder"
            )

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]


def main(argv: Sequence[str]) -> int:
    """Evaluate and print.

    Raises:
        UserError: something that the user gave cannot be used, or the package is not installed.
    """
    options = _parse(argv)
    options.check()
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the package lm-eval is not installed", way_out="pip install 'refine-pl[lm-eval]'"
        ) from None
    tasks = _known_tasks(options)
    results = _evaluate(options, _model(options), tasks)
    samples = results.pop("samples", {})
    from lm_eval.utils import make_table

    sys.stdout.write(f"{make_table(results)}\n")
    if results.get("groups"):
        sys.stdout.write(f"{make_table(results, 'groups')}\n")
    if options.out is not None:
        _write(Path(options.out), results, samples)
        sys.stdout.write(f"results   {Path(options.out, RESULTS)}\n")
    return 0


def _parse(argv: Sequence[str]) -> HarnessOptions:
    parser = ArgumentParser(
        prog="refine-pl lm-eval", description=_HELP, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="options from a file")
    parser.add_class_arguments(HarnessOptions)
    try:
        config = parser.parse_args(argv)
    except Exception as error:
        raise explain(error, parser, read_sources(argv)) from error
    return HarnessOptions(**{k: v for k, v in config.items() if k != "config"})


def _known_tasks(options: HarnessOptions) -> Any:
    """The harness's task manager, which must know every task.

    Raises:
        ConfigError: it does not.
    """
    from lm_eval.tasks import TaskManager

    if options.include_path is not None:
        # The harness's thousands of tasks take ten seconds to list.
        own = TaskManager(include_path=options.include_path, include_defaults=False)
        if set(options.names) <= set(own.all_tasks) - set(own.all_groups):
            return own
    manager = TaskManager(include_path=options.include_path)
    for name in options.names:
        if not manager.match_tasks([name]):
            own_tasks = "tasks of your own: --include_path FOLDER"
            raise ConfigError(
                f"the harness has no task {name!r}",
                where="--tasks",
                way_out=did_you_mean(name, manager.all_tasks, own_tasks),
            )
    return manager


def _model(options: HarnessOptions) -> Any:
    """The policy with its tokenizer, which must fit, as a model of the harness."""
    from refine_pl.evaluation.harness import PolicyLM

    policy, tokenizer, autocast = load_model(options)
    return PolicyLM(
        policy,
        tokenizer,
        batch_size=options.batch_size,
        seed=options.seed,
        autocast=autocast,
        progress=sys.stderr.isatty(),
    )


def _evaluate(options: HarnessOptions, model: Any, manager: Any) -> dict[str, Any]:
    """The harness's results.

    Raises:
        DataError: the data of a task are not there.
    """
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate

    limit = options.limit
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        results: dict[str, Any] = simple_evaluate(
            model=model,
            tasks=options.names,
            num_fewshot=options.num_fewshot,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            gen_kwargs=options.gen_kwargs,
            batch_size=options.batch_size,  # for the file of results, like the device
            device=str(next(model.policy.parameters()).device),
            task_manager=manager,
            **dict.fromkeys(seeds, options.seed),
        )
    except (DatasetsError, OSError) as error:
        raise DataError(
            f"the data of {', '.join(options.names)} cannot be loaded: "
            + (str(error).splitlines() or [type(error).__name__])[0][:300],
            way_out="download them first, or check the paths in the task's file",
        ) from error
    return results


def _write(folder: Path, results: dict[str, Any], samples: dict[str, list[Any]]) -> None:
    from lm_eval.utils import handle_non_serializable

    as_json = partial(json.dumps, default=handle_non_serializable, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        lines = "".join(f"{as_json(row)}\n" for row in rows)
        replace_file(folder / f"samples_{task}.jsonl", lines)
    replace_file(folder / RESULTS, as_json(results, indent=2) + "\n")
