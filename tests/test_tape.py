"""A replayed step is the step, bit for bit; a step that is no fixed program is not replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tape import Recording, Tape, recordable
from models.noise import Noise

Program = Callable[["World"], Tensor]


class World:
    """What a step finds and leaves: a vector, a matrix, a net with its optimiser, a stream, and the sum of all results."""

    def __init__(self, adam: Callable[..., torch.optim.Optimizer] | None = None) -> None:
        self.noise = Noise.seeded(3)
        self.vector, self.matrix = self.noise.normal(8), self.noise.normal(8, 8)
        self.index = torch.arange(8)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
        for parameter in self.net.parameters():
            parameter.data = self.noise.normal(*parameter.shape)
        make = adam or (lambda parameters: torch.optim.Adam(parameters, 0.01, fused=True))
        self.adam = make(self.net.parameters())
        self.total = torch.zeros((), dtype=torch.float64)

    def state(self) -> list[Tensor]:
        moments = [v for state in self.adam.state.values() for v in state.values() if isinstance(v, Tensor)]
        own = [self.vector, self.matrix, self.total, self.noise.generator.get_state()]
        return [*own, *self.net.parameters(), *self.net.buffers(), *moments]

    def step(self, program: Program) -> None:
        self.total += program(self).detach().double().sum()


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b) or torch.equal(a.nan_to_num(7), b.nan_to_num(7)))


def _compare(program: Program, steps: int = 3, world: Callable[[], World] = World) -> Tape:
    """Replays as many steps as a second world takes eagerly, and compares everything after each."""
    replayed, eager = world(), world()
    recordings = []
    for _ in range(3):
        replayed.step(program)
        eager.step(program)
    for _ in range(2):
        with Recording() as recording:
            replayed.step(program)
        recordings.append(recording)
        eager.step(program)
    assert recordable(*recordings) == ""
    tape = Tape(recordings[1])
    assert all(map(_same, replayed.state(), eager.state()))  # recording is taking the step as ever
    for step in range(steps):
        tape()
        eager.step(program)
        for a, b in zip(replayed.state(), eager.state(), strict=True):
            assert _same(a, b), step
    return tape


def _trained(world: World, loss: Tensor) -> Tensor:
    world.adam.zero_grad()
    loss.backward()
    world.adam.step()
    return loss


def _changing(world: World) -> Tensor:
    """The vector, changed from step to step, so that a value frozen in a tape would show."""
    return world.vector.mul_(0.9).add_(0.05)


def _views_and_writes(w: World) -> Tensor:
    v = _changing(w)
    made = torch.empty(4, 8)
    made[:2] = v
    made[2:].copy_(w.matrix[:2] * v)
    made.view(8, 4)[1, 1:3].add_(1)
    zeros = torch.zeros_like(v)
    zeros += v  # a constant that is written later is none
    return made.t().flatten(0) + torch.cat([zeros, zeros, zeros, v])


def _out_by_keyword(w: World) -> Tensor:
    bits = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=w.noise.generator).view(torch.int16)
    kept = torch.empty(8)
    return torch.ge(bits, 0, out=kept) * _changing(w)


def _dying_inputs(w: World) -> Tensor:
    v = _changing(w) * 1.0
    square = v * v  # v lives on
    a = (v + 1) * 2 - 3  # each input dies
    m = w.matrix + v
    m = m * m.t()  # the dying input is read in another order
    n = w.matrix * v
    n = n / n[:1].expand(8, 8)  # and here by a view of itself
    e = v.exp()
    e = e * e
    return (square + a + e)[:, None] * m + n


def _draws(w: World) -> Tensor:
    w.noise.normal(5)  # read by nobody, but the stream moves on
    keep = w.noise.keep(w.matrix, 0.3)
    masks = w.noise.masks([(2, 3, 2, 2), (1, 2, 2, 2)], 0.5)
    picked = w.noise.categorical(torch.ones(3), 4).float()
    order = w.noise.permutation(8)
    return w.vector[order] + keep.sum() + masks[0].sum() + masks[1].sum() + picked.sum() + w.noise.uniform(8)


def _unread_statistics(w: World) -> Tensor:
    w.net[1](w.matrix * w.noise.uniform(8))
    return _changing(w)


def _saved_by_autograd(w: World) -> Tensor:
    h = w.net(w.matrix * _changing(w))
    parts = h.exp() + torch.sigmoid(h) + torch.tanh(h) + F.softplus(h) + h.square().add(1).sqrt() + F.leaky_relu(h, 0.2)
    x, y = (torch.softmax(parts, 1) + F.log_softmax(parts, 1)).chunk(2, 1)
    return _trained(w, (x * y).mean() + parts.norm() + F.max_pool1d(parts, 2).sum() + F.mse_loss(x, y))


def _penalised(w: World) -> Tensor:
    x = (w.matrix * w.noise.uniform(8)).requires_grad_()
    (g,) = torch.autograd.grad(w.net[2:](x).sum(), x, create_graph=True)
    return _trained(w, (g.norm(dim=1) - 1).square().mean() + w.net(x.detach()).square().mean())


def _half(w: World) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = w.net(w.matrix * _changing(w)).float().square().mean()
    return _trained(w, loss)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * g * x.exp()


def _custom(w: World) -> Tensor:
    return _trained(w, Doubled.apply(w.net(w.matrix * _changing(w))).mean())


def _pieces(w: World) -> Tensor:
    v = _changing(w)
    a, b = v.split([3, 5])
    rows = w.matrix.unbind()
    stacked = torch.stack([rows[0], rows[1] * v, v])
    taken = stacked[:, w.index.flip(0)]
    return torch.where(taken > 0, taken, v).sum(0) + F.pad(a, (0, 5)) + F.pad(b, (3, 0)) + stacked.amax(0)


PROGRAMS = [
    _views_and_writes,
    _out_by_keyword,
    _dying_inputs,
    _draws,
    _unread_statistics,
    _saved_by_autograd,
    _penalised,
]
PROGRAMS += [_half, _custom, _pieces]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_replay_is_the_step(program: Program) -> None:
    _compare(program)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "tensor rate": lambda p: torch.optim.Adam(p, torch.tensor(0.01), fused=True),
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "groups": lambda p: torch.optim.Adam([{"params": [each], "lr": 0.01 * n} for n, each in enumerate(p)], fused=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("none", [True, False])
def test_optimisers_move_weights_and_moments_alike(name: str, none: bool) -> None:
    def program(w: World) -> Tensor:
        w.adam.zero_grad(set_to_none=none)
        loss = w.net(w.matrix * _changing(w)).square().mean()
        loss.backward()
        w.adam.step()
        return loss

    if name == "adam":  # not fused, it corrects its bias in Python and reads the number of the step for that
        assert "reads a value" in _why_not(program, World(OPTIMISERS[name]))
    else:
        _compare(program, world=lambda: World(OPTIMISERS[name]))


def test_memory_is_shared_and_what_nobody_reads_is_left_out() -> None:
    def chain(w: World) -> Tensor:
        h = w.matrix * _changing(w)
        for _ in range(50):
            h = h @ w.matrix
            h.exp()
        return h.tanh()

    tape = _compare(chain)
    assert tape.bytes <= 6 * 64 * 4 + 64  # of 100 results of 256 bytes
    assert tape.operations < 70


# what cannot be replayed


def _why_not(program: Program, world: World | None = None) -> str:
    world = world or World()
    recordings = []
    for _ in range(4):
        with Recording() as recording:
            world.step(program)
        recordings.append(recording)
    return recordable(*recordings[-2:])


class Counting:
    def __init__(self) -> None:
        self.n, self.kept = 0, torch.zeros(8)

    def number(self, w: World) -> Tensor:
        self.n += 1
        return w.vector * self.n

    def rate(self, w: World) -> Tensor:
        self.n += 1
        w.adam.param_groups[0]["lr"] = 0.01 / self.n
        return _trained(w, w.net(w.matrix).mean())

    def rebound(self, w: World) -> Tensor:
        self.kept = self.kept * 0.5 + w.vector
        return self.kept

    def longer(self, w: World) -> Tensor:
        self.n += 1
        return w.vector + 1 if self.n % 2 else w.vector

    def numpy(self, w: World) -> Tensor:
        return torch.from_numpy((w.vector * 2).numpy().copy()) + 1


@pytest.mark.parametrize("name", ["number", "rate", "rebound", "longer", "numpy"])
def test_what_python_changes_from_step_to_step_is_refused(name: str) -> None:
    assert _why_not(getattr(Counting(), name)) != ""


@pytest.mark.parametrize(
    "program",
    [
        lambda w: w.vector * w.vector.sum().item(),
        lambda w: w.vector + 1 if w.vector.sum() > 0 else w.vector,
        lambda w: w.vector[w.vector > 0].sum(),
        lambda w: w.vector.nonzero().float().sum(),
        lambda w: w.vector.unique(),
    ],
)
def test_a_step_that_reads_a_value_is_refused(program: Program) -> None:
    assert "reads a value" in _why_not(program)


def test_two_equal_recordings_are_the_same_program() -> None:
    assert _why_not(_saved_by_autograd) == ""


# any small program


OPERATIONS: list[Callable[[Tensor, Tensor, World], Tensor]] = [
    lambda a, b, w: a * b,
    lambda a, b, w: a + 0.5,
    lambda a, b, w: a - b.t(),
    lambda a, b, w: (a @ b).clamp(-3, 3),
    lambda a, b, w: a.tanh(),
    lambda a, b, w: a[:1].expand(8, 8),
    lambda a, b, w: torch.cat([a[4:], b[:4]]),
    lambda a, b, w: a.sigmoid().mul_(b),
    lambda a, b, w: torch.softmax(a, 1),
    lambda a, b, w: a.reshape(4, 16).view(8, 8),
    lambda a, b, w: a.t(),
    lambda a, b, w: torch.zeros_like(a).add_(b),
    lambda a, b, w: a.clone().t().add_(w.noise.uniform(8)),
    lambda a, b, w: a.contiguous().neg(),
    lambda a, b, w: a.sum(0, keepdim=True) * b.mean(),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_any_small_program_is_replayed_bit_for_bit(lines: list[tuple[Any, int, int]]) -> None:
    def program(w: World) -> Tensor:
        values = [w.matrix * _changing(w), w.matrix.t() + w.vector]
        for operation, i, j in lines:
            found = operation(values[i % len(values)], values[j % len(values)], w)
            values.append(found.expand(8, 8).contiguous() if found.shape != (8, 8) else found)
        return sum(values[1:], values[0])

    _compare(program, steps=2)
