"""LALNets: transformations pixel by pixel, GAR on hand-made matrices and by brute force, pooling, one step, clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.gar import gar
from baselines.lalnets import LALNets, pooled, transform
from models.method import Batch, Data, Spec
from models.noise import Noise
from tests.players import adams

SPEC = Spec("toy", (1, 8, 8), 3)


def lalnets(seed: int = 0, spec: Spec = SPEC, **config: Any) -> LALNets:
    small: dict[str, Any] = {"components": 3, "n_init": 2, "duplicates": 4, "hidden": 32, "arch": "mlp", "layers": 1}
    return LALNets(LALNets.Config(**small | config), spec, Noise.seeded(seed))


def turned(x: Tensor, pseudo: int) -> Tensor:
    """One image [C, H, H] by the eight cases as they stand in the authors' script, on axes (H, W, C)."""
    image = np.rot90(x.permute(1, 2, 0).numpy(), pseudo % 4)
    return torch.from_numpy((np.fliplr(image) if pseudo >= 4 else image).copy()).permute(2, 0, 1)


def written_out(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Affinity, balance and coactivity of z [B, k, P], sums of products written out block by block."""
    _, k, classes = z.shape
    found = []
    for c in range(classes):
        b = [z[:, d, c] * (z[:, d, c] > 0) for d in range(k)]
        pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
        off = sum((b[i] * b[j]).sum() for i, j in pairs)
        v = [(b[i] ** 2).sum() for i in range(k)]
        off_v, trace_v = sum(v[i] * v[j] for i, j in pairs), sum(value**2 for value in v)
        found.append((off / ((k - 1) * sum(v)), off_v / ((k - 1) * trace_v), off))
    affinity, balance, coactivity = (sum(block[i] for block in found) / classes for i in range(3))
    return torch.as_tensor(affinity), torch.as_tensor(balance), torch.as_tensor(coactivity)


def terms(*classes: list[list[float]]) -> list[float]:
    """GAR of hand-made B, one [B, k] a pseudo class: affinity, balance, coactivity."""
    return [float(value) for value in gar(torch.tensor(classes).permute(1, 2, 0)).values()]


ORTHOGONAL = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]
EQUAL = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
DEAD = [[1.0, 0.0, 0.0], [0.0, 1.0, -5.0], [0.0, 0.0, 0.0]]
NOTHING = [[-1.0, -1.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, -3.0]]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([ORTHOGONAL], [0, 1, 0]),
        ([EQUAL], [1, 1, 6 * 5]),  # six pairs of columns with ‖column‖² = 5
        ([DEAD], [0, 2 / (2 * 2), 0]),  # v = (1, 1, 0)
        ([[[1.0, 0.0], [3.0, 0.0]]], [0, 0, 0]),  # one of two duplicates does everything
        ([[[1.0, 2.0]]], [4 / 5, 2 * 4 / (1 + 16), 4]),  # U = [[1, 2], [2, 4]]
        ([NOTHING], [0, 0, 0]),
        ([ORTHOGONAL, EQUAL], [1 / 2, 1, 15]),  # a mean over blocks, not one matrix of six columns
        ([EQUAL, NOTHING, NOTHING, DEAD], [1 / 4, 3 / 8, 30 / 4]),
    ],
)
def test_gar_of_hand_made_matrices(classes: list[list[list[float]]], expected: list[float]) -> None:
    assert terms(*classes) == pytest.approx(expected, abs=1e-5)


def test_gar_is_what_its_sums_say_written_out() -> None:
    z = Noise.seeded(0).normal(9, 5, 8).double()
    found = gar(z)
    assert list(found) == ["affinity", "balance", "coactivity"]
    for value, expected in zip(found.values(), written_out(z), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_gar_has_a_finite_gradient_where_nothing_is_active() -> None:
    z = torch.full((3, 4, 8), -1.0, requires_grad=True)
    sum(gar(z).values(), torch.zeros(())).backward()
    assert z.grad is not None
    assert not z.grad.any()


def test_pooling_adds_up_the_softmax_over_the_duplicates() -> None:
    z = 3 * Noise.seeded(0).normal(6, 4, 8)
    pooling = torch.eye(8).repeat(4, 1)  # identity_vstacked: output j belongs to pseudo class j mod 8
    torch.testing.assert_close(pooled(z).softmax(1), z.flatten(1).softmax(1) @ pooling)


@pytest.mark.parametrize("side", [4, 5])
def test_transform_is_the_authors_pixel_by_pixel(side: int) -> None:
    x, pseudo = torch.arange(24.0 * 2 * side**2).view(24, 2, side, side), torch.arange(24) % 8
    done = transform(x, pseudo)
    for i in range(24):
        assert torch.equal(done[i], turned(x[i], i % 8)), i
    assert len({tuple(transform(x[:1], torch.tensor([p])).flatten().tolist()) for p in range(8)}) == 8


def test_a_step_sees_each_image_as_its_pseudo_class_says(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen, x = lalnets(), [], Noise.seeded(1).uniform(200, 1, 8, 8)
    features, cross_entropy = method.features, F.cross_entropy

    def spied_features(x: Tensor, noise: Noise) -> Tensor:
        seen.append(x)
        return features(x, noise)

    def spied_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return cross_entropy(z, y)

    monkeypatch.setattr(method, "features", spied_features)
    monkeypatch.setattr(F, "cross_entropy", spied_cross_entropy)
    method.update(Batch(x, Noise.seeded(2)))
    images, pseudo = seen
    assert torch.equal(images, torch.stack([turned(x[i], int(pseudo[i])) for i in range(200)]))
    assert int(pseudo.bincount(minlength=8).min()) > 8  # 25 of each expected
    assert len(pseudo.bincount()) == 8


def test_a_step_descends_the_whole_loss() -> None:
    weights: dict[str, Any] = {
        "affinity_weight": 0.3,
        "balance_weight": 0.7,
        "coactivity_weight": 0.02,
        "norm_weight": 1e-3,
    }
    method, x = lalnets(dropout=0.0, **weights), Noise.seeded(1).uniform(30, 1, 8, 8)
    pseudo = Noise.seeded(2).integers(8, 30)
    z = method.head(method.features(torch.stack([turned(x[i], int(pseudo[i])) for i in range(30)])))
    outputs = z.softmax(1)
    right = torch.stack([outputs[i, int(pseudo[i]) :: 8].sum() for i in range(30)])
    affinity, balance, coactivity = written_out(z.view(30, 4, 8))
    loss = -right.log().mean() + 0.3 * affinity + 0.7 * (1 - balance) + 0.02 * coactivity + 0.001 * (z**2).sum()
    expected = torch.autograd.grad(loss, list(method.parameters()))
    losses = method.update(Batch(x, Noise.seeded(2)))
    for parameter, gradient in zip(method.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    assert float(losses["pseudo"]) == pytest.approx(float(-right.log().mean().detach()), rel=1e-5)
    assert float(losses["norm"]) == pytest.approx(float((z**2).sum().detach()), rel=1e-5)


def test_settings_are_those_of_the_script() -> None:
    c = LALNets.Config()
    assert adams(lalnets()) == {"adam": pytest.approx((1e-3, 0.9, 0.999, 1e-8, 0))}
    assert (c.affinity_weight, c.balance_weight, c.coactivity_weight, c.norm_weight) == (0.1, 1.0, 0.0, 1e-6)


@pytest.mark.parametrize(("shape", "inputs"), [((1, 28, 28), 64 * 49), ((3, 32, 32), 64 * 64), ((1, 9, 9), 64 * 4)])
def test_the_conv_net_has_the_widths_of_the_script(shape: tuple[int, int, int], inputs: int) -> None:
    method = lalnets(spec=Spec("toy", shape, 3), arch="conv", hidden=20, duplicates=20)
    kernels = [tuple(p.shape) for name, p in method.named_parameters() if name.endswith("weight")]
    convolutions = [(32, shape[0], 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
    assert kernels == [*convolutions, (20, inputs), (160, 20)]
    assert method.rates == [0.2, 0.3, 0.5]
    assert LALNets.Config().hidden == 2048
    features = method.embed(Noise.seeded(0).uniform(2, *shape))
    assert features.shape == (2, 20)
    assert not (features < 0).any()


def test_dropout_acts_on_every_hidden_layer_of_a_step_and_on_no_answer() -> None:
    method, x = lalnets(layers=2, hidden=400, dropout=0.5), Noise.seeded(1).uniform(50, 1, 8, 8)
    plain, dropped = method.features(x), method.features(x, Noise.seeded(3))
    assert torch.equal(plain, method.embed(x))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.75, abs=0.05)  # ReLU takes the other quarter
    method.rates[1] = 0.0
    assert not torch.allclose(method.features(x, Noise.seeded(3)), plain)


def test_standardise_takes_the_mean_training_image_and_each_image_apart() -> None:
    train, x = Noise.seeded(1).uniform(40, 1, 8, 8), Noise.seeded(2).uniform(5, 1, 8, 8)
    method = lalnets(standardise=True)
    method.prepare(Data(train, 1.0, Noise.seeded(0)))
    for i in range(5):
        image = x[i] - train.mean(0)
        expected = (image - image.mean()) / (image - image.mean()).square().mean().sqrt()
        torch.testing.assert_close(method.standardised(x)[i], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(lalnets().standardised(x), x)


@pytest.mark.parametrize("shape", [(1, 8, 6), (2, 1, 1)])
def test_only_squares_can_be_turned(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="it needs squares"):
        lalnets(spec=Spec("toy", shape, 3))


GLYPHS = ["1111 1000 1000 1000 1000", "0000 0111 0001 0011", "0100 0111 0000"]


def glyphs(n: int, seed: int) -> Data:
    """Image i shows glyph i mod 3, none of which looks like itself after any transformation, in noise."""
    noise, shown = Noise.seeded(seed), torch.zeros(3, 8, 8)
    for glyph, rows in zip(shown, GLYPHS, strict=True):
        for row, bits in enumerate(rows.split()):
            glyph[row + 1, 1:5] = torch.tensor([float(bit) for bit in bits])
    x = 0.7 * shown[torch.arange(n) % 3] + 0.3 * noise.uniform(n, 8, 8)
    return Data(x[:, None], 1.0, noise)


@pytest.mark.parametrize("config", [{"layers": 2}, {"arch": "conv", "channels": 8}])
def test_glyphs_are_told_apart(config: dict[str, Any]) -> None:
    data = glyphs(96, seed=0)
    method = lalnets(hidden=64, dropout=0.2, learning_rate=3e-3, affinity_weight=0.3, balance_weight=0.3, **config)
    losses = [method.update(Batch(data.x, data.noise)) for _ in range(150)]
    assert float(losses[0]["pseudo"]) == pytest.approx(np.log(8), rel=0.25)
    assert float(losses[-1]["pseudo"]) < 0.5  # it knows how an image lies
    method.eval().finish(data)
    predicted = method.predict(glyphs(60, seed=5).x)
    assert len(set(predicted[:3].tolist())) == 3
    assert torch.equal(predicted, predicted[:3].repeat(20))
    assert torch.equal(method.centres, method.state_dict()["centres"])
    assert method.centres.shape == (3, 64)
