"""``refine-pl bench``: it checks before it times, and prints what it measured."""

import json
import sys
from pathlib import Path

import command_line
import pytest

from refine_pl.benchmark.arms import Equality

RECIPE = str(Path(__file__).parents[2] / "configs" / "tiny_mid.yaml")
SMALL = [
    "--bench.sequence_length=160",
    "--bench.repeats=2",
    "--bench.device=cpu",
    "--model.backbone.init_args.hidden_size=32",
    "--model.backbone.init_args.num_hidden_layers=2",
    "--model.num_segments=2",
]


def test_table_and_figures(tmp_path):
    figures = tmp_path / "figures.json"
    outcome = command_line.run("bench", "--config", RECIPE, *SMALL, f"--bench.json={figures}")
    assert outcome.code == 0, outcome.stderr
    assert "equal" in outcome.stdout
    assert "NOT EQUAL" not in outcome.stdout
    written = json.loads(figures.read_text())
    assert [arm["name"].split(",")[0] for arm in written["arms"]] == [
        "SFT",
        "ReFINE joined",
        "ReFINE two-pass",
        "ReFINE joined",
        "ReFINE joined",
        "ReFINE recompute",
    ]
    for arm in written["arms"]:
        assert arm["repeats"] == 2
        assert 0 < arm["min_s"] <= arm["median_s"] <= arm["max_s"]
        assert arm["name"].startswith("ReFINE recompute") or arm["peak_bytes"] > 0
        assert arm["name"] in outcome.stdout
    # It would take as long as a timed run.
    assert all(written["arms"][-1][name] is None for name in ("peak_bytes", "product_flop"))
    two_pass = written["arms"][2]
    assert set(two_pass["parts_s"]) == {"prefill", "select", "rollout", "reward", "update"}
    assert len(written["ratios"]) == 6
    assert "chunk loop" not in outcome.stdout
    assert written["equality"]["same_tokens"] == 1.0
    check_the_peak(written, outcome.stdout)
    assert max(map(len, outcome.stdout.splitlines()[:-1])) <= 80  # the last one names a file


def check_the_peak(written, stdout):
    """Shares of it follow from what is written beside them; ten operators are printed."""
    peak = written["peak"]
    assert (peak["side"], peak["dtype"]) == (1024, "float32")
    assert "1,024 x 1,024 matrices in float32" in stdout
    for arm in written["arms"][:-1]:
        share = arm["product_flop"] / arm["median_s"] / peak["flop_per_s"]
        assert arm["share_of_peak"] == pytest.approx(share)
        assert f"{share:.1%}" in stdout
    sft, joined, two_pass = (arm["product_flop"] for arm in written["arms"][:3])
    assert sft < joined < two_pass
    assert two_pass > 1.2 * sft  # it reads the sequences once more
    slowest = written["slowest"]
    assert slowest["of"] == "ReFINE joined, S=2, N=1"
    assert len(slowest["operators"]) == 10
    seconds = [each["seconds"] for each in slowest["operators"]]
    assert seconds == sorted(seconds, reverse=True)
    assert 0 < sum(each["share"] for each in slowest["operators"]) <= 1
    for each in slowest["operators"]:
        assert each["calls"] > 0
        assert f"{each['name'][:30]}" in stdout


def test_the_chunk_loop_of_lact(tmp_path):
    figures = tmp_path / "figures.json"
    recipe = RECIPE.replace("tiny_mid", "lact_tiny_mid")
    outcome = command_line.run("bench", "--config", recipe, *SMALL, f"--bench.json={figures}")
    assert outcome.code == 0, outcome.stderr
    said = " ".join(outcome.stdout.split())
    assert "2 heads of 16, chunk 128, element-wise work uncompiled" in said
    ratios = json.loads(figures.read_text())["ratios"]
    for name in ("forward", "forward and backward"):
        assert ratios[f"chunk loop / its products, {name}"] > 0
        assert f"chunk loop / its products, {name} " in outcome.stdout


def test_nothing_is_timed_when_the_arms_differ(monkeypatch):
    apart = Equality(same_tokens=0.5, logprobs=1.0, loss=0.1, gradient=0.2)
    monkeypatch.setattr("refine_pl.commands.bench.compare", lambda *_: apart)
    outcome = command_line.run("bench", "--config", RECIPE, *SMALL)
    assert outcome.code == 1
    assert "NOT EQUAL" in outcome.stdout
    assert "SFT  " not in outcome.stdout


@pytest.mark.parametrize(
    ("option", "fragments"),
    [
        ("--bench.repeats=0", ["bench.repeats", "0"]),
        ("--bench.repeat=3", ["bench.repeat", "did you mean repeats"]),
        ("--model.num_segmants=3", ["num_segmants", "did you mean num_segments"]),
    ],
)
def test_wrong_options(option, fragments):
    outcome = command_line.run("bench", "--config", RECIPE, option)
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
    for fragment in fragments:
        assert fragment in outcome.stderr
    assert "refine_pl.commands.bench" in sys.modules
