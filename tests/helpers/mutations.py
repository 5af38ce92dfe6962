"""Ways to spoil a configuration: one random change of a legal file, or of the options beside it."""

import copy
import datetime
import inspect
import string
from dataclasses import dataclass

import yaml
from jsonargparse._util import import_object
from lightning.pytorch import Trainer

INFINITE = float("inf")
NUMBERS = [0, 1, -1, -5, 3, 2**31, 10**9, 10**18, 10**30, -(10**30), 0.5, -0.5, 1.0, 1e-300, 1e300]
NUMBERS += [INFINITE, -INFINITE, float("nan"), True, False, 10**400]
TEXTS = ["", " ", "x", "bananas", "1e3", "nan", "null", "true", "3", "é\u2028\t", "a" * 300, "\x00"]
TEXTS += ["/dev/null", "/dev/null/x", "docs", "docs/0.txt", "docs/0.txt/x", "/nowhere/x", "~", ".."]
TEXTS += ["auto", "cpu", "gpu", "cuda", "tpu", "ddp", "fsdp", "last", "best", "link", "empty.yaml"]
TEXTS += ["broken.json", "docs/*.txt", "**", "[", "%s", "{step", "{x}", "self.yaml", "folder.yaml"]
OTHERS = [None, [], [[]], [1], ["x"], [None], [{}], {}, {"a": 1}, {"x": None}, {1: 2}, {"": ""}]
OTHERS += [{"class_path": 3}, {"class_path": "x"}, {"class_path": "x.Y"}, {"init_args": {}}]
OTHERS += [{"class_path": "torch.nn.Linear"}, {"class_path": None, "init_args": None}, b"\xff\x00"]
OTHERS += [{"class_path": "refine_pl.rewards.ExactMatch", "init_args": []}, {"lr": [0.1, 0.2, 0.3]}]
OTHERS += [datetime.date(2026, 1, 1), {"stages": None}, [0.9, 0.98], [-1, 2], ["a", 1, None]]
VALUES = [*NUMBERS, *TEXTS, *OTHERS]

OWN_CLASSES = """
backbones.DeltaNet backbones.GatedDeltaNet backbones.LaCT backbones.load_pretrained
selectors.Entropy selectors.Fixed selectors.Random selectors.Even selectors.Extremum rollouts.Forked
rollouts.Recompute rewards.ExactMatch rewards.EmbeddingSimilarity rewards.LogLikelihood
rewards.EditDistance rewards.FromFunction rewards.WeightedSum rewards.Reward
advantages.GroupRelative advantages.LeaveOneOut losses.ClippedPolicy losses.SequenceRatio
losses.ClippedWeights losses.Reinforce losses.PolicyLoss data.Files data.HubDataset
data.StandardLibrary data.Bytes data.HubTokenizer data.TextData data.TaskData data.StageData
data.NeedleInAHaystack data.MultiDocumentQA data.RowFiles training.PostTraining
training.TestTimeTraining training.Schedule training.Phase callbacks.RolloutRecorder
callbacks.ProgressBar callbacks.TokenBudget callbacks.RunSummary evaluation.Answering
objectives.SupervisedAnswers RefineModule errors.UserError
"""
OTHER_CLASSES = """
torch.optim.AdamW torch.optim.SGD torch.optim.LBFGS torch.optim.SparseAdam torch.optim.Rprop
torch.optim.Muon torch.optim.lr_scheduler.StepLR torch.optim.lr_scheduler.ReduceLROnPlateau
torch.optim.lr_scheduler.LambdaLR torch.nn.Linear torch.Tensor torch.tensor torch.optim.Optimizer
lightning.pytorch.callbacks.EarlyStopping lightning.pytorch.callbacks.Timer
lightning.pytorch.callbacks.StochasticWeightAveraging lightning.pytorch.callbacks.BatchSizeFinder
lightning.pytorch.callbacks.GradientAccumulationScheduler lightning.pytorch.callbacks.Callback
lightning.pytorch.callbacks.ModelPruning lightning.pytorch.callbacks.LearningRateMonitor
lightning.pytorch.callbacks.LearningRateFinder lightning.pytorch.callbacks.RichProgressBar
lightning.pytorch.callbacks.ModelSummary lightning.pytorch.callbacks.OnExceptionCheckpoint
lightning.pytorch.loggers.CSVLogger lightning.pytorch.loggers.WandbLogger
lightning.pytorch.strategies.SingleDeviceStrategy lightning.pytorch.strategies.FSDPStrategy
lightning.pytorch.strategies.DDPStrategy lightning.pytorch.strategies.ModelParallelStrategy
lightning.pytorch.LightningModule lightning.pytorch.LightningDataModule
lightning.pytorch.demos.boring_classes.BoringDataModule lightning.pytorch.Trainer
lightning.pytorch.profilers.SimpleProfiler lightning.pytorch.plugins.MixedPrecision builtins.dict
builtins.print builtins.object builtins.None collections.OrderedDict math.sqrt json.dumps
typing.Any abc.ABC pathlib.Path no.such.Thing .x x. a..b refine_pl refine_pl.nothing
"""
CLASSES = [f"refine_pl.{name}" for name in OWN_CLASSES.split()] + OTHER_CLASSES.split()

