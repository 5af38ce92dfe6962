"""Configurations as flat tables: what a run was, and where two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = "–"
_NULL = "null"


def flat(config: Any, key: str = "") -> dict[str, str]:
    """Values by dotted key.

    Items of a list are named after their class where they have one, so that a callback more does
    not move all others: ``trainer.callbacks[RolloutRecorder].every_n_iterations``.
    """
    return dict(_flat(config, key))


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
