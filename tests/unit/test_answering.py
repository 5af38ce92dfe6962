"""Decoding settings, budgets, stop strings, and task stops that change no score."""

import random

import pytest
import torch
from tiny import delta_net, lact

from refine_pl.data import Bytes
from refine_pl.errors import ConfigError
from refine_pl.evaluation import TASK_RULES, Answering, scores
from refine_pl.evaluation.answering import stop_at, stop_of
from refine_pl.randomness import RowRandom, stream_seed
from refine_pl.records import Batch
from refine_pl.task_records import TaskBatch, TaskRow

PROMPTS = ("the quick brown fox", "jumps", "over the lazy dog, and then some more")


def task_batch(prompts=PROMPTS, task="qmsum", budget=12):
    ids = [list(prompt.encode()) for prompt in prompts]
    rows = tuple(
        TaskRow(f"row {i}", task, prompt, ("yes",), budget - i) for i, prompt in enumerate(prompts)
    )
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row)
    numbers = tuple(stream_seed(row.id) for row in rows)
    batch = Batch(tokens, torch.tensor([len(row) for row in ids]), numbers)
    return TaskBatch(batch, rows, tuple(range(len(ids))))


def generator(batch):
    return RowRandom(0, 0, batch.prompts.rows, "answer")


@pytest.fixture(scope="module")
def policy():
    return delta_net(vocab_size=257)


class Says:
    """A model that says one text, whatever it is asked."""

    def __init__(self, text, eos=True):
        self.tokens = [*text.encode(), *([256] if eos else [])]
        self.policy = delta_net(vocab_size=257)

    def __call__(self, logits, rows, step):
        token = self.tokens[step] if step < len(self.tokens) else ord("x")
        return torch.full((len(logits),), token)


def said(monkeypatch, text, eos=True, task="qmsum", budget=200, **options):
    """The answer of a model that says ``text``."""
    answering = Answering(**options)
    model = Says(text, eos)
    monkeypatch.setattr(answering, "_choose", lambda generator, length: model)
    (answer,) = answering.answer(
        model.policy, task_batch(["a prompt"], task, budget), Bytes(), None
    )
    return answer


def test_answers_carry_their_row(policy):
    batch = task_batch()
    answers = Answering().answer(policy, batch, Bytes())
    assert [a.row for a in answers] == list(batch.task_rows)
    assert [a.prompt_tokens for a in answers] == [len(p) for p in PROMPTS]
    assert [a.cut_tokens for a in answers] == [0, 1, 2]
    assert [a.num_tokens for a in answers] == [12, 11, 10]  # the rows' own budgets
    assert {a.finish for a in answers} == {"length"}
    shorter = Answering(budget=4).answer(policy, batch, Bytes())
    assert [a.num_tokens for a in shorter] == [4, 4, 4]
    assert all(a.text.startswith(b.text[:1]) for a, b in zip(answers, shorter, strict=True))


@pytest.mark.parametrize("make", [delta_net, lact])
@pytest.mark.parametrize(
    "options", [{}, {"decoding": "sample"}, {"decoding": "sample", "top_k": 9, "top_p": 0.8}]
)
def test_an_answer_does_not_depend_on_its_batch(make, options):
    policy, answering = make(vocab_size=257), Answering(**options)
    batch = task_batch()
    together = answering.answer(policy, batch, Bytes(), generator(batch))
    in_parts = Answering(**options, prompts_at_once=2)
    assert in_parts.answer(policy, batch, Bytes(), generator(batch)) == together
    for i, answer in enumerate(together):
        one = batch.narrow(i, i + 1)
        assert answering.answer(policy, one, Bytes(), generator(one)) == [answer]


def test_samples_are_repeatable_and_differ_by_seed(policy):
    batch = task_batch()
    answering = Answering("sample", temperature=2.0)
    first = answering.answer(policy, batch, Bytes(), generator(batch))
    assert answering.answer(policy, batch, Bytes(), generator(batch)) == first
    other = RowRandom(1, 0, batch.prompts.rows, "answer")
    assert answering.answer(policy, batch, Bytes(), other) != first
    with pytest.raises(ValueError, match="generator"):
        answering.answer(policy, batch, Bytes())