OPTIONS = """
--seed_everything --ckpt_path --config --model.num_segments --model.backbone --model.pretrained
--model.rewards --model.rewards.match.init_args.weight --model.optimizer --model.optimizer.lr
--model.lr_scheduler --model.selector --model.selector.min_prefix --model.backbone.num_heads
--data --data.batch_size --data.init_args.batch_size --data.corpus --data.cache_dir --trainer
--trainer.accelerator --trainer.devices --trainer.precision --trainer.strategy
--trainer.max_epochs --trainer.logger --trainer.logger.save_dir --trainer.logger.name
--trainer.logger.version --trainer.callbacks --trainer.plugins --trainer.profiler
--trainer.limit_train_batches --trainer.limit_val_batches --trainer.default_root_dir
--trainer.fast_dev_run --schedule --schedule.stages --schedule.stages.warm-up.iterations
--schedule.stages.refine.ramp.lr --phase --phase.mode --recorder --recorder.every_n_iterations
--checkpoint --checkpoint.dirpath --checkpoint.filename --checkpoint.save_top_k
--checkpoint.monitor --progress --summary --random_state --throughput --weights_only
--print_config --help --model.help --data.help --out --prompts
"""


@dataclass
class Mutation:
    """A spoilt configuration.

    Args:
        what: the change, in words.
        content: of the file.
        options: of the command line, beside the file.
    """

    what: str
    content: bytes
    options: list[str]


def mutated(config, rng):
    """A random mutation of a configuration; the same for the same state of ``rng``."""
    kind = rng.choices(
        [_replace, _give, _swap_class, _delete, _rename, _move, _wrap, _spoil_text, _option],
        [30, 16, 12, 6, 6, 6, 4, 8, 12],
    )[0]
    return kind(copy.deepcopy(config), rng)


