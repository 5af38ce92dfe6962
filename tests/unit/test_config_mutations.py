"""config.json by type and range: every key of every model with values that do not belong there."""

import copy
import json
import math
import random

import pytest
import torch

from refine_pl.backbones.pretrained import build, model_class
from refine_pl.errors import CheckpointError

SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 1}
SMALL = {
    "delta_net": SIZES | {"num_heads": 2, "intermediate_size": 32},
    "gated_deltanet": SIZES | {"num_heads": 2, "head_dim": 8, "intermediate_size": 32},
    "lact_swiglu": SIZES
    | {"num_attn_heads": 4, "num_lact_heads": 2, "intermediate_size": 32, "lact_chunk_size": 8},
}
WIDTHS = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "num_attn_heads", "num_lact_heads")
WIDTHS = (*WIDTHS, "expand_k", "expand_v", "hidden_ratio", "inter_multi")
FILE = "folder/config.json"
# What transformers writes into every configuration, and what older versions wrote too.
COMMON = {
    "_name_or_path": "", "architectures": None, "chunk_size_feed_forward": 0, "dtype": None,
    "id2label": {"0": "LABEL_0"}, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0},
    "output_attentions": False, "output_hidden_states": False, "problem_type": None,
    "return_dict": True, "transformers_version": "5.23.0",
}  # fmt: skip
OLDER = COMMON | {
    "add_cross_attention": False, "bad_words_ids": None, "cross_attention_hidden_size": None,
    "do_sample": False, "early_stopping": False, "is_decoder": False, "max_length": 20,
    "min_length": 0, "num_beams": 1, "pruned_heads": {}, "temperature": 1.0, "top_k": 50,
    "tie_encoder_decoder": False, "torchscript": False, "torch_dtype": "float32",
}  # fmt: skip


def full(kind):
    """Every field that an export of this kind writes."""
    policy = build({"model_type": kind, **SMALL[kind]}, FILE)
    return json.loads(json.dumps(policy.config()))


def mutations(value, draw):
    """Values that a slip, a script or damage may leave in the place of ``value``."""
    yield from (None, True, False, 0, -1, -draw.random(), "", str(value), [], [value], {})
    yield from (10**12, 10**400, 1e300, -1e300, math.inf, -math.inf, math.nan, {"a": [value]})
    yield from (draw.randint(-40, 40), draw.uniform(-4, 40), draw.random() * 1e-9)
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (float(value), value + 0.5, -value, 2 * value)


def refusal(config):
    """What is said of a configuration that cannot be used."""
    try:
        build(config, FILE)
    except CheckpointError as error:
        return str(error)
    return None


def forward(config):
    """The logits of a model with fresh weights, if it is small enough to be made in a test."""
    with torch.device("meta"):
        size = sum(p.numel() for p in build(config, FILE).parameters())
    if size > 10**6:
        return None
    cls = model_class(config, FILE)
    names = set(cls.__signature__.parameters)
    torch.manual_seed(0)
    model = cls(**{k: v for k, v in config.items() if k in names})
    with torch.no_grad():
        hidden = model(torch.zeros(1, 9, dtype=torch.int64)).hidden
        return model.head(hidden[0], logits=True).logits


@pytest.mark.parametrize("kind", SMALL)
def test_every_key_with_values_that_do_not_belong_there(kind):
    draw = random.Random(kind)
    config = full(kind)
    loaded = refused = ran = 0
    for name in config:
        for value in mutations(config[name], draw):
            mutated = copy.deepcopy(config) | {name: value}
            said = refusal(mutated)
            if said is not None:
                assert FILE in said, (name, value)
                # Fine alone, and not together with another key: the message names what they make.
                related = ("hidden_size", "head", "MLP") if name in WIDTHS else ()
                assert any(word in said for word in (name, *related)), (name, value, said)
                assert len(said) < 700
                refused += 1
                continue
            loaded += 1
            if draw.random() < 0.3:
                logits = forward(mutated)
                if logits is not None:
                    assert torch.isfinite(logits).all(), (name, value)
                    ran += 1
    assert len(config) >= 29
    assert refused > 400
    assert loaded > 100
    assert ran > 20


@pytest.mark.parametrize("text", ['"32"', "null", "0", "-2", "2.0", "true", "[2]", "1e400", "NaN"])
@pytest.mark.parametrize("kind", SMALL)
def test_a_size_that_is_not_one_names_file_key_value_and_rule(kind, text):
    config = {"model_type": kind, **SMALL[kind], "vocab_size": json.loads(text)}
    with pytest.raises(CheckpointError) as caught:
        build(config, FILE)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"vocab_size={json.loads(text)!r} is ")
    assert rest[:2] == [
        f"  where:   {FILE}",
        "  allowed: a whole number above 0 (and up to 16,777,216)",
    ]


@pytest.mark.parametrize("model_type", [["delta_net"], None, 3, {"a": 1}, True])
def test_a_model_type_that_is_not_a_text(model_type):
    with pytest.raises(CheckpointError, match="model_type"):
        build({"model_type": model_type}, FILE)


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"hidden_size": "32"}, "hidden_size: 32"),
        ({"num_heads": 2.0}, "num_heads: 2"),
        ({"use_beta": "false"}, "use_beta: false"),
        ({"norm_eps": "1e-6"}, "norm_eps: 1e-06"),
        ({"pad_token_id": "null"}, "pad_token_id: null"),
    ],
    ids=str,
)
def test_what_was_meant(changes, meant):
    with pytest.raises(CheckpointError) as caught:
        build({"model_type": "delta_net", **SMALL["delta_net"], **changes}, FILE)
    assert caught.value.way_out == meant


@pytest.mark.parametrize("common", [COMMON, OLDER])
@pytest.mark.parametrize("kind", SMALL)
def test_full_dumps_load_without_a_word(kind, common, recwarn):
    policy = build(full(kind) | common | {"model_type": kind, "eos_token_id": [2, 3]}, FILE)
    assert policy.config()["eos_token_id"] == [2, 3]
    assert not recwarn.list


def test_what_transformers_writes_today_loads(recwarn):
    """Every key of the installed version."""
    from transformers import PretrainedConfig

    written = json.loads(PretrainedConfig().to_json_string(use_diff=False))
    assert len(written) >= 12
    build(written | {"model_type": "delta_net", **SMALL["delta_net"]}, FILE)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["is_encoder_decoder", "add_cross_attention", "pruned_heads"])
def test_parts_of_another_kind_of_model(name):
    config = {"model_type": "delta_net", **SMALL["delta_net"], name: {"0": [1]}}
    with pytest.raises(CheckpointError, match=f"{name}=.* is not of a language model"):
        build(config, FILE)
