"""Needles in a haystack (RULER): sentences that hide values for keys, and a question for some.

The rows are generated, so they exist at any length and without a network. A length counts the
tokens of the prompt together with those of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from jsonargparse.typing import PositiveInt

from refine_pl.chat import common_prefix
from refine_pl.data.corpora import Corpus
from refine_pl.data.tasks.draws import Draws, Kind
from refine_pl.data.tasks.generated import GeneratedRows, fill
from refine_pl.data.tasks.haystacks import NOISE, Sentences, corpus_sentences
from refine_pl.errors import ConfigError, check_choice
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

MIN_LENGTH = 128
DEFAULT_NUMBER = 4  # of needles, where there are several

NeedleKind: TypeAlias = Literal["single", "multi_key", "multi_query", "multi_value"]
HaystackWord: TypeAlias = Literal["noise", "needles"]
_NUMBER_SETTINGS = {
    "multi_key": "num_keys",
    "multi_query": "num_queries",
    "multi_value": "num_values",
}
_CHOICES = {"kind": NeedleKind, "key_type": Kind, "value_type": Kind, "haystack": HaystackWord}
_THINGS: dict[Kind, str] = {"words": "word", "numbers": "number", "uuids": "code"}


class Needle(NamedTuple):
    """What is hidden once. The first needle of a row is asked for."""

    depth: float  # in [0, 1): the share of the haystack in front of it
    key: str
    value: str


Needles: TypeAlias = tuple[Needle, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row with needles is worded. Every prompt ends where its answer begins.

    Args:
        kind: which needles are asked for.
        value_type: what the values are, for the wording.
        short: as few words as possible, for small numbers of tokens; otherwise whole sentences, an
            introduction and a question.
    """

    kind: NeedleKind
    value_type: Kind
    short: bool = False

    def sentence(self, key: str, value: str) -> str:
        """What is hidden: ``The hidden number of calm-river is 1234567.``"""
        if self.short:
            return f"{key} = {value}."
        thing = _THINGS[self.value_type]
        if self.kind == "multi_value":
            return f"One of the hidden {thing}s of {key} is {value}."
        return f"The hidden {thing} of {key} is {value}."

    def prompt(self, needles: Needles, haystack: Sentences, number: int) -> str:
        """The first sentences with the needles between them, at their depths, and the question."""
        sentences = haystack.first(number)
        text: list[str] = []
        done = 0
        for needle in sorted(needles):
            stop = int(needle.depth * (len(sentences) + 1))
            text += sentences[done:stop]
            done = stop
            space = "\n" if text and text[-1].endswith("\n") else " "
            text.append(self.sentence(needle.key, needle.value) + space)
        whole = "".join([*text, *sentences[done:]]).rstrip()
        asked = needles if self.kind == "multi_query" else needles[:1]
        return self._question(whole, [needle.key for needle in asked])

    def answers(self, needles: Needles) -> tuple[str, ...]:
        """The values that are asked for; several of one key as they come in the text."""
        if self.kind == "multi_value":
            needles = tuple(sorted(needles))
        elif self.kind != "multi_query":
            needles = needles[:1]
        return tuple(needle.value for needle in needles)

    def _question(self, text: str, keys: Sequence[str]) -> str:
        if self.short:
            return f"{text}\n{', '.join(keys)} ="
        thing, several_values = _THINGS[self.value_type], self.kind == "multi_value"
        asked = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
        several = several_values or len(keys) > 1
        subject = f"hidden {thing}{'s' if several else ''} of {asked}"
        verb = "are" if several else "is"
        all_of_them = "all the" if several_values else "the"
        return (
            f"In the following text, sentences about hidden {thing}s stand between others. "
            f"Keep them in mind: the last line asks for some of them.\n\n{text}\n\n"
            f"Question: What {verb} {all_of_them} {subject} in the text above?\n"
            f"Answer: The {subject} {verb}"
        )


@dataclass(frozen=True, slots=True)
class Wording:
    """How the rows of one length are worded, and how many needles they have."""

    layout: Layout
    number: int
    max_gen_tokens: int
    shortest: int  # tokens of the longest row without a haystack, the answer included


