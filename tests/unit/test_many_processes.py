"""64 and 1,024 processes, one after the other in this one: rows, random numbers and tokens."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from text_corpora import Own, text_data

from refine_pl.callbacks import RandomState
from refine_pl.data.tasks.task_set import WholeBatches
from refine_pl.randomness import RowRandom
from refine_pl.training.random_state import generator_states, undisturbed

LENGTH = 48  # tokens of a sequence
EPOCHS = 2
PER_PROCESS = {64: 8, 1024: 2}  # sequences of a batch
LEFT_OVER = 37
MOST_TOKENS = 1.1  # of a process, in means; measured: 1.08 in a batch and 1.05 to 1.08 in an epoch


def corpus(number, shortest):
    """Documents that differ, of a length between ``shortest`` and more than a sequence."""
    draw = random.Random(0)
    texts = (
        draw.choices("abcdefgh", k=draw.randint(shortest, 2 * LENGTH - shortest))
        for _ in range(number)
    )
    return Own({f"d{i}": f"{i:06d}" + "".join(text) for i, text in enumerate(texts)})


class Simulated:
    """The data module of every process, and what each is given in some epochs."""

    def __init__(self, processes, cache_dir, shortest=LENGTH // 2):
        self.processes = processes
        size = processes * PER_PROCESS[processes]
        self.data = text_data(
            corpus(3 * size + LEFT_OVER + processes, shortest),
            batch_size=size,
            sequence_length=LENGTH,
            min_tokens=min(shortest, LENGTH),
            num_validation_documents=processes,
            crop="random",
            cache_dir=str(cache_dir),
        )
        self.batches = [self.read(self.data.train_dataloader, rank) for rank in range(processes)]

    def read(self, loader, rank, epochs=EPOCHS):
        self.data.trainer = SimpleNamespace(
            distributed_sampler_kwargs={"rank": rank, "num_replicas": self.processes},
            strategy=SimpleNamespace(broadcast=lambda value: value),
            global_rank=rank,
        )
        made = loader()
        return [list(made) for _ in range(epochs)]

    def together(self, epoch, batch):
        """One batch on all processes."""
        return [epochs[epoch][batch] for epochs in self.batches]


@pytest.fixture(scope="module", params=PER_PROCESS)
def simulated(request, tmp_path_factory):
    return Simulated(request.param, tmp_path_factory.mktemp("cache"))


def test_every_row_exactly_once_an_epoch(simulated):
    """But for those that do not fill a batch: other ones in every epoch."""
    training = simulated.data.describe()["training_documents"]
    left_over = simulated.data.describe()["left_over_sequences_per_epoch"]
    assert left_over == LEFT_OVER
    missed = []
    for epoch in range(EPOCHS):
        batches = [b for epochs in simulated.batches for b in epochs[epoch]]
        assert {len(b) for b in batches} == {PER_PROCESS[simulated.processes]}
        read = Counter(name for b in batches for name in b.documents)
        assert set(read.values()) == {1}
        assert len(read) == training - left_over == 3 * simulated.data.batch_size
        missed.append(set(simulated.data.corpus.all) - set(read))
    validation = [
        name
        for rank in range(simulated.processes)
        for batch in simulated.read(simulated.data.val_dataloader, rank, 1)[0]
        for name in batch.documents
    ]
    assert len(validation) == len(set(validation)) == simulated.processes
    # Which rows are left out is drawn anew.
    assert missed[0] > set(validation) < missed[1]
    assert missed[0] != missed[1]


def test_batches_are_those_of_one_process(simulated):
    """Taken in turn, what the processes are given is the batch that one process would read."""
    alone = Simulated.read(
        SimpleNamespace(data=simulated.data, processes=1), simulated.data.train_dataloader, 0, 1
    )[0]
    for number, whole in enumerate(alone):
        shares = simulated.together(0, number)
        in_turn = [b.documents[k] for k in range(len(shares[0])) for b in shares]
        assert in_turn == list(whole.documents)


def test_no_two_processes_draw_the_same_numbers(simulated):
    drawn = {}
    for iteration in range(2):
        for batch in simulated.together(0, iteration):
            for purpose in ("train", "answer"):
                first = RowRandom(0, iteration, batch.rows, purpose).rand(1)
                for row, value in zip(batch.rows, first.flatten().tolist(), strict=True):
                    assert value not in drawn, (iteration, row, drawn[value])
                    drawn[value] = iteration, row
    assert len(drawn) == 4 * simulated.data.batch_size


@pytest.mark.parametrize("saved_by", [0, 64])
def test_no_two_processes_have_the_same_global_generators(saved_by):
    """At a start, and when a run goes on with more processes than it was saved by."""
    processes = max(PER_PROCESS)
    numbers = {"torch": set(), "numpy": set(), "python": set()}

    def seed(number):
        for function in (torch.manual_seed, np.random.seed, random.seed):
            function(number)

    with undisturbed():
        states = []
        for rank in range(saved_by):
            seed(rank)
            states.append(generator_states())
        seed(0)
        for rank in range(processes):
            generators = RandomState()
            if states:
                generators.load_state_dict({"states": states})
            with undisturbed():
                generators.on_train_start(SimpleNamespace(global_rank=rank), None)
                numbers["torch"].add(torch.rand((), dtype=torch.float64).item())
                numbers["numpy"].add(np.random.rand())
                numbers["python"].add(random.random())
    assert {name: len(found) for name, found in numbers.items()} == dict.fromkeys(
        numbers, processes
    )


def imbalance(tokens):
    """How much more than the mean the process with the most tokens has."""
    return max(tokens) / (sum(tokens) / len(tokens))


def test_sequences_of_one_length_are_balanced_exactly(tmp_path):
    """What recipes do unless min_tokens is lower than sequence_length."""
    run = Simulated(64, tmp_path, shortest=LENGTH)
    for number in range(3):
        assert imbalance([int(b.num_tokens.sum()) for b in run.together(0, number)]) == 1


def test_tokens_of_other_lengths_are_balanced_within_bounds(simulated):
    """Half of the sequences are shorter than T, down to T/2: in each batch and over an epoch."""
    found = []
    for number in range(3):
        tokens = [b.num_tokens for b in simulated.together(0, number)]
        mean = float(torch.cat(tokens).float().mean())
        worst = imbalance([int(t.sum()) for t in tokens])
        assert worst <= LENGTH / mean  # no row is longer than T
        found.append(worst)
    per_epoch = imbalance([sum(int(b.num_tokens.sum()) for b in e[0]) for e in simulated.batches])
    assert max(found) <= MOST_TOKENS
    assert per_epoch <= MOST_TOKENS


@pytest.mark.parametrize("rows", [1, 1000, 2051])
@pytest.mark.parametrize("processes", PER_PROCESS)
def test_rows_to_answer_are_shared_whole(rows, processes):
    """Every row once, whatever does not divide, and what is answered already left out."""
    tokens = [SimpleNamespace(row=SimpleNamespace(id=str(i))) for i in range(rows)]
    skip = {str(i) for i in range(0, rows, 7)}
    shares = [WholeBatches(tokens, 3, rank, processes, skip)._batches for rank in range(processes)]
    seen = Counter(t.row.id for batches in shares for batch in batches for t in batch)
    assert seen == Counter({str(i) for i in range(rows)} - skip)
    sizes = [len(batches) for batches in shares]
    assert max(sizes) - min(sizes) <= 1
