"""Scores: the released rules, example by example, and what users can get wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_pl.errors import ConfigError, DataError, UserError
from refine_pl.evaluation import (
    RULES,
    TASK_RULES,
    register,
    register_rules,
    rules,
    score,
    scores,
)
from refine_pl.evaluation.rouge_l import rouge_l
from refine_pl.evaluation.tasks import rule_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "scoring.json").read_text())
LONGBENCH = {
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"),
    *("gov_report", "qmsum", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
}
NEEDLES = {"niah_single", "niah_multi_key", "niah_multi_query", "niah_multi_value"}


@pytest.fixture
def tasks(monkeypatch):
    """The known tasks, put back after the test."""
    monkeypatch.setattr("refine_pl.evaluation.tasks.TASK_RULES", dict(TASK_RULES))


def test_golden_rows():
    wrong = []
    for row in GOLDEN:
        found = score(row["task"], row["response"], row["answers"])
        if abs(found - row["score"]) > 1e-9:
            wrong.append((row["task"], row["response"], found, row["score"]))
    assert wrong == []
    assert len(GOLDEN) == 236
    assert len({row["task"] for row in GOLDEN}) == 15


def test_every_task_has_a_rule():
    assert set(TASK_RULES) == LONGBENCH | NEEDLES | {"ruler_squadqa", "ruler_hotpotqa"}
    assert rule_of("niah") is rule_of("niah_multikey_3") is RULES["needle_recall"]


# The odd details, one example each, and beside it what a plausible other reading would give.
@pytest.mark.parametrize(
    ("task", "response", "references", "expected"),
    [
        # RULER: all needles count, whatever the case, wherever they are.
        ("niah_multi_value", "It is 12,\nand Bold-Otter.", ["12", "bold-otter", "7", "8"], 0.5),
        ("niah_single", "", ["12"], 0.0),
        # The first line is cut before anything is stripped.
        ("ruler_squadqa", "\nParis", ["Paris"], 0.0),
        ("ruler_squadqa", "  in PARIS, I think \nno", ["x", "Paris"], 1.0),
        ("ruler_squadqa", "Rome\nParis", ["Paris"], 0.0),
        # A control character becomes a newline: what it parts is not found.
        ("ruler_hotpotqa", "New\tYork", ["New York"], 0.0),
        ("ruler_hotpotqa", "New\tYork", ["York"], 1.0),
        # Question answering: first line, or, for some tasks, the first that is not empty.
        ("qasper", "\nthe cat", ["cat"], 0.0),
        ("triviaqa", "\n\nthe cat\na dog", ["cat"], 1.0),
        ("triviaqa", " \nthe cat", ["cat"], 0.0),  # a space is not a newline
        ("hotpotqa", "An apple, the apple; a pear!", ["apple pear"], 0.8),
        ("hotpotqa", "the", ["a"], 0.0),  # nothing is left of either
        ("musique", "U.S.A.", ["usa"], 1.0),
        ("2wikimqa", "twenty-one", ["twenty one"], 0.0),  # punctuation goes, no space comes
        # ROUGE-L: case counts, words are counted once, and the rule is 0 where the package raises.
        ("samsum", "\n\nBen left. \nMore", ["Ben left."], 2 / (2 + 1e-8)),
        ("samsum", "BEN LEFT", ["Ben left"], 0.0),
        ("qmsum", "a b\nc d", ["a b c d"], 2 / (2 + 1e-8)),
        ("multi_news", "", ["a"], 0.0),
        ("multi_news", "...", ["a"], 0.0),
        ("gov_report", "a a a a", ["a"], 2 / (2 + 1e-8)),
        # trec: shared between the classes that are named; the reference as it is spelt.
        ("trec", "\nDate, City or Food\nAnimal", ["City"], 1 / 3),
        ("trec", "date", ["Date"], 0.0),
        ("trec", "Lasting time of something", ["Lasting time of somethin"], 1.0),
        # Code: the first line that is not a comment; all of the output if every line is one.
        ("lcc", "\n\n# a\n`b`\nx // y\nreturn 1\nreturn 2", ["return 1"], 1.0),
        ("lcc", "x\n", ["x\n"], 0.67),  # only the line of the output is cut
        ("lcc", "\n# ab", ["\n# ab"], 1.0),
        ("lcc", "\n\nab", ["ab"], 1.0),
        ("repobench-p", " x", ["x"], 0.67),
        ("repobench-p", "\nabc#", ["abc"], 0.75),
        ("repobench-p", "", [""], 1.0),
        ("passage_count", "7 of 17, so 7", ["7"], 2 / 3),
        ("passage_count", "seven", ["7"], 0.0),
        ("passage_retrieval_en", "Paragraph 7", ["Paragraph 7"], 1.0),
        ("passage_retrieval_en", "7 or 8", ["Paragraph 7"], 0.5),
    ],
)
def test_details(task, response, references, expected):
    assert score(task, response, references) == pytest.approx(expected, abs=1e-12)


def test_the_official_ruler_rule_has_its_own_name():
    assert scores("ruler_squadqa", "\nRome\nPARIS", ["Paris"]) == {
        "ruler_qa": 0.0,
        "ruler_qa_official": 1.0,
    }
    assert scores("qasper", "cat", ["cat"]) == {"qa_f1": 1.0}


def test_similarity_is_that_of_the_standard_library_in_this_order():
    # SequenceMatcher is not symmetric, and drops frequent characters of long references.
    assert rules.code_similarity("tide", "diet") != rules.code_similarity("diet", "tide")
    line = "a" * 150 + "b" * 60
    assert rules.code_similarity("y" + "a" * 150, line) == 0.0
    assert rules.edit_similarity("y" + "a" * 150, line) == pytest.approx(300 / 361)
    assert rules.code_similarity("abcdefgh" + "x" * 193, "abcdefgh") == round(1600 / 209) / 100


def test_trec_classes():
    assert len(set(rules.TREC_CLASSES)) == 50
    contained = [(a, b) for a in rules.TREC_CLASSES for b in rules.TREC_CLASSES if a in b]
    assert len(contained) == 50  # each in itself only: dropping names can change no score
    answers = {a for row in GOLDEN if row["task"] == "trec" for a in row["answers"]}
    assert answers <= set(rules.TREC_CLASSES)


def test_names_are_dropped_from_the_list_that_is_walked():
    # "a" goes, so that "b" moves into its place and is never looked at.
    assert rules.classification("a b c", "a b c", ["a", "b", "a b c"]) == 1 / 2
    assert rules.classification("a b c", "a b c", ["a", "a b c", "b"]) == 1 / 1
    assert rules.classification("a b c", "a b c d", ["a", "b", "a b c"]) == 0.0


@pytest.mark.parametrize("depth", [0, 700])
def test_rouge_raises_for_long_sentences_at_any_depth_of_the_stack(depth):
    """The package recurses word by word; how far it comes may not depend on the caller."""
    if depth:
        return test_rouge_raises_for_long_sentences_at_any_depth_of_the_stack(depth - 1)
    limit = sys.getrecursionlimit()
    words = [f"w{i}" for i in range(1100)]
    try:
        for frames in (limit, 5000):
            sys.setrecursionlimit(frames)
            assert rouge_l(" ".join(words[:950]), "w0") > 0
            assert rouge_l(" ".join(words), "w0") == 0
            # Sentences, not texts, are what is too long.
            assert rouge_l(". ".join([" ".join(words[:600]), " ".join(words[600:])]), "w0") > 0
    finally:
        sys.setrecursionlimit(limit)
    return None


def test_an_error_that_the_package_does_not_raise_is_no_zero(monkeypatch):
    import rouge

    def fails(*args, **kwargs):
        raise TypeError("broken")

    monkeypatch.setattr(rouge.Rouge, "get_scores", fails)
    with pytest.raises(TypeError, match="broken"):
        score("qmsum", "a", ["a"])


PIECES = [*"aAbB1.,#`/\n\t \x00é", "the ", "Date"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
WORDS = st.text(alphabet="ab1 .\n", min_size=1, max_size=20).filter(str.strip)
PARAGRAPHS = st.integers(0, 20).map("Paragraph {}".format)


@pytest.mark.parametrize("task", sorted(TASK_RULES))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_rule_keeps_its_promises(task, data):
    one = PARAGRAPHS if task == "passage_retrieval_en" else WORDS
    references = data.draw(st.lists(one, min_size=1, max_size=4))
    response = data.draw(TEXT | WORDS | PARAGRAPHS)
    value = score(task, response, references)
    assert 0 <= value <= 1
    assert score(task, response, references[::-1]) == value
    assert score(task, response, tuple(references)) == value
    if rule_of(task).name != "needle_recall":
        assert score(task, response, [*references, references[0]]) == value
        assert value == max(score(task, response, [r]) for r in references)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_gives_its_best_to_the_reference(name):
    reference = {"classification": "City", "retrieval": "Paragraph 3", "count": "3"}
    text = reference.get(name, "a line of 3 words")
    assert RULES[name](text, [text]) == pytest.approx(1, abs=1e-8)


def test_a_rule_of_ones_own(tasks, tmp_path, monkeypatch):
    (tmp_path / "my_rules_of_a_test.py").write_text(
        "def starts(output, references):\n"
        "    return float(any(output.startswith(r) for r in references))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    register("capitals", "exact_match", cut="first_line")
    assert score("capitals", "Paris\nRome", ["Paris"]) == 1
    register("starts", "my_rules_of_a_test.starts")
    assert scores("starts", "Paris\nRome", ["Par"]) == {"starts": 1.0}
    register("length", lambda output, references: len(output) / 10)
    assert score("length", "abc", ["x"]) == 0.3
    with pytest.raises(ConfigError, match=r"returned 1\.1"):
        score("length", "a" * 11, ["x"])
    register("capitals", "exact_match", cut="first_line")  # the same again
    register_rules({"capitals": {"rule": "exact_match", "cut": "first_line"}, "words": "f1"})
    assert score("words", "a b\nc", ["b c"]) == 1
    register("my_hotpot", "ruler_qa")
    assert set(scores("my_hotpot", "x", ["x"])) == {"ruler_qa", "ruler_qa_official"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score("qaspr", "a", ["a"]), "no rule scores the task 'qaspr'; did you mean 'qas"),
        (lambda: score("", "a", ["a"]), "way out: .*data.rules"),
        (lambda: score("qasper", "a", []), "without references"),
        (lambda: score("qasper", "a", "a"), "a list of texts, not one text"),
        (lambda: score("qasper", None, ["a"]), "a response is text, not NoneType"),
        (lambda: score("qasper", "a", ["a", 3]), "a reference is text, not int: 3"),
        (lambda: score("niah_single", "a", ["a", ""]), "empty reference"),
        (lambda: score("passage_retrieval_en", "7", ["7"]), "names no paragraph"),
        (lambda: register("mine", "f11"), "no rule is called 'f11'; did you mean 'f1'"),
        (lambda: register("mine", "f1", cut="firstline"), "did you mean 'first_line'"),
        (lambda: register("mine", "no_such_module.f"), "cannot be imported"),
        (lambda: register("mine", "math.f"), "cannot be imported"),
        (lambda: register("mine", "math.pi"), "is not a function"),
        (lambda: register("qasper", "exact_match"), "has a rule already: qa_f1"),
        (lambda: register(" ", "f1"), "name of a task is empty"),
        (lambda: register_rules({"mine": {"cut": "whole"}}), "the keys rule and cut"),
        (lambda: register_rules({"mine": {"rule": "f1", "cat": "whole"}}), "the keys rule and"),
        (lambda: register_rules({"mine": "f2"}), "no rule is called 'f2'"),
    ],
)
def test_errors(tasks, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert isinstance(caught.value, (ConfigError, DataError))


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        score("squad", "a", ["a"])
    assert set(TASK_RULES) <= set(caught.value.allowed.split(", "))


def test_scoring_imports_little():
    code = (
        "import sys\n"
        "import refine_pl.evaluation as e\n"
        "heavy = ('torch', 'torchmetrics', 'lightning', 'rouge', 'numpy')\n"
        "print(*[name for name in heavy if name in sys.modules])\n"
        "e.score('qasper', 'a', ['a'])\n"
        "print(*[name for name in heavy if name in sys.modules])\n"
        "e.mean_interval([1.0]); e.TaskScore; dir(e)\n"
        "print(*[name for name in heavy[1:4] if name in sys.modules])\n"
        "missing = [name for name in e.__all__ if not hasattr(e, name)]\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["", "", "torchmetrics"]
