"""The lm-evaluation-harness on a policy: the same numbers as whole forwards, and real tasks."""

import json

import command_line
import pytest
import tiny
import torch
import yaml

from refine_pl.backbones import GatedDeltaNet
from refine_pl.backbones.pretrained import save_pretrained
from refine_pl.data import Bytes
from refine_pl.errors import ConfigError

pytest.importorskip("lm_eval", reason="pip install 'refine-pl[lm-eval]'")

from lm_eval.api.instance import Instance

from refine_pl.evaluation.harness import PolicyLM, answering_of

TEXTS = ["the cat sat on the mat", "a", "", "on the mat sat the cat and the dog, both of them"]


def gated(dtype):
    torch.manual_seed(0)
    fields = tiny.SMALL | {"vocab_size": 257, "head_dim": 8}
    return GatedDeltaNet(**fields).to(dtype)


POLICIES = {
    "delta_net": lambda dtype: tiny.delta_net(vocab_size=257, dtype=dtype),
    "gated_delta_net": gated,
    "lact": lambda dtype: tiny.lact(vocab_size=257, dtype=dtype),
}


@pytest.fixture(params=POLICIES)
def model(request):
    return PolicyLM(POLICIES[request.param](torch.float32), Bytes(), batch_size=3, progress=False)


def requests(kind, *arguments):
    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


@torch.no_grad()
def direct(model, tokens):
    """Log-probabilities ``[T - 1]`` of the tokens after the first, and the most likely ones."""
    ids = torch.tensor([tokens])
    logits = model.policy.head(model.policy(ids).hidden[0, :-1], logits=True).logits
    logprobs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logprobs, logits.argmax(-1)


def test_loglikelihood_is_that_of_a_whole_forward(model):
    long = "x" * 70  # over chunk borders
    pairs = [(c, e) for c in (*TEXTS, long) for e in (" is", " was not", ".", long)]
    pairs = [*pairs[::2], *pairs[1::2], pairs[0]]  # contexts apart, and one twice
    found = model.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert len(found) == len(pairs)
    for (context, continuation), (logprob, _) in zip(pairs, found, strict=True):
        prefix = model.tok_encode(context) or [256]
        tokens = prefix + model.tok_encode(continuation)
        expected, _ = direct(model, tokens)
        assert logprob == pytest.approx(
            float(expected[len(prefix) - 1 :].sum()), abs=1e-4, rel=1e-5
        )
    assert found[0] == found[-1]


def test_greedy_continuations_are_recognised_and_generated(model):
    settings = {"until": [], "max_gen_toks": 6}
    contexts = [text for text in TEXTS if text]
    asked = requests("generate_until", *((c, settings) for c in contexts))
    texts = model.generate_until(asked, disable_tqdm=True)
    for context, text in zip(contexts, texts, strict=True):
        tokens = prefix = model.tok_encode(context)
        for _ in range(6):
            _, best = direct(model, [*tokens, 0])
            tokens = [*tokens, int(best[-1])]
        made = tokens[len(prefix) :]
        assert text == model.text.decode(made[: made.index(256)] if 256 in made else made)
        scored = model._loglikelihood_tokens([((context, "?"), prefix, made)], disable_tqdm=True)
        assert scored[0][1] is True
        wrong = [*made[:-1], (made[-1] + 1) % 256]
        scored = model._loglikelihood_tokens([((context, "?"), prefix, wrong)], disable_tqdm=True)
        assert scored[0][1] is False


