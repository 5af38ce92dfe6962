"""Whole updates on the pretended GPU (``pretended_cuda``), and the rules that they have to keep.

Two layers of published models, at full width. What 24 layers need follows from one and two.
"""

from collections import Counter
from dataclasses import dataclass

import torch

VOCABULARY = 32_000
SEGMENTS, COPIES, LENGTH = 8, 1, 5
LAYERS = 24  # of DeltaNet-1.3B
# Of Triton kernels in an update of that many layers, by kind. 1,500 was aimed at; five steps of
# decoding alone are 725.
MOST_LAUNCHES = {"SFT": 770, "joined": 1930, "decode": 150}
MOST_BYTES = 1.15  # of a joined update of that many layers, to SFT's


@dataclass(frozen=True)
class Model:
    """A backbone, and the most that one layer of it may add to an update or a decoding step."""

    fields: dict
    tokens: int
    starts: dict[str, int]  # by kind: torch's operations and Triton kernels that start on the GPU
    memory: dict[str, int]  # by kind: bytes for each token, gradients of weights included
    kinds: tuple[str, ...] = ()  # of layers, where a model of one layer cannot be made

    def sized(self, layers):
        """The fields for that many layers, or for those before it too."""
        if not self.kinds:
            return self.fields | {"num_hidden_layers": layers}
        kinds = list(self.kinds[: len(self.kinds) - 2 + layers])
        return self.fields | {"num_hidden_layers": len(kinds), "layer_types": kinds}


