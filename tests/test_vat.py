"""VAT: its direction against eigenvectors, its losses on a linear softmax by brute force, its schedule by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.losses import conditional_entropy
from baselines.perturbation import Repeated, kl_divergence, worst_direction
from baselines.vat import VAT, schedule
from models.method import Batch, Data, Spec
from models.nets import fan_in_, refit_statistics, running_statistics_kept
from models.noise import Noise

SPEC = Spec("toy", (1, 4, 4), 3)


def vat(seed: int = 0, **config: Any) -> VAT:
    small: dict[str, Any] = {"backbone": "dense", "components": 3, "hidden": 16, "xi": 1e-3, "refits": 3}
    return VAT(VAT.Config(**small | config), SPEC, Noise.seeded(seed))


def data(n: int = 60, seed: int = 1) -> Data:
    """Images whose bright row is row i mod 3."""
    noise = Noise.seeded(seed)
    x = (60 * noise.uniform(n, 1, 4, 4)).byte()
    x[torch.arange(n), 0, torch.arange(n) % 3] += 190
    return Data(x, 1 / 255, noise, x[:12], torch.arange(12) % 3)


def batch(of: Data, n: int = 24) -> Batch:
    assert of.x_labelled is not None
    return Batch(of.take(torch.arange(n)), of.noise, of.x_labelled[:6].float() * of.scale, torch.arange(6) % 3)


def statistics(net: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in net.named_buffers() if "running" in name]


# the perturbation


def test_the_direction_is_the_dominant_eigenvector() -> None:
    """Of the KL's Hessian Wᵀ (diag p - p pᵀ) W, for p = softmax of W x: after many iterations, from any start."""
    noise = Noise.seeded(0)
    w, x = noise.normal(4, 6).double(), noise.normal(5, 6).double()
    p = F.softmax(x @ w.T, 1)
    found = worst_direction(lambda v: v @ w.T, x, x @ w.T, noise.normal(5, 6).double(), 1e-2, 200)
    for each, direction in zip(p, found, strict=True):
        hessian = w.T @ (each.diag() - each[:, None] * each) @ w
        wanted = torch.linalg.eigh(hessian).eigenvectors[:, -1]
        assert float((wanted @ direction).abs()) == pytest.approx(1, abs=1e-3)


def test_one_iteration_is_the_hessian_times_the_start() -> None:
    noise = Noise.seeded(1)
    w, x, start = noise.normal(4, 6), noise.normal(5, 6), noise.normal(5, 6)
    p = F.softmax(x @ w.T, 1)
    found = worst_direction(lambda v: v @ w.T, x, x @ w.T, start, 1e-2, 1)
    for each, d, direction in zip(p, start, found, strict=True):
        wanted = F.normalize(w.T @ (each.diag() - each[:, None] * each) @ w @ d, dim=0)
        torch.testing.assert_close(direction, wanted, rtol=0.05, atol=0.02)


