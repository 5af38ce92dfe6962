"""Numbers that pages and recipes' headers print are those of the code and of the recipes.

Timings are not here: they are measurements, and stand with their date and command. Sizes of states
are in ``tests/numerics/test_state_sizes.py``.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pretended_updates
import pytest
import torch
import yaml

from refine_pl import backbones
from refine_pl.advantages import GroupRelative
from refine_pl.backbones import (
    DeltaNet,
    DeltaNetOptions,
    GatedDeltaNet,
    GatedDeltaNetOptions,
    LaCT,
    LaCTOptions,
    Qwen35,
)
from refine_pl.backbones.delta_rule_layer import SHORT
from refine_pl.callbacks import RolloutRecorder
from refine_pl.data import Bytes, RowFiles
from refine_pl.data.tasks import needles
from refine_pl.evaluation import mean_interval
from refine_pl.losses.base import MAX_LOG_RATIO
from refine_pl.report.paper import LONGBENCH
from refine_pl.selectors import Entropy
from refine_pl.training.checks import SMALL_LR
from refine_pl.training.flat_rewards import FLAT_ITERATIONS
from refine_pl.training.module import RefineModule

ROOT = Path(__file__).parents[2]
WORDS = {"three": 3, "four": 4, "twelve": 12}
NUMBER = rf"(-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?|{'|'.join(WORDS)})"
MIN_CLAIMS, MIN_NUMBERS = 60, 110


@dataclass(frozen=True)
class Claim:
    """A sentence of a page with numbers in it, and what they should be."""

    page: str
    text: str  # each @ stands for a number
    values: Callable[[], tuple[float, ...]]

    def printed(self, page=None):
        """The numbers on the page.

        Raises:
            AssertionError: the page does not say this.
        """
        page = (ROOT / self.page).read_text() if page is None else page
        page = re.sub(r"\s+", " ", page.replace("\n# ", " "))
        pattern = NUMBER.join(re.escape(part) for part in self.text.split("@"))
        found = re.search(pattern, page, re.IGNORECASE)
        assert found, f"{self.page} does not say: {self.text}"
        return tuple(number(text) for text in found.groups())

    def check(self, page=None):
        """Compare what the page prints with what is true.

        Raises:
            AssertionError: they differ.
        """
        printed, true = self.printed(page), self.values()
        assert len(printed) == len(true), f"{self.page}: {self.text}"
        assert printed == pytest.approx(true, rel=1e-9), f"{self.page}: {self.text}"
        return len(printed)


def number(text):
    """What a page prints: ``1,344``, ``1e-6``, ``four``."""
    return WORDS.get(text.lower()) or float(text.replace(",", ""))


def recipe(name):
    return yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())


def model(name):
    """What the recipe says of the model, over the module's defaults."""
    return {**defaults(RefineModule), **recipe(name)["model"]}


def data(name):
    return recipe(name)["data"]["init_args"]


def stages(name):
    return [stage["iterations"] for stage in recipe(name)["schedule"]["stages"].values()]


def defaults(function):
    return {k: p.default for k, p in inspect.signature(function).parameters.items()}


def default(function, *names):
    return lambda: tuple(defaults(function)[name] for name in names)


def fields(options, *names):
    """Defaults of a backbone's fields."""
    return lambda: tuple(getattr(options(), name) for name in names)


def size(policy):
    return sum(p.numel() for p in policy.parameters())


def parameters(name):
    """Of the model that a recipe trains."""
    backbone = recipe(name)["model"]["backbone"]
    with torch.device("meta"):
        kind = getattr(backbones, backbone["class_path"].rpartition(".")[2])
        return size(kind(**backbone["init_args"]))


def published(name):
    """Parameters of a published model: its configuration, or the class's defaults."""
    with torch.device("meta"):
        if name == "dn1.3b":
            return size(DeltaNet())
        if name == "gdn1.3b":
            width = {"num_hidden_layers": 24, "num_heads": 8, "head_dim": 256, "expand_v": 1}
            return size(GatedDeltaNet(**width))
        if name == "qwen3.5_0.8b":
            sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24}
            heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
            return size(
                Qwen35(**sizes, **heads, linear_num_value_heads=16, tie_word_embeddings=True)
            )
        heads = {"num_attn_heads": 24, "num_lact_heads": 4, "w0_w2_low_rank": 32}
        return size(LaCT(hidden_size=1536, **heads))


