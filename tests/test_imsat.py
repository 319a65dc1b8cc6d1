"""IMSAT: information by enumeration, the worst direction by linear algebra, radii by brute force, a whole step by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.imsat import IMSAT, entropies, neighbour_distances
from baselines.perturbation import kl_divergence, worst_direction
from models.method import Batch, Data, Spec
from models.nets import running_statistics_kept
from models.noise import Noise
from tests.players import adams

SPEC = Spec("toy", (1, 4, 4), 3)


def imsat(seed: int = 0, **config: Any) -> IMSAT:
    small: dict[str, Any] = {"components": 3, "hidden": 32, "neighbour": 3}
    return IMSAT(IMSAT.Config(**small | config), SPEC, Noise.seeded(seed))


def data(n: int = 60, seed: int = 1) -> Data:
    """Grey images whose bright row is row i mod 3."""
    noise = Noise.seeded(seed)
    x = (60 * noise.uniform(n, 1, 4, 4)).byte()
    x[torch.arange(n), 0, torch.arange(n) % 3] += 190
    return Data(x, 1 / 255, noise)


def batch(of: Data, start: int = 0, n: int = 30) -> Batch:
    index = torch.arange(start, start + n)
    return Batch(of.take(index), of.noise, index=index)


def prepared(of: Data, seed: int = 0, **config: Any) -> IMSAT:
    method = imsat(seed, **config)
    method.prepare(of)
    return method


# the losses


def test_information_is_that_of_the_joint_table() -> None:
    """Σ p(x, y) log p(x, y) / p(x) p(y), written out, with p(x) = 1 / B."""
    table = [[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4], [0.6, 0.1, 0.3]]
    p_y = [sum(row[k] for row in table) / 4 for k in range(3)]
    expected = sum(p / 4 * math.log(p / 4 / (p_y[k] / 4)) for row in table for k, p in enumerate(row))
    conditional, marginal = entropies(torch.tensor(table).log() + torch.tensor([[3.0], [-1.0], [0.0], [9.0]]))
    assert float(marginal - conditional) == pytest.approx(expected, rel=1e-5)
    assert float(marginal) == pytest.approx(-sum(p * math.log(p) for p in p_y), rel=1e-5)


def test_entropies_at_their_ends() -> None:
    """Also their gradients: probabilities of 0 must not make one of 0 * inf."""
    certain = (200.0 * torch.eye(4)).repeat(3, 1)
    one_cluster = (300.0 * torch.tensor([[1.0, 0.0, 0.0, 0.0]])).repeat(5, 1)
    for logits, ends in ((certain, [0, math.log(4)]), (one_cluster, [0, 0]), (torch.zeros(6, 4), [math.log(4)] * 2)):
        logits.requires_grad_()
        h = torch.stack(entropies(logits))
        assert h.tolist() == pytest.approx(ends, abs=1e-6)
        h.sum().backward()
        assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_divergence_in_closed_form() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(kl_divergence(p.log() + 2, q.log() - 1)) == pytest.approx(first / 2, rel=1e-5)
    assert float(kl_divergence(q.log(), p.log())) == pytest.approx(second / 2, rel=1e-5)
    assert float(kl_divergence(p.log(), p.log() + 5)) == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[300.0, 0.0]], requires_grad=True)
    loss = kl_divergence(torch.tensor([[0.0, 300.0]]), far)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(300)
    torch.testing.assert_close(far.grad, torch.tensor([[1.0, -1.0]]))


# the worst direction


def linear_case() -> tuple[Tensor, Tensor, Tensor]:
    """Examples [5, 6], a linear model's W [4, 6] and its logits; KL(p(x) || p(x + r)) is about rᵀ Wᵀ (diag p - ppᵀ) W r / 2."""
    noise = Noise.seeded(0)
    x, w = noise.normal(5, 6), noise.normal(4, 6)
    return x, w, x @ w.T


def test_power_iteration_finds_the_dominant_eigenvector() -> None:
    x, w, logits = linear_case()
    start = Noise.seeded(1).normal(5, 6)
    found = worst_direction(lambda v: v @ w.T, x, logits, start, xi=0.01, iterations=30)
    for p, direction in zip(logits.softmax(1), found, strict=True):
        hessian = w.T @ (torch.diag(p) - torch.outer(p, p)) @ w
        dominant = torch.linalg.eigh(hessian.double()).eigenvectors[:, -1]
        assert abs(float(direction.double() @ dominant)) > 0.999
        assert float(direction.norm()) == pytest.approx(1, abs=1e-5)


