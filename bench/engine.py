"""How a training step is executed: in which precision, and call by call or as a graph.

A graph is the step recorded once and replayed as a whole: on a GPU by `torch.cuda.CUDAGraph`, on a CPU by `bench.tape`. It
holds both players, second derivatives, optimisers and random draws, and takes the next step each time it is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from bench.errors import UserError
from bench.recording import Recording, recordable
from bench.suite import Precision
from bench.tape import Tape
from models.method import Method
from models.noise import Noise

Mode = Literal["auto", "eager", "graph"]
WARM_UP = 3  # first steps, taken call by call: optimisers make their moments, libraries choose their algorithms
TIMED = 4  # steps of each kind whose fastest decides
UNCAPTURED = "not captured"  # begins the remark on a step that a GPU should replay and cannot
Step = Callable[[], None]


class Engine:
    """Calling it takes one step, whichever way is faster here; a method that reads values stays `eager`.

    The first steps are eager. Then the step is recorded, on a CPU twice: only a step that is the same program both times,
    and whose replay gives the same bits, is replayed. So the choice, which timing makes, decides no result on a CPU.

    Args:
        step: one step on tensors that stay where they are, from which it takes its batch, and whose losses it adds up.
        state: all tensors in which one step hears of those before it.
        noise: the trial's stream, from which alone the step draws.
        mode: "auto" times both; "eager" and "graph" take that one, where the step can be recorded at all.
    """

    def __init__(
        self, method: Method, step: Step, state: Callable[[], list[Tensor]], noise: Noise, mode: Mode = "auto"
    ) -> None:
        self.step, self.state, self.noise, self.mode = step, state, noise, mode
        self.gpu = noise.device.type == "cuda"
        self.stream = torch.cuda.Stream(noise.device) if self.gpu else None
        self.remark = "" if method.graphable else f"{type(method).__name__} cannot be recorded"
        self.optimizers = list(method.optimizers().values())
        self.times: dict[str, list[float]] = {"eager": [], "graph": []}
        self.taken = 0
        self.first: Recording | None = None
        self.replay: Step | None = None
        self.fixed: list[tuple[int, int]] = []  # where all was when the step was recorded
        self.settled = mode == "eager" or bool(self.remark)
        self.take_over()

    @property
    def name(self) -> str:
        """How steps are taken now: "eager" or "graph"."""
        return "eager" if self.replay is None else "graph"

    def on_stream(self) -> AbstractContextManager[Any]:
        """The context of everything that a trial computes: on a GPU each has a stream of its own, so that they overlap."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def take_over(self) -> None:
        """To be called when the method has been made or restored: what was done outside of a step counts from here on."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if "capturable" in group:  # it counts its steps on the GPU then, as a captured graph must
                group["capturable"] = self.gpu
        self.forget_if_moved()
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.noise.device))

    def __call__(self) -> None:
        if self.settled and self.taken:
            return self.step() if self.replay is None else self.replay()
        self.taken += 1
        if self.taken <= WARM_UP + TIMED:
            self._time("eager", self.step)
            if self.taken == 1:
                require_layout(self.optimizers)
        elif self.replay is None:
            self._record()
        else:
            self._time("graph", self.replay)
            if len(self.times["graph"]) == TIMED:
                self._settle()

    def forget_if_moved(self) -> None:
        """To be called when something else than a step may have replaced tensors: they are recorded by identity."""
        if (self.replay or self.first) and self.fixed != _places(self.state()):
            self.replay, self.first, self.settled = None, None, False
            self.times["graph"] = []

    def _time(self, kind: str, step: Step) -> None:
        """The warm-up is not counted."""
        self.wait()
        started = time.perf_counter()
        step()
        self.wait()
        if kind == "graph" or self.taken > WARM_UP:
            self.times[kind].append(time.perf_counter() - started)

    def wait(self) -> None:
        """Until all that was asked of a GPU is done."""
        if self.stream is not None:
            self.stream.synchronize()

    def _settle(self) -> None:
        """Keeps the faster way."""
        if self.mode == "auto" and min(self.times["graph"]) > min(self.times["eager"]):
            self.replay, self.remark = None, "a replay was not faster"
        self.settled = True

    def _record(self) -> None:
        """Takes one step and records it; with the last recording that it takes, the step is a graph or never will be."""
        if self.gpu:
            self._capture()
        elif self.first is None:
            with Recording() as self.first:
                self.step()
        else:
            self._tape(self.first)
            self.first = None
        self.fixed = _places(self.state())
        self.settled = self.first is None and self.replay is None

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.noise.generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.remark = f"{UNCAPTURED}: {str(error).splitlines()[0]}"
            self.wait()
            # the generator may still believe that it is being captured, which a clone of its state does not
            self.noise.generator.graphsafe_set_state(self.noise.generator.clone_state())
            return self.step()
        self.replay = graph.replay
        graph.replay()  # capturing has not taken the step

    def _tape(self, first: Recording) -> None:
        """Takes the step, then takes it again from the tape and the same state, and compares."""
        before, stream = self._copies()
        with Recording() as second:
            self.step()
        self.remark = recordable(first, second)
        if self.remark:
            return
        after, stream_after = self._copies()
        try:
            tape = Tape(second)
            for _ in range(2):  # the second time its memory is as the first one left it
                self._put_back(before, stream)
                tape()
                if not _equal([*self.state(), self.noise.generator.get_state()], [*after, stream_after]):
                    raise RuntimeError("it does not take the same step")
            self.replay = tape
        except Exception as error:
            self.remark = f"the recording was not used: {error}"
            self._put_back(after, stream_after)

    def _copies(self) -> tuple[list[Tensor], Tensor]:
        return [tensor.detach().clone() for tensor in self.state()], self.noise.generator.get_state()

    def _put_back(self, values: list[Tensor], stream: Tensor) -> None:
        with torch.no_grad():
            for tensor, value in zip(self.state(), values, strict=True):
                tensor.copy_(value)
        self.noise.generator.set_state(stream)


def _places(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Which objects they are, and where their numbers lie: both may be replaced."""
    return [(id(tensor), tensor.data_ptr()) for tensor in tensors]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit, so that nan equals nan."""
    return len(a) == len(b) and all(
        torch.equal(x.contiguous().view(-1).view(torch.uint8), y.contiguous().view(-1).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The tensors of an optimiser's state, in a constant order."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def require_layout(optimizers: list[torch.optim.Optimizer]) -> None:
    """RuntimeError if a fused optimiser has a gradient that lies otherwise than its parameter.

    On a CPU it reads both as plain memory, and would move the wrong weights without a word.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if group.get("fused")]
    for parameter in (parameter for group in groups for parameter in group["params"]):
        gradient = parameter.grad
        if gradient is not None and _steps(parameter) != _steps(gradient):
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(parameter.shape)} has strides {gradient.stride()}, the "
                f"parameter {parameter.stride()}: a fused optimiser needs equal ones"
            )


def _steps(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def set_precision(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Makes float32 products of this process IEEE single precision, and returns the context for the training steps.

    fp32 stays so, which on a GPU has to be asked for; tf32 rounds the factors of matrix products and convolutions to 10 bits,
    which only a GPU does; bf16 runs them in bfloat16 by autocast, with float32 weights, gradients and optimiser. UserError:
    tf32 without a GPU.
    """
    require_device(precision, device.type)
    _products("ieee")
    return _Computing(precision, device)


def require_device(precision: Precision, device: str) -> None:
    """UserError if `device`, such as "cpu" or "cuda:0", cannot compute in this precision."""
    if precision == "tf32" and not device.startswith("cuda"):
        raise UserError(f"precision: tf32 needs a GPU, the device is {device}; use fp32 or bf16")


def _products(mode: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


class _Computing(AbstractContextManager[None]):
    """Entered anew for every step."""

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self.stack = ExitStack()

    def __enter__(self) -> None:
        if self.precision == "tf32":
            _products("tf32")
            self.stack.callback(_products, "ieee")
        if self.precision == "bf16":  # without autocast's cache, which would not notice an optimiser within a step
            self.stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False))

    def __exit__(self, *error: object) -> None:
        self.stack.close()
