"""Hybrids as large as the published ones, without weights: names, shapes and counts are theirs.

The sizes are those of the published model cards and configurations; OLMo-Hybrid's are the defaults
of transformers' configuration. The vision towers here are of transformers' default size.
"""

import re
from pathlib import Path

import pytest
import torch

from refine_pl.backbones.pretrained import build

PAGE = Path(__file__).parents[2] / "docs" / "backbones" / "hybrids.md"
SHARED = {"vocab_size": 248_320, "head_dim": 256, "linear_num_key_heads": 16}
NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "linear_num_value_heads",
    "tie_word_embeddings",
)
QWEN = {
    "Qwen3.5-0.8B": (1024, 3584, 24, 8, 2, 16, True),
    "Qwen3.5-2B": (2048, 6144, 24, 8, 2, 16, True),
    "Qwen3.5-4B": (2560, 9216, 32, 16, 4, 32, True),
    "Qwen3.5-9B": (4096, 12288, 32, 16, 4, 32, False),
    "Qwen3.5-27B": (5120, 17408, 64, 24, 4, 48, False),
}


def qwen(name):
    """The published configuration, around a text model of this size."""
    from transformers import AutoConfig

    text = dict(zip(NAMES, QWEN[name], strict=True)) | SHARED
    rope = {"rope_theta": 10_000_000, "partial_rotary_factor": 0.25, "rope_type": "default"}
    vision = {"out_hidden_size": text["hidden_size"]}
    return AutoConfig.for_model(
        "qwen3_5",
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def theirs(config):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    cls = AutoModelForImageTextToText if config.model_type == "qwen3_5" else AutoModelForCausalLM
    with torch.device("meta"):
        return cls.from_config(config)


def shapes(weights):
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def in_the_docs(name):
    """Parameters of the language model, by the page's table."""
    row = re.search(rf"^\| `?[\w/]*{re.escape(name)}[^|]*\|.*\|$", PAGE.read_text(), re.MULTILINE)
    return int(row[0].split("|")[-2].replace(",", ""))


@pytest.mark.parametrize("name", QWEN)
def test_qwen35(name):
    config = qwen(name)
    model, ours = theirs(config), build(config.to_dict(), name)
    assert ours.tied == config.tie_word_embeddings
    carried = re.compile(ours.options_class.carried)
    expected = shapes(model.state_dict())
    tower = {weight for weight in expected if carried.fullmatch(weight)}
    assert len(tower) == 27 * 12 + 9
    found = shapes(ours.published(ours.state_dict()))
    assert found == {weight: expected[weight] for weight in expected.keys() - tower}
    language = [p for weight, p in model.named_parameters() if weight not in tower]
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in language) == in_the_docs(name)


def test_olmo_hybrid():
    from transformers import AutoConfig

    config = AutoConfig.for_model("olmo_hybrid")
    model, ours = theirs(config), build(config.to_dict(), "OLMo-Hybrid-7B")
    assert shapes(ours.state_dict()) == shapes(model.state_dict())
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in model.parameters()) == in_the_docs("Olmo-Hybrid-7B")


def test_another_size_is_noticed():
    """The broken case: one more head of v in the delta rules."""
    config = qwen("Qwen3.5-0.8B")
    ours = build(config.to_dict(), "here")
    config.text_config.linear_num_value_heads = 32
    other = build(config.to_dict(), "here")
    assert shapes(ours.state_dict()).keys() == shapes(other.state_dict()).keys()
    assert shapes(ours.state_dict()) != shapes(other.state_dict())
