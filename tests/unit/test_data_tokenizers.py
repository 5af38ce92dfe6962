"""Tokenizers: ids and back, fingerprints, and what is said when one cannot be loaded."""

from __future__ import annotations

import numpy as np
import pytest

from refine_pl.data import Bytes, HubTokenizer
from refine_pl.data.token_cache import check_ids
from refine_pl.errors import ConfigError, DataError
from refine_pl.training.checks import check_vocabulary

TEXT = "the cat sat on the mat"


def save_tokenizer(folder, corpus=TEXT):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    bpe.train_from_iterator(
        [corpus],
        trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=alphabet,
            special_tokens=special,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("text", ["", "plain", "ä € 𝄞\r\n\0", "<eos>"])
def test_bytes_there_and_back(text):
    tokenizer = Bytes()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert [list(row) for row in tokenizer.encode_batch([text, "x"])] == [ids, [120]]


def test_bytes_show_what_is_not_text():
    tokenizer = Bytes()
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (257, 256)
    assert tokenizer.decode([104, 105, 256, 0xC3, 33, 300]) == "hi<eos>\ufffd!<300>"
    assert tokenizer.decode([0xC3, 256, 0xA4]) == "\ufffd<eos>\ufffd"  # never joined over an end


def test_hub_tokenizer(folder):
    tokenizer = HubTokenizer(folder)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.eos_token_id == 1
    assert 258 < tokenizer.vocab_size <= 300
    assert 0 not in ids  # no BOS
    assert 1 not in ids
    assert tokenizer.decode([*ids, 1]) == TEXT + "</s>"
    batch = tokenizer.encode_batch([TEXT, "cat", ""])
    assert [list(row) for row in batch] == [ids, tokenizer.encode("cat"), []]
    assert all(np.issubdtype(row.dtype, np.integer) for row in batch)


def test_fingerprint_is_of_the_content(folder, tmp_path):
    assert HubTokenizer(folder).fingerprint == HubTokenizer(folder).fingerprint
    same = save_tokenizer(tmp_path / "same")
    assert HubTokenizer(same).fingerprint == HubTokenizer(folder).fingerprint
    other = save_tokenizer(tmp_path / "other", corpus="a dog ran to a log")
    assert HubTokenizer(other).fingerprint != HubTokenizer(folder).fingerprint
    assert Bytes().fingerprint == Bytes().fingerprint


def test_encoding_does_not_change_the_fingerprint(folder):
    used = HubTokenizer(folder)
    used.encode_batch([TEXT, "x"])
    assert used.fingerprint == HubTokenizer(folder).fingerprint


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        (
            "nobody/no-such-tokenizer",
            "`hf download nobody/no-such-tokenizer` where there is a network",
        ),
        ("./no/such/folder", "there is no such folder"),
    ],
)
def test_a_name_that_cannot_be_loaded(name, way_out):
    with pytest.raises(DataError) as caught:
        HubTokenizer(name).encode("x")
    message = str(caught.value)
    assert f"the tokenizer {name!r} cannot be loaded" in message
    assert way_out in message


@pytest.mark.parametrize("others", [[], ["config.json", "model.safetensors"]])
def test_a_folder_without_a_tokenizer(tmp_path, others):
    for name in others:
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"there is no tokenizer in the folder[\s\S]*data\.Bytes"):
        HubTokenizer(str(tmp_path)).encode("x")


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}'])
def test_a_damaged_folder(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    fields = '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    (tmp_path / "tokenizer_config.json").write_text(fields)
    with pytest.raises(DataError) as caught:
        _ = HubTokenizer(str(tmp_path)).vocab_size
    message = str(caught.value)
    assert "cannot be loaded" in message
    assert "a local folder" in message
    assert "tokenizer.json" in message


def sparse_ids(folder, special=5, highest=897):
    """A tokenizer whose added tokens have ids far above their number."""
    import json
    from pathlib import Path

    save_tokenizer(folder)
    file = Path(folder) / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab |= {f"<extra{i}>": highest - i for i in range(special)}
    file.write_text(json.dumps(content))
    return str(folder), len(vocab)


def test_ids_with_gaps_count_the_highest(tmp_path):
    folder, entries = sparse_ids(tmp_path)
    tokenizer = HubTokenizer(folder)
    assert entries < 320
    assert tokenizer.vocab_size == 898
    assert tokenizer.decode([897]) == "<extra0>"
    check_vocabulary(tokenizer.vocab_size, 1024, False)
    check_vocabulary(tokenizer.vocab_size, 898, False)
    for available in (entries, 600, 897):
        with pytest.raises(ConfigError, match=f"ids up to 897, the backbone only {available} "):
            check_vocabulary(tokenizer.vocab_size, available, False)
    ids = np.asarray([897, 3])
    check_ids(ids, tokenizer, "here")
    with pytest.raises(DataError, match="0 to 897"):
        check_ids(ids + 1, tokenizer, "here")
