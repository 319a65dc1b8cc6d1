"""GMVAE: each term of the bound against quadrature, enumeration or scipy; the nets; learning on made-up images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy import stats
from scipy.special import log_expit, logsumexp
from torch import Tensor, nn

from baselines.gmvae import GMVAE, conditional_prior, gaussian_kl, log_posterior, z_prior
from models.method import Batch, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given, stripes

SPEC = Spec("toy", (1, 4, 4), 3)
TINY = Spec("tiny", (1, 1, 3), 2)


def gmvae(seed: int = 0, spec: Spec = SPEC, **config: Any) -> GMVAE:
    small: dict[str, Any] = {"components": 3, "hidden": 32, "h_dim": 2, "w_dim": 2}
    return GMVAE(GMVAE.Config(**small | config), spec, Noise.seeded(seed))


def normal(*shape: int) -> Tensor:
    """Doubles that are the same in every test."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# the pure functions


def test_kl_of_gaussians_is_that_of_torch() -> None:
    mean, log_variance, mean_p, log_variance_p = normal(4, 5, 1, 3), normal(5, 1, 3), normal(5, 6, 3), normal(6, 3)
    ours = gaussian_kl(mean, log_variance, mean_p, log_variance_p)
    pair = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean, log_variance), (mean_p, log_variance_p)))
    theirs = torch.distributions.kl_divergence(*pair).sum(-1)
    assert ours.shape == (4, 5, 6)
    torch.testing.assert_close(ours, theirs)


def test_the_posterior_is_bayes_rule() -> None:
    h, mean, log_variance = normal(4, 2), normal(4, 3, 2), 0.5 * normal(4, 3, 2)
    likelihood = [
        [stats.multivariate_normal(m, np.diag(v)).pdf(point) for m, v in zip(means, variances, strict=True)]
        for point, means, variances in zip(h, mean.numpy(), log_variance.exp().numpy(), strict=True)
    ]
    expected = np.array(likelihood) / np.sum(likelihood, axis=1, keepdims=True)
    np.testing.assert_allclose(log_posterior(h, mean, log_variance).exp(), expected)


def test_the_posterior_survives_components_far_away() -> None:
    mean = torch.tensor([[[0.0], [300.0], [-300.0]]], requires_grad=True)
    log_p = log_posterior(torch.zeros(1, 1), mean, torch.zeros(1, 3, 1))
    loss = z_prior(log_p[None], 0.0) + conditional_prior(log_p[None], torch.ones(1, 1, 3))
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(math.log(3) + 1)
    assert mean.grad is not None and bool(mean.grad.isfinite().all())


def test_mixture_terms_are_means_over_samples_of_sums_over_categories() -> None:
    p, kl = normal(7, 2, 4).softmax(-1), normal(7, 2, 4).exp()
    uniform = np.full(4, 0.25)
    for row in range(2):
        divergences = [stats.entropy(p[sample, row], uniform) for sample in range(7)]
        assert float(z_prior(p.log(), 0.0)[row]) == pytest.approx(np.mean(divergences))
        weighted = [float(p[sample, row] @ kl[sample, row]) for sample in range(7)]
        assert float(conditional_prior(p.log(), kl)[row]) == pytest.approx(np.mean(weighted))


def test_free_bits_stop_the_gradient_of_each_example_at_the_floor() -> None:
    logits = torch.tensor([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0], [1.5, 0.0, 0.0]]).repeat(2, 1, 1)
    logits[1, 2] = torch.tensor([0.0, 8.0, 0.0])  # this example is above the floor only on average over its samples
    logits.requires_grad_()
    first, second = (float(z_prior(one[None].log_softmax(-1), 0.0)[2].detach()) for one in logits)
    assert first < 0.5 < second
    free, bound = z_prior(logits.log_softmax(-1), 0.0), z_prior(logits.log_softmax(-1), 0.5)
    assert float(free[0].detach()) < 0.5 < float(free[2].detach())
    torch.testing.assert_close(bound, torch.stack([torch.tensor(0.5), free[1], free[2]]))
    (with_floor,) = torch.autograd.grad(bound.sum(), logits, retain_graph=True)
    (without,) = torch.autograd.grad(free.sum(), logits)
    assert not with_floor[:, 0].any() and without[:, 0].any()
    assert torch.equal(with_floor[:, 1:], without[:, 1:]) and bool((without[0, 2] != 0).any())


# the bound as a whole, where h and w are numbers: everything is integrated over a grid of quadrature points


