"""Spoilt recipes, run by the real commands: each must run, or be refused in words.

    python tests/helpers/configuration_fuzz.py --count 2000 --seed 1 --out faults/

A recipe of ``configs/`` at a small size is changed at random and run in a fork of this process,
with its own memory limit, folder and time. It may end with 0, or with 2 and an error in words. A
traceback, another exit code or no end at all is a fault; the file and what was printed are kept.
"""

import argparse
import collections
import contextlib
import gc
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from mutations import mutated, text_of
from recipes import CONFIGS, OVERLAYS, PUBLISHED, model_folder, shrink_data, write_small

from refine_pl import cli

GIB = 2**30
MODEL_FOLDER = "models/fla-hub/delta_net-1.3B-100B"  # in the workplace
LARGEST_MODEL = 10**7  # parameters
BATCHES = 2  # then a run is asked to stop; after twice as many it is ended


@dataclass
class Case:
    """A mutation and what came of it."""

    number: int
    seed: int
    recipe: str
    command: list[str]
    what: str
    content: bytes
    outcome: str = ""
    code: int | None = None
    seconds: float = 0.0
    printed: str = ""

    @property
    def is_fault(self):
        return self.outcome not in ("ran", "refused")

    @property
    def kind(self):
        """What was raised and where, to count faults of one kind together."""
        lines = self.printed.partition("\nThis is a fault of the program")[0].rstrip().splitlines()
        lines = lines or [self.outcome]
        places = [line.strip() for line in lines if line.strip().startswith("File ")]
        return f"{self.outcome}: {lines[-1][:110]} @ {places[-1][-70:] if places else ''}"


class Workplace:
    """A folder with small recipes, and all that they read; every case gets a copy of it."""

    def __init__(self, folder):
        self.template, self.cases = folder / "template", folder / "cases"
        self.template.mkdir(parents=True)
        self.cases.mkdir()
        here = Path.cwd()
        os.chdir(self.template)  # so that paths in the recipes are relative
        try:
            self.recipes = self._small_recipes()
            Path("empty.yaml").touch()
            Path("self.yaml").write_text("model: self.yaml\n")
            Path("broken.json").write_text('{"a": ')
            Path("folder.yaml").mkdir()
        finally:
            os.chdir(here)

    def _small_recipes(self):
        found = {}
        for path in sorted(CONFIGS.glob("*.yaml")):
            small = write_small(path, Path())
            found[path.stem] = yaml.safe_load(small.read_text())
        for path in sorted((CONFIGS / "eval").glob("*.yaml")):
            config = yaml.safe_load(path.read_text())
            shrink_data(config["data"], Path())
            for source in config["data"]["init_args"]["test"].values():
                if "lengths" in source["init_args"]:
                    source["init_args"] |= {"lengths": [256, 512], "num_rows": 2}
            found[f"eval/{path.stem}"] = config
        for name in PUBLISHED:
            model_folder(name, Path())
        overlays = (path.relative_to(CONFIGS) for path in CONFIGS.glob("*/**/*.yaml"))
        assert {path.parts[0] for path in overlays} == OVERLAYS
        return found

    def case(self, number, seed):
        """Case ``number`` of a seed; it depends on nothing else."""
        rng = random.Random(f"{seed}/{number}")
        recipe = rng.choice(list(self.recipes))
        mutation = mutated(self.recipes[recipe], rng)
        command = self.command(recipe) + mutation.options
        if command[0] == "fit" and rng.random() < 0.1:
            command[0] = "validate"
        return Case(number, seed, recipe, command, mutation.what, mutation.content)

    def command(self, recipe):
        """What runs a recipe, saved as ``mutated.yaml``."""
        if not (recipe.startswith("eval/") or recipe.endswith("_ttt")):
            return ["fit", "--config", "mutated.yaml"]
        words = ["test", "--config", "mutated.yaml"]
        if "backbone" not in self.recipes[recipe].get("model", {}):
            words += ["--model.pretrained", MODEL_FOLDER]
        if recipe.startswith("eval/"):
            words += ["--trainer.accelerator", "cpu"]
        return words

    def folder(self, case):
        """A fresh copy of the workplace, with the mutated file."""
        folder = self.cases / f"{case.seed}-{case.number}"
        shutil.copytree(self.template, folder)
        (folder / "mutated.yaml").write_bytes(case.content)
        return folder


