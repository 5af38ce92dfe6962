"""Continuing prompts from states equals reading everything again for every token."""

import pytest
import torch
from tiny import batch, delta_net, lact

from refine_pl.backbones import GatedDeltaNet
from refine_pl.evaluation.generation import continue_prompts, greedy, narrowed, sampling
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch

LENGTHS = [5, 31, 17, 8, 1]
NEW = 21  # tokens; LaCT's chunk is 8 and its window 12


def gated(seed=0):
    torch.manual_seed(seed)
    return GatedDeltaNet(
        vocab_size=23,
        hidden_size=16,
        num_hidden_layers=2,
        num_heads=2,
        head_dim=8,
        initializer_range=0.3,
    ).to(torch.float64)


MODELS = {"delta_net": delta_net, "gated_delta_net": gated, "lact": lact}


@pytest.fixture(params=MODELS, scope="module")
def policy(request):
    return MODELS[request.param]()


def budgets(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def recomputed(policy, prompt, length, eos=None):
    """Greedy, and the whole sequence read again for every token."""
    tokens, logprobs = prompt.tolist(), []
    while len(logprobs) < length:
        with torch.no_grad():
            hidden = policy(torch.tensor([tokens])).hidden[0, -1:]
            logits = policy.head(hidden, logits=True).logits[0]
        tokens.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :], logprobs


def prompt_of(prompts, row):
    return prompts.tokens[row, : prompts.num_tokens[row]]


def assert_row(made, row, tokens, logprobs):
    assert made.row(row) == tokens
    found = made.logprobs[row, : len(tokens)]
    torch.testing.assert_close(found, torch.tensor(logprobs), rtol=0, atol=1e-6)


def test_greedy_equals_recomputation(policy):
    prompts = batch(LENGTHS, padding=-7)
    limits = budgets(NEW, NEW, 3, NEW, 10)
    made = continue_prompts(policy, prompts, limits, eos_token_id=None, choose=greedy)
    assert made.tokens.shape == made.logprobs.shape == (5, NEW)
    assert made.num_tokens.tolist() == limits.tolist()
    assert set(made.finish) == {"length"}
    for row, limit in enumerate(limits.tolist()):
        assert_row(made, row, *recomputed(policy, prompt_of(prompts, row), limit))


def test_end_of_text_ends_a_row(policy):
    prompts = batch(LENGTHS)
    free = [recomputed(policy, prompt_of(prompts, row), NEW)[0] for row in range(5)]
    eos = free[0][2]
    made = continue_prompts(policy, prompts, budgets(*[NEW] * 5), eos_token_id=eos, choose=greedy)
    assert made.finish[0] == "eos"
    for row in range(5):
        tokens, logprobs = recomputed(policy, prompt_of(prompts, row), NEW, eos)
        assert_row(made, row, tokens, logprobs)
        assert (made.finish[row] == "eos") == (tokens[-1] == eos)


def test_each_of_several_ids_that_the_configuration_lists_ends_a_row(policy, monkeypatch):
    prompts, limits = batch(LENGTHS), budgets(*[NEW] * 5)
    whole = continue_prompts(policy, prompts, limits, eos_token_id=None, choose=greedy)
    ends = sorted({whole.row(0)[7], whole.row(1)[3]})
    config = policy.config() | {"eos_token_id": ends}
    monkeypatch.setattr(policy, "config", lambda: config)
    made = continue_prompts(policy, prompts, limits, eos_token_id=None, choose=greedy)
    for row in range(5):
        tokens = whole.row(row)
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        assert made.row(row) == tokens[: None if end is None else end + 1]
        assert made.finish[row] == ("length" if end is None else "eos")
        assert made.spoken(row) == tokens[:end]
    assert made.finish[:2] == ("eos", "eos")
    config["eos_token_id"] = 2  # one id is the tokenizer's to say
    made = continue_prompts(policy, prompts, limits, eos_token_id=None, choose=greedy)
    assert [made.row(i) for i in range(5)] == [whole.row(i) for i in range(5)]


def sampled(policy, prompts, limits, copies=1, length=NEW, **options):
    generator = RowRandom(3, 0, prompts.rows, "answer")
    choose = sampling(generator, length, copies=copies)
    return continue_prompts(
        policy, prompts, limits, copies=copies, eos_token_id=2, choose=choose, **options
    )


def test_alone_and_in_a_batch(policy):
    """Neither other rows, nor padding, nor when they finish, nor their number at once matter."""
    prompts = batch(LENGTHS, width=40, padding=11)
    limits = budgets(NEW, 4, NEW, NEW, 9)
    together = sampled(policy, prompts, limits)
    in_parts = sampled(policy, prompts, limits, prompts_at_once=2)
    assert len(set(together.num_tokens.tolist())) > 2  # some end early
    for row in range(5):
        one = Batch(prompt_of(prompts, row)[None], prompts.num_tokens[row : row + 1], (row,))
        alone = sampled(policy, one, limits[row : row + 1], length=int(limits[row]))
        for other in (together, in_parts):
            assert other.row(row) == alone.row(0)
            assert other.finish[row] == alone.finish[0]
            length = int(alone.num_tokens[0])
            torch.testing.assert_close(
                other.logprobs[row, :length], alone.logprobs[0], rtol=0, atol=1e-9
            )


