"""Run folders as training, evaluation and sweeps leave them behind, in small and made up."""

import json
import random

import yaml
from torch.utils.tensorboard import SummaryWriter

from refine_pl.evaluation.bootstrap import mean_interval

VALIDATION = {
    "val/ntp_loss": 5.5,
    "val/accuracy": 0.01,
    "val/sampled_accuracy": 0.004,
    "val/reward": 0.5,
    "val/exact_match": 0.02,
    "val/reward_similarity": 0.48,
    "val/reward_match": 0.02,
}


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def training_run(folder, seed=0, iterations=6, text="plain", config=None, top=None):
    """A run of two stages; rollouts, entropy and all scalars."""
    folder.mkdir(parents=True)
    noise = random.Random(seed)
    settings = {
        "seed_everything": seed,
        "trainer": {"callbacks": [{"class_path": "refine_pl.callbacks.RolloutRecorder"}]},
        "model": {
            "backbone": {
                "class_path": "refine_pl.backbones.DeltaNet",
                "init_args": {"hidden_size": 16, "num_heads": 2},
            },
            "rewards": {"match": {"class_path": "refine_pl.rewards.ExactMatch"}},
            "num_segments": 2,
            **(config or {}),
        },
        **(top or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    writer = SummaryWriter(str(folder))
    for i in range(1, iterations + 1):
        writer.add_scalar("train/ntp_loss", 5 / i + noise.random() / 10, i)
        writer.add_scalar("reward/total/mean", i / 10, i)
        writer.add_scalar("reward/total/std", 0.2, i)
        writer.add_scalar("policy/ratio", 1.0, i)
        writer.add_scalar("run/stage", float(i > iterations // 2), i)
        writer.add_scalar("mine/own", i, i)
    writer.close()
    validations = [
        {"label": label, "iteration": i, "metrics": {k: v + i / 10 for k, v in VALIDATION.items()}}
        for label, i in (("before", 0), (None, 2), ("after warm-up", 3), ("after refine", 6))
    ]
    (folder / "summary.json").write_text(json.dumps({"validations": validations}))
    write_lines(folder / "rollouts.jsonl", [rollout(i, noise, text) for i in (1, 2, 3)])
    write_lines(folder / "entropy.jsonl", [entropy(i, noise) for i in (1, 2, 3)])
    return folder


def rollout(iteration, noise, text="plain"):
    drawn = [
        {"text": text, "reward": value, "parts": {"match": value}, "advantage": 1 - 2 * n}
        for n, value in enumerate((noise.random(), noise.random()))
    ]
    row = {"iteration": iteration, "document": f"{text}.py", "position": 9}
    return row | {"prefix": f"pre {text}", "target": f" {text}", "rollouts": drawn}


def entropy(iteration, noise, length=40):
    values = [round(noise.random() * 3, 4) for _ in range(length)]
    row = {"iteration": iteration, "document": "a_$b$.py", "entropy": values, "smoothed": values}
    return row | {"positions": [9, 30], "scored": [8, 29], "borders": [20]}


PLACES = (("niah_single", 4096), ("ruler_squadqa", 4096), ("ruler_squadqa", 512))


def evaluation_run(folder, seed=0, rows=20, right=0.5, places=PLACES, text="out", source="model"):
    """An evaluation in the format of ``refine-pl test``; ``right`` of the rows score 1."""
    folder.mkdir(parents=True)
    noise = random.Random(seed)
    answers = [
        {
            "id": f"{task}-{length}-{i}",
            "task": task,
            "length": length,
            "prompt_tokens": 100,
            "cut_tokens": 7 * (i == 0),
            "output": text,
            "num_tokens": 5,
            "finish": "eos",
            "references": ["one", "two"],
            "score": float(noise.random() < right),
            "scores": {"ruler_qa_official": 0.0} if task.startswith("ruler") else {},
        }
        for task, length in places
        for i in range(rows)
    ]
    write_lines(folder / "answers.jsonl", answers)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"pretrained": source}}))
    (folder / "scores.json").write_text(json.dumps(scores_of(answers, places)))
    card = {
        "versions": {"torch": "2.0"},
        "model": {"source": source, "parameters": 1000, "weights_hash": "abc"},
        "decoding": {"decoding": "greedy", "budget": 5},
        "data": {"hash": "def"},
        "test_time_training": None,
        "command": ["refine-pl", "test"],
        "started": "2026-01-01T00:00:00",
        "finished": "2026-01-01T00:01:00",
        "seconds": 60.0,
        "tokens_per_s": 12.0,
    }
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def scores_of(answers, places):
    results = []
    for task, length in places:
        own = [a["score"] for a in answers if (a["task"], a["length"]) == (task, length)]
        interval = mean_interval(own, resamples=200).percent()
        common = {"task": task, "length": length, "rows": len(own)}
        values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        results.append(common | {"rule": "released"} | values)
        if task.startswith("ruler"):
            results.append(common | {"rule": "ruler_qa_official", "mean": 0, "low": 0, "high": 0})
    about = {"level": 0.95, "resamples": 200, "method": "percentile bootstrap over rows"}
    found = {"rows": len(answers), "interval": about, "results": results}
    tasks = [r["mean"] for r in results if r["rule"] == "released" and r["length"] is None]
    if len(tasks) > 1:
        mean = sum(tasks) / len(tasks)
        average = {"name": "LongBench", "tasks": len(tasks), "rows": len(answers), "mean": mean}
        found["averages"] = [average | {"low": mean - 1, "high": mean + 1}]
    return found


def sweep(folder, lengths=(1, 3, 5), seeds=(0, 1)):
    """A sweep over rollout lengths and rewards, with the recipe itself, and one failed run."""
    folder.mkdir(parents=True)
    overlays = [("base", "tiny_mid"), *(("rollout_length", str(n)) for n in lengths)]
    overlays += [("reward", "exact_match"), ("reward", "edit_distance")]
    entries = []
    for group, overlay in overlays:
        for seed in seeds:
            run = folder / group / overlay / f"seed_{seed}"
            run.mkdir(parents=True)
            value = (float(overlay) if overlay.isdigit() else 2) + seed / 10
            metrics = {"val/ntp_loss": value, "val/exact_match": value / 100}
            summary = {"validations": [{"label": "after", "iteration": 9, "metrics": metrics}]}
            (run / "summary.json").write_text(json.dumps(summary))
            entry = {"overlay": overlay, "group": group, "seed": seed, "status": "done"}
            entries.append(entry | {"run": str(run.relative_to(folder)), "error": None})
    entries[-1] |= {"status": "failed", "error": "ended by signal 9 (SIGKILL)"}
    changes = [
        {"group": group, "overlay": overlay, "file": None, "changes": {"model.key": overlay}}
        for group, overlay in overlays
    ]
    index = {"base": {"configs": ["configs/tiny_mid.yaml"]}, "overlays": changes}
    (folder / "sweep.json").write_text(json.dumps(index | {"entries": entries}))
    return folder
