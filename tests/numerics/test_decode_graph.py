"""Drawing by a recording of the decode loop equals eager decoding, bit for bit.

A stand-in records and replays on the CPU (``replayed_ops``); ``tests/gpu`` has the same on CUDA.
"""

import copy
import pickle
import warnings
from dataclasses import replace

import hybrids
import pytest
import tiny
import torch
from replayed_ops import DecodedAgain, ReplayedOps
from runs import module, train
from single_updates import MODELS
from torch.nn.utils import prune

from refine_kernels.lact_update import SharedFastState, UnchangingState
from refine_pl.errors import ConfigError
from refine_pl.records import Prefill, RolloutPlan
from refine_pl.rollouts import Forked, decode_graph

RECORDED = MODELS | {
    "LaCT": lambda: tiny.lact(lact_chunk_size=43),  # rows of 40 tokens do not fill one
    "DeltaNet with attention": hybrids.delta_net,
    "GatedDeltaNet with windows": hybrids.gated_delta_net,
}
# Their windows and fast weights lie side by side for a recording, and products are other ones.
REGROUPED = ["LaCT", "GatedDeltaNet with windows"]
ROWS = [[40, 37], [33, 40], [40, 11], [29, 40]]  # two sequences each, padded to 40


def recorded(mode="always", recorder=ReplayedOps):
    generator = Forked(mode)
    generator.decode = decode_graph.Decoder(recorder)
    return generator


def draw(generator, policy, number, copies=2, length=5, rows=None, places=((9, 23), (5, 10))):
    """Rollouts of the draw of that number: other sequences, positions and random numbers."""
    batch = tiny.batch(rows or ROWS[number % len(ROWS)], width=40, seed=number)
    with torch.no_grad():
        output = policy(batch.tokens, batch.num_tokens, keep_trail=True)
    where = tiny.positions([[p + number % 2 for p in row] for row in places])
    plan = RolloutPlan(len(places[0]), copies, length)
    prefill = Prefill(output.hidden, None, output.trail)
    random = tiny.randomness(len(batch), seed=number)
    return generator.generate(policy, prefill, batch, where, plan, random)


def same(one, other, exact=True):
    """How many numbers; they are equal, or but for the rounding of products."""
    count = 0
    for name in ("tokens", "old_logprobs", "target_logprobs", "hidden"):
        a, b = getattr(one, name), getattr(other, name)
        near = 0.0 if exact else 1e-12 if a.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(a, b, rtol=near, atol=near, msg=name)
        count += a.numel()
    return count


