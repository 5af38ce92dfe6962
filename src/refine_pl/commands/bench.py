"""``refine-pl bench``: what an update of this model costs on this machine."""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from refine_kernels.backends import report
from refine_pl.benchmark.arms import arms_of, compare
from refine_pl.benchmark.chunk_loop import chunk_loop
from refine_pl.benchmark.measure import measure, render, summary
from refine_pl.benchmark.peak import measure_peak
from refine_pl.benchmark.slowest import profiled, render_slowest
from refine_pl.commands.callback_keys import TRAINING_KEYS
from refine_pl.commands.config_errors import explain
from refine_pl.commands.config_sources import read_sources
from refine_pl.commands.own_defaults import own_defaults
from refine_pl.errors import ConfigError, UserError
from refine_pl.records import Batch
from refine_pl.refine_step import LossWeights
from refine_pl.rollouts import Forked, Recompute
from refine_pl.stopwatch import Stopwatch
from refine_pl.training.module import RefineModule
from refine_pl.training.sizes import Sizes
from refine_pl.training.updater import Updater
from refine_pl.whole_files import replace_file

_HELP = """Times whole updates of the model of a recipe, in turn: plain next-token training (SFT),
ReFINE with forked states, its drawing and update joined in one pass over the sequences or in two,
and ReFINE as the released code runs it (every prefix from its start, padded to the full length).
Checks first that joined and recomputed updates are equal. Of a LaCT
model it also times the loop over chunks against its matrix products alone. Text is random: only
sizes matter. It measures a large matrix product too, and says which share of that peak
the products of an update reach, and what takes most time in a joined update. The recipe's trainer
and data sections are not used."""

# The other sections of a recipe.
_UNUSED = ("trainer", "data", "seed_everything", "ckpt_path", "weights_only", *TRAINING_KEYS)

# Rounding of one type, through some layers and thousands of tokens.
_TOLERANCE = {"32-true": 1e-3, "64-true": 1e-8, "bf16-mixed": 0.1}


class BenchOptions:
    """What is timed.

    Args:
        sequence_length: tokens of each sequence, T.
        batch_size: sequences of one update.
        repeats: timed rounds, after one that is not timed.
        recompute_repeats: how many of them the recomputed side takes part in.
        device: where; auto takes a GPU if there is one.
        precision: auto is 32-true on a CPU and bf16-mixed on a GPU.
        recompute_cache: whether the recomputed side samples from the prefix's state; the released
            code does for DeltaNet, and runs the prefix again for every token for LaCT.
        json: file for the figures.
    """

    def __init__(
        self,
        sequence_length: PositiveInt = 8192,
        batch_size: PositiveInt = 1,
        repeats: PositiveInt = 5,
        recompute_repeats: PositiveInt = 2,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["auto", "32-true", "64-true", "bf16-mixed"] = "auto",
        recompute_cache: bool = True,
        json: str | None = None,
    ) -> None:
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise ConfigError(
                "device cuda was asked for, but torch sees no CUDA device",
                where="--bench.device",
                allowed="auto, cpu",
                way_out="see refine-pl doctor",
            )
        name = ("cuda" if cuda else "cpu") if device == "auto" else device
        self.device = torch.device(name)
        if precision == "auto":
            precision = "bf16-mixed" if name == "cuda" else "32-true"
        self.precision = precision
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.repeats = repeats
        self.recompute_repeats = min(recompute_repeats, repeats)
        self.recompute_cache = recompute_cache
        self.json = json

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def operands(self) -> torch.dtype:
        """Of matrix products."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else self.dtype

    def autocast(self) -> Callable[[], AbstractContextManager[None]]:
        """The context of every forward."""
        if self.precision == "bf16-mixed":
            return lambda: torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext


def main(argv: Sequence[str]) -> int:
    """Check, time, print.

    Returns:
        0, or 1 if joined and recomputed updates are not equal: then nothing is timed.

    Raises:
        UserError: the configuration cannot be used.
    """
    settings, module = _parse(argv)
    updater, batch = _updater(settings, module)
    own = module.own_settings
    if not own.weights.needs_rollouts:  # a recipe of the baseline: time what it is compared with
        own = replace(own, weights=LossWeights(own.weights.ntp_weight))
    released = Recompute(use_cache=settings.recompute_cache, pad_to_full=True)
    arms = arms_of(own, Forked(), released)
    _write(_head(settings, module))

    apart = compare(updater, batch, arms[1], arms[-1])
    tolerance = _TOLERANCE[settings.precision]
    equal = apart.holds(tolerance)
    said = (
        f"joined against recomputed: {apart.same_tokens:.0%} of the tokens equal, "
        f"log-probabilities {apart.logprobs:.1e} apart, loss {apart.loss:.1e}, gradient "
        f"{apart.gradient:.1e} (relative; allowed {tolerance:.0e}): "
        f"{'equal' if equal else 'NOT EQUAL'}"
    )
    _write(_filled(said) + "\n")
    if not equal:
        return 1
    *fast, slow = arms
    results = measure(
        updater, batch, fast, settings.repeats, settings.device, slow, settings.recompute_repeats
    )
    peak = measure_peak(settings.device, settings.operands)
    ratios = summary(results)
    _write(render(results, settings.batch_size * settings.sequence_length, peak) + "\n")
    for name, value in ratios.items():
        _write(f"{name:<28}{value:6.2f}")
    _write(f"\n{peak.describe()}")

    updater.stopwatch = Stopwatch(enabled=False)
    slow_ones = profiled(lambda: arms[1].run(updater, batch), settings.device)
    kind = "kernels" if settings.device.type == "cuda" else "operators"
    _write(f"\n{kind} that take most time in {arms[1].name} (one more run, watched)")
    _write(render_slowest(slow_ones))
    ratios |= _chunk_loop(settings, module)
    if settings.json is not None:
        figures = {
            "machine": _machine(settings),
            "sequence_length": settings.sequence_length,
            "batch_size": settings.batch_size,
            "equality": {name: getattr(apart, name) for name in apart.__slots__},
            "peak": peak.as_dict(),
            "arms": [result.as_dict(peak) for result in results],
            "ratios": ratios,
            "slowest": {"of": arms[1].name, kind: [each.as_dict() for each in slow_ones]},
        }
        replace_file(Path(settings.json), json.dumps(figures, indent=2) + "\n")
        _write(f"\nfigures: {settings.json}")
    return 0


def _chunk_loop(settings: BenchOptions, module: RefineModule) -> dict[str, float]:
    """Time and print LaCT's loop; nothing for another model."""
    found = chunk_loop(
        module.policy,
        settings.batch_size,
        settings.sequence_length,
        settings.repeats,
        settings.device,
    )
    if found is None:
        return {}
    described, ratios = found
    _write(f"\n{_filled(described)}")
    for name, value in ratios.items():
        _write(f"{name:<50}{value:6.2f}")
    return ratios