def iteration(name):
    """Batch, updates, mini-batch, rollouts and their length, as the first lines of a run say."""
    m, batch = model(name), data(name)["batch_size"]
    rollouts = batch * m["num_segments"] * m["rollouts_per_position"]
    minibatch = m["minibatch_size"]
    return batch, batch // minibatch, minibatch, rollouts, m["rollout_length"]


def needle_lengths():
    return data("eval/ruler_niah")["test"]["single"]["init_args"]["lengths"]


def needle_rows():
    (rows,) = {s["init_args"]["num_rows"] for s in data("eval/ruler_niah")["test"].values()}
    return rows


def needle_tokens():
    return len(data("eval/ruler_niah")["test"]) * needle_rows() * sum(needle_lengths())


def tiny_needle(name, source):
    arguments = data(name)["test"][source]["init_args"]
    return (arguments["num_rows"], *arguments["lengths"])


def tokens(name):
    """Read by mid-training."""
    return sum(stages(name)) * data(name)["batch_size"] * data(name)["sequence_length"]


def gigabytes(name, bytes_per_parameter):
    return published(name) * bytes_per_parameter / 1e9


def default_lr():
    parameter = torch.nn.Parameter(torch.zeros(1))
    module = RefineModule(DeltaNet(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_heads=1))
    return module.make_optimizer([parameter]).param_groups[0]["lr"]


def header(name, phase):
    """What the recipe of a published model says of its sizes."""
    if phase == "ttt":
        return {"copy of the weights (@ GB)": lambda: (round(gigabytes(name, 4), 1),)}
    rows = {"save_last: link} # @ GB each": lambda: (round(gigabytes(name, 12)),)}
    if phase == "mid":
        rows["@ million tokens"] = lambda: (round(tokens(f"{name}_mid") / 1e6, -1),)
        rows["gradients and Adam @,"] = lambda: (round(gigabytes(name, 16)),)
    return rows


def starts(name):
    """What the suite lets a layer add to an update, and to a step of decoding."""
    return lambda: tuple(pretended_updates.MODELS[name].starts.values())


def seconds_of(tokens_per_second, tflop):
    """Milliseconds of 16,384 tokens, what products of so many operations need, its share."""
    seconds = 16_384 / tokens_per_second
    needed = tflop / seconds
    return round(1000 * seconds), round(needed), round(100 * needed / 989)


