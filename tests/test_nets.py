"""Plain networks: every weight is drawn from the noise, with the deviation asked for, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.nets import conv, fan_in_, linear, mlp, normal_, refit_statistics, transposed
from models.noise import Noise


def test_an_mlp_has_its_layers_in_order() -> None:
    net = normal_(mlp((4, 8, 6, 2), nn.Tanh, batchnorm=True, bias=False), Noise.seeded(0), 0.1)
    kinds = [type(layer) for layer in net]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Linear]
    assert [tuple(p.shape) for p in net.parameters() if p.ndim == 2] == [(8, 4), (6, 8), (2, 6)]
    hidden, last = net[0], net[-1]
    assert isinstance(hidden, nn.Linear) and isinstance(last, nn.Linear)
    assert hidden.bias is None and last.bias is not None  # only batch normalisation makes a bias useless


def test_an_mlp_of_two_sizes_is_linear() -> None:
    (layer,) = normal_(mlp((3, 2)), Noise.seeded(0), 1.0)
    assert isinstance(layer, nn.Linear) and bool((layer.bias == 0).all())


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(linear(300, 200), 300), (conv(30, 40, 5), 750), (transposed(40, 30, 5), 1000)],
    ids=["linear", "conv", "transposed"],
)
def test_deviations(layer: nn.Module, fan_in: int) -> None:
    """A transposed convolution of stride 1 adds inputs x width² products for an output, as a convolution does."""
    weight = next(layer.parameters())
    normal_(layer, Noise.seeded(1), 0.05)
    assert weight.std().item() == pytest.approx(0.05, rel=0.02) and abs(weight.mean().item()) < 0.002
    fan_in_(layer, Noise.seeded(1), 2**0.5)
    assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


def test_a_unit_keeps_its_scale_at_gain_one() -> None:
    net = fan_in_(linear(1000, 500), Noise.seeded(2))
    assert net(torch.randn(200, 1000, generator=torch.Generator().manual_seed(3))).std().item() == pytest.approx(
        1, rel=0.05
    )


def test_the_noise_alone_decides_and_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = (normal_(mlp((5, 4, 3)), Noise.seeded(seed), 1.0).state_dict() for seed in (7, 7, 8))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])


def test_refitted_statistics_are_the_mean_over_batches() -> None:
    net = normal_(mlp((3, 4, 2), batchnorm=True), Noise.seeded(0), 1.0).eval()
    layer = net[1]
    assert isinstance(layer, nn.BatchNorm1d) and layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.fill_(7.0)
    batches = [Noise.seeded(seed).normal(20, 3) for seed in (1, 2, 3)]
    for _ in range(2):  # the second time forgets the first
        refit_statistics(net, net, batches)
        hidden = torch.stack([net[0](x) for x in batches])
        torch.testing.assert_close(layer.running_mean, hidden.mean(1).mean(0))
        torch.testing.assert_close(layer.running_var, hidden.var(1).mean(0))
    assert layer.momentum == 0.1 and not layer.training and not net.training