def test_one_iteration_is_the_gradient_at_xi() -> None:
    """For a linear model it is Wᵀ (q - p), q being the answer at x + ξ d."""
    x, w, logits = linear_case()
    start = Noise.seeded(1).normal(5, 6)
    found = worst_direction(lambda v: v @ w.T, x, logits, 7 * start, xi=2.0, iterations=1)
    moved = x + 2.0 * start / start.norm(dim=1, keepdim=True)
    expected = ((moved @ w.T).softmax(1) - logits.softmax(1)) @ w
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert not found.requires_grad


def test_directions_of_tiny_and_of_no_gradients() -> None:
    x, w, logits = linear_case()
    start = Noise.seeded(1).normal(5, 6)
    strong = worst_direction(lambda v: v @ w.T, x, logits, start, 1.0, 1)
    # the same answers and 1e-25 times their gradient, of which the square is not a float32
    weak = worst_direction(lambda v: (v @ w.T).detach() + 1e-25 * (v - v.detach()) @ w.T, x, logits, start, 1.0, 1)
    torch.testing.assert_close(weak, strong)
    none = worst_direction(lambda v: logits + 0 * v @ w.T, x, logits, start, 1.0, 1)
    assert torch.equal(none, torch.zeros(5, 6))


# the radii


def test_distances_are_those_of_brute_force() -> None:
    x = Noise.seeded(0).normal(40, 7)
    x[5] = x[6] = x[7]  # copies are neighbours at distance 0
    points = x.double().numpy()
    all_pairs = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    for k in (1, 2, 3, 10):
        expected = np.sort(all_pairs[~np.eye(40, dtype=bool)].reshape(40, 39), axis=1)[:, k - 1]
        np.testing.assert_allclose(neighbour_distances(x, k, chunk=11).numpy(), expected, atol=3e-3)
    assert float(neighbour_distances(x, 3)[5]) > 0.1
    with pytest.raises(ValueError, match="more than 40 examples"):
        neighbour_distances(x, 40)


def test_radii_are_a_quarter_of_the_distance_in_the_units_of_the_net() -> None:
    of = data()
    method = prepared(of)
    grey = of.x.flatten(1).double().numpy() / 128 - 1
    pairs = np.sort(np.sqrt(((grey[:, None] - grey[None]) ** 2).sum(-1)), axis=1)
    np.testing.assert_allclose(method.radii.numpy(), 0.25 * pairs[:, 3], rtol=1e-3)
    np.testing.assert_allclose(prepared(of, radius=0.5, neighbour=7).radii.numpy(), 0.5 * pairs[:, 7], rtol=1e-3)
    np.testing.assert_allclose(
        prepared(of, input_scale=1.0, input_shift=0.0).radii * 255 / 128, method.radii, rtol=1e-3
    )


def test_radii_come_back_from_a_checkpoint_without_preparing() -> None:
    of = data()
    method = prepared(of)
    method.update(batch(of))
    other = imsat(9)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    other.adam.load_state_dict(copy.deepcopy(method.adam.state_dict()))
    assert torch.equal(other.radii, method.radii)
    b = batch(of, 30)
    again = Batch(b.x, Noise.seeded(3), index=b.index), Batch(b.x, Noise.seeded(3), index=b.index)
    assert method.update(again[0]) == other.update(again[1])


# the step


