"""Options that change one number of a schedule, and settings that a schedule would overrule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refine_pl.commands.config_sources import Source, all_values
from refine_pl.errors import ConfigError, nearest

_STAGES = ("schedule.stages", "schedule.init_args.stages")
_RATES = ("model.optimizer.init_args.lr", "model.optimizer.lr")
_OPTION = re.compile(r"--schedule\.(?:init_args\.)?stages\.([^.=]+)\.([^.=]+)(?:\.([^=]+))?")


def with_whole_mappings(argv: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """Options that change one ramp of a stage, as options that give all ramps of the stage.

    ``--schedule.stages.refine.ramp.lr [1, 2]``: the parser does not look into mappings that deep.

    Args:
        argv: options.
        sources: what they give.
    """
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for source in sources:
        found = _OPTION.fullmatch(source.option)
        if found is None or found[3] is None:
            known |= {
                (stage, name): dict(value)
                for stage, values in _stages(source)
                for name, value in values.items()
                if isinstance(value, Mapping)
            }
    words, rest = [], list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        found = _OPTION.fullmatch(option)
        if found is None or found[3] is None or not (equals or rest):
            words.append(option + equals + value)
            continue
        stage, name, path = found.groups()
        whole = known.setdefault((stage, name), {})
        whole[path] = value if equals else rest.pop(0)
        inner = ", ".join(
            f"{json.dumps(key)}: {item if isinstance(item, str) else json.dumps(item)}"
            for key, item in whole.items()
        )
        words.append(f"--schedule.stages.{stage}.{name}={{{inner}}}")
    return words


def check_stages(sources: Sequence[Source]) -> None:
    """Refuse an option for a stage that there is not: the parser would make one of that name.

    Raises:
        ConfigError: with the nearest name.
    """
    known: set[str] = set()
    for source in sources:
        found = _OPTION.fullmatch(source.option)
        if found is None:
            known |= {stage for stage, _ in _stages(source)}
        elif found[1] not in known:
            close = nearest(found[1], known)
            raise ConfigError(
                f"the schedule has no stage '{found[1]}'",
                where=source.name,
                allowed=", ".join(known) or "none: no --config gives schedule.stages",
                way_out=f"did you mean {close}?" if close else None,
            )


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
    own = {
        name: "lr" if stage.lr is not None else "ramp.lr"
        for name, stage in stages.items()
        if stage.lr is not None or "lr" in (stage.ramp or {})
    }
    rates = [n for n, s in enumerate(sources) if any(all_values(s, key) for key in _RATES)]
    staged = [n for n, s in enumerate(sources) if any(_has_rate(v) for _, v in _stages(s))]
    if len(own) < len(stages) or not rates or not staged:
        return
    last = rates[-1]
    if last <= staged[-1] and not sources[last].option:
        return
    raise ConfigError(
        "model.optimizer.lr would have no effect: every stage of the schedule has its own",
        where=sources[last].where(("model", "optimizer", "init_args", "lr")),
        allowed="schedule.stages: " + ", ".join(f"{name}.{key}" for name, key in own.items()),
        way_out=_other_rate(*list(own.items())[-1]),
    )


def _other_rate(stage: str, key: str) -> str:
    value = "'[0.001, 0.0001]'" if key == "ramp.lr" else "0.001"
    return f"give it to the stages: --schedule.stages.{stage}.{key} {value}"


def _has_rate(stage: Mapping[str, Any]) -> bool:
    ramp = stage.get("ramp")
    return stage.get("lr") is not None or (isinstance(ramp, Mapping) and "lr" in ramp)


def _stages(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The stages that a source says something about, by name."""
    for key in _STAGES:
        for stages in all_values(source, key):
            for name, values in stages.items() if isinstance(stages, Mapping) else ():
                if isinstance(values, Mapping):
                    yield str(name), values
