"""``refine-pl lm-eval``: EleutherAI's lm-evaluation-harness on a policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from refine_pl.backbones import FastWeightLM, load_pretrained
from refine_pl.commands.checkpoints import read_checkpoint
from refine_pl.commands.config_errors import explain
from refine_pl.commands.config_sources import read_sources
from refine_pl.commands.export import read_policy
from refine_pl.data import Bytes, HubTokenizer, Tokenizer
from refine_pl.errors import ConfigError, DataError, nearest

_HELP = """Runs tasks of EleutherAI's lm-evaluation-harness (pip install 'refine-pl[lm-eval]') on a
checkpoint of a run or on a model in the published layout. Prints the harness's table; --out keeps
the results and every sample."""


class Settings:
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

    def __init__(
        self,
        tasks: str,
        ckpt_path: str | None = None,
        pretrained: str | None = None,
        tokenizer: str | None = None,
        include_path: str | None = None,
        num_fewshot: NonNegativeInt | None = None,
        limit: NonNegativeFloat | None = None,
        gen_kwargs: str | None = None,
        batch_size: PositiveInt = 8,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
        seed: NonNegativeInt = 0,
        out: str | None = None,
    ) -> None:
        self.tasks = [name.strip() for name in tasks.split(",") if name.strip()]
        if not self.tasks:
            raise ConfigError("no task is given", where="--tasks")
        if (ckpt_path is None) == (pretrained is None):
            raise ConfigError(
                "both --ckpt_path and --pretrained are given" if ckpt_path else "no model is given",
                allowed="--ckpt_path FILE, a checkpoint of a run; or --pretrained, a folder in the "
                "published layout or a name on the hub",
            )
        if include_path is not None and not Path(include_path).is_dir():
            raise ConfigError(f"there is no folder {include_path}", where="--include_path")
        if out is not None and (Path(out) / "results.json").exists():
            raise ConfigError(
                f"{out} already holds results", where="--out", way_out="choose another folder"
            )
        self.ckpt_path, self.pretrained, self.tokenizer = ckpt_path, pretrained, tokenizer
        self.include_path = include_path
        self.num_fewshot, self.limit, self.gen_kwargs = num_fewshot, limit, gen_kwargs
        self.batch_size, self.seed = batch_size, seed
        self.out = None if out is None else Path(out)
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise ConfigError(
                "device cuda was asked for, but torch sees no CUDA device",
                where="--device",
                way_out="see refine-pl doctor",
            )
        self.device = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
        on_gpu = self.device.type == "cuda"
        self.bfloat16 = on_gpu if precision == "auto" else precision == "bf16-mixed"

    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        """Makes the context of every pass."""
        if self.bfloat16:
            return partial(torch.autocast, self.device.type, torch.bfloat16)
        return nullcontext


def main(argv: Sequence[str]) -> int:
    """Evaluate and print.

    Raises:
        UserError: something that the user gave cannot be used, or the package is not installed.
    """
    settings = _parse(argv)
    harness = _harness()
    tasks = _known_tasks(settings)
    policy, tokenizer = _model(settings)
    model = harness.PolicyLM(
        policy.to(settings.device),
        tokenizer,
        batch_size=settings.batch_size,
        seed=settings.seed,
        autocast=settings.autocast(),
        progress=sys.stderr.isatty(),
    )
    results = _evaluate(settings, model, tasks)
    samples = results.pop("samples", {})
    sys.stdout.write(_table(results) + "\n")
    if settings.out is not None:
        _write(settings.out, results, samples)
        sys.stdout.write(f"results   {settings.out / 'results.json'}\n")
    return 0


def _parse(argv: Sequence[str]) -> Settings:
    parser = ArgumentParser(
        prog="refine-pl lm-eval", description=_HELP, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="options from a file")
    parser.add_class_arguments(Settings)
    try:
        config = parser.parse_args(argv)
    except Exception as error:
        raise explain(error, parser, read_sources(argv)) from error
    values = {name: value for name, value in config.items() if name != "config"}
    return Settings(**values)


def _harness() -> Any:
    """The module that needs the optional package."""
    try:
        import lm_eval
    except ImportError:
        raise ConfigError(
            "the package lm-eval is not installed",
            way_out="pip install 'refine-pl[lm-eval]'",
        ) from None
    del lm_eval
    from refine_pl.evaluation import harness

    return harness


def _known_tasks(settings: Settings) -> Any:
    """The harness's task manager, which must know every task.

    Raises:
        ConfigError: it does not.
    """
    from lm_eval.tasks import TaskManager

    if settings.include_path is not None:
        # The harness's thousands of tasks take ten seconds to list.
        own = TaskManager(include_path=settings.include_path, include_defaults=False)
        if set(settings.tasks) <= set(own.all_tasks) - set(own.all_groups):
            return own
    manager = TaskManager(include_path=settings.include_path)
    for name in settings.tasks:
        if not manager.match_tasks([name]):
            close = nearest(name, manager.all_tasks)
            way_out = "tasks of your own: --include_path FOLDER"
            raise ConfigError(
                f"the harness has no task {name!r}",
                where="--tasks",
                way_out=f"did you mean {close}?" if close else way_out,
            )
    return manager


def _model(settings: Settings) -> tuple[FastWeightLM, Tokenizer]:
    """The policy and its tokenizer, which must fit."""
    if settings.pretrained is not None:
        policy = load_pretrained(settings.pretrained)
    else:
        assert settings.ckpt_path is not None
        policy = read_policy(settings.ckpt_path)
    tokenizer = _tokenizer(settings)
    if tokenizer.vocab_size > policy.vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer.label} has {tokenizer.vocab_size:,} tokens, the model "
            f"{policy.vocab_size:,}",
            where="--tokenizer",
        )
    return policy, tokenizer


def _tokenizer(settings: Settings) -> Tokenizer:
    if settings.tokenizer is not None:
        return Bytes() if settings.tokenizer == "Bytes" else HubTokenizer(settings.tokenizer)
    from refine_pl.commands.evaluating import find_tokenizer

    if settings.pretrained is not None:
        argv, checkpoint = ["--model.pretrained", settings.pretrained], None
    else:
        path = str(settings.ckpt_path)
        argv, checkpoint = ["--ckpt_path", path], read_checkpoint(path)
    spec, _ = find_tokenizer(read_sources(argv), checkpoint)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Tokenizer, "tokenizer")
    made = parser.instantiate(parser.parse_object({"tokenizer": spec}))
    tokenizer: Tokenizer = made.tokenizer
    return tokenizer


def _evaluate(settings: Settings, model: Any, manager: Any) -> dict[str, Any]:
    """The harness's results.

    Raises:
        DataError: the data of a task cannot be had.
    """
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate

    limit = settings.limit
    if limit is not None and limit >= 1:
        limit = int(limit)
    try:
        results: dict[str, Any] = simple_evaluate(
            model=model,
            tasks=settings.tasks,
            num_fewshot=settings.num_fewshot,
            limit=limit,
            gen_kwargs=settings.gen_kwargs,
            batch_size=settings.batch_size,
            device=str(settings.device),
            task_manager=manager,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    except (DatasetsError, OSError) as error:
        raise DataError(
            f"the data of {', '.join(settings.tasks)} cannot be had: "
            + (str(error).splitlines() or [type(error).__name__])[0][:300],
            way_out="download them first, or check the paths in the task's file",
        ) from error
    return results


def _table(results: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(str(table) for table in tables)


def _write(folder: Path, results: dict[str, Any], samples: dict[str, list[Any]]) -> None:
    from lm_eval.utils import handle_non_serializable

    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        with (folder / f"samples_{task}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                line = json.dumps(row, default=handle_non_serializable, ensure_ascii=False)
                file.write(f"{line}\n")
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
