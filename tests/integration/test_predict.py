"""``refine-pl predict``: prompts are answered, from a file alone or by a configuration."""

import json
import shutil
import signal
from pathlib import Path

import command_line
import evaluations
import pytest

PROMPTS = ["once upon a time", "def add(a, b):", "the answer is"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        checkpoint = evaluations.train(folder)
        arguments = ["--ckpt_path", checkpoint, "--out", folder / "exported"]
        assert command_line.run("export", *arguments).code == 0
        Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        (folder / "interrupt.py").write_text(evaluations.INTERRUPT)
    return folder, checkpoint


@pytest.fixture(autouse=True)
def here(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def run(trained, out, *options, expect=0):
    model = [] if "--model.pretrained" in options else ["--ckpt_path", trained[1]]
    outcome = command_line.run("predict", *model, "--out", out, *options)
    assert outcome.code == expect, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


def outputs(folder):
    return [line["output"] for line in evaluations.lines(f"{folder}/predictions.jsonl")]


def test_a_file_of_prompts_is_enough(trained):
    outcome = run(trained, "txt", "--prompts", "prompts.txt")
    found = evaluations.lines("txt/predictions.jsonl")
    keys = ["id", "prompt_tokens", "cut_tokens", "output", "num_tokens", "finish"]
    assert [list(line) for line in found] == [keys] * 3
    assert [line["prompt_tokens"] for line in found] == [len(p) for p in PROMPTS]
    assert all(line["num_tokens"] <= 32 for line in found)
    card = json.loads(Path("txt/card.json").read_text())
    assert card["stage"] == "predict"
    assert card["finished"]
    assert not Path("txt/scores.json").exists()
    assert "run folder   txt" in outcome.stdout
    assert "score" not in outcome.stdout


def test_every_kind_of_file_and_of_model(trained):
    run(trained, "a", "--prompts", "prompts.txt")
    for name in ("rows.jsonl", "rows.parquet"):
        evaluations.write_rows(name, [{"prompt": prompt} for prompt in PROMPTS])
        run(trained, name.replace(".", "_"), "--prompts", name)
        assert outputs(name.replace(".", "_")) == outputs("a")
    run(trained, "hf", "--prompts", "prompts.txt", "--model.pretrained", "exported")
    assert outputs("hf") == outputs("a")


def test_with_a_configuration(trained):
    """Its rows, or its settings with the prompts of a file."""
    config = {
        "data": {
            "class_path": "refine_pl.data.TaskData",
            "init_args": {
                "budget": 5,
                "predict": {
                    "mine": {
                        "class_path": "refine_pl.data.RowFiles",
                        "init_args": {"paths": "two.txt", "require_answers": False},
                    }
                },
            },
        }
    }
    Path("two.txt").write_text("one\ntwo\n")
    Path("predict.yaml").write_text(json.dumps(config))
    run(trained, "own", "--config", "predict.yaml")
    assert len(outputs("own")) == 2
    run(trained, "other", "--config", "predict.yaml", "--prompts", "prompts.txt")
    found = evaluations.lines("other/predictions.jsonl")
    assert len(found) == 3
    assert all(line["num_tokens"] <= 5 for line in found)


def test_an_interrupted_run_goes_on(trained):
    run(trained, "whole", "--prompts", "prompts.txt")
    stop = {"class_path": "interrupt.InterruptAfter", "init_args": {"batches": 2}}
    Path("stop.yaml").write_text(json.dumps({"trainer": {"callbacks": [stop]}}))
    options = ["--prompts", "prompts.txt", "--data.init_args.test_batch_size", "1"]
    outcome = run(trained, "part", *options, "--config", "stop.yaml", expect=130)
    assert "1 of 3 rows are answered" in " ".join(outcome.stderr.split())
    outcome = run(trained, "part", *options)
    assert "continuing: 1 of 3 rows" in outcome.stdout
    assert outputs("part") == outputs("whole")


def test_bad_input(trained):
    Path("empty.txt").write_text("")
    Path("wrong.csv").write_text("a,b\n")
    evaluations.write_rows("no_prompt.jsonl", [{"question": "why"}])
    cases = [
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompts", "empty.txt"], "empty.txt"),
        (["--prompts", "wrong.csv"], ".csv"),
        (["--prompts", "no_prompt.jsonl"], "prompt"),
        ([], "no data are given"),
    ]
    for options, fragment in cases:
        outcome = run(trained, "bad", *options, expect=2)
        assert fragment in outcome.stderr
    assert not Path("bad").exists()


def test_a_chat_template_is_used_and_kept_in_the_card(trained):
    """That of the model's folder; an evaluation does not go on with another one."""
    folder = Path("chat")
    shutil.copytree("exported", folder)
    template = "{% for m in messages %}({{ m.content }}){% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "{{ suffix | default('') }}")
    model = ["--model.pretrained", folder]
    prompts = ["--prompts", "prompts.txt"]
    run(trained, "templated", *model, *prompts)
    found = evaluations.lines("templated/predictions.jsonl")
    assert [line["prompt_tokens"] for line in found] == [len(p) + 2 for p in PROMPTS]
    card = json.loads(Path("templated/card.json").read_text())
    assert card["data"]["chat_template"].startswith("of the tokenizer")
    kwargs = "--data.init_args.chat_template_kwargs"
    for option in (["--data.init_args.chat_template", "none"], [f"{kwargs}.suffix", "so"]):
        outcome = run(trained, "templated", *model, *prompts, *option, expect=2)
        assert "chat_template was of the tokenizer" in " ".join(outcome.stderr.split())
    outcome = run(trained, "wrong", *model, *prompts, f"{kwargs}.sufix", "so", expect=2)
    assert "does not read 'sufix'" in outcome.stderr
    run(trained, "plain", *model, *prompts, "--data.init_args.chat_template", "none")
    assert json.loads(Path("plain/card.json").read_text())["data"]["chat_template"] == "none"