def test_documents_are_read_whole(model):
    texts = [*TEXTS, "a longer document " * 12]
    found = model.loglikelihood_rolling(
        requests("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True
    )
    for text, logprob in zip(texts, found, strict=True):
        expected, _ = direct(model, [256, *model.tok_encode(text)])
        assert logprob == pytest.approx(float(expected.sum()), abs=1e-4, rel=1e-5)


def test_a_generation_ends_before_a_stop_string_and_samples_are_repeatable(model):
    whole = {"until": "", "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    twice = [("ab", whole), ("ab", whole), ("cd", whole)]
    first = model.generate_until(requests("generate_until", *twice), disable_tqdm=True)
    assert first == model.generate_until(requests("generate_until", *twice), disable_tqdm=True)
    assert first[0] != first[1]  # repeats are other samples
    stop = first[0][2:4]
    stopped = requests("generate_until", ("ab", whole | {"until": [stop]}))
    model.seed = 0
    text = model.generate_until(stopped, disable_tqdm=True)[0]
    assert stop not in text


def test_generation_settings():
    found = answering_of({"until": "\n", "max_new_tokens": 5, "do_sample": False, "num_beams": 1})
    assert (found.stop, found.budget, found.decoding) == (("\n",), 5, "greedy")
    assert answering_of({}).budget == 256
    assert answering_of({"do_sample": True, "temperature": 0.0}).decoding == "greedy"
    assert answering_of({"temperature": 0.5, "top_k": 3}).decoding == "greedy"
    sample = answering_of({"do_sample": True, "top_k": 0, "top_p": 0.5})
    assert (sample.decoding, sample.temperature) == ("sample", 1.0)
    assert (sample.top_k, sample.top_p) == (None, 0.5)
    with pytest.raises(ConfigError, match="sets num_beams to 4"):
        answering_of({"num_beams": 4})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, two tasks and their data, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    save_pretrained(tiny.delta_net(vocab_size=257, dtype=torch.float32), tmp_path / "model")
    rows = [
        {"question": f"{a} and {a} are", "choices": [f" {2 * a}", f" {a}"], "answer": 0}
        for a in range(1, 7)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",  # choices bring their space
    }
    choice = {
        "task": "sums_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    generate = {
        "task": "sums_generate",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "tasks").mkdir()
    for task in (choice, generate):
        (tmp_path / "tasks" / f"{task['task']}.yaml").write_text(yaml.safe_dump(common | task))
    return tmp_path


@pytest.mark.slow
def test_tasks_of_ones_own_through_the_command_line(place):
    words = ["lm-eval", "--tasks", "sums_choice,sums_generate", "--include_path", "tasks"]
    words += ["--pretrained", "model", "--tokenizer", "Bytes", "--limit", "5", "--out", "results"]
    outcome = command_line.run(*words)
    assert outcome.code == 0, outcome.stderr
    assert "|sums_choice" in outcome.stdout
    assert "exact_match" in outcome.stdout
    results = json.loads((place / "results" / "results.json").read_text())
    assert set(results["results"]) == {"sums_choice", "sums_generate"}
    assert results["config"]["tokenizer"] == "Bytes"
    samples = (place / "results" / "samples_sums_choice.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in samples]
    assert len(rows) == 5
    policy = tiny.delta_net(vocab_size=257, dtype=torch.float32)
    model = PolicyLM(policy, Bytes(), progress=False)
    hits = 0
    for row in rows:
        values = []
        for choice in row["doc"]["choices"]:
            prefix = model.tok_encode(row["doc"]["question"])
            expected, _ = direct(model, prefix + model.tok_encode(choice))
            values.append(float(expected[len(prefix) - 1 :].sum()))
        found = [float(response[0][0]) for response in row["resps"]]
        assert found == pytest.approx(values, abs=1e-4)
        hits += values[0] > values[1]
    assert results["results"]["sums_choice"]["acc,none"] == pytest.approx(hits / 5)
    again = command_line.run(*words)
    assert again.code == 2
    assert "already holds results" in again.stderr


def test_a_checkpoint_of_a_run_brings_its_tokenizer(place):
    command_line.write_documents(place / "docs")
    command_line.write_config(place / "tiny.yaml")
    fit = command_line.run("fit", "--config", "tiny.yaml", "--trainer.max_steps", "1")
    assert fit.code == 0, fit.stderr
    (checkpoint,) = place.glob("runs/**/last.ckpt")
    outcome = command_line.run(
        "lm-eval", "--tasks", "sums_choice", "--include_path", "tasks", "--ckpt_path", checkpoint
    )
    assert outcome.code == 0, outcome.stderr
    assert "|sums_choice" in outcome.stdout


WRONG = {
    "no model": (["--tasks", "sums_choice"], "no model is given"),
    "two models": (
        ["--tasks", "sums_choice", "--pretrained", "model", "--ckpt_path", "x.ckpt"],
        "both --ckpt_path and --pretrained are given",
    ),
    "an unknown task": (
        ["--tasks", "sums_choise", "--pretrained", "model"],
        "did you mean sums_choice?",
    ),
    "no tokenizer": (["--tasks", "sums_choice", "--pretrained", "model"], "no tokenizer is given"),
    "no folder of tasks": (
        ["--tasks", "a", "--pretrained", "model", "--include_path", "gone"],
        "there is no folder gone",
    ),
    "a misspelt option": (["--task", "a", "--pretrained", "model"], "did you mean tasks?"),
    "data that are gone": (
        ["--tasks", "sums_choice", "--pretrained", "model", "--tokenizer", "Bytes"],
        "the data of sums_choice cannot be loaded",
    ),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_said(words, message, place):
    if "data" in message:
        (place / "sums.jsonl").unlink()
    folder = [] if "--include_path" in words else ["--include_path", "tasks"]
    outcome = command_line.run("lm-eval", *words, *folder)
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.split())
