"""The head's memory does not grow with tokens x vocabulary, in neither direction."""

import pytest
import torch

from refine_kernels.token_stats import blocked
from refine_pl.backbones.head import VocabHead
from refine_pl.benchmark.memory import PeakMemory

BUDGET = 4096


def measure(tokens, vocab_size, hidden_size=4):
    torch.manual_seed(0)
    head = VocabHead(hidden_size, vocab_size)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    targets = torch.randint(0, vocab_size, (tokens,))
    with PeakMemory() as memory:
        stats = head(hidden, targets, entropy=True)
        (stats.logprob.sum() + stats.entropy.sum()).backward()
    return memory


def needed(tokens, vocab_size, hidden_size=4):
    """Floats that must exist: statistics and gradients of tokens, gradient of the weight."""
    return tokens * (6 + 2 * hidden_size) + 3 * vocab_size * hidden_size + 6 * BUDGET


@pytest.mark.parametrize(
    ("tokens", "vocab_size"), [(256, 64), (4096, 64), (256, 1024), (4096, 1024)]
)
def test_memory_against_tokens_and_vocabulary(monkeypatch, tokens, vocab_size):
    monkeypatch.setitem(blocked.BLOCK_ELEMENTS, "cpu", BUDGET)
    memory = measure(tokens, vocab_size)
    assert memory.peak_bytes <= 4 * needed(tokens, vocab_size)
    assert memory.largest_elements <= max(BUDGET, tokens * 4, vocab_size * 4)


def test_whole_logits_would_be_noticed(monkeypatch):
    """The broken case: one block for everything must fail the same bound."""
    monkeypatch.setitem(blocked.BLOCK_ELEMENTS, "cpu", 10**9)
    memory = measure(4096, 1024)
    assert memory.peak_bytes > 4 * needed(4096, 1024)
    assert memory.largest_elements == 4096 * 1024
