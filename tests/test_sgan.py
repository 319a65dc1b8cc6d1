"""SGAN: each player's loss by hand, who learns from it, what D_xy takes as true, and pretraining."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.sgan import SGAN, SGANConfig
from models.latent import one_hot
from models.method import Batch, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given

SPEC = Spec("synthetic", (1, 4, 4), 3)
SMALL: dict[str, Any] = {"components": 3, "backbone": "dense", "hidden": 12, "d_width": 10, "z_dim": 4, "epoch": 1}
DRY: dict[str, Any] = {"input_dropout": 0.0, "dropout": 0.0, "d_dropout": 0.0, "pretraining": 0}
PLAYERS = {"c": {"classifier"}, "d": {"d_xy", "d_xz"}, "g": {"generator", "inference"}}


def made(**config: Any) -> SGAN:
    return SGAN(SGANConfig(**{**SMALL, **DRY, **config}), SPEC, Noise.seeded(1))


def batch(seed: int = 0, n: int = 12, labelled: int = 6) -> Batch:
    """Class k lights row k."""
    noise = Noise.seeded(seed)
    x, y = 0.2 * noise.uniform(n + labelled, 1, 4, 4), torch.arange(n + labelled) % 3
    x[torch.arange(len(x)), 0, y] += 0.8
    return Batch(x[:n], noise, x[n:], y[n:])


def copied(method: SGAN) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters()}


def moved(method: SGAN, before: dict[str, Tensor]) -> set[str]:
    names = {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    return names - {"average"}


def silence(monkeypatch: pytest.MonkeyPatch, method: SGAN, *players: str) -> None:
    for player in players:
        monkeypatch.setattr(getattr(method, f"{player}_adam"), "step", lambda: None)


@pytest.mark.parametrize("player", list(PLAYERS))
def test_each_optimiser_moves_its_own_players(player: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    silence(monkeypatch, method, *(set(PLAYERS) - {player}))
    before = copied(method)
    method.update(batch())
    assert moved(method, before) == PLAYERS[player]


def test_c_alone_moves_while_it_is_pretrained() -> None:
    method, rates = made(pretraining=2, decay_from=1, decay=0.5), []
    before = copied(method)
    for step in range(5):
        method.update(batch(step))
        rates.append((float(method.rate), float(method.others_rate)))
        if step == 1:
            assert moved(method, before) == {"classifier"}
    assert [r for pair in rates for r in pair] == pytest.approx(
        [3e-4 * f for f in (1, 0, 1, 0, 1, 1, 0.5, 0.5, 0.25, 0.25)]
    )
    assert moved(method, before) == set().union(*PLAYERS.values())


class Fixed:
    """A method whose players stand still and whose step's z and images are known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int = 0, **config: Any) -> None:
        self.method, self.data, self.seen = made(**config), batch(), []
        self.method.steps.fill_(steps)
        self.given = gradients_given(monkeypatch, self.method)
        forward = self.method.generator.forward

        def spy(z: Tensor, noise: None, y: Tensor) -> Tensor:
            images = forward(z, noise, y)
            images.retain_grad()
            self.seen = [z, images]
            return images

        monkeypatch.setattr(self.method.generator, "forward", spy)
        self.losses = self.method.update(self.data)
        self.z, self.images = self.seen

    def gradient(self, *nets: str) -> Tensor:
        parameters = [p for name in nets for p in getattr(self.method, name).parameters()]
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def _rho(logit: Tensor) -> Tensor:
    return torch.sigmoid(logit).clamp(1e-12, 1 - 1e-7)


def by_hand(fixed: Fixed) -> dict[str, Tensor]:
    """Every loss of epoch 1, in which D_xy's true pairs are labelled alone, each of the 6 twice."""
    method, data, z = fixed.method, fixed.data, fixed.z
    assert data.x_labelled is not None and data.y_labelled is not None
    x, given, y = 2 * data.x - 1, 2 * data.x_labelled - 1, data.y_labelled
    chosen, noise = torch.arange(12) % 3, Noise.seeded(9)
    images = method.generator(z, None, one_hot(chosen, 3))
    p = F.softmax(method.classifier(x), 1)
    true = _rho(method.judge(given.repeat(2, 1, 1, 1), y.repeat(2), noise))
    false = _rho(method.judge(images, chosen, noise))
    inferred, made_z = _rho(method.d_xz(x, method.inference(x))), _rho(method.d_xz(images, z))
    return {
        "c": F.cross_entropy(method.classifier(given), y)
        - 0.3 * (p * p.log()).sum(1).mean()
        - 1e-3 * p.mean(0).log().mean(),
        "c_generated": F.cross_entropy(method.classifier(images), chosen),
        "d_xy": -true.log().mean() - (1 - false).log().mean(),
        "d_xz": -inferred.log().mean() - (1 - made_z).log().mean(),
        "i": -(1 - inferred).log().mean(),
        "g": -false.log().mean() - made_z.log().mean(),
        "r_z": 0.1 * F.mse_loss(method.inference(images), z) * 4 / 2,
        "r_y": F.cross_entropy(method.classifier(images), chosen),
    }


def test_losses_are_those_of_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = Fixed(monkeypatch)
    for name, value in by_hand(fixed).items():
        assert float(fixed.losses[name]) == pytest.approx(value.item(), rel=1e-4), name