MODELS = {
    "DeltaNet": Model(
        {"hidden_size": 2048, "num_heads": 16, "backend": "triton"},
        16_384,
        {"SFT": 370, "joined": 1050, "decode": 65},
        {"SFT": 20_000, "joined": 23_000},
    ),
    "GatedDeltaNet": Model(
        {"hidden_size": 2048, "num_heads": 6, "head_dim": 256, "backend": "triton"},
        8_192,
        {"SFT": 455, "joined": 1250, "decode": 77},
        {"SFT": 46_000, "joined": 46_000},
    ),
    "LaCT": Model(
        {
            **{"hidden_size": 1536, "num_attn_heads": 24, "num_lact_heads": 4},
            **{"lact_chunk_size": 2048, "window_size": 2048, "w0_w2_low_rank": 32},
        },
        4_096,
        {"SFT": 1300, "joined": 2850, "decode": 200},
        {"SFT": 30_000, "joined": 30_000},
    ),
    # The first layer is a delta rule, the second, whose growth is counted, attention.
    "Qwen35": Model(
        {
            **{"hidden_size": 1024, "intermediate_size": 3584, "full_attention_interval": 2},
            **{"num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16},
            "backend": "triton",
        },
        16_384,
        {"SFT": 380, "joined": 1100, "decode": 108},
        {"SFT": 7_000, "joined": 5_000},
    ),
    # Has to have layers of both kinds: attention first, and what is counted is a delta rule.
    "OlmoHybrid": Model(
        {
            **{"hidden_size": 3840, "intermediate_size": 11008, "num_attention_heads": 30},
            **{"pad_token_id": None, "backend": "triton"},
        },
        4_096,
        {"SFT": 420, "joined": 1100, "decode": 70},
        {"SFT": 300_000, "joined": 230_000},  # most of it gradients of 207M weights
        ("full_attention", "linear_attention", "linear_attention"),
    ),
}

_ENDS = "once, at the end of an update"
_DRAWN = "once, after the rollouts: what is not finite is told before it is trained on"
# Where the host may wait for the GPU, how often in an update of one micro-batch, and why.
SYNCS = {
    "training.updater.Updater._clip_and_step": (1, f"is the gradient finite: {_ENDS}"),
    "training.updater.Updater.join": (1, f"is the loss finite: {_ENDS}"),
    "training.updater._numbers": (1, f"were as many positions chosen as announced: {_ENDS}"),
    "training.updater.Updater._total": (1, "what sums are divided by, before the backward pass"),
    "faults.check_prefill": (1, "is the model finite: before a part is blamed for it"),
    "selectors.base.Candidates.draw": (1, "positions are drawn on the CPU, alike everywhere"),
    "host.on_host": (1, "positions: which chunks of LaCT they lie in decides what runs"),
    "faults.check_rollouts": (1, _DRAWN),
    "rewards.weighted_sum._checked": (1, _DRAWN),
    "rewards.weighted_sum.WeightedSum.score_parts": (1, _DRAWN),
    "faults.checked_advantages": (1, _DRAWN),
}
_FAST = "the fast weights are float32, and so are their operands"
# Products of float32 operands: the largest part of all products' operations, and why.
FLOAT32 = {
    "lact_update.directions._block_forward": (0.02, _FAST),
    "lact_update.directions._block_backward": (0.02, _FAST),
    "lact_update.reading._Read.forward": (0.02, _FAST),
    "lact_update.reading._backward": (0.02, _FAST),
}

RUNS = (
    (1, True, "SFT", "joined", "decode"),
    (2, True, "SFT", "joined", "two_pass", "decode"),
    (1, False, "SFT", "joined", "two_pass"),
)


def rules_broken(name, runs):
    """What is wrong with the runs that :func:`measure` returned, in words."""
    model, wrong = MODELS[name], []
    for run, found in runs.items():
        for place, count in found["syncs"].items():
            if count > SYNCS.get(place, (0,))[0]:
                wrong.append(f"{run}: the host waits {count} times in {place}")
        for place, flop in found["float32"].items():
            part, most = flop / found["flop"], FLOAT32.get(place, (0,))[0]
            if part > (1 if most and "decode" in run else most):  # decoding is bound by memory
                wrong.append(f"{run}: products in float32, {part:.2%} of all, in {place}")
    for kind in ("SFT", "joined", "decode"):
        if f"{kind}, checkpointed, 2" in runs:
            wrong += _growth(model, kind, runs)
    for kind, most in MOST_LAUNCHES.items():
        if f"{kind}, checkpointed, 2" in runs:
            count = extrapolated(runs, kind, launches_of)
            if count > most:
                wrong.append(f"{kind}: {count:,} launches of {LAYERS} layers, at most {most:,}")
    if "joined, checkpointed, 2" in runs:
        sft, joined = (extrapolated(runs, kind, bytes_of) for kind in ("SFT", "joined"))
        if joined > MOST_BYTES * sft:
            wrong.append(f"joined: {joined / sft:.2f} times the bytes of SFT, {MOST_BYTES} allowed")
    return wrong


def extrapolated(runs, kind, what, layers=LAYERS):
    """``what(found)`` of one update of more layers than were run, activations checkpointed."""
    one, two = (what(runs[f"{kind}, checkpointed, {layers}"]) for layers in (1, 2))
    return one + (two - one) * (layers - 1)


def launches_of(found):
    return sum(found["kernels"].values())


def bytes_of(found):
    return found["peak_bytes"]


def _growth(model, kind, runs):
    """What a layer adds, where it is more than the model's bounds."""
    bounds = {"starts": (lambda found: found["ops"] + launches_of(found), model.starts[kind])}
    if kind in model.memory:
        bounds["bytes"] = (bytes_of, model.memory[kind] * model.tokens)
    places = Counter(runs[f"{kind}, checkpointed, 2"]["places"])
    for what, (measure_of, most) in bounds.items():
        added = extrapolated(runs, kind, measure_of, 2) - extrapolated(runs, kind, measure_of, 1)
        if added > most:
            where = f"; most of them in {places.most_common(5)}" if what == "starts" else ""
            yield f"{kind}: a layer adds {added:,} {what}, at most {most:,} are allowed{where}"


class Updates:
    """Updates of one model, watched one by one.

    Args:
        watch: a ``Watch`` that is entered.
        launches: names of kernels, as they are recorded.
        policy: the model.
        tokens: of a sequence.
    """

    def __init__(self, watch, launches, policy, tokens):
        from refine_pl.records import Batch

        self.watch, self.launches, self.policy = watch, launches, policy
        drawn = torch.randint(0, VOCABULARY, (1, tokens))
        self.batch = Batch(drawn, torch.tensor([tokens]), (0,)).to("cuda")
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
        self.run("SFT")  # makes the optimizer's moments

    def run(self, kind):
        """An update (``SFT``, ``joined``, ``two_pass``) or a step of decoding: what was found."""
        work = self._decode() if kind == "decode" else self._update(kind)
        self.optimizer.zero_grad()
        self.launches.clear()
        found = self.watch.start()
        work()
        self.watch.start()
        return vars(found) | {"kernels": Counter(self.launches)}

    def _update(self, kind):
        from refine_pl.records import RolloutPlan
        from refine_pl.refine_step import LossWeights, RefineStep
        from refine_pl.training.settings import Settings
        from refine_pl.training.sizes import Sizes
        from refine_pl.training.updater import Updater

        weights = LossWeights(1.0, 0.0) if kind == "SFT" else LossWeights()
        settings = Settings(RolloutPlan(SEGMENTS, COPIES, LENGTH), weights)
        updater = Updater(
            self.policy,
            RefineStep(),
            self.optimizer,
            Sizes(None, 1, update="two_pass" if kind == "two_pass" else "auto"),
            autocast=_autocast,
        )
        return lambda: updater.refine(self.batch, settings)

    def _decode(self):
        """The second token after a prefix, of as many rows as an update draws."""
        rows = torch.zeros(SEGMENTS * COPIES, 1, dtype=torch.int64).to("cuda")
        numbers = torch.full((len(rows),), 1).to("cuda")
        where = torch.arange(64, 64 * (SEGMENTS + 1), 64)[None].to("cuda")
        with torch.no_grad(), _autocast():
            trail = self.policy(self.batch.tokens, self.batch.num_tokens, keep_trail=True).trail
            state = self.policy(rows, numbers, state=trail.at(where).fork(COPIES)).state

        @torch.no_grad()
        def step():
            with _autocast():
                self.policy(rows, numbers, state=state)

        return step


def _autocast():
    return torch.autocast("cuda", torch.bfloat16)


def _name(launch):
    """Of its kernel; not the launch itself, whose tensors would live on."""
    return launch.kernel.fn.__name__


def measure(name, runs=RUNS, change=lambda policy: None):
    """Updates of one model, by ``kind, checkpointed or plain, layers``, as plain values.

    Args:
        name: of the model.
        runs: layers, whether activations are checkpointed, and the kinds of updates.
        change: is done to each model before.
    """
    from watched_ops import Watch

    from refine_kernels.launching import recorded
    from refine_pl import backbones

    found, model = {}, MODELS[name]
    for layers, checkpointing, *kinds in runs:
        with Watch() as watch, recorded(note=_name) as launches:
            with torch.device("cuda"):
                policy = getattr(backbones, name)(
                    vocab_size=VOCABULARY,
                    activation_checkpointing=checkpointing,
                    **model.sized(layers),
                )
            change(policy)
            updates = Updates(watch, launches, policy, model.tokens)
            how = "checkpointed" if checkpointing else "plain"
            found |= {f"{kind}, {how}, {layers}": updates.run(kind) for kind in kinds}
    return found