class Linear(nn.Module):
    """Logits W x, whatever the noise."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(w)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return x.flatten(1) @ self.weight.T


def test_losses_of_a_linear_softmax_by_brute_force() -> None:
    """KL and entropy as sums over classes; r = ε H d / ‖H d‖, and the gradient of the KL flows through its second side."""
    method = vat(radius=0.7, xi=1e-3)
    noise = Noise.seeded(5)
    w, x = noise.normal(3, 16), noise.normal(8, 1, 4, 4)
    method.net = Linear(w)  # type: ignore[assignment]
    kl, entropy = method.unlabelled_losses(x, Noise.seeded(9))
    starts, rows = Noise.seeded(9).normal(8, 16), x.flatten(1)
    moved, total, h = [], 0.0, 0.0
    for row, d in zip(rows, starts, strict=True):
        p = F.softmax(w @ row, 0)
        r = 0.7 * F.normalize(w.T @ (p.diag() - p[:, None] * p) @ w @ d, dim=0)
        q = F.softmax(w @ (row + r), 0)
        total += sum(float(p[k]) * math.log(float(p[k]) / float(q[k])) for k in range(3)) / 8
        h -= sum(float(p[k]) * math.log(float(p[k])) for k in range(3)) / 8
        moved.append((row + r, p, q))
    assert float(kl.detach()) == pytest.approx(total, rel=0.02) and float(entropy.detach()) == pytest.approx(
        h, rel=1e-4
    )
    (gradient,) = torch.autograd.grad(kl, method.net.parameters())
    wanted = sum((q - p)[:, None] * row / 8 for row, p, q in moved)  # p and r are constants
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=0.005)


@pytest.mark.parametrize(
    ("p", "h"), [([1.0, 0, 0, 0], 0.0), ([0.25] * 4, math.log(4)), ([0.5, 0.5, 0, 0], math.log(2))]
)
def test_entropy_in_closed_form(p: list[float], h: float) -> None:
    logits = (torch.tensor([p, p]) + 1e-30).log() + torch.tensor([[3.0], [-2.0]])
    assert float(conditional_entropy(logits)) == pytest.approx(h, abs=1e-6)


def test_passes_over_unlabelled_examples_share_their_masks() -> None:
    """So without a perturbation the KL is 0 in spite of dropout, and with other masks it would not be."""
    method, x = vat(radius=0.0), data().take(torch.arange(20)) - 0.5
    kl, _ = method.unlabelled_losses(x, Noise.seeded(3))
    assert float(kl.detach()) == pytest.approx(0, abs=1e-6)
    with running_statistics_kept(method.net), torch.no_grad():
        noise = Noise.seeded(3)
        assert float(kl_divergence(method.net(x, noise), method.net(x, noise))) > 1e-3


# the step


def test_only_labelled_examples_move_the_running_statistics() -> None:
    method, of = vat(momentum=0.5), data()
    before = statistics(method.net)
    method.unlabelled_losses(of.take(torch.arange(20)) - 0.5, Noise.seeded(3))
    assert all(map(torch.equal, statistics(method.net), before))
    assert any("running_mean" in name for name, _ in method.named_buffers())
    twin, noise = vat(momentum=0.5), Noise.seeded(7)
    given = batch(of)
    method.update(Batch(given.x, Noise.seeded(7), given.x_labelled, given.y_labelled))
    assert given.x_labelled is not None
    twin.net(given.x_labelled - 0.5, noise)
    assert all(map(torch.equal, statistics(method.net), statistics(twin.net)))


@pytest.mark.parametrize("entropy_weight", [0.0, 1.0])
def test_a_step_follows_the_sum_of_its_losses(entropy_weight: float) -> None:
    falling: dict[str, Any] = {"decay_start": 0, "decay_every": 1, "steps": 4}  # from the second step on
    method, twin, of = vat(entropy_weight=entropy_weight, **falling), vat(), data()
    given, noise = batch(of), Noise.seeded(7)
    assert given.x_labelled is not None and given.y_labelled is not None
    logits = twin.net(given.x_labelled - 0.5, noise)
    kl, entropy = twin.unlabelled_losses(given.x - 0.5, noise)
    (F.cross_entropy(logits, given.y_labelled) + kl + entropy_weight * entropy).backward()
    torch.optim.Adam(twin.net.parameters(), 1e-3, (0.9, 0.999)).step()
    losses = method.update(Batch(given.x, Noise.seeded(7), given.x_labelled, given.y_labelled))
    assert float(losses["vat"]) == float(kl.detach()) and float(losses["entropy"]) == float(entropy.detach())
    for mine, theirs in zip(method.net.parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_it_learns_and_entropy_minimisation_makes_it_certain() -> None:
    of, entropies = data(), []
    for weight in (0.0, 1.0):
        method = vat(entropy_weight=weight, radius=0.5)
        for _ in range(60):
            losses = method.update(batch(of, 60))
        method.eval()
        with torch.no_grad():
            method.finish(of)
            assert float((method.predict(of.take(torch.arange(60))) == torch.arange(60) % 3).float().mean()) > 0.8
        entropies.append(float(losses["entropy"]))
    assert entropies[1] < entropies[0]


# schedule and optimiser


@pytest.mark.parametrize(
    ("step", "rate", "beta1"),
    [
        (0, 1e-3, 0.9),
        (31_999, 1e-3, 0.9),
        (32_000, 1e-3, 0.5),  # epoch 80: (120 - 80) / 40
        (32_399, 1e-3, 0.5),
        (32_400, 0.975e-3, 0.5),
        (40_000, 0.5e-3, 0.5),
        (47_999, 0.025e-3, 0.5),
        (48_000, 0.0, 0.5),
        (60_000, 0.0, 0.5),
    ],
)
def test_schedule(step: int, rate: float, beta1: float) -> None:
    found = schedule(VAT.Config(), torch.tensor(step))
    assert [float(value) for value in found] == pytest.approx([rate, beta1], rel=1e-5)


def test_settings_are_those_of_vat_tf() -> None:
    """But for those of the schedule; with entropy minimisation, method vatent, its weight is 1."""
    c = VAT.Config()
    assert (c.entropy_weight, c.radius, c.xi, c.power_iterations) == (0.0, 2.5, 1e-6, 1)
    assert (c.momentum, c.refits, c.refit_batch, c.dropout, c.slope) == (0.01, 100, 100, 0.5, 0.1)
    assert vat().adam.param_groups[0]["beta2"] == 0.999


# statistics


def test_refitted_statistics_are_the_means_over_the_batches() -> None:
    method, of = vat(dropout=0.0), data()
    method.eval()
    x = of.take(torch.arange(60))
    before = [p.clone() for p in method.parameters()]
    refit_statistics(method.net, lambda part: method.net(part, None), [x[:20], x[20:60]])
    h = [method.net.body.layers[3].layer(part.flatten(1)) for part in (x[:20], x[20:60])]  # the first layer's outputs
    norm = method.net.body.layers[3].norm
    torch.testing.assert_close(norm.running_mean, (h[0].mean(0) + h[1].mean(0)) / 2)
    torch.testing.assert_close(norm.running_var, (h[0].var(0) + h[1].var(0)) / 2)
    assert norm.momentum == 0.01 and not method.net.training
    assert all(map(torch.equal, before, method.parameters()))


def test_finish_shows_labelled_examples_alone_with_dropout() -> None:
    method, of = vat(refits=2, refit_batch=5), data()
    other = fan_in_(dense_like(method), Noise.seeded(0))
    other.load_state_dict(method.net.state_dict())
    method.eval()
    method.finish(of)
    noise, x = data().noise, of.x_labelled
    assert x is not None
    batches = ((x[noise.permutation(12)[:5]].float() / 255 - 0.5) for _ in range(2))
    refit_statistics(other, lambda part: other(part, noise), batches)
    for mine, theirs in zip(statistics(method.net), statistics(other), strict=True):
        torch.testing.assert_close(mine, theirs)


def dense_like(method: VAT) -> nn.Module:
    from baselines.vat import _backbone

    return _backbone(method.config, SPEC)


def test_backbones_that_do_not_fit_are_refused() -> None:
    for name in ("conv_large", "conv_small"):
        with pytest.raises(ValueError, match="32x32, toy has"):
            vat(backbone=name)
    with torch.no_grad():
        for name, count in (("conv_large", 128), ("conv_small", 128)):
            method = VAT(VAT.Config(backbone=name), Spec("svhn", (3, 32, 32), 10), Noise.seeded(0)).eval()  # type: ignore
            assert method.net.features(torch.zeros(2, 3, 32, 32)).shape == (2, count)


def test_a_repeated_stream_leaves_the_trials_own_untouched_by_later_passes() -> None:
    noise = Noise.seeded(0)
    same = Repeated(noise)
    same.normal(3)
    state = noise.generator.get_state()
    same.again().normal(3)
    assert torch.equal(noise.generator.get_state(), state)
