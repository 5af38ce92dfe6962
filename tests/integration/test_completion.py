"""The script that completes in a shell: run in bash, as a person would press the tabulator."""

import shutil
import subprocess

import pytest
from command_line import run

from refine_pl.command_table import COMMANDS
from refine_pl.recipes import recipes

_PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_refine_pl refine-pl "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A function that gives what bash offers for the last of some words."""
    bash = shutil.which("bash")
    assert bash is not None
    outcome = run("completion", "bash")
    assert outcome.code == 0, outcome.stderr
    script = tmp_path_factory.mktemp("completion") / "refine-pl"
    script.write_text(outcome.stdout)

    def offered(*words):
        found = subprocess.run(
            [bash, "-c", _PRESS_TAB, "bash", script, "refine-pl", *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=script.parent,
        )
        assert found.stderr == ""
        return found.stdout.split()

    return offered


def test_every_command_is_offered(complete):
    assert sorted(complete("")) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_options_of_a_run_are_offered(complete, command):
    assert "--model.selector" in complete(command, "--model.sel")
    assert "--trainer.max_time" in complete(command, "--trainer.max_")


@pytest.mark.parametrize(
    ("command", "option"),
    [("report", "--out"), ("export", "--ckpt_path"), ("doctor", "--compile"), ("sweep", "--seeds")],
)
def test_options_of_other_commands_are_offered(complete, command, option):
    assert option in complete(command, option[:4])


@pytest.mark.parametrize("words", [("fit", "--config"), ("sweep", "--overlays")])
def test_recipes_are_offered(complete, words):
    assert sorted(complete(*words, "tiny")) == [name for name in recipes() if "tiny" in name[:4]]
    assert complete(*words, "nothing-of-the-kind") == []


def test_zsh_has_a_script_and_other_shells_are_refused():
    assert run("completion", "zsh").stdout.startswith("#compdef refine-pl")
    outcome = run("completion", "fishy")
    assert outcome.code == 2
    assert "bash" in outcome.stderr
