"""Configurations as flat tables: what a run was, and where two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refine_pl.figures.text import shortened
from refine_pl.report.page import Block, Details, Row, Table
from refine_pl.report.reading import Run

MISSING = "–"
_NULL = "null"
_VALUE = 160  # characters of a setting
_COMPARED = ("model", "decoding", "data", "test_time_training", "precision", "device")  # of a card


def differing_settings(runs: Sequence[Run]) -> Iterator[Block]:
    """The settings that differ, among training runs and among evaluation runs."""
    training = [run for run in runs if "training" in run.kinds and run.config]
    others = [run for run in runs if run.kinds == ["evaluation"] and run.config]
    for name, some in (("training runs", training), ("evaluation runs", others)):
        if len(some) < 2:
            continue
        rows = differences([run.config for run in some])
        if not rows:
            yield f"The {name} have the same settings."
            continue
        caption = f"Keys of config.yaml whose values are not the same in all {name}."
        inner = of_one_class(rows)
        yield settings_table("setting", some, [row for row in rows if row[0] not in inner], caption)
        if inner:
            title = f"{len(inner)} settings of classes that not all {name} have"
            more = [row for row in rows if row[0] in inner]
            yield Details(title, [settings_table("setting", some, more)])
    evaluated = [run for run in runs if run.card]
    rows = differences([{k: run.card[k] for k in _COMPARED if k in run.card} for run in evaluated])
    if rows:
        caption = "What card.json says differently: model, decoding, data, test-time training."
        yield settings_table("card.json", evaluated, rows, caption)


def settings_table(
    what: str, runs: Sequence[Run], rows: Sequence[tuple[str, list[str]]], caption: str = ""
) -> Table:
    """One row for each setting, one column for each run."""
    cells: list[Row] = [[key, *(shortened(v, _VALUE) for v in values)] for key, values in rows]
    return Table([what, *(run.name for run in runs)], cells, caption, text_columns=len(runs) + 1)


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all configurations, with the values.

    A key that is not there and one that is null say the same. Items of a list are named after
    their class where they have one, so that a callback more does not move all others:
    ``trainer.callbacks[RolloutRecorder].every_n_iterations``.
    """
    tables = [dict(_flat(config, "")) for config in configs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key, MISSING) for table in tables]) for key in keys]
    return [
        (key, values)
        for key, values in rows
        if len({_NULL if value == MISSING else value for value in values}) > 1
    ]


def of_one_class(rows: Sequence[tuple[str, list[str]]]) -> set[str]:
    """The keys of those :func:`differences` that follow from another one.

    Such a row is a setting that some runs do not have, of a class that is itself among the rows.
    """
    keys = tuple(f"{key}{mark}" for key, _ in rows for mark in ".[")
    return {key for key, values in rows if MISSING in values and key.startswith(keys)}


def short_class(spec: Any) -> str:
    """The class name of a ``{class_path, init_args}``, or the value itself."""
    if isinstance(spec, Mapping) and "class_path" in spec:
        return str(spec["class_path"]).rpartition(".")[2]
    return MISSING if spec is None else str(spec)


def at(config: Any, *keys: str) -> Any:
    """The value at a path of keys, through ``init_args`` where needed; ``None`` if not there."""
    for key in keys:
        if not isinstance(config, Mapping):
            return None
        inner = config.get("init_args")
        config = (inner if key not in config and isinstance(inner, Mapping) else config).get(key)
    return config


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    inner: Mapping[str, Any] = {}
    if isinstance(value, Mapping) and "class_path" in value:
        yield key or "class", str(value["class_path"])
        others = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
        inner = {**(value.get("init_args") or {}), **others}
    elif isinstance(value, Mapping) and value:
        inner = value
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for name, item in _named(value).items():
            yield from _flat(item, f"{key}[{name}]")
    else:
        yield key, _text(value)
    for name, item in inner.items():
        yield from _flat(item, f"{key}.{name}" if key else str(name))


def _named(items: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, item in enumerate(items):
        name = str(i)
        if isinstance(item, Mapping):
            name = short_class(item) if "class_path" in item else str(item.get("name", i))
        found[name if name not in found else f"{name} {i}"] = item
    return found


def _text(value: Any) -> str:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
