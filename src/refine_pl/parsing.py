"""YAML and JSON of files that others wrote: whatever is wrong with a text is one kind of error.

The libraries raise what their innards happen to raise: RecursionError for deep nesting, KeyError,
AttributeError or IndexError for odd tags, and nothing at all for aliases that multiply.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

DEEPEST = 100  # levels; the parsers themselves give up somewhere between 200 and 1,000
LARGEST = 200_000  # values, aliases counted as often as they stand for something


class TextError(ValueError):
    """A text is not what it should be.

    Args:
        problem: what is wrong.
        line: where, from 1, if it is known.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        TextError: it is not JSON, nested too deep, or holds a number with too many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TextError(f"{error.msg} at character {error.colno}", error.lineno) from error
    except RecursionError:
        raise TextError("nested too deep") from None
    except ValueError as error:
        raise TextError(_digits(error)) from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of plain tags only.

    Raises:
        TextError: it is not YAML, nested too deep, or does not end.
    """
    return parse_yaml_nodes(text)[1]


def parse_yaml_nodes(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a YAML text, which know their lines, and its value; errors as above."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            _measure(node, {}, set())
            return node, loader.construct_document(node)
        finally:
            loader.dispose()
    except TextError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = [getattr(error, "context", None), getattr(error, "problem", None)]
        problem = ", ".join(filter(None, said if str(said[1]).startswith("but ") else said[1:]))
        problem = problem or " ".join(str(error).split())
        raise TextError(problem, mark.line + 1 if mark else None) from error
    except RecursionError:
        raise TextError("nested too deep") from None
    except Exception as error:  # nothing but the text is at work here
        raise TextError(f"a value cannot be read: {_digits(error)}") from error


def _measure(
    node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]
) -> tuple[int, int]:
    """How many values a node stands for, and how deep they are nested."""
    if id(node) in known:
        return known[id(node)]
    line = node.start_mark.line + 1
    if id(node) in above:
        raise TextError("an alias stands inside of what it stands for", line)
    if len(above) > DEEPEST:
        raise TextError("nested too deep", line)
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = (
        [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
    )
    above.add(id(node))
    sizes = [_measure(part, known, above) for part in parts]
    above.remove(id(node))
    size, depth = 1 + sum(s for s, _ in sizes), 1 + max((d for _, d in sizes), default=0)
    if size > LARGEST:
        raise TextError(f"aliases multiply to more than {LARGEST:,} values", line)
    if depth > DEEPEST:
        raise TextError("nested too deep", line)
    known[id(node)] = size, depth
    return size, depth


def _digits(error: Exception) -> str:
    """The error in words; Python's own about long integers names a function to call."""
    if "integer string conversion" in str(error):
        return f"an integer of more than {sys.get_int_max_str_digits():,} digits"
    return " ".join(str(error).split()) or type(error).__name__