SIZES = ("hidden_size", "num_hidden_layers")
TABLE = {
    "README.md": {
        "DeltaNet, @M parameters": lambda: (round(parameters("dn4m_mid") / 1e6, 1),),
    },
    "docs/performance.md": {
        "DeltaNet with @ parameters": lambda: (parameters("dn4m_mid"),),
        "`lact_tiny_mid` (@ heads of @, chunks of @)": lambda: (
            (b := recipe("lact_tiny_mid")["model"]["backbone"]["init_args"])["num_lact_heads"],
            b["hidden_size"] // b["num_lact_heads"],
            b["lact_chunk_size"],
        ),
        "at most @ (SFT), @ (joined) and @ (a step of decoding)": lambda: tuple(
            pretended_updates.MOST_LAUNCHES.values()
        ),
        "| DeltaNet, width 2,048 | @ | @ | @ |": starts("DeltaNet"),
        "| GatedDeltaNet, width 2,048 | @ | @ | @ |": starts("GatedDeltaNet"),
        "| LaCT, width 1,536 | @ | @ | @ |": starts("LaCT"),
        "| Qwen3.5, width 1,024 (attention) | @ | @ | @ |": starts("Qwen35"),
        "| OLMo-Hybrid, width 3,840 (delta rule) | @ | @ | @ |": starts("OlmoHybrid"),
        "| SFT 40,000 tokens/s | @ ms | @ TFLOP/s | @% |": lambda: seconds_of(40_000, 161.25),
        "| joined 36,000 tokens/s | @ ms | @ TFLOP/s | @% |": lambda: seconds_of(36_000, 172.98),
        "S = @ positions, L = @ tokens, N = @ rollout": default(
            RefineModule, "num_segments", "rollout_length", "rollouts_per_position"
        ),
    },
    "docs/getting_started.md": {
        "DeltaNet, @ parameters": lambda: (parameters("tiny_mid"),),
        "@ sequences = @ update of @; @ rollouts of @ tokens": lambda: iteration("tiny_mid"),
        "@ for validation; left out: 94 shorter than @ tokens": lambda: (
            data("tiny_mid")["num_validation_documents"],
            data("tiny_mid")["sequence_length"],
        ),
    },
    "docs/reproducing.md": {
        "with @ parameters": lambda: (parameters("tiny_life"),),
        "@ English tasks, rows": lambda: (len(LONGBENCH),),
        "@ rows for each of @ kinds and @ lengths": lambda: (
            needle_rows(),
            len(data("eval/ruler_niah")["test"]),
            len(needle_lengths()),
        ),
        "warm-up (@ iterations) and mid-training (@)": lambda: tuple(stages("tiny_life")[:2]),
        "nested post-training (@) on single needles in @ bytes": lambda: (
            stages("tiny_life")[2],
            *data("tiny_life")["sources"]["needles"]["init_args"]["training"]["needles"][
                "init_args"
            ]["lengths"],
        ),
        "asks for @ other needles": lambda: tiny_needle("tiny_ttt", "needles")[:1],
        "over the @ rows is": lambda: tiny_needle("eval/tiny_niah", "single")[:1],
    },
    "docs/checkpoints.md": {
        "| `DeltaNet` | @ |": lambda: (published("dn1.3b"),),
        "| `GatedDeltaNet` | @ |": lambda: (published("gdn1.3b"),),
        "| `LaCT` | @ |": lambda: (published("lact760m"),),
    },
    "configs/gdn1.3b_mid.yaml": {
        "GatedDeltaNet with @ billion": lambda: (round(published("gdn1.3b") / 1e9, 2),),
    },
    "docs/backbones/delta_net.md": {
        "`vocab_size` | @, @, @, @ | sizes": fields(
            DeltaNetOptions, *SIZES, "num_heads", "vocab_size"
        ),
        "`conv_size` | true, @ |": fields(DeltaNetOptions, "conv_size"),
        "more than @.": lambda: (SHORT,),
    },
    "docs/backbones/gated_delta_net.md": {
        "`vocab_size` | @, @, @ | sizes": fields(GatedDeltaNetOptions, *SIZES, "vocab_size"),
        "`num_heads` | @, @ |": fields(GatedDeltaNetOptions, "head_dim", "num_heads"),
        "`expand_v` | @ |": fields(GatedDeltaNetOptions, "expand_v"),
    },
    "docs/backbones/lact.md": {
        "`vocab_size` | @, @, @ | sizes": fields(LaCTOptions, *SIZES, "vocab_size"),
        "`window_size` | @, @ |": fields(LaCTOptions, "num_attn_heads", "window_size"),
        "`inter_multi` | @, @ |": fields(LaCTOptions, "num_lact_heads", "inter_multi"),
        "`lact_chunk_size` | @ |": fields(LaCTOptions, "lact_chunk_size"),
        "`fw_init_gain` | @, @ |": fields(LaCTOptions, "w0_w2_low_rank", "fw_init_gain"),
        "`rope_theta` | @ |": fields(LaCTOptions, "rope_theta"),
    },
    "docs/differences.md": {
        "S = @, L = @, N = @, `minibatch_size` @, `ntp_weight` @, `policy_weight` @,": default(
            RefineModule,
            "num_segments",
            "rollout_length",
            "rollouts_per_position",
            "minibatch_size",
            "ntp_weight",
            "policy_weight",
        ),
        "AdamW at learning rate @,": lambda: (default_lr(),),
        "in `tiny_mid` N = @ with": lambda: (model("tiny_mid")["rollouts_per_position"],),
        "which is its PPO clip | @ |": default(RefineModule, "gradient_clip"),
    },
    "docs/four_steps.md": {
        "`selection_temperature` @ (of `Entropy`)": default(Entropy, "selection_temperature"),
        "`min_prefix` @, `min_suffix` @, `offset` @.": default(
            Entropy, "min_prefix", "min_suffix", "offset"
        ),
        "`ntp_weight` @, `policy_weight` @, `kl_weight` @.": default(
            RefineModule, "ntp_weight", "policy_weight", "kl_weight"
        ),
        "The gradient is clipped to norm @": default(RefineModule, "gradient_clip"),
        "with ddof @, eps @": default(GroupRelative, "ddof", "eps"),
        "clamp(logprob - old_logprob, @, @)": lambda: (-MAX_LOG_RATIO, MAX_LOG_RATIO),
        "`@ sequences = @ updates of @; @ rollouts of @ tokens`": lambda: iteration("dn1.3b_mid"),
    },
    "docs/ablations.md": {
        "`num_segments/@` needs sequences of @ tokens": lambda: (
            n := recipe("ablations/num_segments/64")["model"]["num_segments"],
            n * (defaults(Entropy)["min_suffix"] + 1),
        ),
    },
    "docs/configuration.md": {
        "with their rewards every @ iterations": default(RolloutRecorder, "every_n_iterations"),
        "learning rate below @,": lambda: (SMALL_LR,),
    },
    "docs/reading_a_run.md": {
        "(`prefix_tokens`, @)": default(RolloutRecorder, "prefix_tokens"),
        "for @ iterations, the run warns": lambda: (FLAT_ITERATIONS,),
    },
    "docs/phases.md": {
        "A batch of @ rows with mini-batches of @ therefore takes @ + 1": lambda: (
            batch := data("dn1.3b_post")["batch_size"],
            minibatch := model("dn1.3b_post")["minibatch_size"],
            batch // minibatch,
        ),
    },
    "docs/data.md": {
        "ids 0 to @, and @ ends a text; `vocab_size` @": lambda: (
            255,
            Bytes().eos_token_id,
            Bytes().vocab_size,
        ),
    },
    "docs/task_data.md": {
        "an answer; @ without it": default(RowFiles, "max_gen_tokens"),
        "Any length from @ tokens": lambda: (needles.MIN_LENGTH,),
    },
    "docs/evaluating.md": {
        "@ kinds at @, @ and @ tokens, @ rows each": lambda: (
            len(data("eval/ruler_niah")["test"]),
            *needle_lengths(),
            needle_rows(),
        ),
        "@ single needles in @ bytes": lambda: tiny_needle("eval/tiny_niah", "single"),
        "the @ English tasks": lambda: (len(LONGBENCH),),
    },
    "docs/scoring.md": {
        "Both draw @ test sets": default(mean_interval, "resamples"),
        "gives the @% percentile": lambda: (100 * defaults(mean_interval)["level"],),
    },
    "configs/eval/ruler_niah.yaml": {
        "@ kinds of needles, @ rows each of @, @ and @ tokens": lambda: (
            len(data("eval/ruler_niah")["test"]),
            needle_rows(),
            *needle_lengths(),
        ),
        "@ million tokens are read": lambda: (round(needle_tokens() / 1e6),),
    },
}
for _name in ("dn1.3b", "gdn1.3b", "lact760m", "qwen3.5_0.8b"):
    for _phase in ("mid", "post", "ttt"):
        TABLE.setdefault(f"configs/{_name}_{_phase}.yaml", {}).update(header(_name, _phase))
CLAIMS = [Claim(page, *row) for page, rows in TABLE.items() for row in rows.items()]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.text}")
def test_numbers_are_true(claim):
    claim.check()


def test_enough_numbers_are_checked():
    assert len(CLAIMS) == len({(claim.page, claim.text) for claim in CLAIMS}) >= MIN_CLAIMS
    assert sum(len(claim.printed()) for claim in CLAIMS) >= MIN_NUMBERS


BROKEN = {
    "another number": ("DeltaNet, 1,122,945 parameters", "1122945"),
    "no such sentence": ("DeltaNet with many parameters", "does not say"),
    "a number too few": ("DeltaNet, parameters", "does not say"),
}


@pytest.mark.parametrize(("page", "message"), BROKEN.values(), ids=BROKEN)
def test_wrong_numbers_are_found(page, message):
    claim = Claim("page.md", "DeltaNet, @ parameters", lambda: (parameters("tiny_mid"),))
    assert claim.check("DeltaNet, 1,122,944\nparameters") == 1
    with pytest.raises(AssertionError, match=message):
        claim.check(page)