@dataclass
class NeedleInAHaystack(GeneratedRows):
    """Rows of the tasks ``niah_single``, ``niah_multi_key``, ``_multi_query`` and ``_multi_value``.

    Needles are whole, at depths that are drawn uniformly, and as many sentences of the haystack are
    taken as fit. Where the tokens are few, the wording is short; where they are too few for the
    number of needles, there are fewer, and the run says so. Row i of every length hides the same
    needles at the same depths, so lengths can be compared in pairs. Rows are kept in the cache
    folder.

    Args:
        kind: ``single``: one needle. ``multi_key``: several keys with a value each, one is asked
            for. ``multi_query``: all of several keys are. ``multi_value``: several values of one
            key.
        lengths: tokens of a row, prompt and answer together, at least 128.
        num_rows: rows of each length.
        num_keys: needles of ``multi_key``; 4 if not set.
        num_queries: needles of ``multi_query``; 4 if not set.
        num_values: needles of ``multi_value``; 4 if not set.
        key_type: pairs of words, seven digits, or UUIDs.
        value_type: the same for values.
        haystack: ``noise`` repeats a few sentences, ``needles`` are needles that nobody asks for;
            or a corpus, of which each row takes another place.
        seed: of everything that is drawn.
        max_gen_tokens: the most tokens that an answer may have; as many as the longest right answer
            has, and the end of text, if not set.
    """

    kind: NeedleKind
    lengths: list[PositiveInt]
    num_rows: PositiveInt = 500
    num_keys: PositiveInt | None = None
    num_queries: PositiveInt | None = None
    num_values: PositiveInt | None = None
    key_type: Kind = "words"
    value_type: Kind = "numbers"
    haystack: HaystackWord | Corpus = "noise"
    seed: int = 0
    max_gen_tokens: PositiveInt | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if not isinstance(value := getattr(self, name), Corpus):
                check_choice("NeedleInAHaystack", name, value, get_args(choices))
        self.check_lengths(MIN_LENGTH)
        self.number = self._number_of_needles()

    @property
    def task(self) -> str:
        """The name that the rows are scored under."""
        return f"niah_{self.kind}"

    @property
    def label(self) -> str:
        """The kind, and what is hidden where."""
        return f"NeedleInAHaystack {self.kind} ({self._variant})"

    @property
    def _variant(self) -> str:
        haystack = self.haystack if isinstance(self.haystack, str) else type(self.haystack).__name__
        return f"{self.key_type}-{self.value_type}-{haystack}"

    def made_from(self, memo_dir: Path) -> dict[str, Any]:
        """The settings, and the content of the corpus."""
        haystack = self.haystack
        content = haystack if isinstance(haystack, str) else haystack.content_hash(memo_dir)
        names = ("kind", "lengths", "num_rows", "number", "seed", "max_gen_tokens", "_variant")
        return {name: getattr(self, name) for name in names} | {"haystack": content}

    def make(self, tokenizer: Tokenizer) -> tuple[list[TaskRow], list[str]]:
        """``num_rows`` rows of each length.

        Raises:
            ConfigError: a length is too short even for the shortest wording and the fewest needles.
        """
        corpus = [] if isinstance(self.haystack, str) else corpus_sentences(self.haystack)
        rows: list[TaskRow] = []
        notes: list[str] = []
        drawn = [self._draw(number) for number in range(self.num_rows)]
        for length in self.lengths:
            wording = self._choose_wording(tokenizer, drawn, length)
            layout, budget = wording.layout, wording.max_gen_tokens
            bare = guess = 0
            for number, needles in enumerate(drawn):
                sentences = self._sentences(corpus, layout, needles, number)
                hidden = needles[: wording.number]
                prompt = partial(layout.prompt, hidden, sentences)
                text, guess = fill(tokenizer, prompt, length - budget, length, guess)
                row_id = f"{self.task}/{length}/{self._variant}-{self.seed}/{number}"
                answers = layout.answers(hidden)
                rows.append(TaskRow(row_id, self.task, text, answers, budget, length))
                bare += guess == 0
            notes += (f"{self.task} at {length:,} tokens: {n}" for n in self._notes(wording, bare))
        return rows, notes

    def _notes(self, wording: Wording, bare: int) -> Iterator[str]:
        if wording.layout.short:
            yield "the short wording, to leave tokens to the haystack"
        if wording.number < self.number:
            yield f"{wording.number} needles instead of {self.number}, more do not fit"
        if bare:
            yield f"{bare:,} of {self.num_rows:,} rows have no haystack"

    def _draw(self, number: int) -> Needles:
        draws = Draws(self.seed, self.task, self._variant, number, "needles")
        values, keys = draws.texts(self.value_type), draws.texts(self.key_type)
        own_keys = [next(keys) for _ in range(1 if self.kind == "multi_value" else self.number)]
        own_values = [next(values) for _ in range(self.number)]
        depths = [draws.real() for _ in range(self.number)]
        return tuple(map(Needle, depths, cycle(own_keys), own_values))

    def _sentences(
        self, corpus: Sequence[str], layout: Layout, needles: Needles, number: int
    ) -> Sentences:
        """The haystack of a row; of a corpus, from a random place on."""
        taken = [text for needle in needles for text in (needle.key, needle.value)]
        names = (self.seed, self.task, self._variant, number, "haystack")
        draws = Draws(*names, never=taken)
        if corpus:
            start = draws.below(len(corpus))
            return Sentences(chain(islice(corpus, start, None), cycle(corpus)))
        if self.haystack == "noise":
            return Sentences(cycle(NOISE))
        pairs = zip(draws.texts(self.key_type), draws.texts(self.value_type), strict=False)
        return Sentences(layout.sentence(key, value) + " " for key, value in pairs)

    def _choose_wording(
        self, tokenizer: Tokenizer, drawn: Sequence[Needles], length: int
    ) -> Wording:
        """Full sentences where they leave half of the tokens to the haystack, else fewer words."""
        wording = self._wording(tokenizer, drawn, self.number)
        if 2 * wording.shortest <= length:
            return wording
        fewest = min(2, self.number)
        for number in range(self.number, fewest - 1, -1):
            wording = self._wording(tokenizer, drawn, number, short=True)
            if wording.shortest <= length:
                return wording
        raise ConfigError(
            f"{wording.number} needle{'s' if fewest > 1 else ''} of {self.key_type} and "
            f"{self.value_type} do not fit {length:,} tokens",
            where=f"{self.label}, {tokenizer.label}",
            allowed=f"lengths of at least {wording.shortest:,} tokens, the answer included",
            way_out=f"lengths: [{wording.shortest}], or a shorter key_type or value_type",
        )

    def _wording(
        self, tokenizer: Tokenizer, drawn: Sequence[Needles], number: int, short: bool = False
    ) -> Wording:
        layout = Layout(self.kind, self.value_type, short)
        some = [needles[:number] for needles in drawn]
        prompts = [layout.prompt(needles, Sentences(()), 0) for needles in some]
        answers = [", ".join(layout.answers(needles)) for needles in some]
        wholes = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
        encoded = tokenizer.encode_batch(prompts)
        pairs = list(zip(encoded, tokenizer.encode_batch(wholes), strict=True))
        # One more for the end of text.
        needed = max(len(whole) - common_prefix(prompt, whole) for prompt, whole in pairs) + 1
        budget = self.max_gen_tokens or needed
        if budget < needed:
            raise ConfigError(
                f"max_gen_tokens {budget} is too few for answers of {needed} tokens",
                where=f"{self.label}, {tokenizer.label}",
                allowed=f"at least {needed}",
                way_out="leave max_gen_tokens out: the answers decide",
            )
        return Wording(layout, number, budget, max(map(len, encoded)) + budget)

    def _number_of_needles(self) -> int:
        own = _NUMBER_SETTINGS.get(self.kind)
        for setting in _NUMBER_SETTINGS.values():
            if setting != own and getattr(self, setting) is not None:
                raise ConfigError(
                    f"{setting} is set, and the kind is {self.kind}",
                    where="NeedleInAHaystack",
                    allowed=f"{own} for this kind"
                    if own
                    else "none of num_keys, num_queries, num_values: a single needle",
                )
        if own is None:
            return 1
        number = getattr(self, own)
        if number is not None and number < 2:
            raise ConfigError(
                f"{own} is {number}",
                where="NeedleInAHaystack",
                allowed="at least 2",
                way_out="kind: single",
            )
        return number or DEFAULT_NUMBER