def step_in_place(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def check_draws(policy, change=lambda draws: None, draws=6, eager=None, exact=True, **plan):
    """Each draw by the recording and eagerly; what was drawn before stays as it was."""
    generator, eager, kept, count = recorded(), eager or Forked("never"), [], 0
    for number in range(draws):
        change(number)
        kept.append((draw(generator, policy, number, **plan), draw(eager, policy, number, **plan)))
    replays = [x.recorder.replays for x in generator.decode.recordings.values()]
    assert replays == [draws - 1]  # the first was eager; the second compared
    for one, other in kept:
        count += same(one, other, exact)
    assert len({one.tokens.flatten().tolist().__str__() for one, _ in kept}) == draws
    return count


@pytest.mark.parametrize(("copies", "length"), [(1, 1), (3, 5), (2, 18)])
@pytest.mark.parametrize("name", RECORDED)
def test_a_replay_draws_what_decoding_draws(name, copies, length):
    policy = RECORDED[name]()
    step, plan = lambda _: step_in_place(policy), {"copies": copies, "length": length}
    count = check_draws(policy, step, **plan, exact=name not in REGROUPED)
    assert count > 6 * 4 * copies * length * 16


@pytest.mark.parametrize("name", REGROUPED)
def test_a_replay_equals_the_same_products_bit_for_bit(name):
    policy, again = RECORDED[name](), recorded(recorder=DecodedAgain)
    step, plan = lambda _: step_in_place(policy), {"copies": 3, "length": 5}
    assert check_draws(policy, step, **plan, eager=again) > 6 * 4 * 15 * 16


@pytest.mark.parametrize("name", REGROUPED)
def test_a_joined_pass_with_gradients(name):
    policy = RECORDED[name]()
    generator, eager = recorded(), Forked("never")
    for number in range(4):
        batch = tiny.batch([40, 37], seed=number)
        opened = policy.open_pass(batch.tokens, batch.num_tokens)
        where = tiny.positions([[9, 23], [5, 10]])
        prefill = Prefill(opened.hidden, None, opened.trail)
        rest = batch, where, RolloutPlan(2, 2, 4)
        one, other = (
            x.generate(policy, prefill, *rest, tiny.randomness(2, seed=number))
            for x in (generator, eager)
        )
        assert same(one, other, exact=False) > 0
        assert not one.hidden.requires_grad
    assert [x.recorder.replays for x in generator.decode.recordings.values()] == [3]


@pytest.mark.parametrize("cached", [False, True])
def test_mixed_precision_casts_weights_in_every_replay(cached):
    """Once with autocast's cache, whatever lay in it before."""
    policy = tiny.delta_net(dtype=torch.float32)
    generator, eager = recorded(), Forked("never")
    for number in range(5):
        step_in_place(policy)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            one = draw(generator, policy, number)  # after a pass that has cast all weights
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            same(one, draw(eager, policy, number))
    (made,) = generator.decode.recordings.values()
    assert made.recorder.replays == 4
    casts = [c for c in made.recorder.calls if "_to_copy" in str(c[0])]
    weights = {p.data_ptr() for p in policy.parameters()}
    found = [c[1][0].data_ptr() for c in casts if c[1][0].data_ptr() in weights]
    assert len(set(found)) >= 15
    # Those of linear layers once; norms and convolutions cast their own in each of five steps.
    assert len(found) < 3 * len(set(found)) if cached else len(found) == 5 * len(set(found))


def test_a_cast_that_lay_in_the_cache_is_seen(monkeypatch):
    """The broken case."""
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    policy = tiny.delta_net(dtype=torch.float32)
    generator, drawn = recorded(), []
    for number in range(5):
        step_in_place(policy)
        with torch.autocast("cpu", torch.bfloat16):
            one = draw(generator, policy, number)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            drawn.append((one, draw(Forked("never"), policy, number)))
    assert not all(torch.equal(one.tokens, other.tokens) for one, other in drawn)


def test_weights_that_a_hook_makes_anew():
    policy = tiny.delta_net()
    prune.l1_unstructured(policy.model.layers[0].mlp.up_proj, "weight", amount=0.5)
    assert check_draws(policy, lambda _: step_in_place(policy)) > 0


def bake_uniform(monkeypatch):
    """As if the random numbers had been a Python value while it was recorded."""
    plain, modes = decode_graph.decode, torch.utils._python_dispatch

    def baked(policy, hidden, state, targets, uniform):
        if modes.is_in_torch_dispatch_mode():
            with modes._disable_current_modes():
                uniform = uniform.clone()
        return plain(policy, hidden, state, targets, uniform)

    monkeypatch.setattr(decode_graph, "decode", baked)


def no_clone(monkeypatch):
    monkeypatch.setattr(decode_graph, "_leaving", lambda outputs: outputs)


def stale_inputs(monkeypatch):
    monkeypatch.setattr(decode_graph, "_tensors", lambda inputs: [inputs.uniform])


@pytest.mark.parametrize("broken", [bake_uniform, no_clone, stale_inputs])
def test_what_is_broken_is_seen(broken, monkeypatch):
    policy = tiny.delta_net()
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        check_draws(policy)


@pytest.mark.parametrize("noticed", [True, False])
def test_a_weight_that_lies_elsewhere_is_another_signature(noticed, monkeypatch):
    policy, generator = tiny.delta_net(), recorded()
    if not noticed:
        monkeypatch.setattr(decode_graph, "surroundings_of", lambda *_: None)
    for number in range(3):
        draw(generator, policy, number)
    weight = policy.model.layers[1].mlp.up_proj
    old = weight.weight  # keeps its place, as it does where an allocator keeps what was freed
    weight.weight = torch.nn.Parameter(old.detach() * -1.5)
    pairs = [(draw(generator, policy, n), draw(Forked("never"), policy, n)) for n in range(3)]
    if noticed:
        assert sum(same(*pair) for pair in pairs) > 0
        assert len(generator.decode.recordings) == 2
        return
    with pytest.raises(AssertionError):
        same(*pairs[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda policy: policy.eval(),
        lambda policy: setattr(policy.model.layers[0].mlp, "scaling", {"default": 2.0}),
        lambda policy: policy.model.norm.register_forward_hook(lambda *_: None),
        lambda policy: policy.model.register_buffer("more", torch.zeros(1)),
    ],
)
def test_a_model_that_was_changed_is_another_signature(change):
    policy, generator = tiny.delta_net(), recorded()
    for number in range(3):
        draw(generator, policy, number)
    (made,) = generator.decode.recordings.values()
    change(policy)
    draw(generator, policy, 3)
    assert made.recorder.replays == 2


def test_recordings_do_not_pile_up():
    policy, generator = tiny.delta_net(), recorded("auto")
    for length in range(1, 6):
        for number in range(2):
            draw(generator, policy, number, length=length)
    lengths = [x.outputs.tokens.shape[1] for x in generator.decode.recordings.values()]
    assert lengths == [4, 5]
    assert len(lengths) == decode_graph.KEPT


def test_sizes_that_never_repeat(monkeypatch):
    monkeypatch.setattr(decode_graph, "PATIENCE", 4)
    policy, generator = tiny.delta_net(), recorded("auto")
    with pytest.warns(UserWarning, match="hardly ever") as said:  # noqa: PT031
        for length in range(1, 8):
            draw(generator, policy, 0, length=length)
    assert len(said) == 1
    assert "decode_graph: never" in str(said[0].message)
    for number in range(3):
        draw(generator, policy, number)
    assert not generator.decode.recordings


def read_a_number(policy):
    policy.model.norm.register_forward_hook(
        lambda module, inputs, output: output * output.sum().item() ** 0
    )


def differ_in_recording(policy):
    inside = torch.utils._python_dispatch.is_in_torch_dispatch_mode
    policy.model.norm.register_forward_hook(lambda m, x, output: output * (-1 if inside() else 1))


@pytest.mark.parametrize("name", REGROUPED)
def test_draws_do_not_depend_on_what_was_recorded_before(name, monkeypatch):
    """One has recorded, one has given up, and one has just begun, as a run that goes on has."""
    monkeypatch.setattr(decode_graph, "PATIENCE", 2)
    policy, records, gives_up = RECORDED[name](), recorded("auto"), recorded("auto")
    draw(gives_up, policy, 0, length=1)
    with pytest.warns(UserWarning, match="hardly ever"):
        draw(gives_up, policy, 0, length=2)
    draw(gives_up, policy, 0, length=3)
    for number in range(4):
        one, *others = (draw(x, policy, number) for x in (records, gives_up, recorded("auto")))
        assert all(same(one, other) > 0 for other in others)
    assert records.decode.recordings
    assert not gives_up.decode.recordings


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(read_a_number, "the host reads a number"), (differ_in_recording, "drew other tokens")],
)
def test_what_cannot_be_recorded(fault, cause):
    policy = tiny.delta_net()
    fault(policy)
    generator, count = recorded("auto"), 0
    with pytest.warns(UserWarning, match=cause) as said:  # noqa: PT031
        for number in range(4):
            count += same(draw(generator, policy, number), draw(Forked("never"), policy, number))
    assert len(said) == 1
    assert count > 0
    generator = recorded("always")
    draw(generator, policy, 0)
    with pytest.raises(ConfigError, match=cause) as refusal:
        draw(generator, policy, 1)
    assert "decode_graph" in str(refusal.value)


