"""Configurations as flat tables: what a run was, and where two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
_NULL = "null"


def flat(config: Any, key: str = "") -> dict[str, str]:
    """Values by dotted key.

    Items of a list are named after their class where they have one, so that a callback more does
    not move all others: ``trainer.callbacks[RolloutRecorder].every_n_iterations``.
    """
    if isinstance(config, Mapping) and "class_path" in config:
        rest = {k: v for k, v in config.items() if k not in ("class_path", "init_args")}
        found = {key or "class": str(config["class_path"])}
        return found | _inside({**(config.get("init_args") or {}), **rest}, key)
    if isinstance(config, Mapping) and config:
        return _inside(config, key)
    if isinstance(config, list) and any(isinstance(item, (Mapping, list)) for item in config):
        found = {}
        names = _names(config)
        for name, item in zip(names, config, strict=True):
            found |= flat(item, f"{key}[{name}]")
        return found
    return {key: _value(config)}


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all configurations, with the values.

    A key that is not there and one that is null say the same.
    """
    tables = [flat(config) for config in configs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key, MISSING) for table in tables]) for key in keys]
    return [
        (key, values)
        for key, values in rows
        if len({_NULL if value == MISSING else value for value in values}) > 1
    ]


def of_one_class(rows: Sequence[tuple[str, list[str]]]) -> list[bool]:
    """Which of the :func:`differences` follow from another one.

    Such a row is a setting that some runs do not have, of a class that is itself among the rows.
    """
    keys = [key for key, _ in rows]
    return [
        MISSING in values
        and any(key.startswith(other) and key[len(other) :][:1] in (".", "[") for other in keys)
        for key, values in rows
    ]


def short_class(spec: Any) -> str:
    """The class name of a ``{class_path, init_args}``, or the value itself."""
    if isinstance(spec, Mapping) and "class_path" in spec:
        return str(spec["class_path"]).rpartition(".")[2]
    return MISSING if spec is None else str(spec)


def at(config: Mapping[str, Any], *keys: str) -> Any:
    """The value at a path of keys, through ``init_args`` where needed; ``None`` if not there."""
    value: Any = config
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        inner = value.get("init_args")
        if key not in value and isinstance(inner, Mapping):
            value = inner
        value = value.get(key)
    return value


def _inside(values: Mapping[str, Any], key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= flat(value, f"{key}.{name}" if key else str(name))
    return found


def _names(items: Sequence[Any]) -> list[str]:
    found: list[str] = []
    for i, item in enumerate(items):
        name = str(i)
        if isinstance(item, Mapping):
            name = short_class(item) if "class_path" in item else str(item.get("name", i))
        found.append(name if name not in found else f"{name} {i}")
    return found


def _value(value: Any) -> str:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
