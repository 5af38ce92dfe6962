"""Options that change numbers of a schedule, and settings that a schedule would overrule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refine_pl.commands.config_sources import Source, all_values
from refine_pl.errors import ConfigError, did_you_mean

_STAGES = ("schedule.stages", "schedule.init_args.stages")
_RATES = ("model.optimizer.init_args.lr", "model.optimizer.lr")
_OPTION = re.compile(r"--schedule\.(?:init_args\.)?stages\.([^.=]+)\.([^.=]+)(?:\.([^=]+))?")


def with_whole_ramps(argv: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """Options that change one ramp of a stage, as options that give all ramps of the stage.

    ``--schedule.stages.refine.ramp.lr [1, 2]``: the parser does not look into mappings that deep.

    Args:
        argv: options.
        sources: what they give.

    Raises:
        ConfigError: an option names a stage that there is not; the parser would make one.
    """
    stages: set[str] = set()
    ramps: dict[tuple[str, str], dict[str, Any]] = {}
    for source in sources:
        found = _OPTION.fullmatch(source.option)
        if found is None:
            stages |= {stage for stage, _ in _stages(source)}
        elif found[1] not in stages:
            raise ConfigError(
                f"the schedule has no stage '{found[1]}'",
                where=source.name,
                allowed=", ".join(stages) or "none: no --config gives schedule.stages",
                way_out=did_you_mean(found[1], stages),
            )
        for stage, values in _stages(source) if found is None or found[3] is None else ():
            ramps |= {(stage, k): dict(v) for k, v in values.items() if isinstance(v, Mapping)}
    words, rest = [], list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        found = _OPTION.fullmatch(option)
        if found is None or found[3] is None:
            words.append(option + equals + value)
            continue
        stage, name, path = found.groups()
        whole = ramps.setdefault((stage, name), {})
        whole[path] = value if equals else rest.pop(0)
        inner = ", ".join(
            f"{json.dumps(key)}: {item if isinstance(item, str) else json.dumps(item)}"
            for key, item in whole.items()
        )
        words.append(f"--schedule.stages.{stage}.{name}={{{inner}}}")
    return words


def shared_out(total: int, lengths: Mapping[str, int]) -> dict[str, int]:
    """The iterations of each stage of a run of ``total`` iterations, in the shares that they have.

    Each has one at least; the sum is exact.

    Args:
        total: iterations of the whole run.
        lengths: iterations of each stage, as the schedule gives them.

    Raises:
        ConfigError: there are more stages than iterations.
    """
    if total < len(lengths):
        raise ConfigError(
            f"iterations is {total}, and the schedule has {len(lengths)} stages",
            where="iterations",
            allowed="one or more for each stage",
        )
    whole = sum(lengths.values())
    shares = {name: max(1, total * length // whole) for name, length in lengths.items()}
    while (rest := total - sum(shares.values())) != 0:
        step = 1 if rest > 0 else -1
        # The stage that is furthest from its share, of those that can change.
        lacks = {n: total * lengths[n] / whole - shares[n] for n in shares if shares[n] + step > 0}
        shares[max(lacks, key=lambda name: step * lacks[name])] += step
    return shares


def check_rate(sources: Sequence[Source], stages: Mapping[str, Any]) -> None:
    """Refuse a learning rate of the optimizer that no stage would use.

    A file may give both, as the configuration that a run saves does. A rate in a later file, or in
    an option, is meant to be used.

    Args:
        sources: where settings were given.
        stages: of the schedule, as they were parsed.

    Raises:
        ConfigError: every stage has a rate of its own.
    """
    keys = {name: _rate_key(stage) for name, stage in stages.items()}
    rates = [n for n, s in enumerate(sources) if any(all_values(s, key) for key in _RATES)]
    staged = [n for n, s in enumerate(sources) if any(_rate_key(v) for _, v in _stages(s))]
    if None in keys.values() or not rates or not staged:
        return
    last = sources[rates[-1]]
    if rates[-1] <= staged[-1] and not last.option:
        return
    stage, key = list(keys.items())[-1]
    value = "'[0.001, 0.0001]'" if key == "ramp.lr" else "0.001"
    raise ConfigError(
        "model.optimizer.lr would have no effect: every stage of the schedule has its own",
        where=last.where(("model", "optimizer", "init_args", "lr")),
        allowed="schedule.stages: " + ", ".join(f"{name}.{key}" for name, key in keys.items()),
        way_out=f"give it to the stages: --schedule.stages.{stage}.{key} {value}",
    )


def _rate_key(stage: Any) -> str | None:
    """Where a stage, parsed or as it is written, has a rate of its own."""
    if stage.get("lr") is not None:
        return "lr"
    ramp = stage.get("ramp")
    return "ramp.lr" if isinstance(ramp, Mapping) and "lr" in ramp else None


def _stages(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The stages that a source says something about, by name."""
    for key in _STAGES:
        for stages in all_values(source, key):
            for name, values in stages.items() if isinstance(stages, Mapping) else ():
                if isinstance(values, Mapping):
                    yield str(name), values
