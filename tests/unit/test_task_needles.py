"""Needles in a haystack: whole, within their tokens, and the same rows on every machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from encoded_rows import encode_row
from small_tokenizers import byte_level, sentence_piece

from refine_pl.data import Bytes, Corpus, NeedleInAHaystack, StandardLibrary
from refine_pl.data.tasks.draws import ADJECTIVES, NOUNS
from refine_pl.data.tasks.encoding import Encoding
from refine_pl.data.tasks.generated import most_that_fits
from refine_pl.data.tasks.haystacks import NOISE, corpus_sentences, split_sentences
from refine_pl.errors import ConfigError, DataError

KINDS = ["single", "multi_key", "multi_query", "multi_value"]
TYPES = ["words", "numbers", "uuids"]
LENGTHS = [128, 200, 256, 400, 700, 1024, 3000]
SHAPES = {
    "words": r"[a-z]+-[a-z]+",
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


class Story(Corpus):
    """Two documents of prose and one of code."""

    def read(self):
        yield "a", "The first sentence. Then a second one! Is this the third?\n\n\n\nA paragraph."
        yield "b", "def f(x):\n    return x + 1\n\n\nprint(f(2))\n"
        yield "c", "word " * 300


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": Bytes(),
        "byte_level": byte_level(folder / "byte_level"),
        "sentence_piece": sentence_piece(folder / "sentence_piece"),
    }


@pytest.fixture
def make(tmp_path):
    def build(kind="single", lengths=(512,), num_rows=3, **settings) -> NeedleInAHaystack:
        source = NeedleInAHaystack(kind, list(lengths), num_rows, **settings)
        source.cache_dir = tmp_path
        return source

    return build


def pairs_in(prompt: str, key_type: str, value_type: str) -> list[tuple[str, str]]:
    """Keys and values of the whole needles of a prompt."""
    key, value = SHAPES[key_type], SHAPES[value_type]
    full = re.findall(rf"hidden \w+ of ({key}) is ({value})\.", prompt)
    return full or re.findall(rf"({key}) = ({value})\.", prompt)


def asked_in(prompt: str, key_type: str) -> list[str]:
    """The keys in the last line of a prompt."""
    return re.findall(SHAPES[key_type], prompt.splitlines()[-1])


def check_row(row, kind, key_type, value_type) -> int:
    """Everything that a row must hold; the number of its needles."""
    pairs = pairs_in(row.prompt, key_type, value_type)
    asked = asked_in(row.prompt, key_type)
    values = [value for _, value in pairs]
    assert len(set(values)) == len(values)
    answers = {key: [value for k, value in pairs if k == key] for key in asked}
    assert row.answers == tuple(value for key in asked for value in answers[key])
    assert not row.prompt[-1].isspace()
    if kind in ("single", "multi_key"):
        assert len(asked) == len(row.answers) == 1
    elif kind == "multi_query":
        assert len(asked) == len(set(asked)) == len(row.answers) >= 2
    else:
        assert len(asked) == 1
        assert len(row.answers) >= 2
    return len(pairs)


# --- tokens ---


@pytest.mark.parametrize("name", ["bytes", "byte_level", "sentence_piece"])
@pytest.mark.parametrize("kind", KINDS)
def test_needles_are_whole_and_the_budget_is_held(make, tokenizers, name, kind):
    tokenizer = tokenizers[name]
    checked = refused = 0
    for key_type in TYPES:
        for value_type in TYPES:
            for length in LENGTHS:
                source = make(kind, [length], key_type=key_type, value_type=value_type)
                try:
                    rows = source.rows(tokenizer)
                except ConfigError as error:
                    # Only UUIDs are too long for so few tokens, and the message knows a way.
                    assert "uuids" in (key_type, value_type)
                    shortest = int(re.search(r"at least ([\d,]+)", str(error))[1].replace(",", ""))
                    assert length < shortest <= 450
                    assert make(kind, [shortest], key_type=key_type, value_type=value_type).rows(
                        tokenizer
                    )
                    refused += 1
                    continue
                assert [row.length for row in rows] == [length] * 3
                for row in rows:
                    number = check_row(row, kind, key_type, value_type)
                    assert number == 1 if kind == "single" else 2 <= number <= 4
                    encoded = encode_row(tokenizer, row, Encoding())
                    assert len(encoded.prompt) + row.max_gen_tokens <= length
                    assert len(encoded.answered) <= length
                    assert len(encoded.answered) - encoded.answer_start <= row.max_gen_tokens
                    checked += 1
    assert checked >= 100
    assert refused <= 10


@pytest.mark.parametrize("name", ["bytes", "byte_level", "sentence_piece"])
@pytest.mark.parametrize("haystack", ["noise", "needles", "corpus"])
def test_no_further_sentence_fits(make, tokenizers, name, haystack):
    tokenizer = tokenizers[name]
    text = Story() if haystack == "corpus" else haystack
    longest = 120 if haystack == "needles" else 400 if haystack == "corpus" else 40
    for length in (600, 2000):
        for row in make(lengths=[length], haystack=text, num_rows=5).rows(tokenizer):
            used = len(tokenizer.encode(row.prompt)) + row.max_gen_tokens
            assert length - longest < used <= length


def test_the_search_for_what_fits():
    for sizes in ([3] * 50, list(range(50)), [1, 100, 1, 1, 50, 2] * 9):
        for limit in (0, 1, 2, 3, 7, 100, 149, 150, 10**4):
            for guess in (0, 1, 7, 200):
                calls = []

                def measure(n, sizes=sizes, calls=calls):
                    calls.append(n)
                    return sum(sizes[:n])

                found = most_that_fits(measure, limit, len(sizes), guess)
                expected = max(n for n in range(len(sizes) + 1) if sum(sizes[:n]) <= limit)
                if found != expected:  # pieces of no tokens: any of them
                    assert sum(sizes[:found]) == sum(sizes[:expected])
                assert len(calls) < 30
                assert max(calls) <= len(sizes)


def test_small_budgets_have_fewer_needles_and_say_so(make):
    source = make("multi_query", [128, 1024])
    rows = source.rows(Bytes())
    assert {len(row.answers) for row in rows if row.length == 128} == {2}
    assert {len(row.answers) for row in rows if row.length == 1024} == {4}
    assert [note for note in source.notes if "instead of" in note] == [
        "niah_multi_query at 128 tokens: 2 needles instead of 4, more do not fit"
    ]
    bare = make("multi_key", [128])
    bare.rows(Bytes())
    assert any("at 128 tokens: 3 of 3 rows have no haystack" in note for note in bare.notes)


def test_what_does_not_fit_at_all(make):
    with pytest.raises(ConfigError) as caught:
        make("multi_key", [128], key_type="uuids", value_type="uuids").rows(Bytes())
    message = str(caught.value)
    assert "2 needles of uuids and uuids do not fit 128 tokens" in message
    assert "lengths of at least 230 tokens" in message
    assert "lengths: [230]" in message
    with pytest.raises(ConfigError, match="max_gen_tokens 3 is too few for answers of 9 tokens"):
        make(max_gen_tokens=3).rows(Bytes())


def test_the_answer_s_tokens_can_be_given(make):
    (row,) = make(lengths=[512], num_rows=1, max_gen_tokens=100).rows(Bytes())
    assert row.max_gen_tokens == 100
    assert 512 - 40 < len(row.prompt) + 100 <= 512


# --- what is drawn ---


def test_numbers_of_needles(make):
    for kind, setting in (
        ("multi_key", "num_keys"),
        ("multi_query", "num_queries"),
        ("multi_value", "num_values"),
    ):
        for row in make(kind, [2000], **{setting: 7}).rows(Bytes()):
            assert check_row(row, kind, "words", "numbers") == 7


def test_depths_are_uniform(make):
    rows = make(lengths=[1500], num_rows=200).rows(Bytes())
    depths = sorted(row.prompt.index(row.answers[0]) / len(row.prompt) for row in rows)
    assert depths[0] < 0.15
    assert depths[-1] > 0.8
    assert 0.4 < depths[100] < 0.6


def test_haystacks(make):
    noise = make(lengths=[1024]).rows(Bytes())[0].prompt
    assert all(sentence.strip() in noise for sentence in NOISE)
    needles = make("single", [2048], haystack="needles").rows(Bytes())[0]
    pairs = pairs_in(needles.prompt, "words", "numbers")
    assert len(pairs) > 20
    assert len({key for key, _ in pairs}) == len({value for _, value in pairs}) == len(pairs)
    story = make(lengths=[1024], haystack=Story(), num_rows=10).rows(Bytes())
    assert any("Then a second one!" in row.prompt for row in story)
    assert any("def f(x):\n    return x + 1\n" in row.prompt for row in story)
    assert len({row.prompt[150:250] for row in story}) > 5  # each row has another place
    code = make(lengths=[4000], haystack=StandardLibrary(min_bytes=100_000), num_rows=2)
    for row in code.rows(Bytes()):
        check_row(row, "single", "words", "numbers")
        assert 3500 < len(row.prompt.encode()) + row.max_gen_tokens <= 4000


def test_a_corpus_in_sentences():
    text = "One. Two!  Three?\n\n\n\n  indented\nlast"
    assert list(split_sentences(text)) == ["One. ", "Two! ", "Three?\n\n", "  indented\n", "last\n"]
    assert list(split_sentences(" \n\n ")) == []
    long = list(split_sentences("word " * 300 + "x" * 1000))
    assert max(map(len, long)) <= 401
    assert "".join("".join(long).split()) == "word" * 300 + "x" * 1000

    class Blank(Corpus):
        def read(self):
            yield "a", " \n"

    with pytest.raises(DataError, match="no text for a haystack"):
        corpus_sentences(Blank())


def test_no_pair_of_words_is_part_of_another():
    assert len(ADJECTIVES) > 200
    assert len(NOUNS) > 200
    assert all(3 <= len(word) <= 5 and word.islower() for word in ADJECTIVES + NOUNS)
    for word in ADJECTIVES:
        assert [other for other in ADJECTIVES if other.endswith(word)] == [word]
    for word in NOUNS:
        assert [other for other in NOUNS if other.startswith(word)] == [word]


# --- the same rows ---


def test_seeds_and_lengths_differ(make):
    prompts = {
        (seed, row.length): row.prompt
        for seed in (0, 1)
        for row in make(lengths=[256, 356], num_rows=1, seed=seed).rows(Bytes())
    }
    assert len(set(prompts.values())) == 4
    ids = [row.id for row in make(lengths=[256, 300]).rows(Bytes())]
    assert ids[0] == "niah_single/256/words-numbers-noise-0/0"
    assert len(set(ids)) == 6
    short, long = (row.answers for row in make(lengths=[256, 300], num_rows=1).rows(Bytes()))
    assert short == long  # so lengths are compared in pairs


PROGRAM = """
import json, sys
from refine_pl.data import Bytes, NeedleInAHaystack
rows = []
for kind in ("single", "multi_key", "multi_query", "multi_value"):
    source = NeedleInAHaystack(kind, [300, 900], 3, haystack="needles", value_type="uuids")
    rows += source.rows(Bytes())
