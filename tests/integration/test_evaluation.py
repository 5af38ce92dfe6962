"""``refine-pl test``: rows are answered, scored and summed up, and interrupted runs go on."""

import json
import shutil
import signal
from pathlib import Path

import command_line
import evaluations
import pytest
import torch
import yaml
from recipes import CONFIGS

from refine_pl.data import HubTokenizer

NUMBER = 9
TTT = {
    "class_path": "refine_pl.training.TestTimeTraining",
    "init_args": {"mode": "sft", "reset": "batch"},
}
EVAL_CONFIGS = sorted((CONFIGS / "eval").rglob("*.y*ml"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a checkpoint, the same model exported, and rows."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        checkpoint = evaluations.train(folder)
        arguments = ["--ckpt_path", checkpoint, "--out", folder / "exported"]
        assert command_line.run("export", *arguments).code == 0
        evaluations.write_rows(folder / "rows.jsonl", evaluations.rows(NUMBER))
        evaluations.config(folder / "eval.yaml")
        (folder / "interrupt.py").write_text(evaluations.INTERRUPT)
    return folder, checkpoint


@pytest.fixture(autouse=True)
def here(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it once it was interrupted


def run(trained, out, *options, config="eval.yaml", expect=0):
    arguments = ["--config", config, "--ckpt_path", trained[1], "--out", out]
    outcome = command_line.run("test", *arguments, *options)
    assert outcome.code == expect, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


@pytest.fixture(scope="module")
def finished(trained):
    """An evaluation that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained[0])
        outcome = run(trained, "finished")
    return trained[0] / "finished", outcome


def flat(text):
    return " ".join(text.split())


def interrupting(batches):
    return {"class_path": "interrupt.InterruptAfter", "init_args": {"batches": batches}}


# What a run leaves behind ------------------------------------------------------------------------


def test_answers_and_scores(finished):
    folder, outcome = finished
    answers = evaluations.lines(folder / "answers.jsonl")
    assert [line["id"] for line in answers] == [f"row {i}" for i in range(NUMBER)]
    assert list(answers[0]) == [
        *("id", "task", "length", "prompt_tokens", "cut_tokens", "output", "num_tokens"),
        *("finish", "references", "score", "scores"),
    ]
    assert all(line["num_tokens"] <= 8 + i % 3 for i, line in enumerate(answers))
    assert len({line["output"] for line in answers}) > 1
    assert [list(line["scores"]) for line in answers[:3]] == [[], [], ["ruler_qa_official"]]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["rows"] == NUMBER
    assert [(r["task"], r["rule"], r["rows"]) for r in scores["results"]] == [
        ("qasper", "qa_f1", 3),
        ("trec", "classification", 3),
        ("ruler_squadqa", "ruler_qa", 3),
        ("ruler_squadqa", "ruler_qa_official", 3),
    ]
    for result in scores["results"]:
        own = [line for line in answers if line["task"] == result["task"]]
        values = [line["scores"].get(result["rule"], line["score"]) for line in own]
        assert result["mean"] == pytest.approx(100 * sum(values) / 3)
        assert result["low"] <= result["mean"] <= result["high"]
    assert [(a["name"], a["tasks"]) for a in scores["averages"]] == [("LongBench", 2)]
    for word in ("ruler_qa_official", "95% interval", "LongBench average", "run folder"):
        assert word in outcome.stdout
    assert "tokenizer: HubTokenizer" in outcome.stdout


def test_card(finished, trained):
    folder, _ = finished
    card = json.loads((folder / "card.json").read_text())
    assert card["model"]["source"] == str(trained[1])
    assert card["model"]["class"] == "DeltaNet"
    weights = torch.load(trained[1], weights_only=True)["state_dict"]
    policy = {name: w for name, w in weights.items() if name.startswith("policy.")}
    assert card["model"]["parameters"] == sum(w.numel() for w in policy.values())
    assert card["decoding"]["decoding"] == "greedy"
    assert card["test_time_training"] is None
    assert card["data"]["test_rows"] == NUMBER
    assert card["rules"]["qasper"] == "qa_f1 of first_line"
    assert len(card["data"]["hash"]) == 32
    assert card["versions"]["torch"] == torch.__version__
    assert card["command"][:2] == ["refine-pl", "test"]
    assert card["finished"] >= card["started"]
    tokens = sum(line["num_tokens"] for line in evaluations.lines(folder / "answers.jsonl"))
    assert card["tokens"] == tokens
    assert card["tokens_per_s"] == pytest.approx(tokens / card["seconds"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["backbone"]["init_args"]["hidden_size"] == 16


def test_the_configuration_that_is_kept_repeats_the_run(finished, trained):
    folder, _ = finished
    outcome = command_line.run("test", "--config", folder / "config.yaml", "--out", "repeated")
    assert outcome.code == 0, outcome.stderr
    for name in ("answers.jsonl", "scores.json"):
        assert Path("repeated", name).read_bytes() == (folder / name).read_bytes()


def test_checkpoint_and_exported_folder_answer_alike(finished):
    arguments = ["--config", "eval.yaml", "--model.pretrained", "exported", "--out", "hf"]
    outcome = command_line.run("test", *arguments)
    assert outcome.code == 0, outcome.stderr
    assert "tokenizer: HubTokenizer exported, of the model" in flat(outcome.stdout)
    assert Path("hf/answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()
    cards = [json.loads((f / "card.json").read_text()) for f in (Path("hf"), finished[0])]
    assert cards[0]["model"]["weights_hash"] == cards[1]["model"]["weights_hash"]
    assert cards[0]["model"]["source"] == "exported"


def test_a_checkpoint_may_name_its_tokenizer(finished, trained):
    """Then it need not lie in the folder of its run."""
    checkpoint = torch.load(trained[1], weights_only=True)
    spec = HubTokenizer("tokenizer").spec()
    assert Path(spec["init_args"]["name"]).is_absolute()
    checkpoint["refine_pl"]["tokenizer"] = spec
    torch.save(checkpoint, "named.ckpt")
    checkpoint["refine_pl"]["tokenizer"] = None
    torch.save(checkpoint, "nameless.ckpt")
    outcome = run((trained[0], "named.ckpt"), "named")
    assert "of the run that wrote the checkpoint" in outcome.stdout
    assert Path("named/answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()
    outcome = run((trained[0], "nameless.ckpt"), "nameless", expect=2)
    assert "no tokenizer is given" in outcome.stderr
    own = ["--data.init_args.tokenizer", "refine_pl.data.Bytes"]
    assert "tokenizer:" not in run((trained[0], "nameless.ckpt"), "nameless", *own).stdout


def test_batch_size_changes_nothing(finished, trained):
    run(trained, "one", "--data.init_args.test_batch_size", "1")
    assert Path("one/answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()


def test_samples_are_the_same_every_time(finished, trained):
    options = ["--model.answering.init_args.decoding", "sample"]
    run(trained, "s1", *options)
    run(trained, "s2", *options, "--data.init_args.test_batch_size", "4")
    assert Path("s1/answers.jsonl").read_bytes() == Path("s2/answers.jsonl").read_bytes()
    assert Path("s1/answers.jsonl").read_bytes() != (finished[0] / "answers.jsonl").read_bytes()


def test_folders_are_numbered(trained):
    for number in range(2):
        outcome = command_line.run("test", "--config", "eval.yaml", "--ckpt_path", trained[1])
        assert outcome.code == 0, outcome.stderr
        assert f"runs/test/eval/version_{number}" in outcome.stdout.replace("\n", "")
        assert Path(f"runs/test/eval/version_{number}/scores.json").exists()


# Interruption ------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(finished, trained):
    evaluations.config("stop.yaml", callbacks=[interrupting(3)])
    outcome = run(trained, "resumed", config="stop.yaml", expect=130)
    assert "4 of 9 rows are answered; continue with --out resumed" in flat(outcome.stderr)
    folder = Path("resumed")
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"id": "row 8", "output": "cut o')
    assert json.loads((folder / "card.json").read_text())["finished"] is None
    outcome = run(trained, "resumed")
    assert "continuing: 4 of 9 rows are answered" in outcome.stdout
    for name in ("answers.jsonl", "scores.json"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [
        *("answers.jsonl", "card.json", "config.yaml", "scores.json")
    ]
    before = json.loads((folder / "card.json").read_text())
    outcome = run(trained, "resumed")
    assert "continuing: 9 of 9 rows are answered" in outcome.stdout
    after = json.loads((folder / "card.json").read_text())
    assert after["tokens"] == before["tokens"]
    assert (folder / "answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()


def test_another_evaluation_does_not_go_on(finished, trained):
    other = trained[1].with_name("other.ckpt")
    checkpoint = torch.load(trained[1], weights_only=True)
    checkpoint["state_dict"]["policy.lm_head.weight"] += 1e-6
    torch.save(checkpoint, other)
    shutil.copytree(finished[0], "mixed")
    before = Path("mixed/answers.jsonl").read_bytes()
    evaluations.config("ttt.yaml", callbacks=[TTT])
    evaluations.write_rows("fewer.jsonl", evaluations.rows(NUMBER - 1))
    sample = ["--model.answering.init_args.decoding", "sample"]
    cases = [
        (["--ckpt_path", other], "model.weights_hash was"),
        (["--model.answering.init_args.budget", "5"], "decoding.budget was none, is 5"),
        (sample, "decoding.decoding was greedy, is sample"),
        (["--config", "ttt.yaml"], "test_time_training was none, is given"),
        (["--data.init_args.test.mine.init_args.paths", "fewer.jsonl"], "data.hash was"),
        (["--trainer.precision", "64-true"], "precision was 32-true, is 64-true"),
    ]
    for options, fragment in cases:
        outcome = run(trained, "mixed", *options, expect=2)
        assert "not the evaluation that mixed holds" in outcome.stderr
        assert fragment in flat(outcome.stderr)
    card = Path("mixed/card.json")
    card.write_text(card.read_text().replace('"qa_f1 of first_line"', '"f1"'))
    outcome = run(trained, "mixed", expect=2)
    assert "rules.qasper was f1, is qa_f1 of first_line" in flat(outcome.stderr)
    assert Path("mixed/answers.jsonl").read_bytes() == before


def test_test_time_training_goes_on_in_whole_batches(trained):
    """What a batch was trained on depends on its rows: half a batch is answered again."""
    evaluations.config("ttt.yaml", callbacks=[TTT])
    run(trained, "ttt", config="ttt.yaml")
    card = json.loads(Path("ttt/card.json").read_text())
    assert card["test_time_training"]["mode"] == "sft"
    assert card["test_time_training_totals"]["batches"] == 5
    evaluations.config("stop.yaml", callbacks=[TTT, interrupting(3)])
    run(trained, "ttt2", config="stop.yaml", expect=130)
    answers = Path("ttt2/answers.jsonl")
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:3]))
    outcome = run(trained, "ttt2", config="ttt.yaml")
    assert "continuing: 2 of 9" in outcome.stdout
    assert answers.read_bytes() == Path("ttt/answers.jsonl").read_bytes()
    # Other batches, or other positions, would have trained otherwise.
    for key, value, fragment in (
        ("data.init_args.test_batch_size", 3, "batch_size was 2, is 3"),
        ("model.selector.init_args.min_prefix", 5, "selector.min_prefix was 4, is 5"),
    ):
        outcome = run(trained, "ttt2", f"--{key}", value, config="ttt.yaml", expect=2)
        assert f"test_time_training.{fragment}" in flat(outcome.stderr)


def test_weights_that_moved_on_are_not_resumed(trained):
    forever = {**TTT, "init_args": {"mode": "sft", "reset": "never"}}
    evaluations.config("forever.yaml", callbacks=[forever])
    evaluations.config("stop.yaml", callbacks=[forever, interrupting(2)])
    run(trained, "moved", config="stop.yaml", expect=130)
    outcome = run(trained, "moved", config="forever.yaml", expect=2)
    assert "reset=never" in outcome.stderr
    assert "another --out" in outcome.stderr
    run(trained, "whole", config="forever.yaml")
    outcome = run(trained, "whole", config="forever.yaml")  # nothing is missing
    assert "continuing: 9 of 9" in outcome.stdout


# Bad input ---------------------------------------------------------------------------------------


def test_bad_input(trained):
    evaluations.write_rows("unknown.jsonl", evaluations.rows(3, ("qasperr",)))
    Path("bare").mkdir(exist_ok=True)
    checkpoint = ["--ckpt_path", trained[1]]
    paths = "--data.init_args.test.mine.init_args.paths"
    cases = [
        (["--config", "eval.yaml"], "no model is given"),
        (checkpoint, "no data are given"),
        (["--config", "eval.yaml", "--model.pretrained", "bare"], "no tokenizer is given"),
        (["--config", "eval.yaml", *checkpoint, paths, "none.jsonl"], "none.jsonl"),
        (["--config", "eval.yaml", *checkpoint, paths, "unknown.jsonl"], "did you mean 'qasper'"),
        (["--config", "train.yaml", *checkpoint], "TextData has none"),
        (["--config", "eval.yaml", *checkpoint, "--out", "runs/train/version_0"], "another run"),
        (["--config", "eval.yaml", *checkpoint, "--out", "rows.jsonl"], "is a file"),
        (
            ["--config", "eval.yaml", *checkpoint, "--model.answering.init_args.top_k", "3"],
            "decoding is greedy",
        ),
        (["--config", "eval.yaml", *checkpoint, "--outt", "x"], "outt"),
    ]
    for options, fragment in cases:
        outcome = command_line.run("test", *options)
        assert outcome.code == 2, (options, outcome.stderr)
        assert fragment in flat(outcome.stderr), outcome.stderr
        assert "Traceback" not in outcome.stderr


# The configurations of benchmarks ----------------------------------------------------------------


def shrunk(path):
    """The configuration with short and few rows; files are where it says."""
    config = yaml.safe_load(path.read_text())
    for source in config["data"]["init_args"]["test"].values():
        if source["class_path"].endswith("NeedleInAHaystack"):
            source["init_args"] |= {"lengths": [512], "num_rows": 2}
    config["data"]["init_args"]["cache_dir"] = "cache"
    Path(f"small_{path.name}").write_text(yaml.safe_dump(config, sort_keys=False))
    return f"small_{path.name}"


ALL_OF_LONGBENCH = (
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "qmsum", "multi_news"),
    *("trec", "triviaqa", "samsum", "lcc", "repobench-p"),
)
EXPECTED = {
    "ruler_niah": {f"niah_{k}" for k in ("single", "multi_key", "multi_query", "multi_value")},
    "ruler_qa": {"ruler_squadqa", "ruler_hotpotqa"},
    "longbench": set(ALL_OF_LONGBENCH),
    "tiny_niah": {"niah_single"},
}


def test_all_configurations_are_found():
    assert {path.stem for path in EVAL_CONFIGS} == set(EXPECTED)


@pytest.mark.parametrize("path", EVAL_CONFIGS, ids=lambda path: path.stem)
def test_configuration_runs(path, trained):
    header = " ".join(path.read_text().partition("\n\n")[0].replace("\\\n#", " ").split())
    assert f"refine-pl test --config eval/{path.stem} --ckpt_path" in header
    assert "Needs a model" in header
    ruler = evaluations.rows(4, ("ruler_squadqa", "ruler_hotpotqa"), max_seq_length=4096)
    ruler = [{"answer" if k == "answers" else k: v for k, v in row.items()} for row in ruler]
    evaluations.write_rows("data/ruler/some.parquet", ruler)
    evaluations.write_rows("data/longbench/all.parquet", evaluations.rows(12, ALL_OF_LONGBENCH))
    outcome = run(trained, f"bench_{path.stem}", config=shrunk(path))
    scores = json.loads(Path(f"bench_{path.stem}/scores.json").read_text())
    assert {result["task"] for result in scores["results"]} == EXPECTED[path.stem]
    assert ("LongBench average" in outcome.stdout) == (path.stem == "longbench")
    if path.stem == "longbench":
        assert scores["averages"][0]["tasks"] == 12
    if path.stem == "ruler_qa":
        assert {result["length"] for result in scores["results"]} == {4096}
