"""All that wants a GPU, once, in under ten minutes: the tests of this folder, then a benchmark.

    python tests/gpu/prove.py --json gpu.json
    python tests/gpu/prove.py --small           # no GPU: in Triton's interpreter, a small model

The benchmark is of DeltaNet-1.3B, one sequence of 16,384 tokens, activation checkpointing, few
rounds; once with flash-linear-attention's delta rule and once with this project's own. It needs no
network. The exit code is 1 if anything failed; the figures are written all the same.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
LARGE = (
    *("--model.backbone", "DeltaNet", "--model.backbone.activation_checkpointing", "true"),
    *("--bench.sequence_length", "16384", "--bench.repeats", "3"),
    *("--bench.recompute_repeats", "1"),
)
SMALL = (
    *("--config", "tiny_mid", "--model.num_segments", "2", "--bench.sequence_length", "96"),
    *("--model.backbone.init_args.num_hidden_layers", "1", "--bench.repeats", "1"),
)
BENCHES = {
    "DeltaNet-1.3B, delta rule by fla": (*LARGE, "--model.backbone.backend", "fla"),
    "DeltaNet-1.3B, delta rule by triton": (*LARGE, "--model.backbone.backend", "triton"),
}


def main(argv=None):
    """Run, print, write.

    Returns:
        1 if a test or a benchmark failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file for all figures")
    parser.add_argument("--small", action="store_true", help="on a CPU, to see that it would run")
    parser.add_argument("--minutes", type=float, default=10, help="what is not done by then fails")
    options = parser.parse_args(argv)
    if not options.small and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --small runs on a CPU")
    end = time.monotonic() + 60 * options.minutes
    found = {"machine": machine(), "tests": tests(options.small, end), "benchmarks": {}}
    for name, arguments in ({"small": SMALL} if options.small else BENCHES).items():
        found["benchmarks"][name] = benchmark(name, arguments, end)
    parts = [found["tests"], *found["benchmarks"].values()]
    failed = sum(part["code"] != 0 for part in parts)
    options.json.write_text(json.dumps(found, indent=2) + "\n")
    say(f"{len(parts)} parts, {failed} of them failed; figures: {options.json}")
    return 1 if failed else 0


def machine():
    """What it ran on."""
    packages = ("torch", "triton", "flash-linear-attention", "transformers")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return {"gpu": name, "system": system} | {package: version(package) for package in packages}


def tests(small, end):
    """The tests of this folder: counts, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
        chosen = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if small else {}
        part = run("tests", [*command, f"--junitxml={report}"], end, chosen)
        cases = list(ET.parse(report).iter("testcase")) if report.is_file() else []
    left_out = [case.find("skipped") for case in cases]
    wrong = [case for case in cases if any(x.tag in ("failure", "error") for x in case)]
    return part | {
        "passed": sum(len(case) == 0 for case in cases),
        "failed": [case.get("name") for case in wrong],
        "skipped": [case.get("message") for case in left_out if case is not None],
    }


def benchmark(name, arguments, end):
    """``refine-pl bench``: what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = ["-m", "refine_pl", "bench", *arguments, "--bench.json", str(figures)]
        part = run(name, command, end)
        found = json.loads(figures.read_text()) if figures.is_file() else None
    return part | {"figures": found}


def run(name, command, end, chosen=None):
    """Python with ``command``, its output on the screen as it comes."""
    say(f"\n=== {name}: python {' '.join(command)}")
    start = time.monotonic()
    try:
        code = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **(chosen or {})},
            timeout=max(1, end - start),
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        say("stopped: the time was over")
        code = "time was over"
    seconds = time.monotonic() - start
    say(f"=== {name}: exit code {code}, {seconds:.0f} s")
    return {"command": " ".join(command), "code": code, "seconds": seconds}


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
