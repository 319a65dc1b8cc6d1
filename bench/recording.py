"""What a training step does, operation by operation, as `bench/tape.py` replays it.

A recording sees every operation below autograd: both players' backward passes and their optimisers too. Values that Python
read are frozen, so `recordable` compares two recordings of neighbouring steps: only a step that is the same program both
times is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
READS_MEMORY = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}  # no operation tells of these
MOVES_STATISTICS = {"native_batch_norm"}  # its schema does not say that it changes the running ones
OLD = -1  # the storage of a view of a tensor from before the step

Key = tuple[Any, ...]  # where a tensor lies and how: equal keys are the same numbers


@dataclass(frozen=True)
class Slot:
    """A tensor that a step makes, by its number in the recording."""

    number: int


@dataclass(frozen=True)
class Made:
    """What is known of such a tensor: its storage, by number or OLD, and how it lies in it."""

    storage: int
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    whole: bool  # whether it fills its storage


@dataclass(frozen=True)
class Call:
    """One operation: its flat arguments, with Slots for tensors that the step made, and its flat results."""

    function: Any
    arguments: list[Any]
    told: list[Any]  # the arguments, comparable between recordings
    spec: Any
    results: list[Slot | None]  # None for what is no new tensor
    view: bool
    bare: bool  # whether it returns a tensor and not a sequence of them

    @property
    def name(self) -> str:
        return str(self.function.overloadpacket.__name__)

    def slots(self) -> Iterator[Slot]:
        return (argument for argument in self.arguments if isinstance(argument, Slot))


class Recording(TorchDispatchMode):
    """Use as a context around a step, which is taken as ever.

    A tensor is known by its memory and not as an object, because autograd makes objects of its own for what it has saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.made: list[Made] = []
        self.sizes: list[int] = []  # bytes of each storage
        self.written: set[int] = set()  # storages that an operation changes in place
        self.problem = ""  # why this cannot be replayed
        self.storages: dict[int, int] = {}  # those made in this step, by identity
        self.slots: dict[Key, Slot] = {}
        self.references: dict[int, StorageWeakRef] = {}  # while one lives, no other storage takes its identity
        self.watch = _Watch(self)

    def __enter__(self) -> Recording:
        self.watch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.watch.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "profiler" or self.problem:
            return out
        flat, spec = tree_flatten((args, kwargs))
        found = tree_flatten(out)[0]
        if any(tag in func.tags for tag in READS_VALUES) and not _by_position(func, flat):
            self.problem = f"{func} reads a value"
        elif any(isinstance(value, Tensor) and value.layout != torch.strided for value in [*flat, *found]):
            self.problem = f"{func} has to do with a sparse tensor"
        if self.problem:
            return out
        arguments = [self._argument(value) for value in flat]
        told = [
            self._key(a) if isinstance(a, Tensor) else id(a) if isinstance(a, torch.Generator) else a for a in arguments
        ]
        before = {self._identity(value) for value in flat if isinstance(value, Tensor)}
        results = [self._result(value, before) if isinstance(value, Tensor) else None for value in found]
        self._note_writes(func, args, kwargs)
        mutable = func._schema.is_mutable
        if mutable or any(slot is not None for slot in results):  # else a view that shows just what is there
            view = not mutable and any(isinstance(v, Tensor) and self._identity(v) in before for v in found)
            self.calls.append(Call(func, arguments, told, spec, results, view, isinstance(out, Tensor)))
        return out

    def _identity(self, tensor: Tensor) -> int:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.references.setdefault(reference.cdata, reference)
        return int(reference.cdata)

    def _key(self, tensor: Tensor) -> Key:
        where = self._identity(tensor), tensor.storage_offset()
        return *where, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()

    def _argument(self, value: Any) -> Any:
        """A Slot for a tensor that the step made, anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        slot = self.slots.get(self._key(value))
        if slot is None and self._identity(value) in self.storages:
            self.problem = self.problem or "a view of a new tensor came about unseen"
        return value if slot is None else slot

    def _result(self, value: Tensor, before: set[int]) -> Slot | None:
        """The Slot of a new tensor; None for one that is there already."""
        identity, key = self._identity(value), self._key(value)
        if key in self.slots:
            return None
        if identity in before and identity not in self.storages:
            storage = OLD
        else:
            storage = self.storages.setdefault(identity, len(self.sizes))
            if storage == len(self.sizes):
                self.sizes.append(value.untyped_storage().nbytes())
        whole = value.numel() * value.element_size() == value.untyped_storage().nbytes()
        self.made.append(Made(storage, int(value.storage_offset()), value.shape, value.stride(), value.dtype, whole))
        self.slots[key] = Slot(len(self.made) - 1)
        return self.slots[key]

    def _note_writes(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
        for argument in func._schema.arguments:
            moves = func.overloadpacket.__name__ in MOVES_STATISTICS and argument.name.startswith("running_")
            if moves or (argument.alias_info is not None and argument.alias_info.is_write):
                changed = tree_flatten(given.get(argument.name))[0]
                identities = (self._identity(item) for item in changed if isinstance(item, Tensor))
                self.written |= {self.storages[i] for i in identities if i in self.storages}


class _Watch(TorchFunctionMode):
    """Sees what reads the memory of a tensor directly."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_MEMORY:
            self.recording.problem = self.recording.problem or f"Tensor.{func.__name__} reads values"
        return func(*args, **(kwargs or {}))


def _by_position(func: Any, arguments: Sequence[Any]) -> bool:
    """Whether this is an indexing by numbers, whose result has a known shape; one by truth values has not."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    return func is torch.ops.aten.index.Tensor and all(index.dtype == torch.int64 for index in tensors[1:])


def recordable(first: Recording, second: Recording) -> str:
    """Why the steps recorded one after the other are not the same fixed program; empty if they are."""
    if first.problem or second.problem:
        return first.problem or second.problem
    if len(first.calls) != len(second.calls):
        return f"{len(first.calls)} operations in one step, {len(second.calls)} in the next"
    for a, b in zip(first.calls, second.calls, strict=True):
        if (a.function, a.told, a.spec, a.results) != (b.function, b.told, b.spec, b.results):
            return f"{a.function} differs between two steps"
    return ""