def text_of(config):
    """The file of a configuration."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _in_file(what, config):
    return Mutation(what, text_of(config), [])


def _paths(values, above=()):
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, item in items:
        yield (*above, name)
        if isinstance(item, dict | list):
            yield from _paths(item, (*above, name))


def _at(config, path):
    for part in path:
        config = config[part]
    return config


def _value(rng, old=None):
    if rng.random() < 0.25 and type(old) in (int, float):
        changes = [-old, old + 1, old - 1, old * 2, old * 10**6, str(old), [old], float(old)]
        return rng.choice([*changes, old / 3])
    return copy.deepcopy(rng.choice(VALUES))


def _replace(config, rng):
    *above, name = rng.choice(list(_paths(config)))
    place = _at(config, above)
    place[name] = _value(rng, place[name])
    return _in_file(f"{(*above, name)} is {place[name]!r:.60}", config)


def _parameters(path):
    with_bugs = (ImportError, AttributeError, ValueError, TypeError)
    try:
        return list(inspect.signature(import_object(path)).parameters)
    except with_bugs:
        return []


def _give(config, rng):
    """A parameter that the file does not give, of the trainer or of a class that is named."""
    owners = [("trainer",)] * 3 + [p for p in _paths(config) if p[-1] in ("init_args", "trainer")]
    owner = rng.choice(owners)
    if owner == ("trainer",):
        config.setdefault("trainer", {})
        names = list(inspect.signature(Trainer.__init__).parameters)[1:]
    else:
        names = _parameters(_at(config, owner[:-1])["class_path"])
    name = rng.choice(names or ["x"])
    place = _at(config, owner)
    place[name] = _value(rng, place.get(name))
    return _in_file(f"{(*owner, name)} is {place[name]!r:.60}", config)


def _swap_class(config, rng):
    path = rng.choice([p for p in _paths(config) if p[-1] == "class_path"])
    spec = _at(config, path[:-1])
    spec["class_path"] = rng.choice(CLASSES)
    if rng.random() < 0.5:  # else with the arguments of the other class
        spec.pop("init_args", None)
    return _in_file(f"{path} is {spec['class_path']}", config)


def _delete(config, rng):
    *above, name = rng.choice(list(_paths(config)))
    del _at(config, above)[name]
    return _in_file(f"no {(*above, name)}", config)


def _renamed(name, rng):
    place = rng.randrange(len(name) + 1)
    letter = rng.choice(string.ascii_lowercase + ".-_ ")
    return rng.choice([name[:place] + name[place + 1 :], name[:place] + letter + name[place:]])


def _rename(config, rng):
    *above, name = rng.choice([p for p in _paths(config) if isinstance(p[-1], str)])
    place = _at(config, above)
    other = _renamed(name, rng) if rng.random() < 0.7 else rng.choice([1, None, 0.5, True, "", "x"])
    items = [(other if key == name else key, item) for key, item in place.items()]
    place.clear()
    place.update(items)
    return _in_file(f"{(*above, name)} is called {other!r}", config)


def _move(config, rng):
    """To another level, or in the place of another value."""
    paths = list(_paths(config))
    source, target = rng.choice(paths), rng.choice(paths)
    value = copy.deepcopy(_at(config, source))
    if rng.random() < 0.5 and source[:1] != target[:1]:
        del _at(config, source[:-1])[source[-1]]
    place = _at(config, target[:-1])
    if isinstance(place, dict) and isinstance(source[-1], str) and rng.random() < 0.6:
        place[source[-1]] = value
    else:
        place[target[-1]] = value
    return _in_file(f"{source} at {target}", config)


def _wrap(config, rng):
    """A value as a list, as a mapping, or many times in itself."""
    *above, name = rng.choice(list(_paths(config)))
    place = _at(config, above)
    depth = rng.choice([1, 1, 2, 2000])
    as_list = rng.random() < 0.5
    value = place[name]
    if depth > 2:  # as text: the dumper itself would recurse too deep
        place[name] = "DEEP"
        deep = b"[" * depth + b"]" * depth if as_list else b"{a: " * depth + b"1" + b"}" * depth
        what = f"{(*above, name)} is {depth} deep"
        return Mutation(what, text_of(config).replace(b"DEEP", deep), [])
    for _ in range(depth):
        value = [value] if as_list else {"a": value}
    place[name] = value
    return _in_file(f"{(*above, name)} is inside of {depth}", config)


def _spoil_text(config, rng):
    """Bytes, not values: what an editor, a copy or a full disk makes of a file."""
    content = text_of(config)
    lines = content.splitlines(keepends=True)
    at, line = rng.randrange(len(content)), rng.randrange(len(lines))
    nines = b"[" + b", ".join([b"*a"] * 9) + b"]"
    bombs = [
        b"b%d: &b%d %s\n" % (i, i, nines.replace(b"*a", b"*b%d" % (i - 1))) for i in range(1, 9)
    ]
    big = b"9" * 5000
    changes = {
        "cut off": content[:at],
        "empty": b"",
        "blank": b"\n \n",
        "one letter gone": content[:at] + content[at + 1 :],
        "one letter more": content[:at] + bytes([rng.randrange(256)]) + content[at:],
        "a line twice": b"".join([*lines[: line + 1], *lines[line:]]),
        "a line gone": b"".join(lines[:line] + lines[line + 1 :]),
        "tabs": content.replace(b"  ", b"\t"),
        "another encoding": content.decode().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + content,
        "zeros": content[:at] + b"\x00" * 20 + content[at:],
        "noise": rng.randbytes(300),
        "a list": b"- 1\n- 2\n",
        "a word": b"bananas\n",
        "two documents": content + b"---\n" + content,
        "an anchor in itself": b"model: &a [*a]\n" + content.replace(b"model:", b"modl:"),
        "a mapping in itself": b"model: &a {x: *a}\n" + content.replace(b"model:", b"modl:"),
        "a merge of itself": b"trainer: &a\n  <<: *a\n" + content.replace(b"trainer:", b"t:"),
        "a bomb of aliases": b"b0: &b0 [x, x]\n" + b"".join(bombs) + content,
        "an unknown tag": b"x: !!python/object/apply:os.getcwd []\n" + content,
        "a set": content.replace(b"model:", b"model: !!set"),
        "an undefined alias": b"x: *nothing\n" + content,
        "many digits": b"seed_everything: " + big + b"\n" + content,
        "many digits in it": content.replace(b": 2\n", b": " + big + b"\n"),
        "a huge exponent": content.replace(b": 2\n", b": 1.0e+99999\n"),
        "a date that is none": content.replace(b": 2\n", b": 2026-99-99\n"),
        "a key that is a list": b"? [1, 2]\n: 3\n" + content,
        "a key that is a mapping": b"{{a: 1}: 2}\n",
        "deep": b"[" * 3000,
    }
    name = rng.choice(list(changes))
    return Mutation(name, changes[name], [])


def _option(config, rng):
    option = rng.choice(OPTIONS.split())
    if rng.random() < 0.15:
        option = _renamed(option, rng)
    kind = rng.randrange(5)
    value = rng.choice(CLASSES) if kind == 0 else _value(rng)
    shown = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
    shown = shown.removesuffix("\n...\n").strip("\n").replace("\x00", "\\0")
    options = [f"{option}={shown}"] if kind < 3 else [option, shown]
    return Mutation(f"{options}"[:90], text_of(config), options)
