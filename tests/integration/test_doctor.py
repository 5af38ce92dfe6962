"""``refine-pl doctor``: a true account of the machine, and an exit code that can be relied on."""

import builtins
import json
import platform
from importlib.metadata import version
from types import SimpleNamespace

import torch
from command_line import run

from refine_kernels import backends
from refine_pl.commands import doctor


def test_text():
    outcome = run("doctor")
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    for title in ("system", "packages", "requirements", "devices", "kernels"):
        assert title in lines
    assert platform.python_version() in outcome.stdout
    assert any(line.split() == ["torch", version("torch")] for line in lines)
    assert lines[-1] == "a fit can run on this machine"
    assert not [line for line in lines[4:] if len(line) > 100]  # above are paths of the machine


def test_json_says_the_same():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["packages"]["lightning"] == version("lightning")
    assert report["system"]["cache"].endswith("refine-pl")
    assert len(report["requirements"]) >= 10
    assert all(row["met"] for row in report["requirements"])
    assert report["problems"] == []
    assert len(report["devices"]) == 1 + max(1, torch.cuda.device_count())
    assert len(report["kernels"]) == len(backends.report())
    for op in {row["op"] for row in report["kernels"]}:
        assert sum(row["chosen"] for row in report["kernels"] if row["op"] == op) == 1
    assert all(row["reason"] for row in report["kernels"])


def test_a_package_that_is_too_old(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "2.6.3" if name == "lightning" else real(name)
    )
    outcome = run("doctor")
    assert outcome.code == 1
    assert "lightning<2.7,>=2.6.6 is required, found 2.6.3" in outcome.stdout
    assert "a fit cannot run:" in outcome.stdout


def test_a_package_that_is_missing(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "datasets" else real(name))
    outcome = run("doctor")
    assert outcome.code == 1
    assert "datasets>=4 is required, found nothing" in outcome.stdout


def test_a_broken_torch(monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file\nmore")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    report = doctor.examine()
    assert (
        "torch cannot be imported: libtorch.so: cannot open shared object file" in report.problems
    )


def test_an_operation_that_nothing_can_run(monkeypatch):
    row = SimpleNamespace(op="delta_rule", implementation="fla", chosen=False, reason="no GPU")
    monkeypatch.setattr(backends, "report", lambda: [row])
    outcome = run("doctor")
    assert outcome.code == 1
    assert "no implementation of delta_rule can run" in outcome.stdout


def test_a_gpu(monkeypatch):
    properties = SimpleNamespace(name="H200", total_memory=139 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    report = doctor.Report()
    doctor._devices(report)
    assert report.devices[1] == {"device": "cuda:0", "details": "H200, 139 GiB, capability 9.0"}


def test_an_unknown_option():
    outcome = run("doctor", "--jsn")
    assert outcome.code == 2
    assert "unrecognized arguments: --jsn" in outcome.stderr
