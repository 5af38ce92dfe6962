"""``policy.generate``: equal to continuing prompts in batches, streamed, seeded, checked."""

from __future__ import annotations

import random

import hybrids
import pytest
import torch
from small_tokenizers import byte_level, sentence_piece
from tiny import batch, delta_net, lact

from refine_pl import Bytes
from refine_pl.backbones import generating
from refine_pl.errors import ConfigError
from refine_pl.evaluation.generation import continue_prompts, greedy

MODELS = {
    "delta_net": delta_net,
    "gated_delta_net": hybrids.gated_delta_net,
    "lact": lact,
    "qwen3_5": hybrids.qwen35,
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_that_of_batches_whatever_the_blocks(name, monkeypatch):
    policy = MODELS[name]()
    prompts = batch([len(PROMPT)])
    prompts.tokens[0] = torch.tensor(PROMPT)
    limit = torch.tensor([12])
    made = continue_prompts(policy, prompts, limit, eos_token_id=None, choose=greedy).row(0)
    for block in (4096, 5, 1):
        monkeypatch.setattr(generating, "_BLOCK", block)
        found = policy.generate(PROMPT, max_tokens=12, temperature=0)
        assert list(found) == made
        assert (found.num_tokens, found.finish) == (12, "length")
    assert list(policy.generate(PROMPT, max_tokens=12, top_k=1, seed=8)) == made
    assert list(policy.generate(torch.tensor(PROMPT), max_tokens=12, temperature=1e-4)) == made


def test_a_seed_decides_and_nothing_is_read_ahead(monkeypatch):
    policy = delta_net()
    read = []
    forward = type(policy).forward
    monkeypatch.setattr(
        type(policy), "forward", lambda self, x, **k: read.append(x.shape) or forward(self, x, **k)
    )
    made = policy.generate(PROMPT, max_tokens=9)
    assert not read
    first = [next(made), next(made)]
    assert read == [(1, len(PROMPT)), (1, 1)]  # the state and one token, never the prompt again
    assert made.finish is None
    whole = [*first, *made]
    assert len(whole) == 9
    assert whole == list(policy.generate(PROMPT, max_tokens=9))
    assert len({tuple(policy.generate(PROMPT, max_tokens=9, seed=s)) for s in range(8)}) > 4
    assert not any(p.grad_fn for p in policy.parameters())
    assert torch.is_grad_enabled()


def test_samples_follow_the_narrowed_distribution():
    policy = delta_net()
    with torch.no_grad():
        hidden = policy(torch.tensor([PROMPT])).hidden[:, -1]
        logits = policy.head(hidden, logits=True).logits / 0.7
    probability = logits.masked_fill(logits < logits.topk(4).values[:, -1:], -torch.inf).softmax(-1)
    count = torch.zeros(23)
    number = 300
    for seed in range(number):
        (token,) = policy.generate(PROMPT, max_tokens=1, temperature=0.7, top_k=4, seed=seed)
        count[token] += 1
    assert (count / number - probability[0]).abs().max() < 0.13  # 4.5 standard errors


def test_the_end_of_a_text():
    policy = delta_net(vocab_size=257)
    text = "".join(policy.generate("ab", Bytes(), max_tokens=30, temperature=0))
    ids = list(policy.generate([97, 98], max_tokens=30, temperature=0))
    assert text == Bytes().decode(ids)
    stop = ids[7]
    made = policy.generate([97, 98], max_tokens=30, temperature=0, ends=[stop])
    assert list(made) == ids[: ids.index(stop)]
    assert (made.finish, made.num_tokens) == ("eos", ids.index(stop) + 1)
    listed = delta_net(vocab_size=257, eos_token_id=stop)
    assert list(listed.generate([97, 98], max_tokens=30, temperature=0)) == ids[: ids.index(stop)]


def test_text_comes_in_whole_characters(tmp_path):
    """Whatever the tokenizer: the pieces joined are the text, and none is half a character."""
    rng = random.Random(5)
    alphabet = "ab  \n.éßλ中文🙂𝔘"
    tokenizers = (Bytes(), byte_level(tmp_path / "a"), sentence_piece(tmp_path / "b"))
    for tokenizer in tokenizers:
        for _ in range(40):
            text = "".join(rng.choices(alphabet, k=30))
            ids = tokenizer.encode(text)
            found = list(generating.pieces(iter(ids), tokenizer))
            assert "".join(found) == tokenizer.decode(ids)
            assert "\ufffd" not in "".join(found)
            assert len(found) > 10


def test_what_is_not_text_comes_too():
    decoded = []

    class Counting(Bytes):
        def decode(self, ids):
            decoded.append(len(ids))
            return super().decode(ids)

    found = list(generating.pieces(iter([0xE4] * 500), Counting()))
    assert "".join(found) == "\ufffd" * 500
    assert max(decoded) <= 64  # the window stays short


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [23]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "text"}, "tokenizer"),
    ],
)
def test_what_is_refused_is_refused_at_once(settings, named):
    with pytest.raises(ConfigError) as refused:
        delta_net().generate(**{"prompt": PROMPT} | settings)
    assert refused.value.where == named
