"""The tests that need a GPU run here once, tiny, in Triton's interpreter.

So that none of them is broken when a GPU first sees it. In a process of their own: the interpreter
must be chosen before triton is imported.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "gpu"
# The others call flash-linear-attention, whose kernels another process has been prepared for.
MIN_RUN, MAX_LEFT_OUT = 50, 6


def test_their_bodies_run_in_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    done = subprocess.run(
        [*command, f"--junitxml={report}"],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    cases = list(ET.parse(report).getroot().iter("testcase"))
    left_out = [case.find("skipped").get("message") for case in cases if len(case)]
    assert len(cases) - len(left_out) >= MIN_RUN
    assert len(left_out) <= MAX_LEFT_OUT
    assert all("test_fla_interpreted" in reason for reason in left_out)
