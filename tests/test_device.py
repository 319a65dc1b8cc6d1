"""A step on a device that is not the CPU: all its tensors stay there, and Python reads the value of none.

PyTorch's meta device stands for a GPU. Its tensors have shapes and no numbers, so the paper's networks take their steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_conformance import METHODS, _config
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.methods import method_class
from bench.plan import build_config, trials
from bench.sources import SOURCES
from bench.suite import load_suite
from models.method import Batch, Data, Method, Spec
from models.noise import Noise
from tests.players import parameters

META = torch.device("meta")
TABLES = ("mnist_unsup", "svhn_unsup", "svhn_semi")  # the suites of the paper's tables
# one row of a kind of step, in the default tests
QUICK = {"amm_k20", "amm_k10_works", "amm_k30_draws", "samm", "samm_two", "gmvae_k30", "vade", "imsat", "lalnets"}
QUICK |= {"catgan_k20", "infogan", "aae_k30_appendix", "aae", "vat_large", "improvedgan", "badgan", "ali", "triplegan"}
QUICK |= {"sgan"}


def rows() -> list[Any]:
    found = []
    for suite in TABLES:
        for trial in trials(load_suite(suite), "paper", None, [0]):
            if method_class(trial.method).iterative:
                marks = () if trial.row in QUICK else (pytest.mark.slow,)
                found.append(pytest.param(suite, trial.row, id=f"{suite}-{trial.row}", marks=marks))
    return found


class Stream:
    """In place of a generator."""

    device = META

    def __init__(self, device: torch.device) -> None: ...

    def manual_seed(self, seed: int) -> Stream:
        return self


@pytest.fixture(autouse=True)
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the meta device lacks: a random stream, fused optimisers and autocast."""

    def streamless(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, generator=None, **options: draw(*args, **options)

    def built(optimizer: type[torch.optim.Optimizer]) -> Callable[..., None]:
        build: Callable[..., None] = optimizer.__init__

        def init(self: Any, params: Any, lr: Any, *args: Any, fused: bool = False, **options: Any) -> None:
            build(self, params, 1e-3, *args, **options)  # a rate that is a tensor would be read
            for group in self.param_groups:
                group["lr"] = lr

        return init

    for name in ("randn", "rand", "randint", "randperm", "multinomial"):
        monkeypatch.setattr(torch, name, streamless(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "random_", streamless(Tensor.random_))
    monkeypatch.setattr(torch, "Generator", Stream)
    for optimizer in (torch.optim.Adam, torch.optim.SGD):
        monkeypatch.setattr(optimizer, "__init__", built(optimizer))
        monkeypatch.setattr(optimizer, "step", lambda self: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that moves is still its optimiser's
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


class Stays(TorchDispatchMode):
    """Raises where a tensor of the CPU takes part, numbers as they stand in formulas apart."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor) and tensor.device != META and (tensor.ndim or moves):
                raise AssertionError(f"{func} meets a tensor of shape {tuple(tensor.shape)} on {tensor.device}")
        return out


class Sends(TorchFunctionMode):
    """Raises where Python's numbers are sent to the device, which no operation shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and out.device == META:
            raise AssertionError(f"numbers of the shape {tuple(out.shape)} are sent to meta")
        return out


def assert_stays(method: Method, spec: Spec, batch: int, labelled: int, noise: Noise) -> None:
    """One step, its instruments and the answers to some examples: of the sizes they should have, and nothing of the CPU."""
    x = torch.empty(max(batch, 50), *spec.shape, dtype=torch.uint8, device=META)
    data = Data(x, 1 / 255, noise)
    y = noise.integers(spec.n_classes, labelled)
    with Stays(), Sends():
        index = noise.permutation(batch)
        step = Batch(data.take(index), noise, noise.uniform(labelled, *spec.shape), y, index)
        losses = method.update(step) | method.instruments(step)
        given = [p.grad for optimizer in method.optimizers().values() for p in parameters(optimizer)]
        with torch.no_grad():
            answers = method.eval().predictions(data.take(noise.permutation(50)))
    assert losses and all(loss.shape == () and loss.device == META for loss in losses.values())
    assert any(gradient is not None for gradient in given)
    assert all(gradient is None or gradient.device == META for gradient in given)
    assert all(answer.shape == (50,) and answer.dtype == torch.int64 for answer in answers.values())


@pytest.mark.parametrize("path", [path for path in METHODS if method_class(path).iterative])
def test_a_step_of_every_method_stays_on_its_device(path: str) -> None:
    cls, spec, noise = method_class(path), Spec("digits", (1, 8, 8), 10), Noise.seeded(0, META)
    nets = "digits" if "nets" in vars(cls.Config()) else None
    assert_stays(cls(_config(cls, nets), spec, noise).to(META), spec, 20, 12, noise)


@pytest.mark.parametrize(("suite", "row"), rows())
def test_a_step_of_every_row_of_the_papers_tables_stays_on_its_device(suite: str, row: str) -> None:
    (trial,) = trials(load_suite(suite), "paper", [row], [0])
    source, noise = SOURCES[trial.data], Noise.seeded(0, META)
    spec = Spec(source.name, source.shape, source.n_classes)
    method = method_class(trial.method)(build_config(trial), spec, noise).to(META)
    assert_stays(method, spec, trial.batch, trial.batch_labelled or trial.batch, noise)


class Scale(Method):
    """What is wrong on a GPU and goes unseen on a CPU, as `wrong` has it."""

    def __init__(self, wrong: str) -> None:
        super().__init__(None, Spec("digits", (1, 8, 8), 10), Noise.seeded(0, META))
        self.weight, self.wrong, self.ten = torch.nn.Parameter(torch.ones(10)), wrong, torch.arange(10.0)
        self.adam = torch.optim.Adam(self.parameters(), 0.1, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        values = self.weight * batch.x.mean()
        if self.wrong == "made":
            values = values + torch.arange(10)
        if self.wrong == "kept":
            values = values + self.ten
        if self.wrong == "moved":
            values = values + self.ten.to(values.device)
        if self.wrong == "sent":
            values = values + torch.tensor([0.5] * 10, device=values.device)
        if self.wrong == "read" and values.sum() > 1:
            values = 2 * values
        if self.wrong == "carried":
            values = values + values.detach().cpu().to(values.device)
        values.sum().backward()
        return {"loss": values.detach().mean()}

    def predict(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10].argmax(1)


def test_a_step_that_is_right_passes() -> None:
    method = Scale("").to(META)
    assert_stays(method, method.spec, 20, 12, Noise.seeded(0, META))


@pytest.mark.parametrize("wrong", ["made", "kept", "moved", "sent", "read", "carried"])
def test_a_step_that_is_wrong_on_a_gpu_is_caught(wrong: str) -> None:
    method = Scale(wrong).to(META)
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        assert_stays(method, method.spec, 20, 12, Noise.seeded(0, META))
    assert "meta" in str(caught.value) or "on cpu" in str(caught.value)