def tiny(**config: Any) -> tuple[GMVAE, Tensor]:
    """A method in eval mode with lively weights, and one image of three pixels."""
    settings: dict[str, Any] = {
        "components": 3,
        "hidden": 6,
        "h_dim": 1,
        "w_dim": 1,
        "init_gain": 2.0,
        "free_bits": 0.0,
    }
    return gmvae(2, TINY, **settings | config).eval(), torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 1, 3)


def points(mean: float, log_variance: float, n: int = 80) -> tuple[Tensor, np.ndarray]:
    """Gauss-Hermite points [n, 1] and weights [n] of N(mean, e^log_variance)."""
    at, weight = hermegauss(n)
    return torch.tensor(mean + math.exp(log_variance / 2) * at, dtype=torch.float32)[:, None], weight / weight.sum()


def log_pixels(method: GMVAE, x: Tensor, h: Tensor) -> np.ndarray:
    """log p(x | h), [n], of codes [n, 1]: a Bernoulli of each pixel, of which x holds 0 and 1."""
    signs = 2 * x.flatten().double().numpy() - 1
    return log_expit(signs * method.decoder(h).double().numpy()).sum(1)


def component_densities(method: GMVAE, h: Tensor, w: Tensor) -> np.ndarray:
    """log p(h | w, k) on the grid, [n of w, n of h, K]."""
    mean, log_variance = (t[:, None, :, 0].double().numpy() for t in method.mixture(w))
    return stats.norm(mean, np.exp(log_variance / 2)).logpdf(h.double().numpy()[None])


@torch.no_grad()
def by_quadrature(method: GMVAE, x: Tensor) -> dict[str, float]:
    """The four terms as integrals over q(h) and q(w); KLs as integrals of log q / p."""
    h_mean, h_log_variance, w_mean, w_log_variance = (float(t) for t in method.encode(x))
    (h, h_weight), (w, w_weight) = points(h_mean, h_log_variance), points(w_mean, w_log_variance)
    log_q_h = stats.norm(h_mean, math.exp(h_log_variance / 2)).logpdf(h[:, 0])
    log_q_w = stats.norm(w_mean, math.exp(w_log_variance / 2)).logpdf(w[:, 0])
    densities = component_densities(method, h, w)
    log_p = densities - logsumexp(densities, axis=-1, keepdims=True)
    kl = np.einsum("h,whk->wk", h_weight, log_q_h[None, :, None] - densities)
    return {
        "reconstruction": -float(h_weight @ log_pixels(method, x, h)),
        "conditional": float(np.einsum("w,h,whk,wk->", w_weight, h_weight, np.exp(log_p), kl)),
        "w": float(w_weight @ (log_q_w - stats.norm.logpdf(w[:, 0]))),
        "z": float(np.einsum("w,h,whk->", w_weight, h_weight, np.exp(log_p) * (log_p + math.log(3)))),
    }


@torch.no_grad()
def log_evidence(method: GMVAE, x: Tensor) -> float:
    """log p(x) = log of the integral over w, k and h of the model itself, on even grids."""
    w, h = torch.linspace(-6, 6, 61)[:, None], torch.linspace(-30, 30, 1501)[:, None]
    log_joint = logsumexp(component_densities(method, h, w), axis=-1) - math.log(3) + stats.norm.logpdf(w)
    return float(logsumexp(log_joint + log_pixels(method, x, h)) + math.log(0.2 * 0.04))


@torch.no_grad()
def test_every_term_is_its_integral_over_codes() -> None:
    method, x = tiny(mc_samples=60_000)
    expected = by_quadrature(method, x)
    assert all(value > 0.02 for value in expected.values())  # none may vanish for the comparison to mean anything
    for name, term in method.terms(x, Noise.seeded(0)).items():
        assert term.shape == (1,)
        assert float(term) == pytest.approx(expected[name], rel=0.02), name


@torch.no_grad()
@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_it_is_a_lower_bound_of_the_evidence(gain: float) -> None:
    method, x = tiny(init_gain=gain)
    bound, evidence = -sum(by_quadrature(method, x).values()), log_evidence(method, x)
    assert bound < evidence < 0
    total = [log_evidence(method, torch.tensor(image).view(1, 1, 1, 3)) for image in np.ndindex(2, 2, 2)]
    assert logsumexp(total) == pytest.approx(0.0, abs=1e-3)  # the eight images are all there are


@torch.no_grad()
def test_samples_belong_to_their_own_examples() -> None:
    """Where q is all but a point, any number of samples gives each example what it gets alone."""
    method, x = gmvae(init_gain=2.0).eval(), stripes(5).x
    encode = method.encode
    sure = [t if i % 2 == 0 else torch.full_like(t, -40.0) for i, t in enumerate(encode(x))]
    method.encode = lambda x: tuple(t[: len(x)] for t in sure)  # type: ignore[method-assign]
    alone = method.terms(x[:2], Noise.seeded(0))
    object.__setattr__(method.config, "mc_samples", 4)
    for name, value in method.terms(x, Noise.seeded(1)).items():
        assert value.shape == (5,)
        torch.testing.assert_close(value[:2], alone[name])


