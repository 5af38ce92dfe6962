"""Imports go one way: kernels, backbones, the four steps, the module around them, the CLI."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"refine_pl": ROOT / "src", "refine_kernels": ROOT / "kernels"}

# Rooms: packages, and modules beside them. What each may import of this project, itself included.
# Imports for the type checker count, and so do those inside functions.
SHARED = (
    *("errors", "faults", "lazy", "numbers", "parsing", "randomness", "records", "sampling"),
    "stopwatch",
)
STEPS = ("selectors", "rollouts", "rewards", "advantages", "losses")
ENGINE = (
    *(*SHARED, *STEPS, "adapters", "backbones", "refine_step"),
    *("parts", "task_records", "tokenizers"),
)
RULES = {
    "refine_kernels": (),
    "errors": (),
    "checksums": ("errors",),
    "launch": ("errors",),
    "faults": ("errors", "records"),
    "numbers": ("errors",),
    "parsing": (),
    "machine_errors": ("errors",),
    "lazy": (),
    "interrupts": (),
    "whole_files": ("errors",),
    "randomness": (),
    "sampling": (),
    "stopwatch": ("refine_kernels",),
    "tokenizers": ("errors", "lazy"),
    "chat": ("errors", "tokenizers"),
    "records": ("backbones", "refine_kernels", "tokenizers"),
    "task_records": ("records",),
    "backbones": (
        "checksums",
        "errors",
        "lazy",
        "numbers",
        "parsing",
        "refine_kernels",
        "sampling",
        "whole_files",
    ),
    "adapters": ("backbones", "checksums", "errors", "whole_files"),
    **dict.fromkeys(STEPS, (*SHARED, "backbones", "refine_kernels")),
    "parts": ("backbones", "errors", "lazy"),
    "refine_step": (*SHARED, *STEPS, "backbones", "parts", "refine_kernels"),
    "evaluation": (*SHARED, "backbones", "rollouts", "task_records", "tokenizers"),
    "objectives": (*ENGINE, "evaluation"),
    "training": (
        *ENGINE,
        "evaluation",
        "interrupts",
        "objectives",
        "refine_kernels",
        "whole_files",
    ),
    "figures": (*SHARED, "training"),  # records of a run folder
    "data": (
        *SHARED,
        "chat",
        "checksums",
        "evaluation",
        "interrupts",
        "task_records",
        "tokenizers",
        "whole_files",
    ),
    "callbacks": (*ENGINE, "evaluation", "figures", "training"),
    "comparison": (*ENGINE, "evaluation", "sweep", "training"),
    "report": ("comparison", "errors", "evaluation", "figures", "sweep", "training", "whole_files"),
    "sweep": ("errors", "interrupts", "training"),
    "benchmark": (*ENGINE, "refine_kernels", "training"),
    "commands": (
        *ENGINE,
        "machine_errors",
        "refine_kernels",
        "benchmark",
        "callbacks",
        "chat",
        "checksums",
        "command_table",
        "comparison",
        "data",
        "evaluation",
        "interrupts",
        "launch",
        "recipes",
        "report",
        "sweep",
        "training",
        "whole_files",
    ),
    "recipes": (),
    "command_table": (),
    "cli": ("command_table", "errors", "interrupts", "launch", "machine_errors", "recipes"),
    "__main__": ("cli",),
    # The public names: loaded when they are first used, imported for the type checker alone.
    "__init__": (*ENGINE, "training"),
}
# They work with every backbone, and so know none.
ANY_BACKBONE = ("records", "refine_step", "evaluation", *STEPS)
BACKBONE_CONTRACT = ("refine_pl.backbones.base", "refine_pl.backbones.head")
MAY_IMPORT_LIGHTNING = ("training", "callbacks", "data", "commands")
# Of training/, what the algorithm's users and the benchmark need stays without it.
WITHOUT_LIGHTNING = (
    "refine_pl.training.updater",
    "refine_pl.training.sizes",
    "refine_pl.training.settings",
    "refine_pl.training.counters",
    "refine_pl.training.tally",
    "refine_pl.training.metric",
    "refine_pl.training.metric_validation",
    "refine_pl.training.metrics",
    "refine_pl.training.metric_table",
    "refine_pl.training.checks",
    "refine_pl.training.row_values",
    "refine_pl.training.tempered",
    "refine_pl.training.validation",
    "refine_pl.training.validation_plan",
    "refine_pl.training.yardstick",
    "refine_pl.training.record_files",
    "refine_pl.training.run_folder",
)
MIN_FILES = 150


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


def room(module):
    """The package, or the module beside the packages, that a module belongs to."""
    package, _, rest = module.partition(".")
    return package if package == "refine_kernels" else (rest.partition(".")[0] or "__init__")


def broken_rules(module, source, is_package=False):
    """What ``module`` imports although it may not."""
    found = imports(source, module, is_package)
    wrong = [name for name in found if name.partition(".")[0] == "kernels"]
    if room(module) not in MAY_IMPORT_LIGHTNING or module in WITHOUT_LIGHTNING:
        wrong += [n for n in found if inside(n, ("lightning", "pytorch_lightning"))]
    own = [name for name in found if name.partition(".")[0] in SOURCES]
    allowed = {room(module), *RULES.get(room(module), ())}
    if room(module) in ANY_BACKBONE:
        models = [name for name in own if room(name) == "backbones"]
        wrong += [n for n in models if not inside(n, BACKBONE_CONTRACT)]
    return wrong + [name for name in own if room(name) not in allowed]


def circles(graph):
    """Nodes that can be reached from themselves."""

    def reached(start):
        seen, todo = set(), list(graph[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph.get(node, ())
        return seen

    return sorted(node for node in graph if node in reached(node))


def import_graph(sources):
    """By module, the modules of ``sources`` that it imports."""
    graph = {}
    for module, (source, is_package) in sources.items():
        graph[module] = set()
        for name in imports(source, module, is_package):
            while name and name not in sources:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add(name)
    return graph


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


def test_every_room_has_a_rule_and_every_rule_a_room():
    assert {room(module) for module, _ in files()} == set(RULES)
    assert len(RULES) > 25


def test_the_rules_and_the_files_go_one_way():
    assert circles(RULES) == []
    sources = {m: (path.read_text(), path.name == "__init__.py") for m, path in files()}
    graph = import_graph(sources)
    assert circles(graph) == []
    assert sum(map(len, graph.values())) > 500
    # A circle is noticed, also one that only a type checker would go round.
    late = "if TYPE_CHECKING:\n    from refine_pl.training.module import RefineModule"
    sources["refine_pl.training.phases"] = (late, False)
    assert "refine_pl.training.phases" in circles(import_graph(sources))


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
