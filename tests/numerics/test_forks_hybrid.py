"""Hybrids: forks equal recomputation, rows continue, and what a state of theirs holds."""

import fork_checks
import hybrids
import pytest
import tiny
import torch

from refine_pl.backbones.attention_layer import AttentionMixer

# Around the borders of the recurrence's chunks (64 tokens), around 0, and at the end.
POSITIONS = [[1, 2, 63, 64, 65, 130], [3, 4, 62, 66, 100, 127]]
LENGTHS = [140, 131]


@pytest.mark.parametrize("name", hybrids.MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"activation_checkpointing": True, "tie_word_embeddings": True}], ids=str
)
def test_forks_equal_recomputation(name, options):
    policy = hybrids.MODELS[name](**options)
    assert fork_checks.check_replay(policy, LENGTHS, POSITIONS, copies=2) > 40


@pytest.mark.parametrize("name", hybrids.MODELS)
def test_generators_draw_the_same_rollouts(name):
    fork_checks.check_generators(hybrids.MODELS[name](), LENGTHS, POSITIONS, copies=2)


@pytest.mark.parametrize("name", hybrids.MODELS)
def test_states_continue_rows(name):
    policy = hybrids.MODELS[name]()
    fork_checks.check_parts(policy, 150, 70, [5, 40, 64, 70])
    fork_checks.check_token_by_token(policy, 40)
    fork_checks.check_unequal_rows(policy, [33, 90, 1], [4, 2, 20])
    fork_checks.check_unequal_rows(policy, [33, 90, 1], [4, 0, 3])


@pytest.mark.parametrize("name", hybrids.MODELS)
def test_long_continuations_of_forks_share_the_prefix(name):
    """More tokens at once than the layers keep beside their state otherwise."""
    policy = hybrids.MODELS[name]()
    tokens = tiny.batch([40]).tokens
    more = fork_checks.rollout_tokens((4, 30))
    with torch.no_grad():
        state = policy(tokens, keep_trail=True).trail.at(torch.tensor([[33, 20]])).fork(2)
        output = policy(more, state=state)
    layer, before = (each.layers[attention(policy)] for each in (output.state, state))
    assert layer.seen.keys.data_ptr() == before.seen.keys.data_ptr()
    for row, end in enumerate((33, 33, 20, 20)):
        whole = torch.cat([tokens[:, :end], more[row : row + 1]], 1)
        expected = policy(whole).hidden[0, end:]
        torch.testing.assert_close(output.hidden[row], expected, rtol=1e-9, atol=1e-10)


def attention(policy):
    """The number of the last layer of attention: over everything before."""
    mixers = [block.mixer for block in policy.model.layers]
    return max(i for i, mixer in enumerate(mixers) if isinstance(mixer, AttentionMixer))


@pytest.mark.parametrize("name", hybrids.MODELS)
def test_forks_hold_the_keys_of_a_prefix_once(name):
    policy = hybrids.MODELS[name](torch.float32)
    index = attention(policy)
    sizes = {}
    with torch.no_grad():
        for length in (32, 64):
            trail = policy(tiny.batch([length, length]).tokens, keep_trail=True).trail
            state = trail.at(torch.tensor([[5, length], [8, 20]]))
            layers = [s.layers[index] for s in (state, state.fork(8))]
            one, more = (sum(t.nbytes for t in layer.tensors()) for layer in layers)
            assert one == more
            assert len({layer.seen.keys.data_ptr() for layer in layers}) == 1
            sizes[length] = one
    assert sizes[64] == 2 * sizes[32]  # linear in the text, and the same for any positions