def by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The net by hand: each of its batch normalisations uses the batch."""
    for i in (0, 3):
        h = x @ weights[f"{i}.weight"].T
        h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
        x = (weights[f"{i + 1}.weight"] * h + weights[f"{i + 1}.bias"]).clamp_min(0)
    return x @ weights["6.weight"].T + weights["6.bias"]


def test_a_step_is_the_objective_written_out() -> None:
    """Losses and gradients; nothing flows through the target, nor through the direction."""
    of = data()
    method = prepared(of, output_wscale=4.0, information_weight=0.3, marginal_weight=2.0, xi=0.5)
    weights = {name: p.detach().clone().requires_grad_() for name, p in method.net.named_parameters()}
    b = batch(of, 20)
    assert b.index is not None
    state = b.noise.generator.get_state()
    losses = method.update(b)
    b.noise.generator.set_state(state)

    x = b.x.flatten(1) * 255 / 128 - 1
    p = by_hand(weights, x).softmax(1)
    d = b.noise.normal(30, 16)
    d = (d / d.norm(dim=1, keepdim=True)).requires_grad_()
    q = by_hand(weights, x + 0.5 * d).softmax(1)
    (g,) = torch.autograd.grad((p.detach() * (p.detach() / q).log()).sum() / 30, d)
    r = method.radii[b.index, None] * g / g.norm(dim=1, keepdim=True)
    q = by_hand(weights, x + r).softmax(1)
    vat = (p.detach() * (p.detach() / q).log()).sum(1).mean()
    conditional, mean_p = -(p * p.log()).sum(1).mean(), p.mean(0)
    marginal = -(mean_p * mean_p.log()).sum()
    (vat + 0.3 * (conditional - 2.0 * marginal)).backward()

    expected = {"vat": vat, "conditional_entropy": conditional, "marginal_entropy": marginal}
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(
        {k: float(v.detach()) for k, v in expected.items()}, rel=1e-3
    )
    assert float(losses["vat"]) > 1e-3
    for name, value in method.net.named_parameters():
        torch.testing.assert_close(value.grad, weights[name].grad, rtol=1e-2, atol=1e-4)


def test_settings_are_those_of_the_original() -> None:
    c = IMSAT.Config()
    assert adams(imsat()) == {"adam": pytest.approx((0.002, 0.9, 0.999, 1e-8, 0))}
    assert (c.information_weight, c.marginal_weight) == (0.1, 4.0)
    assert (c.radius, c.neighbour, c.xi, c.power_iterations) == (0.25, 10, 10.0, 1)


def test_only_the_plain_pass_moves_the_running_statistics() -> None:
    of = data()
    method = prepared(of, output_wscale=1.0)
    net = copy.deepcopy(method.net)
    b = batch(of)
    net(b.x.flatten(1) * method.config.input_scale - 1)
    method.update(b)
    for name, value in net.named_buffers():
        assert torch.equal(value, method.net.get_buffer(name)), name
    assert int(method.net.get_buffer("1.num_batches_tracked")) == 1
    assert float(method.net.get_buffer("1.running_mean").abs().max()) > 0


def test_kept_statistics_still_normalise_by_the_batch() -> None:
    layer = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in layer.named_buffers()}
    x = 5 + 2 * Noise.seeded(0).normal(50, 3)
    with running_statistics_kept(nn.Sequential(layer)):
        y = layer(x)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))
    assert all(torch.equal(value, before[name]) for name, value in layer.named_buffers())
    layer(x)  # afterwards they move again
    assert not any(torch.equal(value, before[name]) for name, value in layer.named_buffers())


def test_each_example_has_its_own_radius() -> None:
    """With radius 0 from the 30th example on, VAT costs nothing there, and what it cost before elsewhere."""
    of = data()
    method = prepared(of, output_wscale=1.0)
    first, last = batch(of), Batch(batch(of).x, of.noise, index=torch.arange(30, 60))
    own = method.radii.clone()
    method.radii[30:] = 0
    vat = []
    for b in (first, last):
        step = imsat(output_wscale=1.0)
        step.load_state_dict(method.state_dict())
        vat.append(float(step.update(replace(b, noise=Noise.seeded(2)))["vat"]))
    assert vat[0] > 1e-4 and vat[1] == pytest.approx(0, abs=1e-6)
    method.radii = own
    assert float(method.update(replace(first, noise=Noise.seeded(2)))["vat"]) == vat[0]


def test_first_weights_are_those_of_chainer() -> None:
    """std = √(wscale / fan in); biases 0, and none before batch normalisation."""
    net = IMSAT(IMSAT.Config(hidden=400), Spec("toy", (1, 10, 10), 10), Noise.seeded(0)).net
    for name, wscale, fan_in in (("0", 0.1, 100), ("3", 0.1, 400), ("6", 1e-4, 400)):
        std = float(net.get_parameter(f"{name}.weight").detach().std())
        assert std == pytest.approx((wscale / fan_in) ** 0.5, rel=0.05)
    assert net[0].bias is None and net[3].bias is None and not net[6].bias.any()
    x = Noise.seeded(1).uniform(50, 100)
    assert float((net(x).softmax(1) - 0.1).detach().abs().max()) < 0.02  # all clusters begin alike


def test_it_finds_the_bright_row() -> None:
    of = data(240)
    method = prepared(of, hidden=64, neighbour=10)
    for _ in range(30):
        order = of.noise.permutation(240)
        for index in order.split(60):
            losses = method.update(Batch(of.take(index), of.noise, index=index))
    assert float(losses["marginal_entropy"]) == pytest.approx(math.log(3), abs=0.1)
    assert float(losses["conditional_entropy"]) < 0.3
    new = data(90, seed=5)
    predicted = method.eval().predict(new.take(torch.arange(90)))
    assert sorted(predicted[:3].tolist()) == [0, 1, 2]
    assert torch.equal(predicted, predicted[:3].repeat(30))
