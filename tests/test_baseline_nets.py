"""The shared backbones: shapes by hand, normalisation and averages against loops, masks from the trial's noise alone."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines import nets
from baselines.blocks import Block, Blur, Chain, Drop, Mean, data_dependent_, joined
from baselines.nets import Classifier, Style, conv_large, conv_small, dense, dense_generator, generator
from baselines.perturbation import Repeated
from models.method import Method
from models.nets import Averaged, conv, fan_in_, linear, normal_, transposed
from models.noise import Noise

WEIGHT = Style(norm="weight", last_norm="weight", slope=0.2, input_dropout=0.2, scale=1 / 16)


def images(n: int = 8, side: int = 32, seed: int = 1) -> Tensor:
    return Noise.seeded(seed).uniform(n, 3, side, side)


def sizes(body: Chain, x: Tensor) -> list[tuple[int, int]]:
    """(channels, side) after each layer with weights or pooling."""
    found = []
    for layer in body.layers:
        x = layer(x, None) if isinstance(layer, Drop | Blur) else layer(x)
        if isinstance(layer, Block | nn.MaxPool2d | Mean | nn.Unflatten):
            found.append((x.shape[1], x.shape[-1] if x.ndim == 4 else 1))
    return found


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_it_holds_no_method() -> None:
    assert not [v for v in vars(nets).values() if inspect.isclass(v) and issubclass(v, Method)]


def test_conv_small_halves_by_stride() -> None:
    net = normal_(conv_small(Style()), Noise.seeded(0), 0.05).eval()
    want = [(64, 32), (64, 32), (64, 16), (128, 16), (128, 16), (128, 8), (128, 6), (128, 6), (128, 6), (128, 1)]
    assert sizes(net.body, images(2)) == want
    assert net.features(images(2)).shape == (2, 128) and net(images(2)).shape == (2, 10)
    kernels = 9 * (3 * 64 + 2 * 64 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 128) + 2 * 128 * 128
    assert count(net) == kernels + 2 * (3 * 64 + 6 * 128) + 1290


def test_conv_small_halves_by_maxima() -> None:
    net = normal_(conv_small(Style(pool="max")), Noise.seeded(0), 0.05).eval()
    found = sizes(net.body, images(2))
    assert found[2:4] == [(64, 32), (64, 16)] and found[6:8] == [(128, 16), (128, 8)] and found[-1] == (128, 1)
    assert count(net) == count(conv_small(Style()))


def test_conv_large() -> None:
    net = normal_(conv_large(Style(norm="weight")), Noise.seeded(0), 0.05).eval()
    want = [(128, 32)] * 3 + [(128, 16)] + [(256, 16)] * 3 + [(256, 8), (512, 6), (256, 6), (128, 6), (128, 1)]
    assert sizes(net.body, images(1)) == want
    kernels = 9 * (3 * 128 + 2 * 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512) + 512 * 256 + 256 * 128
    assert count(net) == kernels + (3 * 128 + 3 * 256 + 512 + 256 + 128) + 1290  # kernels and biases; g is not trained


def test_scale_shrinks_all_but_the_ends() -> None:
    net = normal_(conv_large(Style(scale=1 / 16), colours=1, n_classes=7), Noise.seeded(0), 0.05)
    assert net(images()[:, :1]).shape == (8, 7) and net.features(images()[:, :1]).shape == (8, 8)
    assert net.body.layers[2].layer.weight.shape == (8, 1, 3, 3)


def test_dense_counterparts_take_any_size() -> None:
    for norm in ("batch", "weight", "none"):
        net = normal_(dense(Style(norm=norm), (1, 8, 8), (20, 12), 5), Noise.seeded(0), 0.1)  # type: ignore[arg-type]
        x = images(6, 8)[:, :1]
        assert net.features(x).shape == (6, 12) and net(x, Noise.seeded(0)).shape == (6, 5)
    make = normal_(dense_generator(7, (1, 8, 8), (20, 12), 3), Noise.seeded(0), 0.1)
    x = make(torch.zeros(4, 7), None, torch.eye(3)[[0, 1, 2, 0]])
    assert x.shape == (4, 1, 8, 8) and bool((x.abs() <= 1).all())


def test_generator() -> None:
    make = normal_(generator(), Noise.seeded(0), 0.05)
    z = Noise.seeded(1).uniform(3, 100)
    assert sizes(make, z) == [(8192, 1), (512, 4), (256, 8), (128, 16), (3, 32)]
    x = make(z)
    assert x.shape == (3, 3, 32, 32) and bool((x.abs() <= 1).all())
    kernels = 100 * 8192 + 25 * (512 * 256 + 256 * 128 + 128 * 3)
    assert count(make) == kernels + 2 * (8192 + 256 + 128) + 2 * 3
    with pytest.raises(ValueError, match="divisible by 8"):
        generator(shape=(1, 28, 28))


def test_a_class_joins_every_layer_of_the_generator() -> None:
    make = normal_(generator(5, (1, 8, 8), y_dim=3, channels=16), Noise.seeded(0), 0.5)
    z, y = Noise.seeded(1).uniform(3, 5), torch.eye(3)
    weights = [layer.layer.weight for layer in make.layers if isinstance(layer, Block)]
    assert [w.shape[1] if w.ndim == 2 else w.shape[0] for w in weights] == [8, 19, 11, 7]
    x = make(z, None, y)
    assert x.shape == (3, 1, 8, 8)
    for weight in weights:  # each layer's own columns of y carry it
        zeroed = normal_(generator(5, (1, 8, 8), y_dim=3, channels=16), Noise.seeded(0), 0.5)
        zeroed.load_state_dict(make.state_dict())
        index = [id(w) for w in weights].index(id(weight))
        own = [layer.layer.weight for layer in zeroed.layers if isinstance(layer, Block)][index]
        (own.data[:, -3:] if own.ndim == 2 else own.data[-3:]).zero_()
        assert not torch.equal(zeroed(z, None, y), x)


def test_joined_repeats_y_everywhere() -> None:
    x, y = images(2, 4), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    out = joined(x, y)
    assert torch.equal(out[:, :3], x) and torch.equal(out[0, 3], torch.ones(4, 4)) and not bool(out[0, 4].any())
    assert torch.equal(joined(x[:, :, 0, 0], y), torch.cat([x[:, :, 0, 0], y], 1))


@pytest.mark.parametrize(
    ("layer", "x", "others"),
    [
        (linear(3, 4), images(5)[:, :, 0, 0], (1,)),
        (conv(3, 4, 3, 2, 1), images(5, 8), (1, 2, 3)),
        (transposed(3, 4, 5, 2, 2, output_padding=1), images(5, 4), (0, 2, 3)),
    ],
)
def test_weight_normalisation(layer: Any, x: Tensor, others: tuple[int, ...]) -> None:
    """Each output's weights have length g, whatever the length of v; Salimans & Kingma, Eq. 2."""
    block = normal_(Block(layer, "weight"), Noise.seeded(0), 0.7)
    block.g.data = torch.tensor([1.0, 2.0, 0.5, 3.0])
    assert block.weight().square().sum(others).sqrt().tolist() == pytest.approx([1.0, 2.0, 0.5, 3.0], rel=1e-5)
    before = block(x)
    layer.weight.data *= 5.0
    torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-5)
    assert not block.g.requires_grad and Block(linear(3, 4), "weight", train_g=True).g.requires_grad


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("make", [conv_small, conv_large])
def test_data_dependent_initialisation(make: Any, with_noise: bool) -> None:
    """Pre-activations of the very pass that fitted them have mean 0 and variance 1; the logits' standard deviation is 0.1."""
    net: Classifier = normal_(make(WEIGHT), Noise.seeded(0), 0.05)
    noise = Noise.seeded(3)
    data_dependent_(net, images(40), noise if with_noise else None)
    seen: list[tuple[Block, Tensor]] = []
    blocks = [layer for layer in net.modules() if isinstance(layer, Block)]
    for block in blocks:
        block.activation.register_forward_pre_hook(
            lambda _, inputs, block=block: seen.append((block, inputs[0].detach()))
        )
    net(images(40), Noise.seeded(3) if with_noise else None)
    assert len(seen) == len(blocks) == 10
    for block, h in seen:
        h = h.transpose(0, 1).flatten(1)
        assert float(h.mean(1).abs().max()) < 1e-4
        assert h.std(1, correction=0).tolist() == pytest.approx([block.init_std] * len(h), rel=1e-3)
    assert seen[-1][0].init_std == 0.1 and not any(block.fitting for block in blocks)


