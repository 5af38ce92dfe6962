"""The top of the command line: quick, and helpful without arguments or with wrong ones."""

import os
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from command_line import run

from refine_pl.cli import COMMANDS

HELP_SECONDS = 2.0  # on two cores, the start of the interpreter included


def started(*argv, cwd=None):
    """``refine-pl argv`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "refine_pl", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


def test_help_is_quick_and_lists_every_command(tmp_path):
    seconds = []
    for _ in range(3):  # the quickest counts: others may use the machine
        start = time.perf_counter()
        process = started("--help", cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
    assert process.returncode == 0
    assert min(seconds) < HELP_SECONDS
    for name, (_, _, line) in COMMANDS.items():
        assert f"  {name} " in process.stdout
        assert line in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 100


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from refine_pl.cli import main; main(['--help']); "
        "print(*sorted({'torch', 'lightning', 'jsonargparse', 'yaml'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert process.stdout.splitlines()[-1] == ""


def test_every_listed_command_exists():
    from importlib.util import find_spec

    missing = {name for name, (module, _, _) in COMMANDS.items() if find_spec(module) is None}
    assert not missing


def test_version():
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.stdout == f"refine-pl {version('refine-pl')}\n"


def test_no_arguments():
    outcome = run()
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("usage: refine-pl")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["fitt"], "did you mean fit?"),
        (["validat"], "did you mean validate?"),
        (["xyz"], "refine-pl --help"),
        (["--config", "x.yaml"], "options come after the command"),
    ],
)
def test_unknown_command(argv, part):
    outcome = run(*argv)
    assert outcome.code == 2
    assert f"refine-pl has no command {argv[0]!r}" in outcome.stderr
    assert part in outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 4


def test_help_of_fit_says_how_settings_are_merged():
    outcome = run("fit", "--help")
    assert outcome.code == 0
    text = " ".join(outcome.stdout.split())
    assert "--model.rewards.mine.init_args.weight 0" in text
    assert "are replaced as a whole" in text
    assert "--model.num_segments" in text
    assert "--ckpt_path" in text


def test_help_of_fit_shows_this_projects_settings_before_lightnings():
    text = run("fit", "--help").stdout
    assert text.startswith("usage: refine-pl fit --config FILE_OR_RECIPE [--OPTION VALUE ...]\n")
    places = [
        text.index(f"\n  {word}") for word in ("--model ", "--data ", "--phase ", "--trainer ")
    ]
    assert places == sorted(places)
    before_options = text[: text.index("\noptions:")]
    assert max(map(len, before_options.splitlines())) <= 80


def test_help_of_a_class():
    outcome = run("fit", "--model.selector.help", "refine_pl.selectors.Entropy")
    assert outcome.code == 0
    assert "min_prefix" in outcome.stdout


def test_a_process_refuses_a_bad_configuration(tmp_path):
    (tmp_path / "bad.yaml").write_text("model:\n  num_segmnts: 1\n")
    process = started("fit", "--config", "bad.yaml", cwd=tmp_path)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert "bad.yaml, line 2" in process.stderr
    assert "did you mean num_segments?" in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
