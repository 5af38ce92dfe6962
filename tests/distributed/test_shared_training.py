"""Two and four processes learn what one process learns, whole or sharded, and resume each other.

One process of several has no legal position in one iteration, the last validation batch does not
reach to all of them, and the loss of one row is not finite once.
"""

import pytest
import torch
from processes import run_processes
from shared_runs import ITERATIONS, fail_in_the_second, train

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHARED = [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4)]
STOPPED_AFTER = 2  # iterations
UPDATES = 2  # of an iteration
CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64; numbers are added in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def run(folder):
    """Runs by strategy and processes, each trained once."""
    done = {}

    def trained(strategy, processes):
        key = strategy, processes
        if key not in done:
            done[key] = run_processes(train, processes, strategy, checkpoints(folder, *key))
        return done[key]

    return trained


def checkpoints(folder, strategy, processes):
    return folder / f"{strategy}-{processes}"


def union(shares):
    """What processes saw of each iteration, by row."""
    return [dict(sorted(pair for part in parts for pair in part.items())) for parts in shares]


def seen(ranks, name):
    return union(zip(*(rank[name] for rank in ranks), strict=True))


def assert_same_rows(here, there):
    """The same documents, positions and rollouts: equal, not close. Rewards are close."""
    assert seen(here, "documents") == seen(there, "documents")
    for ours, theirs in zip(seen(here, "drawn"), seen(there, "drawn"), strict=True):
        assert list(ours) == list(theirs)
        for row in ours:
            for name in ("positions", "tokens"):
                assert torch.equal(ours[row][name], theirs[row][name]), (row, name)
            torch.testing.assert_close(ours[row]["rewards"], theirs[row]["rewards"], **CLOSE)


def assert_same_values(here, there):
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, **CLOSE, msg=name)


@pytest.mark.parametrize(("strategy", "processes"), SHARED)
def test_several_processes_equal_one(run, strategy, processes):
    (one,), several = run("one", 1), run(strategy, processes)
    first = several[0]
    assert len(one["gradients"]) == len(first["gradients"]) == ITERATIONS * UPDATES
    assert [len(g) for g in one["gradients"]].count(0) == one["skipped"] == 1
    for ours, theirs in zip(one["gradients"], first["gradients"], strict=True):
        assert_same_values(ours, theirs)
    assert_same_values(one["policy"], first["policy"])
    assert_same_values(one["reference"], first["reference"])
    assert_same_rows([one], several)
    legal = [
        sum(len(drawn["positions"]) for drawn in rank["drawn"][2].values()) for rank in several
    ]
    assert min(legal) == 0 or processes == 2  # a process without legal positions
    for name in ("skipped", "tokens_seen", "global_step"):
        assert one[name] == first[name] > 0, name
    logged = {"reward/match/mean", "train/kl", "optim/grad_norm", "val/ntp_loss"}
    assert logged <= set(one["curve"][-1])
    for ours, theirs in zip(one["curve"], first["curve"], strict=True):
        for name in ours:
            if not name.startswith(("time/", "memory/")):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-6, abs=1e-9), name
    for ours, theirs in zip(one["validations"], first["validations"], strict=True):
        assert theirs[0] == ours[0]
        assert theirs[1] == pytest.approx(ours[1], rel=1e-6)


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        (("ddp", 2), ("one", 1)),
        (("one", 1), ("ddp", 2)),
        (("ddp", 2), ("ddp", 4)),
        (("fsdp", 2), ("fsdp", 1)),
        (("fsdp", 2), ("fsdp", 4)),
    ],
)
def test_resume_on_another_number_of_processes(run, folder, saved, resumed):
    """The same rows and rollouts; weights differ by the order in which numbers are added."""
    whole = run(*saved)
    checkpoint = checkpoints(folder, *saved) / f"step={STOPPED_AFTER * UPDATES}.ckpt"
    strategy, processes = resumed
    rest = run_processes(train, processes, strategy, folder / f"{saved}-{resumed}", str(checkpoint))
    assert len(rest[0]["curve"]) == ITERATIONS - STOPPED_AFTER
    expected = [
        rank | {name: rank[name][STOPPED_AFTER:] for name in ("documents", "drawn")}
        for rank in whole
    ]
    assert_same_rows(expected, rest)
    for name in ("policy", "reference"):
        assert_same_values(whole[0][name], rest[0][name])


@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 2), ("fsdp", 2)])
def test_resume_on_as_many_processes_is_exact(run, folder, strategy, processes):
    whole = run(strategy, processes)
    folder = checkpoints(folder, strategy, processes)
    checkpoint = folder / f"step={STOPPED_AFTER * UPDATES}.ckpt"
    rest = run_processes(train, processes, strategy, folder / "resumed", str(checkpoint))
    for ours, theirs in zip(whole, rest, strict=True):
        assert theirs["documents"] == ours["documents"][STOPPED_AFTER:]
        for name, value in ours["policy"].items():
            assert torch.equal(theirs["policy"][name], value), name


def test_an_error_in_one_process_is_reported():
    with pytest.raises(AssertionError, match=r"process 1: (?s:.*)ValueError: of the second"):
        run_processes(fail_in_the_second, 2)