print(json.dumps(rows))
"""


def test_another_process_makes_the_same_rows(make, tmp_path):
    environment = os.environ | {
        "REFINE_PL_CACHE": str(tmp_path / "other"),
        "PYTHONHASHSEED": "77",
    }
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True
    )
    here = [
        row
        for kind in KINDS
        for row in make(kind, [300, 900], haystack="needles", value_type="uuids").rows(Bytes())
    ]
    assert json.loads(outcome.stdout) == json.loads(json.dumps(here))
    assert len(list((tmp_path / "other" / "rows").iterdir())) == 4


def test_these_rows_for_ever(make):
    """A change here makes other rows of the same settings: raise `version` of NeedleInAHaystack."""
    (row,) = make("multi_key", [200], num_rows=1, num_keys=2).rows(Bytes())
    assert row.prompt == Path(__file__).parents[1].joinpath("golden/needles.txt").read_text()


# --- the cache ---


def test_rows_are_kept(make, tmp_path):
    said: list[str] = []
    source = make("multi_key", [128])
    source.notify = said.append
    rows, notes = source.rows(Bytes()), source.notes
    (file,) = (tmp_path / "rows").iterdir()
    before = file.stat()
    assert source.rows(Bytes()) == rows
    assert source.notes == notes
    assert len(said) == 1
    assert "Generating rows of NeedleInAHaystack multi_key" in said[0]
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    make("multi_key", [128], seed=1).rows(Bytes())
    make("multi_key", [128], haystack=Story()).rows(Bytes())
    assert len(list((tmp_path / "rows").iterdir())) == 3


DAMAGE = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "a row less": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "another letter": lambda text: text.replace("kettle", "bottle"),
    "no JSON": lambda text: "x" + text,
    "no object": lambda text: text.splitlines()[0] + "\n3\n",
    "a list": lambda text: "[]\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_again(make, tmp_path, damage):
    source = make(lengths=[300])
    rows = source.rows(Bytes())
    (file,) = (tmp_path / "rows").iterdir()
    whole = file.read_text()
    file.write_text(damage(whole))
    said: list[str] = []
    source.notify = said.append
    assert source.rows(Bytes()) == rows
    assert "are damaged" in said[0]
    assert "made again" in said[0]
    assert file.read_text() == whole


def test_a_folder_that_cannot_be_written(make, tmp_path):
    (tmp_path / "rows").write_text("a file")
    with pytest.raises(ConfigError, match=r"set data.cache_dir"):
        make().rows(Bytes())


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"lengths": [127]}, "at least 128"),
        ({"lengths": []}, "one or more"),
        ({"lengths": [128, 128]}, "different"),
        ({"num_keys": 4}, "num_keys is set, and the kind is single"),
        ({"kind": "multi_key", "num_values": 4}, "num_keys for this kind"),
        ({"kind": "multi_key", "num_keys": 1}, "num_keys is 1"),
        ({"kind": "multi_keys"}, r"kind is 'multi_keys'[\s\S]*did you mean multi_key\?"),
        ({"key_type": "word"}, r"one of words, numbers, uuids[\s\S]*did you mean words\?"),
        ({"value_type": "digits"}, "value_type is 'digits'"),
        ({"haystack": "nois"}, r"one of noise, needles[\s\S]*did you mean noise\?"),
    ],
)
def test_settings_that_are_refused(make, settings, what):
    with pytest.raises(ConfigError, match=what):
        make(**settings)
