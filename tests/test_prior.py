"""The mixtures p(y) p(z | y): what is drawn agrees with the moments that the classifier of Eq. 19 uses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import digits, mnist, plane
from models.latent import separated_means
from models.layers import Layer
from models.noise import Noise
from models.prior import Kind, MixturePrior, build_prior

KINDS: list[Kind] = ["learned", "learned_variance", "separated", "fixed", "standard"]


def _layer(prior: MixturePrior, name: str) -> tuple[Layer, Tensor]:
    """A layer of Gz(y), and its 1x1 kernel as a matrix for row vectors."""
    assert prior.net is not None
    layer = prior.net.layers[name]
    assert isinstance(layer, Layer) and layer.weight is not None
    return layer, layer.weight[:, :, 0, 0].T


def _prior(kind: Kind, nets: object = plane, k: int = 4, **options: float) -> MixturePrior:
    return build_prior(kind, nets, k, 3.0, Noise.seeded(1), **options)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_standard_ignores_y(k: int) -> None:
    mean, log_variance = _prior("standard", k=k).moments()
    assert torch.equal(mean, torch.zeros(k, 2)) and torch.equal(log_variance, torch.zeros(k, 2))


def test_fixed_means_are_separated_and_of_unit_variance() -> None:
    prior = _prior("fixed", mnist, 10)
    mean, log_variance = prior.moments()
    assert torch.equal(mean, separated_means(10, 64, 3.0))
    assert torch.equal(log_variance, torch.zeros(10, 64))
    assert not list(prior.parameters())


def test_separated_means_start_apart_and_learn() -> None:
    prior = _prior("separated", mnist, 10)
    assert torch.equal(prior.moments()[0], separated_means(10, 64, 3.0))
    y = torch.tensor([2, 2, 5])
    prior.sample_z(y, Noise.seeded(2)).sum().backward()
    (mean,) = prior.parameters()
    assert mean.grad is not None
    assert mean.grad.sum(1).tolist() == [0, 0, 128, 0, 0, 64, 0, 0, 0, 0]  # of 64 dimensions, once for each z


def test_learned_variance_is_a_row_of_weights() -> None:
    prior = _prior("learned_variance")
    biases = torch.tensor([[0.5, -0.25], [1.0, -2.0]])
    layers = [_layer(prior, name) for name in ("zμ", "zσ")]
    for (layer, _), bias in zip(layers, biases, strict=True):
        assert layer.bias is not None
        layer.bias.data.copy_(bias)
    for moment, (_, matrix), bias in zip(prior.moments(), layers, biases, strict=True):
        assert torch.allclose(moment, matrix + bias)


def test_learned_has_unit_variance_and_running_statistics() -> None:
    prior = _prior("learned", digits, std=0.5)
    for _ in range(3):
        prior.sample_z(torch.arange(4).repeat(5), Noise.seeded(2))
    h = torch.eye(4)
    for name in ("z1", "z2"):
        layer, matrix = _layer(prior, name)
        norm = layer.norm
        assert norm is not None and norm.running_mean is not None and norm.running_var is not None
        h = (h @ matrix - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        h = torch.nn.functional.leaky_relu(h, 0.2)
    last, matrix = _layer(prior, "zμ")
    assert last.bias is not None
    mean, log_variance = prior.moments()
    assert torch.allclose(mean, h @ matrix + last.bias, atol=1e-5)
    assert torch.equal(log_variance, torch.zeros(4, 16))


def _drawn(prior: MixturePrior, y: int, n: int = 40_000) -> Tensor:
    z = prior.sample_z(torch.full((n,), y), Noise.seeded(3))
    assert z.shape[2:] == (1, 1)
    return z.flatten(1)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments(kind: Kind) -> None:
    prior = _prior(kind, std=1.5).eval()
    n = 40_000
    for y in range(4):
        mean, variance = prior.moments()[0][y], prior.moments()[1][y].exp()
        z = _drawn(prior, y, n).detach()
        assert bool(((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all())
        assert bool(((z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all())


def test_samples_have_the_moments_where_the_table_has_dropout() -> None:
    prior = _prior("learned", mnist, std=0.5).eval()
    with torch.no_grad():
        z = _drawn(prior, 0)
    assert ((z.var(0) - 1).abs() < 5 * math.sqrt(2 / len(z))).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_moments_leave_the_mode_and_the_statistics(kind: Kind, training: bool) -> None:
    prior = _prior(kind, digits).train(training)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    mean, log_variance = prior.moments()
    assert all(module.training is training for module in prior.modules())
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    assert not mean.requires_grad and not log_variance.requires_grad


@pytest.mark.parametrize("kind", ["learned_variance", "separated", "fixed"])
def test_classify_is_brute_force(kind: Kind) -> None:
    prior = _prior(kind, std=1.5)
    prior.p_y.copy_(torch.tensor([0.05, 0.15, 0.3, 0.5]))
    mean, log_variance = prior.moments()
    z = Noise.seeded(4).normal(300, 2) * 4
    components = [torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in zip(mean, log_variance, strict=True)]
    log_density = torch.stack([component.log_prob(z).sum(1) for component in components], 1)
    expected = (log_density.exp().double() * prior.p_y).argmax(1)
    decided = log_density.max(1).values > -50  # elsewhere the densities underflow
    got = prior.classify(z)
    assert got.dtype == torch.int64
    assert torch.equal(got[decided], expected[decided])
    assert len(got.unique()) > 2


def test_y_follows_p_y() -> None:
    prior = _prior("standard")
    n = 100_000
    assert torch.allclose(prior.p_y, torch.full((4,), 0.25))
    for p in (prior.p_y.clone(), torch.tensor([0.7, 0.0, 0.1, 0.2])):
        prior.p_y.copy_(p)
        frequency = prior.sample_y(n, Noise.seeded(5)).bincount(minlength=4) / n
        assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all())


@pytest.mark.parametrize("kind", KINDS)
def test_p_y_is_saved_with_the_weights(kind: Kind) -> None:
    prior, other = _prior(kind), _prior(kind)
    prior.p_y.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.p_y, prior.p_y)


def test_a_fixed_prior_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="20 components"):
        build_prior("fixed", digits, 20, 4.0, Noise.seeded(0))