def check_lact(mode, draws=9, full=(2, 3, 7)):
    """Some draws fill a chunk of 20 tokens."""
    policy, generator, eager = tiny.lact(lact_chunk_size=20), recorded(mode), Forked("never")
    for number in range(draws):
        step_in_place(policy)
        places = ((9, 16 if number in full else 23), (5, 10))  # of five tokens, and one more
        one, other = (draw(x, policy, number, 3, places=places) for x in (generator, eager))
        assert same(one, other, exact=False) > 0
    (made,) = generator.decode.recordings.values()
    assert made.recorder.replays == draws - len(full) - 1  # the first was eager
    (form,) = {type(layer.fast) for layer in made.inputs.layers}
    assert form is UnchangingState
    assert not generator.decode._stopped


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_draws_that_fill_a_chunk_of_lact_are_decoded_eagerly(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_lact(mode)


def test_weights_that_change_unseen_are_noticed(monkeypatch):
    """The broken case."""
    counted = SharedFastState.unchanging
    monkeypatch.setattr(
        SharedFastState,
        "unchanging",
        lambda self, length: replace(counted(self, 0), room=length),
    )
    with pytest.raises(AssertionError):
        check_lact("always")


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_every_draw_fills_a_chunk(mode, monkeypatch):
    monkeypatch.setattr(decode_graph, "PATIENCE", 3)
    policy, generator = tiny.lact(lact_chunk_size=4), recorded(mode)
    with pytest.warns(UserWarning, match="chunks of LaCT become full") as said:  # noqa: PT031
        for number in range(7):
            same(draw(generator, policy, number), draw(Forked("never"), policy, number))
    assert len(said) == 1
    assert not generator.decode.recordings


def test_a_device_that_has_no_graphs():
    policy = tiny.delta_net()
    with pytest.raises(ConfigError, match="the model is on cpu"):
        draw(Forked("always"), policy, 0)
    assert same(draw(Forked(), policy, 0), draw(Forked("never"), policy, 0)) > 0
    with pytest.raises(ConfigError, match="the model is on cpu"):  # before anything is trained
        train(module(generator=Forked("always")))


def test_another_word():
    with pytest.raises(ConfigError, match="decode_graph is 'off'"):
        Forked("off")


def test_a_copy_records_for_itself():
    policy, generator = tiny.delta_net(), recorded()
    for number in range(3):
        draw(generator, policy, number)
    assert not generator.state_dict()
    for made in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert not made.decode.recordings
        assert made.decode_graph == "always"
