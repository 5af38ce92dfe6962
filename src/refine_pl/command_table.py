"""The subcommands of ``refine-pl``. Imports nothing."""

from __future__ import annotations

_TRAINER = "refine_pl.commands.lightning_cli"  # any method of Lightning's trainer
_ANSWERS = "refine_pl.commands.evaluating"

# name: (module with a main(argv), whether main gets the name too, one line for people)
COMMANDS = {
    "fit": (_TRAINER, True, "train: refine-pl fit --config tiny_mid"),
    "validate": (_TRAINER, True, "measure a model on held-out documents"),
    "test": (_ANSWERS, True, "answer and score rows of tasks"),
    "predict": (_ANSWERS, True, "answer prompts: refine-pl predict --prompts FILE"),
    "generate": ("refine_pl.commands.generate", False, "write on from a prompt, as a stream"),
    "lm-eval": ("refine_pl.commands.lm_eval", False, "tasks of EleutherAI's harness"),
    "sweep": ("refine_pl.commands.sweep", False, "run overlays and seeds, one after the other"),
    "compare": (
        "refine_pl.commands.compare",
        False,
        "arms of one start against plain training, with intervals",
    ),
    "bench": ("refine_pl.commands.bench", False, "time an update of a recipe's model"),
    "report": ("refine_pl.commands.report", False, "runs as a page with tables and figures"),
    "export": ("refine_pl.commands.export", False, "write a checkpoint in the published layout"),
    "prepare": ("refine_pl.commands.prepare", False, "rows of RULER from SQuAD and HotpotQA"),
    "recipes": ("refine_pl.commands.recipes", False, "list the recipes, or print one"),
    "completion": ("refine_pl.commands.completion", False, "complete options in your shell"),
    "doctor": ("refine_pl.commands.doctor", False, "versions, devices, and which kernels run"),
}