def test_fitting_again_changes_nothing() -> None:
    net = normal_(conv_small(WEIGHT), Noise.seeded(0), 0.05)
    data_dependent_(net, images(40))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    data_dependent_(net, images(40))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-4)


def test_masks_and_noise_come_from_the_trial() -> None:
    net = normal_(conv_small(Style(input_dropout=0.2, input_noise=0.1, scale=1 / 16)), Noise.seeded(0), 0.1)
    stream = torch.random.get_rng_state()
    a, b, c = (net(images(), Noise.seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(net(images()), net(images())) and not torch.equal(a, net(images()))
    assert torch.equal(torch.random.get_rng_state(), stream)


def test_dropout_of_elements_and_of_channels() -> None:
    x = torch.ones(50, 40, 3, 3)
    single, whole = Drop(0.25)(x, Noise.seeded(0)), Drop(0.25, whole_channels=True)(x, Noise.seeded(0))
    for out in (single, whole):
        assert out.unique().tolist() == pytest.approx([0, 4 / 3]) and float(out.mean()) == pytest.approx(1, abs=0.05)
    assert float(whole.flatten(2).std(2).max()) == 0 < float(single.flatten(2).std(2).max())
    assert float(Blur(0.3)(x, Noise.seeded(0)).std()) == pytest.approx(0.3, rel=0.05)


def test_a_repeated_stream_gives_every_pass_the_same_masks() -> None:
    net = normal_(conv_small(Style(input_noise=0.1, scale=1 / 16)), Noise.seeded(0), 0.1).eval()
    noise = Repeated(Noise.seeded(4))
    first, again = net(images(), noise), net(images(), noise.again())
    assert torch.equal(first, again) and torch.equal(first, net(images(), Noise.seeded(4)))
    assert len(noise.drawn) == 3  # the blur and two masks: a rate of 0 draws nothing


@pytest.mark.parametrize("start", ["weights", "zero"])
@pytest.mark.parametrize("average_buffers", [False, True])
def test_averages_are_those_of_a_loop(start: Any, average_buffers: bool) -> None:
    noise = Noise.seeded(0)
    net = fan_in_(dense(Style(last_norm="weight"), (1, 2, 2), (5,), 3), noise)
    average = Averaged(net, 0.1, start, average_buffers)
    wanted = {name: value.clone() for name, value in net.state_dict().items()}
    if start == "zero":
        wanted |= {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    stay = (
        {name for name, _ in net.named_buffers()} if not average_buffers else {"body.layers.3.norm.num_batches_tracked"}
    )
    for _ in range(5):
        net(noise.uniform(9, 1, 2, 2))  # moves the running statistics
        for parameter in net.parameters():
            parameter.data += noise.normal(*parameter.shape)
        average.update(net)
        for name, value in net.state_dict().items():
            wanted[name] = value.clone() if name in stay else wanted[name] + 0.1 * (value - wanted[name])
    assert {*average.net.state_dict()} == {*wanted}
    for name, value in average.net.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.parameters()) and all(p.requires_grad for p in net.parameters())
    assert average(torch.zeros(2, 1, 2, 2)).shape == (2, 3)


def test_a_g_that_is_not_trained_is_no_average() -> None:
    net = normal_(conv_small(WEIGHT), Noise.seeded(0), 0.05)
    data_dependent_(net, images())
    average = Averaged(net, 0.1, "zero")
    average.update(net)
    for (name, mine), (_, theirs) in zip(average.net.named_parameters(), net.named_parameters(), strict=True):
        expected = 0.1 * theirs if theirs.requires_grad else theirs
        torch.testing.assert_close(mine, expected, msg=name)
