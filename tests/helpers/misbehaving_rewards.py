"""Rewards that do what a reward must not do, one class for each way."""

import sys

import numpy as np
import torch

from refine_pl.errors import UserError
from refine_pl.rewards import Reward


def shape_of(rollouts):
    return tuple(rollouts.tokens.shape[:3])


def returns(make):
    """A reward that returns ``make(shape)``."""

    class Returns(Reward):
        def score(self, rollouts):
            return make(shape_of(rollouts))

    return Returns


def raises(error):
    """A reward that raises."""

    class Raises(Reward):
        def score(self, rollouts):
            raise error

    return Raises


def one_nan(shape):
    values = torch.rand(shape)
    values[0, 0, 0] = float("nan")
    return values


class Leaves(Reward):
    def score(self, rollouts):
        sys.exit(0)


class EditsItsInput(Reward):
    """Scores by the tokens, and then spoils everything that it was given."""

    def score(self, rollouts):
        score = rollouts.tokens.float().mean(-1) / 257
        for value in (rollouts.tokens, rollouts.targets, rollouts.hidden, rollouts.target_hidden):
            value.zero_()
        rollouts.old_logprobs.fill_(float("nan"))
        rollouts.target_logprobs.fill_(float("nan"))
        rollouts.positions.index.fill_(10**6)
        rollouts.positions.valid.fill_(False)
        return score


class LeavesItsInput(Reward):
    """The same score."""

    def score(self, rollouts):
        return rollouts.tokens.float().mean(-1) / 257


class ReadsHidden(Reward):
    def score(self, rollouts):
        return rollouts.hidden.float().mean((-1, -2))


REFUSED = {
    "NaN": returns(lambda s: torch.full(s, float("nan"))),
    "Inf": returns(lambda s: torch.full(s, float("inf"))),
    "NegInf": returns(lambda s: torch.full(s, float("-inf"))),
    "OneNaN": returns(one_nan),
    "WrongShape": returns(lambda s: torch.rand(s[:2])),
    "Flat": returns(lambda s: torch.rand(s).flatten()),
    "ExtraDim": returns(lambda s: torch.rand(s)[..., None]),
    "Scalar": returns(lambda s: torch.tensor(1.0)),
    "Int": returns(lambda s: torch.randint(0, 2, s)),
    "Bool": returns(lambda s: torch.randint(0, 2, s).bool()),
    "Complex": returns(lambda s: torch.rand(s) + 1j),
    "Meta": returns(lambda s: torch.rand(s, device="meta")),
    "Raises": raises(RuntimeError("user fault")),
    "PyList": returns(lambda s: torch.rand(s).tolist()),
    "NoneRet": returns(lambda s: None),
    "Numpy": returns(lambda s: np.zeros(s)),
    "Overflow": returns(lambda s: torch.rand(s).double() * 1e300),
    "KeyErr": raises(KeyError("x")),
    "StopIter": raises(StopIteration()),
    "SysExit": Leaves,
    "Sparse": returns(lambda s: torch.ones(s).to_sparse()),
    "UserErr": raises(UserError("a users own")),
}
ACCEPTED = {
    "Half": returns(lambda s: torch.rand(s).half()),
    "Double": returns(lambda s: torch.rand(s).double()),
    "Grad": returns(lambda s: torch.rand(s, requires_grad=True) * 2),
    "Huge": returns(lambda s: torch.rand(s) * 3e38),
    "Const": returns(torch.ones),
    "InPlace": EditsItsInput,
    "Training": ReadsHidden,
}
INTERRUPTS = {"KbdInt": raises(KeyboardInterrupt())}


class Forgets(Reward):
    """Its constructor does not call that of its base."""

    def __init__(self):
        self.limit = 3

    def score(self, rollouts):
        return torch.zeros(shape_of(rollouts))


def composed(generator):
    """A reward whose result has a wrong shape, type, layout or device, drawn at random.

    Returns:
        Its name and its class.
    """

    def draw(names):
        return names[int(torch.randint(len(names), (), generator=generator))]

    shapes = {
        "right": lambda s: s,
        "short": lambda s: s[:2],
        "long": lambda s: (*s, 2),
        "turned": lambda s: (s[0] + 1, s[2] + 1, s[1]),
        "empty": lambda s: (0, *s[1:]),
    }
    kinds = {
        "float32": lambda x: x,
        "int32": lambda x: x.int(),
        "bool": lambda x: x > 0,
        "complex": lambda x: x.to(torch.complex64),
        "nan": lambda x: x + float("nan"),
        "inf": lambda x: x - float("inf"),
        "sparse": lambda x: x.to_sparse(),
        "meta": lambda x: x.to("meta"),
        "list": lambda x: x.tolist(),
        "numpy": lambda x: x.numpy(),
        "tuple": lambda x: (x,),
    }
    shape = draw(list(shapes))
    kind = draw([k for k in kinds if (shape, k) != ("right", "float32")])
    return f"{shape} {kind}", returns(lambda s: kinds[kind](torch.rand(shapes[shape](s))))