def test_how_an_answer_ends(monkeypatch):
    answer = said(monkeypatch, "yes. no")
    assert (answer.text, answer.num_tokens, answer.finish) == ("yes. no", 8, "eos")
    answer = said(monkeypatch, "yes. no", budget=4)
    assert (answer.text, answer.num_tokens, answer.finish) == ("yes.", 4, "length")
    answer = said(monkeypatch, "yes.\n\nQ: no", stop=["\n\nQ", "zz"])  # over several tokens
    assert (answer.text, answer.num_tokens, answer.finish) == ("yes.", 7, "stop")
    answer = said(monkeypatch, "Stop", stop=["St", "S"])
    assert (answer.text, answer.num_tokens, answer.finish) == ("", 1, "stop")
    answer = said(monkeypatch, "a\nb", task="qasper")
    assert (answer.text, answer.num_tokens, answer.finish) == ("a", 2, "stop")
    answer = said(monkeypatch, "a\nb", task="qasper", task_stops=False)
    assert (answer.text, answer.finish) == ("a\nb", "eos")
    assert said(monkeypatch, "", task="qasper").text == ""


def test_characters_of_several_tokens(monkeypatch):
    """A stop string of two bytes, and an answer that ends inside a character."""
    assert said(monkeypatch, "né non", stop=["é"]).text == "n"
    assert said(monkeypatch, "né", budget=2).text == "n�"


PIECES = ["\n", "\n\n", " ", "a", "Paris", "# c", "// c", "`x`", "x = 1", "City", "\t", "\r\n", "."]

REFERENCES = {"passage_count": ("1",), "passage_retrieval_en": ("Paragraph 1",)}


def test_task_stops_change_no_score():
    """Random outputs, scored whole and where generation would have stopped, token by token."""
    draw = random.Random(0)
    stopped = dict.fromkeys([*TASK_RULES, "niah_single"], 0)
    for task in stopped:
        for _ in range(120):
            text = "".join(draw.choices(PIECES, k=draw.randint(0, 12)))
            end = next(
                (
                    cut
                    for n in range(len(text) + 1)
                    if (cut := stop_at(text[:n], (), stop_of(task))) is not None
                ),
                None,
            )
            stopped[task] += end is not None
            kept = text[:end]
            for wanted in REFERENCES.get(task, ("Paris", "City", "x = 1")):
                assert scores(task, kept, [wanted]) == scores(task, text, [wanted]), (task, text)
    one_line = {"2wikimqa", "hotpotqa", "narrativeqa", "qasper", "trec", "triviaqa", "lcc"}
    assert one_line <= {task for task, count in stopped.items() if count > 40}
    whole = {"ruler_squadqa", "ruler_hotpotqa", "qmsum", "multi_news", "niah_single"}
    assert all(stopped[task] == 0 for task in whole)


def test_a_stop_that_comes_too_early_would_be_noticed():
    """A newline ends no answer of a task whose rule strips leading newlines."""
    assert scores("trec", "\nCity", ["City"]) != scores("trec", "", ["City"])
    assert stop_at("\nCity", (), stop_of("trec")) is None
    assert stop_at("\nCity\n", (), stop_of("trec")) == 5


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"temperature": 0.5}, "temperature is 0.5, but decoding is greedy"),
        ({"top_k": 5}, "top_k"),
        ({"top_p": 0.5}, "top_p"),
        ({"decoding": "sample", "top_p": 1.5}, "not a probability"),
        ({"stop": ["ok", ""]}, "empty"),
    ],
)
def test_settings_that_contradict(options, fragment):
    with pytest.raises(ConfigError, match=fragment):
        Answering(**options)


def test_describe_names_what_decides_the_tokens():
    assert Answering().describe() == {
        "decoding": "greedy",
        "budget": None,
        "stop": [],
        "task_stops": True,
    }
    made = Answering("sample", top_k=50, budget=32, stop=["\n"], prompts_at_once=3).describe()
    assert made["top_k"] == 50
    assert made["temperature"] == 1.0
    assert "prompts_at_once" not in made


def test_the_end_of_a_turn_ends_an_answer(monkeypatch):
    batch = task_batch(["a prompt"], budget=200)
    batch.turn_ends = (ord("!"),)
    answering = Answering()
    model = Says("one two! three")
    monkeypatch.setattr(answering, "_choose", lambda generator, length: model)
    (answer,) = answering.answer(model.policy, batch, Bytes(), None)
    assert (answer.text, answer.finish, answer.num_tokens) == ("one two", "eos", 8)