# the method


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_a_step_moves_every_net_and_every_weight_has_its_scale(arch: str) -> None:
    method = gmvae(spec=Spec("toy", (1, 28, 28), 3), arch=arch, hidden=50)
    for layer in (m for m in method.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.3)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    losses = method.update(Batch(Noise.seeded(1).uniform(4, 1, 28, 28), Noise.seeded(2)))
    assert set(losses) == {"reconstruction", "conditional", "w", "z"}
    still = {name for name, p in method.named_parameters() if torch.equal(p, before[name])}
    assert not still


def test_the_conv_nets_are_those_of_the_published_code() -> None:
    spec = Spec("toy", (1, 28, 28), 3)
    method = gmvae(spec=spec, arch="conv", components=10, hidden=500, h_dim=200, w_dim=150)
    widths, x = [], torch.zeros(2, 1, 28, 28)
    for layer in method.encoder.eval():  # type: ignore[attr-defined]
        x = layer(x)
        widths += [tuple(x.shape[1:])] if isinstance(layer, nn.Conv2d) else []
    assert widths == [(16, 23, 23), (32, 18, 18), (64, 9, 9), (500, 1, 1)] and x.shape == (2, 700)
    h, widths = torch.zeros(2, 200), []
    for layer in method.decoder.eval():  # type: ignore[attr-defined]
        h = layer(h)
        widths += [tuple(h.shape[1:])] if isinstance(layer, nn.ConvTranspose2d) else []
    assert widths == [(500, 1, 1), (64, 9, 9), (32, 18, 18), (16, 23, 23), (1, 28, 28)]
    mean, log_variance = method.mixture(torch.zeros(2, 150))
    assert mean.shape == log_variance.shape == (2, 10, 200)
    with pytest.raises(ValueError, match="28x28"):
        gmvae(arch="conv")


def test_a_step_is_given_the_gradient_of_the_sum_of_the_four_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    method, x = gmvae(free_bits=0.0), stripes().x
    given = gradients_given(monkeypatch, method)
    method.update(Batch(x, Noise.seeded(5)))
    terms = method.terms(x, Noise.seeded(5))
    loss = terms["reconstruction"] + terms["conditional"] + terms["w"] + terms["z"]
    assert_gradients_of({"adam": [loss.sum() / 30]}, given, method)


def test_settings_are_those_of_the_published_code() -> None:
    c = GMVAE.Config()
    assert adams(gmvae()) == {"adam": pytest.approx((1e-4, 0.9, 0.999, 1e-8, 0))}
    assert (c.free_bits, c.mc_samples, c.hidden, c.h_dim, c.w_dim) == (0.5, 1, 500, 200, 150)


def test_below_the_floor_the_z_prior_moves_nothing() -> None:
    """A step of plain descent is the gradient itself; at the floor log K the z-prior has none, below it has."""
    steps = {}
    for floor in (0.0, 1e-9, math.log(3) + 1e-3):
        method = gmvae(free_bits=floor)
        method.adam = torch.optim.SGD(method.parameters(), 1.0)  # type: ignore[assignment]
        before = method.prior[-1].weight.detach().clone()  # type: ignore[index, union-attr]
        losses = method.update(Batch(stripes().x, Noise.seeded(5)))
        steps[floor] = method.prior[-1].weight.detach() - before  # type: ignore[index, union-attr]
    assert float(losses["z"]) == pytest.approx(math.log(3) + 1e-3)
    method = gmvae()
    weight = method.prior[-1].weight  # type: ignore[index, union-attr]
    terms = method.terms(stripes().x, Noise.seeded(5))
    del terms["z"]
    (rest,) = torch.autograd.grad(sum(terms.values()).mean(), weight)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(steps[math.log(3) + 1e-3], -rest)
    torch.testing.assert_close(steps[0.0], steps[1e-9])
    assert float((steps[0.0] + rest).abs().max()) > 1e-3


def test_categories_find_the_bright_row() -> None:
    method = gmvae(learning_rate=5e-3, free_bits=0.9)
    for step in range(300):
        method.update(stripes(60, seed=step))
    predicted = method.eval().predict(stripes(60, seed=999).x)
    assert len(set(predicted[:3].tolist())) == 3
    assert torch.equal(predicted, predicted[:3].repeat(20))