def warm_up(workplace, seconds=300.0, gib=8.0):
    """Run every recipe as it is, so that its tokens are cached, and import what that needed.

    Raises:
        AssertionError: a recipe that was not spoilt does not run.
    """
    torch.set_num_threads(1)  # a fork has one
    for number, (name, config) in enumerate(workplace.recipes.items()):
        case = Case(number, -1, name, workplace.command(name), "nothing", text_of(config))
        run(case, workplace, seconds, gib, keep=("cache", "modules.txt"))
        assert case.outcome == "ran", case.printed
        (workplace.template / "mutated.yaml").write_bytes(case.content)
        for module in (workplace.template / "modules.txt").read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        # What a parser that accepts and one that refuses keep of the classes that they have seen.
        for more in (["--print_config"], ["--model.seed", "x"]):
            with (
                contextlib.chdir(workplace.template),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.suppress(SystemExit),
            ):
                cli.main([*case.command, *more])

    gc.collect()
    gc.freeze()  # or the first collection of a fork would copy all pages


def run(case, workplace, seconds, gib, keep=()):
    """Run a case in a fork, and note what came of it; what to ``keep`` goes to the template."""
    folder = workplace.folder(case)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(case, folder, gib)
    case.code = _wait(child, started + seconds)
    case.seconds = time.monotonic() - started
    case.printed = (folder / "printed.txt").read_text(errors="replace")[-20_000:]
    case.outcome = _outcome(case.code, case.printed)
    for name in keep:
        source, target = folder / name, workplace.template / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)
    shutil.rmtree(folder)
    return case


def _outcome(code, printed):
    if code is None:
        return "hang"
    if code < 0:
        return f"signal {-code}"
    if "Traceback (most recent call last)" in printed:
        return "traceback"
    if code == 2:
        return "refused" if "error:" in printed else "silent refusal"
    return "ran" if code == 0 else f"exit {code}"


def _wait(child, deadline):
    """The exit code, negative for a signal; None if it had to be killed."""
    pause = 0.002
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(case, folder, gib):
    """Runs the command and never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace")
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="replace")
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + int(gib * GIB),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (GIB, GIB))
        _stop_early()
        code = cli.main(case.command)
        if case.seed < 0:
            Path("modules.txt").write_text("\n".join(sys.modules))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def _stop_early():
    """A run ends after a few batches, and starts no processes of its own."""
    import multiprocessing.process

    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    from refine_pl.backbones.stack import StackedLM
    from refine_pl.training.module import RefineModule

    make = StackedLM.__init__

    def make_small(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if sum(p.numel() for p in self.parameters()) > LARGEST_MODEL:
            os._exit(0)  # legal, and too slow for a test

    StackedLM.__init__ = make_small
    step, batches = RefineModule.training_step, [0]

    def training_step(self, *args, **kwargs):
        batches[0] += 1
        result = step(self, *args, **kwargs)
        self.trainer.should_stop = self.trainer.should_stop or batches[0] >= BATCHES
        if batches[0] >= 2 * BATCHES:
            os._exit(0)
        return result

    def no_process(*args, **kwargs):
        os._exit(0)  # the rest belongs to several processes

    RefineModule.training_step = training_step
    _SubprocessScriptLauncher.launch = no_process
    multiprocessing.process.BaseProcess.start = no_process


def fuzz(count, seed, folder, seconds=60.0, gib=3.0, first=0, report=None):
    """Run ``count`` mutations; all cases with their outcomes."""
    workplace = Workplace(folder)
    warm_up(workplace)
    cases = []
    for number in range(first, first + count):
        cases.append(run(workplace.case(number, seed), workplace, seconds, gib))
        if report is not None:
            report(cases)
    return cases


def save(case, folder):
    """Keep what is needed to see a fault again."""
    target = folder / f"{case.seed}-{case.number}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "mutated.yaml").write_bytes(case.content)
    facts = {"recipe": case.recipe, "what": case.what, "outcome": case.outcome, "code": case.code}
    (target / "case.json").write_text(json.dumps(facts | {"command": case.command}, indent=2))
    (target / "printed.txt").write_text(case.printed)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--out", type=Path, help="folder for faults")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which a run hangs")
    parser.add_argument("--gib", type=float, default=3.0, help="memory of a run")
    given = parser.parse_args()

    def report(cases):
        last = cases[-1]
        if last.is_fault:
            sys.stdout.write(f"{last.number} {last.recipe}: {last.what}\n    {last.kind}\n")
            if given.out:
                save(last, given.out)
        if len(cases) % 100 == 0:
            sys.stdout.write(
                f"{len(cases)} {dict(collections.Counter(c.outcome for c in cases))}\n"
            )
        sys.stdout.flush()

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        cases = fuzz(
            given.count, given.seed, Path(folder), given.seconds, given.gib, given.first, report
        )
    counts = collections.Counter(case.outcome for case in cases)
    slowest = max(cases, key=lambda case: case.seconds)
    sys.stdout.write(
        f"{len(cases)} mutations, seed {given.seed}: {dict(counts)}; "
        f"{time.monotonic() - started:.0f} s, slowest {slowest.seconds:.1f} s ({slowest.number})\n"
    )
    return int(any(case.is_fault for case in cases))


if __name__ == "__main__":
    sys.exit(main())
