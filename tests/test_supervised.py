"""The supervised floor: AMM's own y-branch, cross-entropy and Adam written out by hand, and nothing but the labels."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.supervised import Supervised
from models.amm import AMM
from models.method import Batch, Spec
from models.noise import Noise
from tests.players import adams, quarters

SHAPES = {"mnist": (1, 28, 28), "svhn": (3, 32, 32), "digits": (1, 8, 8), "plane": (2, 1, 1)}
K = 4


def spec(nets: str) -> Spec:
    return Spec(nets, SHAPES[nets], K)


def supervised(nets: str = "digits", seed: int = 0, **config: Any) -> Supervised:
    wanted: dict[str, Any] = {"nets": nets, "components": K, "init_std": 0.1}
    return Supervised(Supervised.Config(**wanted | config), spec(nets), Noise.seeded(seed))


def batch(nets: str = "digits", n: int = 12, seed: int = 1) -> Batch:
    noise = Noise.seeded(seed)
    x, x_labelled, y = noise.uniform(n, *SHAPES[nets]), noise.uniform(n, *SHAPES[nets]), noise.integers(K, n)
    return Batch(x, noise, x_labelled, y)


def labelled(b: Batch) -> tuple[Tensor, Tensor]:
    assert b.x_labelled is not None and b.y_labelled is not None
    return b.x_labelled, b.y_labelled


def weights(method: Supervised) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of log Σ_j exp(μ_j) - μ_y, the logits [B, K] shifted by their largest so that exp stays finite."""
    top = logits.max(1).values
    return (top + (logits - top[:, None]).exp().sum(1).log() - logits[torch.arange(len(y)), y]).mean()


@pytest.mark.parametrize("nets", SHAPES)
def test_the_branch_is_gy_of_amm_as_eq_6_wires_it(nets: str) -> None:
    """AMM draws Gy first, so the same stream gives the same weights if the nets are the same."""
    options: dict[str, Any] = {"momentum": 0.3, "init_std": 0.05}
    amm = AMM(AMM.Config(nets=nets, components=K, factorisation=6, **options), spec(nets), Noise.seeded(7))  # type: ignore[arg-type]
    floor = supervised(nets, seed=7, **options)
    assert str(floor.net) == str(amm.encoder_y)
    assert same(floor.net.state_dict(), amm.encoder_y.state_dict())
    x = batch(nets, 2).x
    assert torch.equal(floor.logits(x, None), amm.encode(x, None)["yμ"].flatten(1))
    assert same(floor.net.state_dict(), amm.encoder_y.state_dict())  # the running statistics moved by the same momentum


@pytest.mark.parametrize("nets", ["mnist", "digits"])
def test_loss_is_cross_entropy_under_the_dropout_of_the_table(nets: str) -> None:
    method, b = supervised(nets), batch(nets)
    x, y = labelled(b)
    stream, net = b.noise.generator.get_state(), copy.deepcopy(method.net)
    losses = method.update(b)
    b.noise.generator.set_state(stream)
    logits = net(b.noise, "yμ", x=x)["yμ"].flatten(1).detach()
    assert float(losses["loss"]) == pytest.approx(float(by_hand(logits, y)), rel=1e-5)
    assert float(losses["train_error"]) == pytest.approx(
        sum(row.index(max(row)) != int(k) for row, k in zip(logits.tolist(), y, strict=True)) / len(y)
    )
    without = float(by_hand(net(None, "yμ", x=x)["yμ"].flatten(1).detach(), y))
    assert (float(losses["loss"]) == pytest.approx(without, rel=1e-5)) == (nets == "digits")  # which has no dropout


def test_equal_logits_cost_log_k_and_tell_the_last_layer_the_frequencies() -> None:
    method, b = supervised(), batch()
    method.net.get_parameter("layers.yμ.weight").data.zero_()
    assert float(method.update(b)["loss"]) == pytest.approx(math.log(K))
    y = labelled(b)[1]
    frequency = torch.bincount(y, minlength=K) / len(y)
    torch.testing.assert_close(method.net.get_parameter("layers.yμ.bias").grad, 1 / K - frequency)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_three_steps_are_adam_on_that_loss(weight_decay: float) -> None:
    """Against Adam with L2 in the gradient, written out as Kingma & Ba have it."""
    rate, beta1, beta2 = 1e-2, 0.4, 0.9
    method = supervised(learning_rate=rate, beta1=beta1, beta2=beta2, weight_decay=weight_decay)
    net = copy.deepcopy(method.net)
    # yσ is noise, which the logits leave out: nothing reaches it
    trained = {name: p for name, p in net.named_parameters() if not name.startswith("layers.yσ")}
    m, v = ({name: torch.zeros_like(p) for name, p in trained.items()} for _ in range(2))
    for t in (1, 2, 3):
        b = batch(seed=t)
        x, y = labelled(b)
        gradients = torch.autograd.grad(by_hand(net(b.noise, "yμ", x=x)["yμ"].flatten(1), y), list(trained.values()))
        for (name, p), gradient in zip(trained.items(), gradients, strict=True):
            own = gradient + weight_decay * p.detach()
            m[name] = beta1 * m[name] + (1 - beta1) * own
            v[name] = beta2 * v[name] + (1 - beta2) * own**2
            p.data -= rate * (m[name] / (1 - beta1**t)) / ((v[name] / (1 - beta2**t)).sqrt() + 1e-8)
        method.update(b)
        if t == 1:
            for (name, _), gradient in zip(trained.items(), gradients, strict=True):
                torch.testing.assert_close(method.net.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)
    for name, p in net.named_parameters():
        # a mean, since Adam blows the rounding error of a gradient near 0 up to a step
        assert float((method.net.get_parameter(name) - p).detach().abs().mean()) < 1e-3 * rate, name


def test_settings_are_those_of_amm() -> None:
    assert adams(supervised()) == {"adam": pytest.approx((2e-4, 0.5, 0.999, 1e-8, 0))}
    assert (Supervised.Config().momentum, Supervised.Config().init_std) == (0.1, 0.02)


def test_unlabelled_examples_do_not_matter() -> None:
    states, losses = [], []
    for other, label in ((1.0, 0), (-3.0, 0), (1.0, 1)):
        method, noise = supervised("mnist"), Noise.seeded(3)
        for step in range(2):
            x, y = labelled(batch("mnist", seed=step))
            unlabelled = other * torch.ones(5 + label, *SHAPES["mnist"])
            last = method.update(Batch(unlabelled, noise, x, (y + label) % K))
        states.append(weights(method))
        losses.append(last)
    assert same(states[0], states[1]) and same(losses[0], losses[1])
    assert not same(states[0], states[2])  # the labels do


def test_it_learns_and_knows_new_examples() -> None:
    method, noise = supervised(learning_rate=2e-3), Noise.seeded(2)
    x, y = quarters(40, seed=0)
    errors = [float(method.update(Batch(x, noise, x, y))["train_error"]) for _ in range(50)]
    assert errors[0] > 0.3 and errors[-1] == 0
    x, y = quarters(100, seed=1)
    method.eval()
    assert float((method.predict(x) == y).float().mean()) > 0.95


@torch.no_grad()
def test_answers_are_the_likeliest_category_without_noise() -> None:
    method, b = supervised("mnist", init_std=0.3).eval(), batch("mnist")
    expected = method.net(None, x=b.x)["y"].flatten(1).argmax(1)
    assert torch.equal(method.predict(b.x), expected) and len(expected.unique()) > 1