def test_each_optimiser_is_given_the_gradient_of_its_players_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """In epoch 1, in which generated pairs do not teach C yet."""
    fixed = Fixed(monkeypatch, init_std=0.3)
    loss = by_hand(fixed)
    of_both = loss["i"] + loss["g"] + loss["r_z"] + loss["r_y"]
    losses = {"c_adam": [loss["c"]], "d_adam": [loss["d_xy"] + loss["d_xz"]], "g_adam": [of_both]}
    assert_gradients_of(losses, fixed.given, fixed.method)


def test_settings_are_those_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of D, G and I once C's pretraining is over."""
    c, names = SGANConfig(), ("c_adam", "d_adam", "g_adam")
    assert adams(Fixed(monkeypatch).method) == dict.fromkeys(names, pytest.approx((3e-4, 0.5, 0.999, 1e-8, 0)))
    assert (c.decay_from, c.decay, c.pretraining, c.epoch, c.average_rate) == (300, 0.995, 50, 366, 0.01)
    assert (c.input_dropout, c.dropout, c.d_dropout, c.z_dim, c.init_std) == (0.2, 0.5, 0.2, 100, 0.05)


def test_i_and_g_get_the_gradients_of_their_own_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One backward pass serves both: I's is that of its game and R_z, G's that of both games, R_z and R_y."""
    fixed = Fixed(monkeypatch)
    method, x, z, chosen = fixed.method, 2 * fixed.data.x - 1, fixed.z, torch.arange(12) % 3
    images, noise = fixed.images.detach().requires_grad_(), Noise.seeded(9)
    r_z = 0.1 * 4 / 2 * F.mse_loss(method.inference(images), z)
    of_i = -(1 - _rho(method.d_xz(x, method.inference(x)))).log().mean() + r_z
    expected = torch.autograd.grad(of_i, list(method.inference.parameters()), retain_graph=True)
    torch.testing.assert_close(
        fixed.gradient("inference"), torch.cat([g.flatten() for g in expected]), atol=1e-6, rtol=1e-3
    )

    games = -_rho(method.judge(images, chosen, noise)).log().mean() - _rho(method.d_xz(images, z)).log().mean()
    of_g = games + r_z + F.cross_entropy(method.classifier(images), chosen)
    assert fixed.images.grad is not None
    torch.testing.assert_close(fixed.images.grad, torch.autograd.grad(of_g, images)[0], atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(("epoch", "weight"), [(1, 0.0), (100, 0.0), (101, 1 / 30_000), (400, 0.01), (1000, 0.02)])
def test_generated_pairs_teach_c_by_a_weight_that_grows(
    epoch: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, without = Fixed(monkeypatch, epoch - 1), Fixed(monkeypatch, epoch - 1, generated_most=0.0)
    method, chosen = fixed.method, torch.arange(12) % 3
    named = F.cross_entropy(method.classifier(fixed.images.detach()), chosen)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(named, method.c_parameters)])
    difference = fixed.gradient("classifier") - without.gradient("classifier")
    torch.testing.assert_close(difference, weight * slope, atol=5e-7, rtol=2e-2)


@pytest.mark.parametrize(("epoch", "counts"), [(1, (24, 0, 0)), (50, (15, 9, 0)), (399, (5, 19, 0)), (400, (5, 18, 1))])
def test_the_true_pairs_of_d_xy(epoch: int, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled ones with their classes first, then unlabelled ones with C's, then generated ones with theirs."""
    method, data, seen = made(), batch(n=24), []
    method.steps.fill_(epoch - 1)
    silence(monkeypatch, method, *PLAYERS)
    judge = method.judge

    def spy(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        seen.append((x, y))
        return judge(x, y, noise)

    monkeypatch.setattr(method, "judge", spy)
    method.update(data)
    (x, y), (images, chosen) = seen[:2]
    assert data.x_labelled is not None and data.y_labelled is not None
    guess = method.classifier(2 * data.x - 1).argmax(1)
    sources = [
        (2 * data.x_labelled.repeat(4, 1, 1, 1) - 1, data.y_labelled.repeat(4)),
        (2 * data.x - 1, guess),
        (images, chosen),
    ]
    at = 0
    for (pool, classes), count in zip(sources, counts, strict=True):
        assert torch.equal(x[at : at + count], pool[at : at + count])
        assert torch.equal(y[at : at + count], classes[at : at + count])
        at += count
    assert at == 24


def test_the_average_answers_and_it_learns_the_classes() -> None:
    method = made(learning_rate=3e-3, average_rate=0.1, pretraining=5)
    for step in range(100):
        losses = method.update(batch(step))
    assert all(bool(value.isfinite()) for value in losses.values())
    method.eval()
    x = batch(99).x
    assert torch.equal(method.predict(x), torch.arange(12) % 3)
    assert torch.equal(method.predict(x), method.average.net(2 * x - 1).argmax(1))
    with torch.no_grad():
        method.classifier.head.layer.weight.zero_()  # not what answers
        assert torch.equal(method.predict(x), torch.arange(12) % 3)
        assert method.embed(x).shape == (12, 4)
        images = method.sample(torch.arange(5) % 3, Noise.seeded(0))
    assert images.shape == (5, 1, 4, 4) and float(images.min()) >= 0 and float(images.max()) <= 1


def test_z_is_uniform_and_classes_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = Fixed(monkeypatch)
    assert float(fixed.z.min()) >= 0 and float(fixed.z.max()) < 1
    y = one_hot(torch.arange(12) % 3, 3)
    again = fixed.method.generator(fixed.z, None, y)
    torch.testing.assert_close(again, fixed.images)