def test_copies_share_the_prefix(policy):
    prompts = batch([30, 14])
    limits = budgets(NEW, 7)
    reads = []
    handle = policy.register_forward_pre_hook(lambda _, args: reads.append(args[0].shape))
    made = sampled(policy, prompts, limits, copies=3)
    handle.remove()
    assert reads[0] == (2, 30)  # the prompts are read once, whatever the number of copies
    assert all(shape[1] == 1 and shape[0] <= 6 for shape in reads[1:])
    assert len({tuple(made.row(row)) for row in range(3)}) == 3
    for row in range(6):
        prompt, tokens = prompt_of(prompts, row // 3), made.row(row)
        with torch.no_grad():
            hidden = policy(torch.cat([prompt, torch.tensor(tokens)])[None]).hidden[0]
            before = hidden[len(prompt) - 1 : -1]
            logprobs = policy.head(before, torch.tensor(tokens)).logprob
        torch.testing.assert_close(
            made.logprobs[row, : len(tokens)], logprobs.float(), rtol=0, atol=1e-5
        )


def test_copies_share_their_state(policy):
    """As long as they have read little themselves."""
    with torch.no_grad():
        state = policy(batch([30, 14]).tokens, torch.tensor([30, 14])).state
    shared = state.fork(8)
    assert len(shared.num_tokens) == 16
    assert shared.nbytes < 8 * state.nbytes * 0.6


@pytest.mark.parametrize("name", MODELS)
def test_memory_does_not_grow_with_the_text(name, monkeypatch):
    """Bytes of the state before each step, over many tokens."""
    policy = MODELS[name]()
    sizes = []
    forward = type(policy).forward

    def watched(self, *args, state=None, **kwargs):
        sizes.append(0 if state is None else state.nbytes)
        return forward(self, *args, state=state, **kwargs)

    monkeypatch.setattr(type(policy), "forward", watched)
    prompts = batch([30, 14])
    continue_prompts(policy, prompts, budgets(160, 160), eos_token_id=None, choose=greedy)
    assert len(sizes) == 160
    early, late = max(sizes[1:60]), max(sizes[120:])
    assert late <= early


def test_stops_and_steps():
    policy, prompts = delta_net(), batch([6, 9, 4])
    asked, steps = [], []

    def choose(logits, rows, step):
        steps.append(len(rows))
        return greedy(logits, rows, step)

    def is_stopped(row, tokens):
        asked.append((row, len(tokens)))
        return row == 1 and len(tokens) == 3

    made = continue_prompts(
        policy,
        prompts,
        budgets(5, 5, 0),
        eos_token_id=None,
        choose=choose,
        is_stopped=is_stopped,
    )
    assert made.finish == ("length", "stop", "length")
    assert made.num_tokens.tolist() == [5, 3, 0]
    assert steps == [2, 2, 2, 1, 1]
    assert (2, 1) not in asked
    nothing = continue_prompts(policy, prompts, budgets(0, 0, 0), eos_token_id=0, choose=greedy)
    assert nothing.tokens.shape == (3, 0)


def test_a_prompt_without_tokens_is_refused():
    prompts = Batch(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([4, 0]), (0, 1))
    with pytest.raises(ValueError, match="no tokens"):
        continue_prompts(delta_net(), prompts, budgets(2, 2), eos_token_id=None, choose=greedy)


def test_narrowed_distributions():
    logits = torch.tensor([[0.1, 0.4, 0.4, 0.05, 0.05]]).log()

    def left(**options):
        return narrowed(logits, **options).softmax(-1)[0]

    expected = torch.tensor([0.1, 0.4, 0.4, 0.05, 0.05]).double()
    torch.testing.assert_close(left(), expected, rtol=0, atol=1e-7)
    assert left(top_k=1).tolist() == [0, 1, 0, 0, 0]  # the first of equals
    torch.testing.assert_close(left(top_k=2), torch.tensor([0, 0.5, 0.5, 0, 0]).double())
    assert (left(top_p=0.85) > 0).tolist() == [True, True, True, False, False]
    assert (left(top_p=1e-9) > 0).sum() == 1
    assert (left(top_k=3, top_p=0.5) > 0).tolist() == [False, True, True, False, False]
    assert left(temperature=0.25)[0] < 0.01


def test_samples_follow_the_narrowed_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 6)
    number = 4000
    choose = sampling(RowRandom(0, 0, range(number)), 1, temperature=0.7, top_k=4)
    tokens = choose(logits.expand(number, -1), torch.arange(number), 0)
    share = tokens.bincount(minlength=6) / number
    wanted = narrowed(logits, 0.7, 4).softmax(-1)[0].float()
    torch.testing.assert_close(share, wanted, rtol=0, atol=0.03)
    assert (share[wanted == 0] == 0).all()
