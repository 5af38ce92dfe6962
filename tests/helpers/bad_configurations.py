"""Configurations that must be refused, and what the message must say."""

from dataclasses import dataclass, field

from command_line import GONE


@dataclass
class Case:
    """A configuration that must be refused.

    Args:
        name: of the test.
        edits: of the legal configuration, by dotted key; or its whole text.
        shows: what the message must say.
        options: more of the command line.
        line: text on the line of the file that the message must name, if it must name one.
    """

    name: str
    edits: dict | str
    shows: list
    options: list = field(default_factory=list)
    line: str | None = None


def needles(haystack):
    """Rows of needles as data, with a haystack."""
    rows = {"kind": "single", "lengths": [256], "haystack": haystack}
    source = {"class_path": "refine_pl.data.NeedleInAHaystack", "init_args": rows}
    tokenizer = {"class_path": "refine_pl.data.Bytes"}
    arguments = {"tokenizer": tokenizer, "training": {"needles": source}, "batch_size": 2}
    return {"class_path": "refine_pl.data.TaskData", "init_args": arguments}


MODEL = "model.backbone.init_args"
LINEAR = "torch.optim.lr_scheduler.LinearLR"
TORCH_SEQUENCE = {
    "class_path": "torch.optim.lr_scheduler.SequentialLR",
    "init_args": {"schedulers": [{"class_path": LINEAR}], "milestones": []},
}
CASES = [
    # Keys that do not exist.
    Case("top level", {"modle": 1}, ["modle", "did you mean model?"], line="modle"),
    Case("model", {"model.num_segmnts": 8}, ["model.num_segmnts", "num_segments?"], line="segmnts"),
    Case("trainer", {"trainer.max_epoch": 8}, ["trainer.max_epoch", "max_epochs?"], line="epoch:"),
    Case(
        "init_args",
        {"model.selector.init_args.min_prefx": 8},
        ["model.selector.init_args.min_prefx", "refine_pl.selectors.Entropy", "mean min_prefix?"],
        line="prefx",
    ),
    Case(
        "init_args of one of several",
        {"model.rewards.exact.init_args.wieght": 1},
        ["model.rewards.exact.init_args.wieght", "did you mean weight?"],
        line="wieght",
    ),
    Case(
        "init_args in a list",
        {"trainer.callbacks.0.init_args.save_topk": 1},
        ["trainer.callbacks[0].init_args.save_topk", "did you mean save_top_k?"],
        line="save_topk",
    ),
    Case(
        "init_args of the data",
        {"data.init_args.corpus.init_args.path": "x"},
        ["data.init_args.corpus.init_args.path", "did you mean paths?"],
        line="path: x",
    ),
    Case(
        "init_args of the optimizer",
        {"model.optimizer.init_args.weigth_decay": 0.1},
        ["model.optimizer.init_args.weigth_decay", "torch.optim.AdamW", "mean weight_decay?"],
        line="weigth",
    ),
    Case(
        "a class with a default",
        {"model.policy_loss.init_args.clip_low": 0.1},
        ["model.policy_loss.init_args.clip_low", "did you mean clip_ratio_low?"],
        line="clip_low",
    ),
    # A word or a class may stand there.
    Case(
        "a word beside classes",
        {"data": needles("nois")},
        ["haystack is 'nois'", "noise, needles; or a class_path of a Corpus", "you mean noise?"],
        line="nois",
    ),
    Case(
        "a class beside words",
        {"data": needles("StandardLibary")},
        ["haystack is 'StandardLibary'", "mean refine_pl.data.StandardLibrary?"],
        line="haystack",
    ),
    Case(
        "a setting of a stage",
        {"schedule": {"stages": {"a": {"iteratons": 3}}}},
        ["schedule.stages.a.iteratons", "did you mean iterations?"],
        line="iteratons",
    ),
    Case(
        "a stage without iterations",
        {"schedule": {"stages": {"a": {"lr": 0.1}}}},
        ["schedule.stages.a.iterations is missing", "an integer > 0"],
    ),
    Case(
        "a key of a callback",
        {"recorder": {"every_n_iteration": 3}},
        ["recorder.every_n_iteration", "did you mean every_n_iterations?"],
        line="every_n_iteration",
    ),
    Case(
        "neither a callback nor off",
        {"recorder": "sometimes"},
        ["recorder is 'sometimes'", "false, true; or a class_path of a RolloutRecorder"],
        line="sometimes",
    ),
    Case(
        "a phase that there is not",
        {"phase": "PostTrainin"},
        ["no Phase called PostTrainin", "did you mean refine_pl.training.PostTraining?"],
        line="PostTrainin",
    ),
    Case(
        "a mode of a phase",
        {"phase": "PostTraining"},
        ["phase.mode is 'nested'", "one of sft, nested_sft, nested_refine"],
        ["--phase.mode", "nested"],
    ),
    Case(
        "beside init_args",
        {"model.selector.min_prefix": 8},
        ["model.selector.min_prefix", "go under model.selector.init_args"],
        line="min_prefix: 8",
    ),
    Case("at the wrong level", {"num_segments": 8}, ["num_segments", "mean model.num_segments?"]),
    # Keys that are missing, given twice or null.
    Case("no backbone", {"model.backbone": GONE}, ["model.backbone is missing", "DeltaNet"]),
    Case("no data", {"data": GONE}, ["data is missing", "refine_pl.data.TextData"]),
    Case(
        "no argument",
        {"data.init_args.sequence_length": GONE},
        ["data.init_args.sequence_length is missing", "an integer > 0"],
    ),
    Case("null class", {"model.selector": None}, ["model.selector is null"], line="selector"),
    Case(
        "null number",
        {"model.num_segments": None},
        ["model.num_segments is null", "an integer > 0"],
        line="num_segments",
    ),
    Case(
        "twice", "seed_everything: 1\nmodel: {}\nseed_everything: 2\n", ["twice", "lines 1 and 3"]
    ),
    # Values.
    Case(
        "type", {"model.num_segments": "four"}, ["model.num_segments is 'four'", "an integer > 0"]
    ),
    Case(
        "bound",
        {"model.num_segments": 0},
        ["model.num_segments is 0", "an integer > 0"],
        line="num_segments",
    ),
    Case(
        "bound in a class",
        {"model.selector.init_args.min_prefix": -1},
        ["model.selector.init_args.min_prefix is -1", "an integer > 0"],
        line="min_prefix",
    ),
    Case("float bound", {"model.ntp_weight": -0.5}, ["ntp_weight is -0.5", "a number >= 0"]),
    Case(
        "choice",
        {"model.rollouts_per": "minibach"},
        ["'minibach'", "one of batch, minibatch", "did you mean minibatch?"],
        line="minibach",
    ),
    Case(
        "a word or a number",
        {"model.draw_batch": 0},
        ["model.draw_batch is 0", "auto", "an integer > 0"],
        line="draw_batch",
    ),
    Case(
        "draws of half a micro-batch",
        {"model.draw_batch": 3, "model.microbatch_size": 2, "model.minibatch_size": 8},
        ["rollouts of 3 sequences at once", "micro-batches of 2", "model.draw_batch"],
    ),
    Case(
        "optional",
        {"trainer.max_epochs": "many"},
        ["trainer.max_epochs is 'many'", "an integer or null"],
    ),
    Case("text for a group", {"model": "tiny"}, ["model is 'tiny'", "mapping"], line="tiny"),
    Case(
        "list for a mapping", {"model.rewards": [1]}, ["model.rewards is [1]", "mapping of names"]
    ),
    Case("empty", "", ["the configuration is empty"]),
    Case("a list", "- model\n", ["a list, not a mapping"]),
    Case("not YAML", "model:\n  seed: 1\n  a: b: 1\n", ["not valid YAML", "bad.yaml, line 3"]),
    Case("a tab", "model:\n\tnum_segments: 1\n", ["not valid YAML", "bad.yaml, line 2"]),
    # Classes.
    Case(
        "wrong kind",
        {"model.rewards.exact.class_path": "refine_pl.selectors.Entropy"},
        ["model.rewards.exact", "not a Reward but a PositionSelector", "refine_pl.rewards.ExactM"],
        line="refine_pl.selectors.Entropy",
    ),
    Case(
        "misspelt",
        {"model.rewards.exact.class_path": "refine_pl.rewards.ExactMach"},
        ["refine_pl.rewards has no ExactMach", "did you mean refine_pl.rewards.ExactMatch?"],
        line="ExactMach",
    ),
    Case(
        "misspelt package",
        {"model.selector.class_path": "refine_pl.selector.Entropy"},
        ["no module refine_pl.selector", "did you mean refine_pl.selectors.Entropy?"],
        line="selector.Entropy",
    ),
    Case(
        "misspelt bare name",
        {"model.selector": "Entropi"},
        ["no PositionSelector called Entropi", "did you mean refine_pl.selectors.Entropy?"],
        line="Entropi",
    ),
    Case(
        "misspelt data",
        {"data.class_path": "refine_pl.data.TextDate"},
        ["refine_pl.data has no TextDate", "did you mean refine_pl.data.TextData?"],
        line="TextDate",
    ),
    Case(
        "misspelt optimizer",
        {"model.optimizer.class_path": "torch.optim.AdmaW"},
        ["torch.optim has no AdmaW", "did you mean torch.optim.AdamW?"],
        line="AdmaW",
    ),
    Case(
        "misspelt callback",
        {"trainer.callbacks.0.class_path": "refine_pl.callbacks.RolloutRecoder"},
        ["no RolloutRecoder", "did you mean refine_pl.callbacks.RolloutRecorder?"],
        line="RolloutRecoder",
    ),
    Case(
        "schedulers that are made already",
        {"model.lr_scheduler": TORCH_SEQUENCE},
        [
            "model.lr_scheduler is torch.optim.lr_scheduler.SequentialLR",
            "made from objects, not from settings",
            "way out: refine_pl.training.SequentialLR, with the same arguments",
        ],
        line="SequentialLR",
    ),
    Case(
        "an argument of a scheduler",
        {"model.lr_scheduler": {"class_path": LINEAR, "init_args": {"total_iter": 4}}},
        ["model.lr_scheduler.init_args.total_iter", LINEAR, "did you mean total_iters?"],
        line="total_iter",
    ),
    Case(
        "abstract",
        {"model.selector": "refine_pl.selectors.base.PositionSelector"},
        ["abstract: it does not define select"],
        line="PositionSelector",
    ),
    Case(
        "a module of one's own that is not there",
        {"model.rewards.mine.class_path": "my_rewrads.Brackets"},
        ["no module my_rewrads", "looked for from the folder"],
        line="my_rewrads",
    ),
    Case(
        "a class of one's own that is not there",
        {"model.rewards.mine.class_path": "cli_errors_rewards.Bracket"},
        ["has no Bracket", "did you mean cli_errors_rewards.Brackets?"],
    ),
    Case(
        "an argument of a class of one's own",
        {
            "model.rewards.mine.class_path": "cli_errors_rewards.Brackets",
            "model.rewards.mine.init_args": {"peers": "()"},
        },
        [
            "model.rewards.mine.init_args.peers",
            "cli_errors_rewards.Brackets",
            "did you mean pairs?",
        ],
        line="peers",
    ),
    Case(
        "a missing argument of a class of one's own",
        {"model.rewards.mine.class_path": "cli_errors_rewards.Brackets"},
        ["model.rewards.mine.init_args.pairs is missing"],
    ),
    Case(
        "a module of one's own that is broken",
        {"model.rewards.mine.class_path": "cli_errors_broken.Brackets"},
        ["cannot be imported: NameError: name 'nowhere' is not defined", "broken.py, line 1"],
    ),
    # Options.
    Case(
        "option",
        {},
        ["model.num_segmnts", "command line, --model.num_segmnts", "did you mean num_segments?"],
        ["--model.num_segmnts", "3"],
    ),
    Case(
        "option of a class",
        {},
        ["model.selector.min_prefx", "did you mean min_prefix?"],
        ["--model.selector.min_prefx=3"],
    ),
    Case(
        "option of a class that an option chose",
        {},
        ["refine_pl.selectors.Fixed", "did you mean stride?"],
        ["--model.selector=Fixed", "--model.selector.strde", "3"],
    ),
    Case(
        "option of one of several",
        {},
        ["model.rewards.mne has no class_path", "did you mean model.rewards.mine?"],
        ["--model.rewards.mne.init_args.weight", "0"],
    ),
    Case(
        "value of an option",
        {},
        ["model.num_segments is 'x'", "command line, --model.num_segments", "an integer > 0"],
        ["--model.num_segments", "x"],
    ),
    Case(
        "abbreviated option",
        {},
        ["model.num_seg is not a known key", "did you mean num_segments?"],
        ["--model.num_seg", "3"],
    ),
    Case(
        "a part of a class of one's own",
        {
            "model.rewards.mine.class_path": "cli_errors_rewards.Brackets",
            "model.rewards.mine.init_args": {"pairs": "()", "style": {"class_path": "x.Y"}},
        },
        ["x.Y cannot be imported: there is no module x", "cli_errors_rewards.Round"],
        line="x.Y",
    ),
    Case(
        "option of a stage that there is not",
        {"schedule": {"stages": {"warm-up": {"iterations": 3}}}},
        ["no stage 'warmup'", "command line, --schedule.stages.warmup.iterations", "mean warm-up?"],
        ["--schedule.stages.warmup.iterations", "2"],
    ),
    Case(
        "rate of the optimizer where stages have their own",
        {"schedule": {"stages": {"a": {"iterations": 1, "ramp": {"lr": [0.1, 0.2]}}}}},
        ["model.optimizer.lr would have no effect", "a.ramp.lr", "--schedule.stages.a.ramp.lr"],
        ["--model.optimizer.lr", "0.05"],
    ),
    Case("option without value", {}, ["--model.seed has no value"], ["--model.seed"]),
    Case("no option", {}, ["'stray' is not an option"], ["stray"]),
    Case(
        "file without --config",
        {},
        ["'bad.yaml' is not an option", "--config bad.yaml"],
        ["bad.yaml"],
    ),
    Case(
        "missing file",
        {},
        ["no configuration file baad.yaml", "did you mean bad.yaml?"],
        ["--config", "baad.yaml"],
    ),
    Case("folder", {}, ["docs is a folder"], ["--config", "docs"]),
    Case(
        "second file",
        {},
        ["model.seeed", "overlay.yaml, line 2", "did you mean seed?"],
        ["--config", "overlay.yaml"],
    ),
    # What constructors and checks of the whole run refuse.
    Case("head width", {f"{MODEL}.num_heads": 3}, ["not a whole head width"]),
    Case("tokens", {f"{MODEL}.vocab_size": 100}, ["100", "model.backbone.init_args.vocab_size"]),
    Case(
        "segments",
        {"model.num_segments": 40},
        ["40 segments do not fit sequences of 48 tokens", "a smaller num_segments"],
    ),
    Case(
        "float16, which Lightning would replace on a CPU",
        {"trainer.precision": "16-mixed"},
        ["trainer.precision is 16-mixed", "bf16-mixed"],
    ),
    Case(
        "a negative number with an exponent",
        {},
        ["gradient_clip is '-1e-3'", "a number > 0"],
        ["--model.gradient_clip", "-1e-3"],
    ),
    Case("batch", {"model.minibatch_size": 3}, ["batches of 2 sequences", "model.minibatch_size"]),
    Case("rate", {"model.optimizer.init_args.lr": -1}, ["AdamW refuses", "learning rate: -1"]),
    Case("device", {"trainer.accelerator": "tpu"}, ["refuses its settings"]),
    Case(
        "callback",
        {"trainer.callbacks.0.init_args.save_top_k": -3},
        ["ModelCheckpoint refuses its settings", "save_top_k=-3"],
    ),
    Case(
        "files", {"data.init_args.corpus.init_args.paths": "x/*.txt"}, ["no file matches 'x/*.txt'"]
    ),
    Case("short documents", {"data.init_args.sequence_length": 4096}, ["4,096"]),
]
