"""What Python users see: names that are loaded when they are used, and defaults that read well."""

import inspect
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

import refine_pl
from refine_pl.parts import ADAMW, ENTROPY, Part, build_part, maker
from refine_pl.selectors import Entropy, PositionSelector

PUBLIC = [name for names in refine_pl._HOMES.values() for name in names.split()]


def fresh(code):
    """Run ``code`` in a new interpreter; what it printed."""
    path = os.pathsep.join(sys.path)
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
    )
    return process.stdout.split()


def test_importing_the_package_loads_nothing_large():
    code = "import sys, refine_pl; print(*sys.modules)"
    large = {"torch", "lightning", "transformers", "numpy", "jsonargparse"}
    assert not large & set(fresh(code))
    assert large & set(fresh(code + "; refine_pl.DeltaNet; print(*sys.modules)"))


def test_every_public_name_is_there_and_said():
    assert len(PUBLIC) >= 16
    for name in (*PUBLIC, *refine_pl._PACKAGES):
        assert name in dir(refine_pl)
        assert name in refine_pl.__doc__
        assert getattr(refine_pl, name).__doc__
    assert refine_pl.selectors.Entropy is Entropy
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        refine_pl.Nothing  # noqa: B018


def test_the_type_checker_is_told_the_same_names():
    source = inspect.getsource(refine_pl)
    told = {line.split(" as ")[1] for line in source.splitlines() if " as " in line}
    assert told == set(PUBLIC)
    assert (Path(refine_pl.__file__).parent / "py.typed").is_file()


def test_a_step_on_a_text_takes_fifteen_lines():
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    for name in ("Batch.from_texts", "entropy", "positions", "rollouts", "rewards", ".loss("):
        assert name in code
    assert "._" not in code
    assert len([line for line in code.splitlines() if line]) <= 15


def test_texts_make_a_batch():
    batch = refine_pl.Batch.from_texts(["ab", "äbc"], refine_pl.Bytes())
    assert batch.num_tokens.tolist() == [2, 4]
    assert batch.tokens.tolist() == [[97, 98, 0, 0], [*"äbc".encode()]]
    assert batch.rows == (0, 1)
    for texts in ([], ["a", ""]):
        with pytest.raises(ValueError, match="at least one token"):
            refine_pl.Batch.from_texts(texts, refine_pl.Bytes())


def test_one_version():
    assert refine_pl.__version__ == version("refine-pl")


def test_signatures_show_what_the_defaults_are():
    shown = str(inspect.signature(refine_pl.RefineModule))
    assert "selector: 'PositionSelector' = Entropy()" in shown
    assert "rewards: 'dict[str, Reward]' = {'similarity': EmbeddingSimilarity()}" in shown
    assert "optimizer: 'OptimizerCallable' = AdamW(lr=1e-06)" in shown
    assert "class_path" not in shown
    assert "class_path" not in str(inspect.signature(refine_pl.RefineStep))
    assert "hidden_size: 'PositiveInt' = 2048" in str(inspect.signature(refine_pl.DeltaNet))


def test_a_default_part_is_made_anew_each_time():
    first, second = refine_pl.RefineStep(), refine_pl.RefineStep()
    assert type(first.selector) is Entropy
    made = zip(first.modules(), second.modules(), strict=True)
    assert all(a is not b for a, b in made)
    assert first.policy_loss is not second.policy_loss
    assert build_part(ENTROPY) is not build_part(ENTROPY)
    optimizer = maker(ADAMW)([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["lr"] == 1e-6


def test_the_parser_takes_a_default_part_for_a_class():
    def run(selector: PositionSelector = Part(class_path="refine_pl.selectors.Entropy")):  # noqa: B008
        return selector

    parser = ArgumentParser()
    parser.add_function_arguments(run, "run")
    parsed = parser.parse_args(["--run.selector.min_prefix", "3"])
    assert parser.instantiate(parsed).run.selector.min_prefix == 3
    assert Part(class_path="refine_pl.selectors.Entropy") == {
        "class_path": "refine_pl.selectors.Entropy"
    }
