"""What settings may have imported and called: those of a user, and those of a checkpoint.

A configuration names classes, and the parser imports and makes them. A user may name any class that
fits where it stands. A checkpoint is data: it may name the classes of a few packages, and others
only if the user names them too. Nothing else that it names is imported.

The parser has no settings for either, so functions of it are exchanged while it works.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser, _typehints
from jsonargparse._common import ImportDenied
from jsonargparse._util import get_import_path

from refine_pl.backbones import load_pretrained
from refine_pl.errors import CheckpointError

_PACKAGES = ("refine_pl.", "torch.optim.", "lightning.")
# Of a package whose other classes are not for checkpoints; the second is of two numbers, and the
# default of an option of the first.
_CLASSES = ("peft.LoraConfig", "peft.LoftQConfig")

ALLOWED = (
    f"classes of refine_pl, torch.optim and lightning, and {_CLASSES[0]}; others if you "
    "name them yourself"
)


@contextmanager
def _exchanged(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Another function of the parser in the place of its own."""
    original = getattr(_typehints, name)
    setattr(_typehints, name, function)
    try:
        yield
    finally:
        setattr(_typehints, name, original)


@contextmanager
def classes_alone() -> Iterator[None]:
    """Inside, a key that takes a class, or what makes one, takes no function in its place.

    ``model.optimizer`` is such a key: the parser would call any function with the ``init_args``.
    Where a class is asked for, a function may stand that declares to return one.
    """
    adapt = _typehints.adapt_class_type

    def adapt_classes(value: Any, serialize: bool, *args: Any, **more: Any) -> Any:
        declared = more.get("typehint") is not None or more.get("partial_skip_args") is not None
        if not serialize and not declared:
            path = value["class_path"]
            if not inspect.isclass(_typehints.import_object(path)):
                raise ImportError(f"{path} is not a class")
        return adapt(value, serialize, *args, **more)

    with (
        _exchanged("adapt_class_type", adapt_classes),
        _exchanged("function_returns_subclass", lambda *args: False),
    ):
        yield


@contextmanager
def classes_of_a_checkpoint(
    named: Iterable[str] = (), imported: bool = False
) -> Iterator[list[str]]:
    """Inside, the parser imports nothing but what a checkpoint may name.

    Args:
        named: import paths that the user names too.
        imported: whether what the process has imported before counts as named by the user.

    Yields:
        The paths that were refused so far.
    """
    original, trusted, refused = _typehints.import_object, set(named), list[str]()

    def import_object(path: Any, *args: Any, **options: Any) -> Any:
        if path in _CLASSES or path in trusted or (imported and _is_here(path)):
            found = original(path, *args, **options)
            if inspect.isclass(found):
                trusted.add(str(get_import_path(found)))  # the parser goes on with the shortest one
            return found
        if isinstance(path, str) and path.startswith(_PACKAGES):
            try:
                found = original(path, *args, **options)
            except ImportDenied:  # the parser's own list: os, subprocess and the like
                refused.append(path)
                raise
            home = f"{getattr(found, '__module__', '')}."
            if found is load_pretrained or (inspect.isclass(found) and home.startswith(_PACKAGES)):
                return found
        refused.append(str(path))
        raise ImportError(f"{path} is named by the checkpoint alone")

    with classes_alone(), _exchanged("import_object", import_object):
        yield refused


def _is_here(path: Any) -> bool:
    """Whether a path names a class of a module that is imported already, none of Python's own."""
    module, _, name = str(path).rpartition(".")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    return inspect.isclass(getattr(sys.modules.get(module), name, None))


def check_settings(
    parser: ArgumentParser, key: str, value: Any, named: Iterable[str] = (), option: str = ""
) -> None:
    """Refuse a setting of a checkpoint that does not suit its key, or that names what it may not.

    Args:
        parser: knows ``key``, and needs no other.
        key: dotted.
        value: as the checkpoint has it.
        named: import paths that the user gives for the key.
        option: what the key is called by the user, if something else.

    Raises:
        CheckpointError: with the key below which a name stands, and how to give it.
    """
    nested = copy.deepcopy(value)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    problem = None
    with classes_of_a_checkpoint(named) as refused:
        try:
            parser.parse_object(nested)
        except Exception as error:  # the parser's, or whatever a constructor's signature raises
            problem = error
    key = option or key
    for path in refused:
        at = next(_places(value, path, key), key)
        raise CheckpointError(
            f"{at} is {path}, which only the checkpoint names",
            where="--ckpt_path",
            allowed=f"from a checkpoint: {ALLOWED}",
            way_out=f"give it in your configuration, if you trust it: --{at} {path}",
        )
    if problem is not None:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        raise CheckpointError(
            f"the checkpoint's {key} cannot be used: {' '.join(lines)[:300]}",
            where="--ckpt_path",
            way_out=f"give {key} in your configuration",
        ) from problem


def _places(value: Any, text: str, key: str) -> Iterator[str]:
    """The keys at which a text stands."""
    if value == text:
        yield key
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _places(item, text, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _places(item, text, key)


def load_with_known_classes(load: Callable[[], Any]) -> Any:
    """Load a module from a checkpoint in Python, with classes that may be named by it.

    Args:
        load: makes the module from the checkpoint.

    Raises:
        CheckpointError: the checkpoint names something else.
    """
    with classes_of_a_checkpoint(imported=True) as refused:
        try:
            return load()
        except Exception as error:
            if not refused:
                raise
            raise CheckpointError(
                f"the checkpoint names {refused[0]}",
                where="load_from_checkpoint",
                allowed=ALLOWED,
                way_out="import its module before, or pass the part: "
                "RefineModule.load_from_checkpoint(PATH, rewards={...})",
            ) from error
