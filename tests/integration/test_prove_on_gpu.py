"""What is prepared for a machine with a GPU runs here once, small, in Triton's interpreter.

So that neither the script nor one of its tests is broken when a GPU first sees it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "gpu" / "prove.py"
# The others call flash-linear-attention, whose kernels another process has been prepared for.
MIN_RUN, MAX_LEFT_OUT = 45, 6


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_it_runs_without_a_gpu(tmp_path):
    pytest.importorskip("triton")
    figures = tmp_path / "gpu.json"
    done = run("--small", "--json", figures)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "2 parts, 0 of them failed" in done.stdout
    found = json.loads(figures.read_text())
    assert found["machine"]["gpu"] == "no GPU"
    tests = found["tests"]
    assert tests["passed"] >= MIN_RUN
    assert tests["failed"] == []
    assert len(tests["skipped"]) <= MAX_LEFT_OUT
    assert all("test_fla_interpreted" in reason for reason in tests["skipped"])
    bench = found["benchmarks"]["small"]["figures"]
    assert bench["arms"][1]["share_of_peak"] > 0
    assert len(bench["slowest"]["operators"]) == 10


def test_a_part_that_does_not_end_fails_and_figures_are_written(tmp_path):
    figures = tmp_path / "gpu.json"
    done = run("--small", "--minutes", 0, "--json", figures)
    assert done.returncode == 1
    found = json.loads(figures.read_text())
    assert found["tests"]["code"] == found["benchmarks"]["small"]["code"] == "time was over"


def test_it_says_that_there_is_no_gpu():
    done = run()
    assert done.returncode == 2
    assert "torch sees no GPU; --small" in done.stderr
