"""LaCT: forks equal recomputation around the borders of its chunks, for every option."""

import fork_checks
import pytest
import tiny
import torch

from refine_pl.backbones import Forks, State

# Before, on and after borders of chunks of 8 and of 16; the last ones end with the row.
POSITIONS = [[1, 7, 8, 9, 15, 17, 36], [3, 6, 16, 24, 31, 32, 33]]
LENGTHS = [41, 38]

LOW_RANK = {"w0_w2_low_rank": 4}
OPTIONS = [
    LOW_RANK,
    {"use_muon": True} | LOW_RANK,
    {"ttt_prenorm": True},
    {"ttt_prenorm": True, "use_muon": True, "use_momentum": False, "inter_multi": 2},
    {"ttt_nope": True, "attn_qk_norm": True},
    {"qkv_bias": True, "no_v_silu": True},
    {"qkv_silu": False, "learnable_ttt_scale": False},
    {"use_momentum": False, "inter_multi": 2, "use_muon": True},
    {"inter_multi": 0.5, "w0_w2_low_rank": 2, "tie_word_embeddings": True},
    {"lr_dim": 8, "activation_checkpointing": True},
    {"lact_chunk_size": 16, "window_size": 5} | LOW_RANK,
    {"lact_chunk_size": 16, "window_size": 100, "attn_qk_norm": True, "qkv_bias": True},
    {"lact_chunk_size": 3, "window_size": 1},
    {"lact_chunk_size": 64, "window_size": 2},
]


def unused(policy, length):
    """Parameters that nothing depends on while no chunk is followed by another."""
    if policy.model.layers[0].attn.rule.chunk_size < length:
        return ()
    names = (name for name, _ in policy.named_parameters())
    return tuple(n for n in names if "lr_proj" in n or "momentum_proj" in n)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("copies", "length"), [(1, 4), (3, 11)])
def test_forks_equal_recomputation(options, copies, length):
    policy = tiny.lact(**options)
    lengths = [n + length for n in LENGTHS]
    fork_checks.check_replay(
        policy, lengths, POSITIONS, copies, length, unused=unused(policy, max(lengths))
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_generators_draw_the_same_rollouts(options):
    fork_checks.check_generators(tiny.lact(**options), LENGTHS, POSITIONS, copies=2, length=5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_states_continue_rows(options):
    policy = tiny.lact(**options)
    fork_checks.check_parts(policy, 90, 37, [0, 1, 8, 15, 16, 37], steps=3)
    fork_checks.check_parts(policy, 83, 32, [7, 16, 24, 32], steps=19)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_decoding_token_by_token_equals_the_row_at_once(options):
    fork_checks.check_token_by_token(tiny.lact(**options), 60)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
def test_unequal_rows_continue_from_their_own_ends(options):
    policy = tiny.lact(**options)
    fork_checks.check_unequal_rows(policy, [33, 16, 1], [4, 2, 40])
    fork_checks.check_unequal_rows(policy, [8, 31, 20], [17, 0, 3])


@pytest.mark.parametrize("options", OPTIONS[::4], ids=str)
def test_what_comes_after_a_row_changes_nothing(options):
    policy = tiny.lact(**options)
    results = []
    for padding, width in ((0, 41), (9, 60)):
        batch = tiny.batch([41, 20, 5], width=width, padding=padding)
        policy.zero_grad()
        output = policy(batch.tokens, batch.num_tokens)
        real = torch.arange(width) < batch.num_tokens[:, None]
        output.hidden[real].sin().sum().backward()
        gradients = fork_checks.gradients_of(policy)
        results.append([output.hidden[real].detach(), *gradients.values()])
    alone = [policy(batch.tokens[i : i + 1, :n]).hidden[0] for i, n in enumerate([41, 20, 5])]
    torch.testing.assert_close(torch.cat(alone).detach(), results[0][0], rtol=1e-10, atol=1e-11)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS[::5], ids=str)
@pytest.mark.parametrize("forks", [1, 3])
def test_decoding_needs_constant_memory(options, forks):
    policy = tiny.lact(dtype=torch.float32, **options)
    sizes = []
    with torch.no_grad():
        state = policy(tiny.batch([100]).tokens).state.fork(forks)
        for _ in range(300):
            tokens = torch.ones(forks, 1, dtype=torch.int64)
            state = policy(tokens, state=state).state
            sizes.append(state.nbytes)
    assert max(sizes[150:]) <= max(sizes[:150])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_the_form_for_graphs_reads_the_same_up_to_a_full_chunk(options, copies):
    policy = tiny.lact(**options)
    batch = tiny.batch(LENGTHS)
    with torch.no_grad():
        trail = policy(batch.tokens, batch.num_tokens, keep_trail=True).trail
        state = trail.at(torch.tensor([[1, 17, 9], [16, 33, 24]])).fork(copies)
        room = state.layers[0].fast.room
        assert room > 0
        assert state.layers[0].for_graph(room + 1) is None
        form = State(tuple(x.for_graph(room) for x in state.layers), state.num_tokens)
        rows = torch.tensor([4, 0, 4, 2])
        pairs = [(state, form), tuple(x.select(rows).fork(2) for x in (state, form))]
        for whole, short in pairs:
            for _ in range(min(room, 20)):
                tokens = torch.randint(23, (len(whole.num_tokens), 1))
                one, other = (policy(tokens, state=x) for x in (whole, short))
                torch.testing.assert_close(other.hidden, one.hidden, rtol=1e-10, atol=1e-11)
                whole, short = one.state, other.state
        if room <= 20:
            with pytest.raises(ValueError, match="1 tokens of a state that may read 0 more"):
                policy(tokens, state=short)


def test_forks_share_what_they_continue():
    """A fork adds its own tokens, not another copy of weights, chunk or window."""
    policy = tiny.lact(dtype=torch.float32, lact_chunk_size=16)
    with torch.no_grad():
        trail = policy(tiny.batch([70]).tokens, keep_trail=True).trail
        state = trail.at(torch.tensor([[50, 51, 52]]))
        weights = state.layers[0].fast.bank.states.applied.w0
        assert weights.shape[0] == 1  # one chunk, however many positions lie in it
        forked = state.fork(100)
        assert forked.nbytes == state.nbytes
        after = policy(torch.ones(300, 1, dtype=torch.int64), state=forked).state
        per_row = (after.nbytes - state.nbytes) / 300
        assert per_row < 1.1 * 2 * 4 * (4 * 16 + 2 * 3 + 2)  # k, v twice, rates, momentum
        assert after.layers[0].fast.bank.states.applied.w0.shape[0] == 1


def test_a_detached_fork_would_be_noticed():
    """The broken case: without the gradient through the state the comparison must fail."""
    policy = tiny.lact()
    batch = tiny.batch([40])
    tokens = fork_checks.rollout_tokens((1, 1, 1, 3))
    forks = Forks(torch.tensor([[30]]), tokens, torch.ones(1, 1, dtype=torch.bool))
    weight = policy.model.layers[0].attn.lr_proj.weight
    through = policy(batch.tokens, forks=forks).fork_hidden.sum()
    expected = torch.autograd.grad(through, weight)[0]
    state = policy(batch.tokens, keep_trail=True).trail.at(torch.tensor([[30]])).detach()
    detached = policy(tokens.view(1, 3), state=state).hidden.sum()
    torch.testing.assert_close(detached, through)
    broken = torch.autograd.grad(detached, weight, allow_unused=True)[0]
    assert broken is None or (broken - expected).norm() > 0.1 * expected.norm()
