"""Imports go one way: kernels, backbones, the four steps, the module around them, the CLI."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"refine_pl": ROOT / "src", "refine_kernels": ROOT / "kernels"}

# What files may import of this project; names of packages and modules, with all below them.
SHARED = (
    "refine_pl.errors",
    "refine_pl.records",
    "refine_pl.randomness",
    "refine_pl.stopwatch",
    "refine_pl.lazy",
)
STEPS = ("selectors", "rollouts", "rewards", "advantages", "losses")
STEP_BASE = (*SHARED, "refine_pl.backbones.base", "refine_pl.backbones.head")
ALGORITHM = (*STEP_BASE, *(f"refine_pl.{step}" for step in STEPS))
RULES = {
    "refine_kernels": ("refine_kernels",),
    "refine_pl.errors": (),
    "refine_pl.records": ("refine_pl.backbones.base",),  # for the type checker
    "refine_pl.randomness": (),
    "refine_pl.backbones": (
        "refine_kernels",
        "refine_pl.backbones",
        "refine_pl.errors",
        "refine_pl.records",
    ),
    **{f"refine_pl.{step}": (*STEP_BASE, f"refine_pl.{step}") for step in STEPS},
    "refine_pl.refine_step": ALGORITHM,
    "refine_pl.evaluation": (
        *STEP_BASE,
        "refine_pl.evaluation",
        "refine_pl.rollouts",  # how a token is drawn
        "refine_pl.task_records",
    ),
}
MAY_IMPORT_LIGHTNING = (
    "refine_pl.training",
    "refine_pl.callbacks",
    "refine_pl.data",
    "refine_pl.cli",
    "refine_pl.commands",
    "refine_pl.benchmark",
)
MIN_FILES = 70


def inside(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def module_name(path, base):
    parts = list(path.relative_to(base).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source, module, is_package=False):
    """Every module that ``source`` imports, as full names; ``from a import b`` gives ``a.b``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                origin = ".".join([*parents, origin] if origin else parents)
            found += [f"{origin}.{alias.name}" for alias in node.names]
    return found


def broken_rules(module, source, is_package=False):
    """What ``module`` imports although it may not."""
    found = imports(source, module, is_package)
    wrong = [name for name in found if name.partition(".")[0] == "kernels"]
    # Only the top of a package's own __init__ may name the command line: nobody does.
    if module != "refine_pl.__main__":
        wrong += [name for name in found if inside(name, ("refine_pl.cli",))]
    if not inside(module, MAY_IMPORT_LIGHTNING):
        wrong += [n for n in found if inside(n, ("lightning", "pytorch_lightning"))]
    own = [name for name in found if name.partition(".")[0] in SOURCES]
    for package, allowed in RULES.items():
        if inside(module, (package,)):
            wrong += [name for name in own if not inside(name, allowed)]
    return wrong


def files():
    return [
        (module_name(path, base), path)
        for package, base in SOURCES.items()
        for path in sorted((base / package).rglob("*.py"))
    ]


def test_directions():
    checked = 0
    wrong = {}
    for module, path in files():
        bad = broken_rules(module, path.read_text(), path.name == "__init__.py")
        if bad:
            wrong[module] = bad
        checked += 1
    assert wrong == {}
    assert checked >= MIN_FILES
    assert {module.partition(".")[0] for module, _ in files()} == set(SOURCES)


def test_every_rule_is_about_something():
    modules = [module for module, _ in files()]
    assert len(RULES) == 12
    for package in RULES:
        assert [module for module in modules if inside(module, (package,))], package


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("refine_kernels.delta_rule.chunked", "from refine_pl.errors import UserError"),
        ("refine_pl.backbones.delta_net", "from refine_pl.rewards import Reward"),
        ("refine_pl.selectors.entropy", "def f():\n    import refine_pl.rewards.base"),
        ("refine_pl.rewards.mine", "from refine_pl.backbones.delta_net import DeltaNet"),
        ("refine_pl.losses.kl", "from .. import module"),
        ("refine_pl.rollouts.forked", "from lightning.pytorch import Trainer"),
        ("refine_pl.evaluation.table", "import lightning"),
        ("refine_pl.training.module", "from refine_pl.cli import main"),
        ("refine_pl.data.text", "import kernels"),
        ("refine_pl.data.text", "from kernels.refine_kernels import backends"),
    ],
)
def test_a_wrong_import_is_noticed(module, source):
    assert broken_rules(module, source)


def test_the_folder_of_the_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def fresh(code, cwd):
    """Run ``code`` in a new interpreter that finds the sources of this tree, and ``cwd`` first."""
    path = [str(base) for base in SOURCES.values()]
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def test_the_algorithm_imports_without_lightning():
    code = (
        "import sys, refine_pl.refine_step, refine_pl.selectors, refine_pl.rollouts, "
        "refine_pl.rewards, refine_pl.advantages, refine_pl.losses, refine_pl.backbones\n"
        "print(*[name for name in sys.modules if name.startswith(('lightning', 'transformers'))])"
    )
    process = fresh(code, ROOT)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == ""


@pytest.mark.slow
def test_transformers_and_fla_import_at_the_root_of_the_repository():
    """Both look for a package called ``kernels``, and the working directory comes first."""
    code = (
        "import transformers, fla\n"
        "from transformers import AutoModelForCausalLM, PreTrainedModel\n"
        "from transformers.integrations import hub_kernels\n"
        "import refine_kernels.delta_rule\n"
        "print('imported')"
    )
    process = fresh(code, ROOT)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "imported"