def _parse(argv: Sequence[str]) -> tuple[BenchOptions, RefineModule]:
    parser = ArgumentParser(
        prog="refine-pl bench", description=_HELP, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="a recipe, as for refine-pl fit")
    parser.add_class_arguments(BenchOptions, "bench")
    parser.add_class_arguments(RefineModule, "model")
    for section in _UNUSED:
        parser.add_argument(f"--{section}", type=Any, default=None, help="not used here")
    sources = read_sources(argv)
    try:
        with own_defaults():
            config = parser.parse_args(argv)
    except UserError:
        raise
    except Exception as error:
        raise explain(error, parser, sources) from error
    torch.manual_seed(0)
    for section in _UNUSED:  # a logger, say, must not be made
        config.pop(section, None)
    made = parser.instantiate(config)
    return made.bench, made.model


def _updater(settings: BenchOptions, module: RefineModule) -> tuple[Updater, Batch]:
    policy = module.policy.to(settings.device, settings.dtype)
    shape = (settings.batch_size, settings.sequence_length)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, policy.vocab_size, shape, generator=generator)
    batch = Batch(
        tokens.to(settings.device),
        torch.full((settings.batch_size,), settings.sequence_length, device=settings.device),
        tuple(range(settings.batch_size)),
    )
    updater = Updater(
        policy,
        module.refine_step.to(settings.device),
        module.make_optimizer(policy.parameters()),
        Sizes(minibatch=None, microbatch=settings.batch_size),
        gradient_clip=module.gradient_clip,
        autocast=settings.autocast(),
    )
    return updater, batch


def _machine(settings: BenchOptions) -> dict[str, str | int]:
    name = f"{torch.get_num_threads()} threads"
    if settings.device.type == "cuda":
        name = torch.cuda.get_device_name(settings.device)
    chosen = [f"{row.op}: {row.implementation}" for row in report() if row.chosen]
    return {
        "device": f"{settings.device.type} ({name})",
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "torch": torch.__version__,
        "precision": settings.precision,
        "kernels": ", ".join(chosen),
    }


def _head(settings: BenchOptions, module: RefineModule) -> str:
    size = sum(p.numel() for p in module.policy.parameters())
    machine = _machine(settings)
    what = (
        f"{type(module.policy).__name__}, {size:,} parameters; {settings.batch_size} x "
        f"{settings.sequence_length:,} tokens, {module.own_settings.plan.rollout_length} rollout "
        f"tokens; {machine['device']}, {settings.precision}, torch {machine['torch']}"
    )
    return f"{_filled(what)}\n{_filled(str(machine['kernels']))}"


def _filled(text: str) -> str:
    """In lines of at most 80 columns."""
    return textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
