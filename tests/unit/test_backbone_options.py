"""A backbone's options: what its page says of them, and what is refused."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from refine_pl.backbones import DeltaNet, GatedDeltaNet, LaCT
from refine_pl.backbones.pretrained import build, class_fields
from refine_pl.errors import CheckpointError, ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "backbones"
PAGES = {"delta_net": DeltaNet, "gated_delta_net": GatedDeltaNet, "lact": LaCT}


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


@pytest.mark.parametrize("cls", PAGES.values())
def test_every_field_is_described(cls):
    options = cls.options_class
    described = "".join(inspect.getdoc(c) for c in options.__mro__[:-1])
    fields = inspect.signature(options).parameters
    assert not [name for name in fields if not re.search(rf"^    {name}: ", described, re.M)]
    assert len(fields) > 20
    assert inspect.signature(cls) == inspect.signature(options)
    assert not {*options.fixed, *options.without_effect} & {*fields}


@pytest.mark.parametrize("cls", PAGES.values())
def test_fields_without_effect_are_kept_for_the_export(cls):
    config = cls(vocab_size=8, hidden_size=32, num_hidden_layers=1, **heads(cls)).config()
    assert "idle" not in class_fields(config, "here")
    changed = config | {"fuse_norm": False, "use_cache": False}
    assert class_fields(changed, "here")["idle"] == {"fuse_norm": False, "use_cache": False}
    assert build(changed, "here").config() == changed


def heads(cls):
    return {"num_attn_heads": 2, "num_lact_heads": 2} if cls is LaCT else {"num_heads": 2}


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
