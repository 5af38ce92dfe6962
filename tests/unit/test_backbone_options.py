"""A backbone's options: what its page says of them, and what is refused."""

import inspect
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from refine_pl.backbones import (
    DeltaNet,
    GatedDeltaNet,
    LaCT,
    OlmoHybrid,
    Qwen35,
    Qwen35Multimodal,
)
from refine_pl.backbones.pretrained import build, class_fields
from refine_pl.errors import CheckpointError, ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "backbones"
PAGES = {
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "lact": LaCT,
    "qwen3_5": Qwen35,
    "olmo_hybrid": OlmoHybrid,
}
CLASSES = [*PAGES.values(), Qwen35Multimodal]


def said_defaults(text):
    """By field, the default in the tables of a page; one default is for all fields of its row."""
    said = {}
    for names, defaults in re.findall(r"^\| (`.*?`) \| (.*?) \|", text, re.M):
        fields = re.findall(r"`(\w+)`", names)
        values = [yaml.safe_load(v.replace("none", "null")) for v in defaults.split(", ")]
        said |= zip(fields, values * len(fields) if len(values) == 1 else values, strict=False)
    return said


def wrong(said, options):
    return {k: v for k, v in said.items() if k not in options or options[k].default != float_(v)}


def float_(value):
    """YAML reads 1e-6 as a text."""
    return float(value) if isinstance(value, str) and re.match(r"\d", value) else value


def keys_in_a_configuration(cls):
    parser = ArgumentParser(exit_on_error=False)
    return set(parser.add_class_arguments(cls, "of"))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_a_key_in_configurations(cls):
    """The parser reads the source of a class to find what its ``fields`` may be."""
    options = inspect.signature(cls.options_class).parameters
    assert keys_in_a_configuration(cls) == {f"of.{name}" for name in options}


def test_a_class_whose_keys_cannot_be_found_would_be_noticed():
    class Hidden(Qwen35):
        def __init__(self, **fields):
            super().__init__(**dict(fields))

    assert keys_in_a_configuration(Hidden) == set()


@pytest.mark.parametrize("page", PAGES)
def test_the_page_says_the_defaults(page):
    options = inspect.signature(PAGES[page].options_class).parameters
    said = said_defaults((DOCS / f"{page}.md").read_text().split("## The state")[0])
    assert wrong(said, options) == {}
    assert len(said) >= 14
    assert wrong(said | {"norm_eps": 1e-5, "nothing": 1}, options) == {
        "norm_eps": 1e-5,
        "nothing": 1,
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_described(cls):
    options = cls.options_class
    described = "".join(inspect.getdoc(c) for c in options.__mro__[:-1])
    fields = inspect.signature(options).parameters
    assert not [name for name in fields if not re.search(rf"^    {name}: ", described, re.M)]
    assert len(fields) > 20
    assert inspect.signature(cls) == inspect.signature(options)
    assert not {*options.fixed, *options.without_effect} & {*fields}


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_without_effect_are_kept_for_the_export(cls):
    config = cls(vocab_size=8, hidden_size=32, **heads(cls)).config()
    assert "idle" not in class_fields(config, "here")
    text = config.get("text_config", config)
    idle = {
        name: not value
        for name, value in cls.options_class.without_effect.items()
        if isinstance(value, bool)
    }
    if cls.options_class.kept:
        idle["mtp_num_hidden_layers"] = 1
    text |= idle
    assert class_fields(config, "here")["idle"] == idle
    assert build(config, "here").config() == config


def heads(cls):
    if issubclass(cls, Qwen35 | OlmoHybrid):
        return {
            "num_hidden_layers": 2,
            "intermediate_size": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "pad_token_id": None,
        }
    heads = {"num_attn_heads": 2, "num_lact_heads": 2} if cls is LaCT else {"num_heads": 2}
    return heads | {"num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_norm": "l1"}, "qk_norm='l1' is not supported: it is not known"),
        ({"backend": "cuda"}, "backend='cuda' is not supported"),
        ({"idle": {"fuse_norms": False}}, "did you mean fuse_norm?"),
        ({"num_heads": 3}, "is not a whole head width"),
        ({"norm_eps": float("inf")}, "norm_eps=inf is not finite"),
        ({"num_hidden_layers": 4000}, "num_hidden_layers=4000 is out of range"),
        ({"num_heads": None}, "num_heads=None is not given"),
        ({"use_beta": 1}, "use_beta=1 is a number"),
    ],
    ids=str,
)
def test_what_would_be_wrong_is_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        DeltaNet.options_class(hidden_size=32, **{"num_heads": 2} | options)
    assert message in str(caught.value)


