"""Shared networks of the baselines: weight normalisation and its start, dropout, noise, the average, shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.nets import Average, Blur, Dropout, WeightNorm, classifier, generator, initialise
from models.method import Spec
from models.nets import conv, linear, normal_, transposed
from models.noise import Noise

LAYERS = {
    "linear": (linear(3, 4), (3,)),
    "conv": (conv(3, 4, 3, 2, 1), (3, 6, 6)),
    "up": (transposed(3, 4, 2), (3, 5, 5)),
}
SVHN, DIGITS = Spec("svhn", (3, 32, 32), 10), Spec("digits", (1, 8, 8), 10)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trained", [True, False])
def test_the_start_gives_each_output_its_mean_and_deviation(name: str, trained: bool) -> None:
    inner, shape = LAYERS[name]
    layer = normal_(WeightNorm(inner, 0.5, trained), Noise.seeded(0), 3.0)
    x = 2 * Noise.seeded(1).normal(50, *shape) + 1
    with initialise(layer):
        begun = layer(x)
    out = layer(x)
    torch.testing.assert_close(begun, out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.transpose(0, 1).flatten(1).mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        out.transpose(0, 1).flatten(1).std(1, correction=0), torch.full((4,), 0.5), atol=1e-3, rtol=0
    )
    assert isinstance(layer.scale, nn.Parameter) == trained
    assert torch.equal(layer(x), out)  # a pass outside of the start changes nothing


@pytest.mark.parametrize("name", LAYERS)
def test_the_length_of_a_kernel_does_not_matter_and_the_layer_is_pytorchs_on_the_normed_one(name: str) -> None:
    inner, shape = LAYERS[name]
    layer, x = normal_(WeightNorm(inner, trained=True), Noise.seeded(0), 0.05), Noise.seeded(1).normal(4, *shape)
    layer.scale.data.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    out = layer(x)
    dim = 1 if name == "up" else 0
    normed = nn.utils.parametrizations.weight_norm(inner, dim=dim)
    normed.parametrizations.weight.original0.data.copy_(
        layer.scale.detach().view_as(normed.parametrizations.weight.original0)
    )  # type: ignore[union-attr]
    torch.testing.assert_close(out, normed(x))
    nn.utils.parametrize.remove_parametrizations(inner, "weight")
    inner.weight.data.mul_(7)
    torch.testing.assert_close(layer(x), out)


def test_dropout_drops_elements_or_whole_maps_and_keeps_the_mean() -> None:
    x = torch.ones(50, 40, 3, 3)
    one, maps = Dropout(0.25)(x, Noise.seeded(0)), Dropout(0.25, maps=True)(x, Noise.seeded(0))
    for h in (one, maps):
        torch.testing.assert_close(h.unique(), torch.tensor([0.0, 4 / 3]))
        assert float(h.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(maps, maps[:, :, :1, :1].expand_as(maps))
    assert not torch.equal(one, one[:, :, :1, :1].expand_as(one))
    assert torch.equal(Dropout(0.5)(x, None), x) and torch.equal(Blur(0.5)(x, None), x)
    assert float((Blur(0.5)(x, Noise.seeded(0)) - x).std()) == pytest.approx(0.5, rel=0.05)


def test_the_average_is_a_geometric_sum_from_zero() -> None:
    net = classifier("mlp", DIGITS, 3, 8, Noise.seeded(0))
    average = Average(net, 0.1)
    with initialise(net):
        net(Noise.seeded(1).normal(20, 1, 8, 8), Noise.seeded(2))
    for _ in range(5):
        average.follow(net)
    for mine, other in zip(average.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, (1 - 0.9**5) * other.detach())
        assert not mine.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(average.net.buffers(), net.buffers(), strict=True))


@torch.no_grad()
def test_conv_small_is_the_published_one() -> None:
    net = classifier("conv_small", SVHN, 10, 64, Noise.seeded(0))
    kernels = [tuple(layer.layer.weight.shape) for layer in net.modules() if isinstance(layer, WeightNorm)]
    assert kernels == [
        *((64, c, 3, 3) for c in (3, 64, 64)),
        *((128, c, 3, 3) for c in (64, 128, 128, 128)),
        *[(128, 128, 1, 1)] * 2,
        (10, 128),
    ]
    sizes: list[int] = []
    for layer in (layer for layer in net.body if isinstance(layer, WeightNorm)):
        layer.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    x = Noise.seeded(1).normal(2, 3, 32, 32)
    assert net.features(x, None).shape == (2, 128)
    assert sizes == [32, 32, 16, 16, 16, 8, 6, 6, 6]
    assert net(x, Noise.seeded(0)).shape == (2, 10)


@torch.no_grad()
@pytest.mark.parametrize(("network", "spec"), [("conv_small", SVHN), ("mlp", SVHN), ("mlp", DIGITS)])
def test_the_generator_makes_images_between_minus_one_and_one(network: str, spec: Spec) -> None:
    net = generator(network, spec, 7, 16, Noise.seeded(0))  # type: ignore[arg-type]
    x = net(Noise.seeded(1).uniform(5, 7))
    assert x.shape == (5, *spec.shape) and float(x.abs().max()) <= 1


def test_conv_small_on_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match="conv_small takes images of 32x32; digits has"):
        classifier("conv_small", DIGITS, 10, 64, Noise.seeded(0))
