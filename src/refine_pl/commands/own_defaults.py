"""A class that is chosen instead of another one starts from its own defaults.

The parser would hand it every ``init_args`` of the class it replaces whose name and type fit: Adam
got the weight decay of AdamW, and a selector the margins of another one, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints
from jsonargparse._util import import_object


@contextmanager
def own_defaults() -> Iterator[None]:
    """Inside, the parser forgets all ``init_args`` of a class when another one is named.

    It has no setting for that, so its function that decides it is exchanged.
    """
    original = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = _discard_all
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = original


def _discard_all(parser: Any, before: Any, now: Any) -> None:
    if before and before.get("init_args") and not _same(before["class_path"], now["class_path"]):
        before["init_args"] = type(before["init_args"])()


def _same(before: str | None, now: str) -> bool:
    if before is None or "." not in before or "." not in now:  # a bare name stands for a path
        return before is None or before.rpartition(".")[2] == now.rpartition(".")[2]
    try:
        same: bool = import_object(before) is import_object(now)
    except (ImportError, AttributeError, ValueError):
        return False  # the parser will say so
    return same
