"""A training step as the list of its operations, replayed without Python's, autograd's and the allocator's share: for a CPU
what a captured graph is for a GPU, with the same bits as the step itself.

What the tape keeps of a recording (`bench/recording.py`):

- a tensor that was there before the step (a weight, a moment of Adam, a running statistic, the whole dataset) is used as it is;
- an operation that can write into a given tensor gets one, in memory that is planned once and shared by all whose lives
  do not overlap, elementwise operations even by input and output;
- a view of memory that stays where it is is made once, and an operation whose result nobody reads is left out;
- everything else is called as it was, a random draw from the trial's generator among it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from bench.recording import MOVES_STATISTICS, Call, Recording, Slot

EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
CONSTANT = {"arange", "ones_like", "zeros_like", "full", "full_like", "ones", "zeros", "scalar_tensor", "eye"}
INTO = {"mm", "addmm", "bmm", "baddbmm", "sum", "mean", "cat", "index", "pow", "log", "rsqrt", "reciprocal", "clamp"}
INTO |= {"eq", "ne", "ge", "gt", "le", "lt", "native_batch_norm", "max_pool2d_with_indices", "avg_pool2d", "amax"}
INTO |= {"_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data"}
ELEMENTWISE = {"add", "sub", "mul", "div", "neg", "exp", "leaky_relu", "leaky_relu_backward", "threshold_backward"}
ELEMENTWISE |= {
    "sigmoid_backward",
    "tanh_backward",
    "softplus",
    "softplus_backward",
    "sigmoid",
    "tanh",
    "where",
    "sqrt",
}
ALIGNED = 64  # bytes


class Tape:
    """A recorded step, ready to be replayed: `tape()` takes the next step.

    Args:
        recording: of one step; the tensors that it found there must stay the same objects.
    """

    def __init__(self, recording: Recording) -> None:
        with torch.inference_mode():  # its tensors never meet autograd, and are spared its bookkeeping
            plan = _Plan(recording)
            self.operations, self.bytes = len(plan.lines), plan.bytes
            self.replay: Callable[[], None] = plan.function()

    def __call__(self) -> None:
        with torch.inference_mode():
            self.replay()


class _Plan:
    """Goes through the calls once, and writes the lines of a Python function that replays them."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}  # what the lines refer to
        self.known: dict[int, Tensor] = {}  # tensors, by slot, whose memory stays where it is
        self.free: list[Tensor] = []  # planned memory that nothing lives in at present
        self.buffers: dict[int, Tensor] = {}  # memory of each living storage
        self.bytes = 0
        calls = _needed(recording)
        self.last = _last_uses(calls, recording)
        for index, call in enumerate(calls):
            self._place(index, call)
            self._release(index)

    def function(self) -> Callable[[], None]:
        source = "def replay():\n" + "".join(f"    {line}\n" for line in [*self.lines, "return"])
        scope = dict(self.names)
        exec(compile(source, "<tape>", "exec"), scope)
        replay: Callable[[], None] = scope["replay"]
        return replay

    def _place(self, index: int, call: Call) -> None:
        """Decides how a call is replayed: not at all, into planned memory, or as it was."""
        lies = all(slot.number in self.known for slot in call.slots())
        new = [slot for slot in call.results if slot is not None]
        storages = {self.recording.made[slot.number].storage for slot in new}
        constant = call.name in CONSTANT and storages.isdisjoint(self.recording.written)
        if lies and (call.view or constant):
            self._keep(call, self._run(call))
        elif call.name in EMPTY:
            self.known |= {slot.number: self._memory(slot) for slot in new}
        elif (into := _into(call)) is not None and self._is_sound(call):
            self._write_into(index, call, into)
        else:
            self._as_it_was(call)

    def _run(self, call: Call) -> list[Any]:
        values = [self.known[a.number] if isinstance(a, Slot) else a for a in call.arguments]
        args, kwargs = tree_unflatten(values, call.spec)
        return tree_flatten(call.function(*args, **kwargs))[0]

    def _keep(self, call: Call, values: Sequence[Any]) -> None:
        for slot, value in zip(call.results, values, strict=True):
            if slot is not None:
                self.known[slot.number] = value

    def _write_into(self, index: int, call: Call, into: tuple[Any, list[str]]) -> None:
        function, names = into
        given = [argument.name for argument in function._schema.arguments]
        self._reuse(index, call)
        self.known |= {slot.number: self._memory(slot) for slot in call.results if slot is not None}
        outs = [f"{name}={self._refer(slot)}" for name, slot in zip(names, call.results, strict=True)]
        self.lines.append(f"{self._name(function._op)}({', '.join([*self._arguments(call, given), *outs])})")

    def _is_sound(self, call: Call) -> bool:
        """Whether PyTorch's form of a call that writes computes the same: of an input whose elements lie apart, batch
        normalisation then forgets the means.
        """
        return call.name not in MOVES_STATISTICS or self._stride(call.arguments[0]) == self._stride(call.results[0])

    def _stride(self, value: Any) -> tuple[int, ...]:
        return self.recording.made[value.number].stride if isinstance(value, Slot) else tuple(value.stride())

    def _reuse(self, index: int, call: Call) -> None:
        """Lets the result of an elementwise operation take the place of an argument that dies here."""
        made, (slot,) = self.recording.made, call.results if len(call.results) == 1 else (None,)
        if slot is None or call.name not in ELEMENTWISE:
            return
        mine = made[slot.number]
        for storage in {made[other.number].storage for other in call.slots()}:
            its = [made[other.number] for other in call.slots() if made[other.number].storage == storage]
            alike = all(
                (t.shape, t.stride, t.dtype, t.whole) == (mine.shape, mine.stride, mine.dtype, True) for t in its
            )
            if alike and mine.whole and storage in self.buffers and self.last[storage] == index:
                self.buffers[mine.storage] = self.buffers.pop(storage)
                return

    def _as_it_was(self, call: Call) -> None:
        results = [f"t{slot.number}" if slot is not None else "_" for slot in call.results]
        target = results[0] if call.bare else ", ".join(results) + ","
        line = f"{self._name(call.function._op)}({', '.join(self._arguments(call))})"
        self.lines.append(f"{target} = {line}" if any(name != "_" for name in results) else line)

    def _memory(self, slot: Slot) -> Tensor:
        """A tensor for a slot in planned memory."""
        made = self.recording.made[slot.number]
        if made.storage not in self.buffers:
            self.buffers[made.storage] = self._buffer(self.recording.sizes[made.storage])
        flat = self.buffers[made.storage][: self.recording.sizes[made.storage]].view(made.dtype)
        return flat.as_strided(made.shape, made.stride, made.offset)

    def _buffer(self, size: int) -> Tensor:
        """Free memory of at least `size` bytes: the smallest that is not much too large, else new."""
        fitting = [buffer for buffer in self.free if size <= len(buffer) <= 2 * size + ALIGNED]
        if fitting:
            best = min(reversed(fitting), key=len)  # the last one given back is the one most likely cached
            self.free = [buffer for buffer in self.free if buffer is not best]
            return best
        self.bytes += size
        return torch.empty(-(-size // ALIGNED) * ALIGNED, dtype=torch.uint8)

    def _release(self, index: int) -> None:
        """Gives back what nothing reads after this call."""
        for storage in [storage for storage in self.buffers if self.last.get(storage, index) <= index]:
            self.free.append(self.buffers.pop(storage))
        gone = [f"t{number}" for number in self.last.names(index) if number not in self.known]
        if gone and self.lines:
            self.lines[-1] += f"; {' = '.join(gone)} = None"

    def _arguments(self, call: Call, given: Sequence[str] | None = None) -> list[str]:
        args, kwargs = tree_unflatten([self._refer(a) for a in call.arguments], call.spec)
        named = [f"{key}={_text(value)}" for key, value in kwargs.items() if given is None or key in given]
        return [*map(_text, args), *named]

    def _refer(self, value: Any) -> str:
        """How the lines name a value."""
        if isinstance(value, Slot):
            return self._name(self.known[value.number]) if value.number in self.known else f"t{value.number}"
        return repr(value) if type(value) in (int, bool, type(None)) else self._name(value)

    def _name(self, value: Any) -> str:
        name = f"c{id(value)}"
        self.names[name] = value  # also keeps it alive, so that the name stays its own
        return name


def _text(value: Any) -> str:
    """Nested sequences of names as Python source."""
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list | tuple) else str(value)


def _needed(recording: Recording) -> list[Call]:
    """The calls whose results are read, or that change something, a generator's state included."""
    wanted: set[int] = set()
    kept = []
    for call in reversed(recording.calls):
        draws = torch.Tag.nondeterministic_seeded in call.function.tags
        acts = call.function._schema.is_mutable or draws or call.name in MOVES_STATISTICS
        if acts or any(slot is not None and slot.number in wanted for slot in call.results):
            kept.append(call)
            wanted |= {slot.number for slot in call.slots()}
    return kept[::-1]


class _last_uses(dict[int, int]):
    """The index of the last call that touches each storage, and, by `names`, the slots that nothing reads after a call."""

    def __init__(self, calls: Sequence[Call], recording: Recording) -> None:
        super().__init__()
        reads: dict[int, int] = {}
        for index, call in enumerate(calls):
            for slot in [*call.slots(), *(slot for slot in call.results if slot is not None)]:
                self[recording.made[slot.number].storage] = index
                reads[slot.number] = index
        self.by_call: dict[int, list[int]] = {}
        for number, index in reads.items():
            self.by_call.setdefault(index, []).append(number)

    def names(self, index: int) -> list[int]:
        return self.by_call.get(index, [])


def _into(call: Call) -> tuple[Any, list[str]] | None:
    """The form of a call that writes into given tensors, with the names of these; None without one made for the CPU."""
    schema = call.function._schema
    if call.name not in INTO | ELEMENTWISE or call.view or any(slot is None for slot in call.results):
        return None
    given = [(a.name, str(a.type)) for a in schema.arguments]
    packet = call.function.overloadpacket
    for function in (getattr(packet, name) for name in packet.overloads()):
        outs = [a.name for a in function._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in function._schema.arguments if not a.is_out]
        options = {"dtype", "layout", "device", "pin_memory"}  # of a factory, which the given tensor has already
        if outs and rest == [pair for pair in given if pair in rest or pair[0] not in options]:
            known = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CPU")
            return (function, outs) if known and len(outs) == len(call.results) else None
    return None