HYBRID = {
    "hidden_size": 32,
    "vocab_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
LINEAR, FULL = "linear_attention", "full_attention"


@pytest.mark.parametrize("cls", [Qwen35, OlmoHybrid, Qwen35Multimodal])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_types": [LINEAR, "sliding_attention"]}, "layer 1 is 'sliding_attention'"),
        ({"layer_types": ["mamba", FULL]}, "layer 0 is 'mamba', which is not known"),
        ({"layer_types": [LINEAR, FULL, FULL]}, "layer_types names 3 layers"),
        ({"layer_types": [LINEAR, 3]}, "layer_types=['linear_attention', 3] is a list"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 is not a multiple"),
        ({"linear_num_key_heads": 3, "linear_num_value_heads": 4}, "linear_num_value_heads 4"),
        ({"pad_token_id": 8}, "pad_token_id 8 is not one of 8 tokens"),
        ({"attention_bias": 1}, "attention_bias=1 is a number"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6' is a text"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' is not supported"),
        ({"rope_parameters": {"rope_thetta": 3.0}}, "did you mean rope_theta?"),
        ({"rope_parameters": {"rope_theta": -3.0}}, "rope_theta=-3.0 is not above 0"),
        ({"rope_parameters": {"rope_theta": "3"}}, "rope_parameters.rope_theta='3' is a text"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor=None"),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
        ({"rope_parameters": [3]}, "rope_parameters=[3] is a list"),
        ({"idle": {"frobnicate": 3}}, "frobnicate is not a published field"),
    ],
    ids=str,
)
def test_hybrids_that_would_be_wrong_are_refused(cls, options, message):
    fine = cls.options_class(**HYBRID)
    assert fine.layer_kinds[0] == LINEAR
    with pytest.raises(ConfigError) as caught:
        cls.options_class(**HYBRID | options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"attn_output_gate": False}, "attn_output_gate=False is not supported"),
        ({"mlp_only_layers": [1]}, "mlp_only_layers=[1] is not supported"),
        ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype='bfloat16' is not supported"),
        ({"num_experts": 4}, "is a mixture of experts"),
        ({"rope_scaling": "linear"}, "rope_parameters='linear' is a text"),
        ({"sliding_window": 12}, "sliding_window=12"),
    ],
    ids=str,
)
def test_what_a_file_says_of_a_hybrid(fields, message):
    config = Qwen35(**HYBRID).config()
    assert build(config, "here").config() == config
    with pytest.raises(CheckpointError) as caught:
        build(config | fields, "here")
    assert message in str(caught.value)
    outside = Qwen35Multimodal(**HYBRID, around={"vision_config": {}}).config()
    outside["text_config"] |= fields
    with pytest.raises(CheckpointError) as caught:
        build(outside, "here")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [None, [], "qwen3_5_text"], ids=str)
def test_a_multimodal_model_without_a_text_model(text):
    with pytest.raises(CheckpointError, match="text_config"):
        build({"model_type": "qwen3_5", "text_config": text}, "here")


@pytest.mark.parametrize(
    ("attn", "message"),
    [
        ({"layers": [0]}, "attn has no num_heads"),
        ({"layers": [0], "num_heads": 2, "window": 4}, "'window' that is not known"),
        ({"layers": [0], "num_heads": 2, "qk_norm": True}, "'qk_norm' that is not known"),
        ({"layers": [2], "num_heads": 2}, "attn names layer 2"),
        ({"layers": [-1], "num_heads": 2}, "attn names layer -1"),
        ({"layers": [True], "num_heads": 2}, "attn.layers=[True]"),
        ({"layers": [0, 0], "num_heads": 2}, "layer 0 is named twice"),
        ([{"layers": [n], "num_heads": 2} for n in (0, 1, 0)], "layer 0 is named twice"),
        ({"layers": [0], "num_heads": 3}, "num_heads 3 for hidden_size 32"),
        ({"layers": [0], "num_heads": 32}, "num_heads 32 for hidden_size 32"),
        ({"layers": [0], "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads 3 for num_heads 4"),
        ({"layers": [0], "num_heads": "2"}, "attn.num_heads='2' is a text"),
        ({"layers": [0], "num_heads": 2, "window_size": 0}, "attn.window_size=0"),
        ({"layers": [0], "num_heads": 2, "rope_theta": float("nan")}, "attn.rope_theta=nan"),
        ([3], "attn=[3] is a list"),
        ("linear", "attn='linear' is a text"),
    ],
    ids=str,
)
def test_layers_of_attention_that_would_be_wrong_are_refused(attn, message):
    with pytest.raises(ConfigError) as caught:
        DeltaNet.options_class(hidden_size=32, num_heads=2, num_hidden_layers=2, attn=attn)
    assert message in str(caught.value)


def test_layers_of_attention_are_of_a_kind_of_their_own():
    attn = [{"layers": [3, 1], "num_heads": 2}, {"layers": [0], "num_heads": 4}, {"layers": []}]
    attn[2] |= {"num_heads": 2}
    options = DeltaNet.options_class(hidden_size=32, num_heads=2, num_hidden_layers=4, attn=attn)
    assert options.layer_kinds == ("attention 1", "attention 0", "delta rule", "attention 0")
    assert options.config()["attn"] == attn


def test_a_wrong_value_in_a_file_names_the_file():
    config = DeltaNet(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_heads=2).config()
    with pytest.raises(CheckpointError, match=r"(?s)qk_norm='l1' is not supported.*config\.json"):
        build(config | {"qk_norm": "l1"}, "config.json")
