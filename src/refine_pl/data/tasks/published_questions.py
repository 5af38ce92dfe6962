"""Questions with their paragraphs, from the files that SQuAD and HotpotQA publish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from refine_pl.data.tasks.question_answering import Question
from refine_pl.errors import DataError
from refine_pl.parsing import TextError, parse_json

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Published:
    """A data set of questions.

    Args:
        name: of the data set.
        task: that its rows are scored under.
        layout: of its files, in words.
        sources: where its files are, for people.
        read: gives the questions of a parsed file; raises ``_MisfitError``.
    """

    name: str
    task: str
    layout: str
    sources: str
    read: Callable[[Any], Iterator[Question]]

    def questions(self, path: Path) -> list[Question]:
        """The questions of a file that have an answer.

        Raises:
            DataError: it is not there, or not such a file.
        """
        if not path.is_file():
            raise DataError(
                f"file not found: {path}",
                where=f"paths start from {Path.cwd()}",
                way_out=f"the files of {self.name} are at {self.sources}",
            )
        try:
            found = list(self.read(parse_json(path.read_bytes())))
        except (TextError, _MisfitError, UnicodeDecodeError) as error:
            raise DataError(
                f"not a file of {self.name}: {error}",
                where=str(path),
                allowed=self.layout,
                way_out=f"the files of {self.name} are at {self.sources}",
            ) from error
        if not found:
            raise DataError("no question has an answer", where=str(path), allowed=self.layout)
        return found


class _MisfitError(ValueError):
    """A value is not what the layout has in its place."""


def _at(value: Any, key: str | int, kind: type[T], where: str) -> T:
    """``value[key]``, which is of ``kind``."""
    place = f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}".removeprefix(".")
    inner = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        inner = value[key]
    if not isinstance(inner, kind):
        found = "missing" if inner is None else f"a {type(inner).__name__}"
        raise _MisfitError(f"{place} is {found}, not a {kind.__name__}")
    return inner


def _texts(values: list[Any], where: str) -> list[str]:
    return [_at(values, index, str, where) for index in range(len(values))]


def _squad(content: Any) -> Iterator[Question]:
    """Questions of version 1.1 or 2.0; those that cannot be answered are left out."""
    articles = _at(content, "data", list, "")
    for a, article in enumerate(articles):
        paragraphs = _at(article, "paragraphs", list, f"data[{a}]")
        for p, paragraph in enumerate(paragraphs):
            where = f"data[{a}].paragraphs[{p}]"
            context = _at(paragraph, "context", str, where).strip()
            for q, entry in enumerate(_at(paragraph, "qas", list, where)):
                inside = f"{where}.qas[{q}]"
                given = _at(entry, "answers", list, inside)
                answers = [
                    _at(answer, "text", str, f"{inside}.answers[{i}]")
                    for i, answer in enumerate(given)
                ]
                kept = tuple(dict.fromkeys(text for text in answers if text.strip()))
                question = _at(entry, "question", str, inside).strip()
                if kept and question and context:
                    yield Question(_at(entry, "id", str, inside), question, kept, (context,))


def _hotpotqa(content: Any) -> Iterator[Question]:
    """Questions with their ten paragraphs, of which two answer them."""
    if not isinstance(content, list):
        raise _MisfitError(f"it holds a {type(content).__name__}, not a list")
    for number, entry in enumerate(content):
        where = f"[{number}]"
        paragraphs = []
        for p in range(len(_at(entry, "context", list, where))):
            place = f"{where}.context[{p}]"
            pair = _at(entry["context"], p, list, f"{where}.context")
            title, sentences = _at(pair, 0, str, place), _at(pair, 1, list, place)
            text = "".join(_texts(sentences, f"{place}[1]")).strip()
            paragraphs += [f"{title}\n{text}"] if text else []
        answer = _at(entry, "answer", str, where).strip()
        question = _at(entry, "question", str, where).strip()
        if answer and question and paragraphs:
            name = _at(entry, "_id", str, where)
            yield Question(name, question, (answer,), tuple(paragraphs))


SQUAD = Published(
    "SQuAD",
    "ruler_squadqa",
    "train-v2.0.json or dev-v2.0.json of SQuAD, or those of version 1.1",
    "https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v2.0.json (42 MB; dev-v2.0.json "
    "for tests)",
    _squad,
)
HOTPOTQA = Published(
    "HotpotQA",
    "ruler_hotpotqa",
    "hotpot_train_v1.1.json or hotpot_dev_distractor_v1.json of HotpotQA",
    "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_train_v1.1.json (567 MB; "
    "hotpot_dev_distractor_v1.json for tests)",
    _hotpotqa,
)


def held_apart(questions: Sequence[Question], seed: int) -> tuple[list[Question], list[Question]]:
    """Questions in a random order: nine tenths, and one that shares no answering paragraph with it.

    Questions with the same first paragraph stay together. What is drawn depends on the seed and
    the texts alone.

    Args:
        questions: of one data set.
        seed: of sides and order.
    """

    def rank(text: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{text}".encode("utf-8", "backslashreplace")).digest()

    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.paragraphs[0], []).append(question)
    order = sorted(groups, key=rank)
    border = max(1, len(order) // 10)
    apart = [question for key in order[:border] for question in groups[key]]
    rest = [question for key in order[border:] for question in groups[key]]
    return [sorted(side, key=lambda q: rank(q.name)) for side in (rest, apart)]  # type: ignore[return-value]
