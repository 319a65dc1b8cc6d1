"""What Improved GAN and Bad GAN share: both phases by hand, who hears of what, the schedule, initialisation by data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.badgan import BadGAN
from baselines.improvedgan import ImprovedGAN
from models.method import Batch, Data, Spec
from models.noise import Noise
from tests.players import assert_gradients_of, assert_steps_by_hand, gradients_given, quarters, quarters_batch, weights

K = 4
SPEC = Spec("toy", (1, 8, 8), K)
UNDROPPED = {"input_dropout": 0.0, "dropout": 0.0}

GAN = ImprovedGAN | BadGAN
both = pytest.mark.parametrize("cls", [ImprovedGAN, BadGAN])


def gan(cls: type[GAN], spec: Spec = SPEC, **config: Any) -> Any:
    small: dict[str, Any] = {"nets": "digits", "components": K, "hidden": 24, "z_dim": 5, "schedule": 100}
    return cls(cls.Config(**small | config), spec, Noise.seeded(0))


def data(labelled: int = 40, seed: int = 0) -> Data:
    return Data(quarters(60, seed)[0], 1.0, Noise.seeded(seed), *quarters(labelled, seed + 1))


def pairs(rows: list[list[float]]) -> float:
    """The mean over ordered pairs of different rows of their squared cosine, one pair after the other."""
    total = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i != j:
                dot = sum(p * q for p, q in zip(a, b, strict=True))
                total += dot**2 / (sum(p * p for p in a) * sum(q * q for q in b))
    return total / (len(rows) * (len(rows) - 1))


@both
def test_losses_are_those_of_probabilities_over_k_plus_one_classes(cls: type[GAN]) -> None:
    """D's from a plain softmax on the pass that it makes; its rate is 0, so that G plays against the same D."""
    method, b = gan(cls, learning_rate=0.0, **{"least_rate": 0.0} if cls is BadGAN else {}), quarters_batch()
    method.prepare(data())
    twin, noise = copy.deepcopy(method), Noise.seeded(1)
    losses = method.update(b)
    images = twin.generator(noise.uniform(12, 5))
    logits = twin.discriminator(2 * torch.cat([b.x_labelled, b.x, (images + 1) / 2]) - 1, noise).double()
    p = torch.softmax(torch.cat([logits, torch.zeros(32, 1)], 1), 1).detach()
    p_l, p_u, p_g = p.split([8, 12, 12])
    named = p_l[torch.arange(8), b.y_labelled] / p_l[:, :K].sum(1)
    assert float(losses["supervised"]) == pytest.approx(float(-named.log().mean()), rel=1e-4)
    real, fake = -p_u[:, :K].sum(1).log().mean(), -p_g[:, K].log().mean()
    assert float(losses["unlabelled"]) == pytest.approx(float(real + fake) / 2, rel=1e-4)
    wanted = twin.discriminator.features(2 * b.x - 1, noise).mean(0)
    found = twin.discriminator.features(twin.generator(noise.uniform(12, 5)), noise)
    assert float(losses["g"]) == pytest.approx((wanted - found.mean(0)).abs().mean().item(), rel=1e-4)
    if cls is BadGAN:
        given = p_u[:, :K] / p_u[:, :K].sum(1, keepdim=True)  # among the K classes alone
        assert float(losses["entropy"]) == pytest.approx(float(-(given * given.log()).sum() / 12), rel=1e-4)
        assert float(losses["pull_away"]) == pytest.approx(pairs(found.tolist()), rel=1e-4)
    else:
        assert float(losses["train_error"]) == float((p_l[:, :K].argmax(1) != b.y_labelled).float().mean())


def d_by_hand(method: Any, b: Batch, noise: Noise) -> Tensor:
    """What D minimises with the images and masks of this stream."""
    with torch.no_grad():
        images = method.generator(noise.uniform(12, 5))
    logits = method.discriminator(torch.cat([2 * b.x_labelled - 1, 2 * b.x - 1, images]), noise)  # type: ignore[operator]
    z = logits.exp().sum(1)
    loss = -(logits[:8].gather(1, b.y_labelled[:, None])[:, 0] - z[:8].log()).mean()  # type: ignore[index]
    if isinstance(method, BadGAN):
        p = logits[8:20].exp() / z[8:20, None]
        loss = loss - 0.1 * (p * p.log()).sum(1).mean()
    return loss - 0.5 * (z[8:20] / (1 + z[8:20])).log().mean() + 0.5 * (1 + z[20:]).log().mean()


def g_by_hand(method: Any, b: Batch, noise: Noise) -> Tensor:
    """What G minimises with the z and masks that follow in the stream."""
    wanted = method.discriminator.features(2 * b.x - 1, noise).mean(0).detach()
    found = method.discriminator.features(method.generator(noise.uniform(12, 5)), noise)
    loss = (wanted - found.mean(0)).abs().mean()
    if isinstance(method, BadGAN):
        cosine = F.cosine_similarity(found[:, None], found, dim=2)[~torch.eye(12, dtype=torch.bool)]
        loss = loss + 0.8 * cosine.square().mean()
    return loss


@pytest.mark.parametrize(("cls", "epsilon"), [(ImprovedGAN, 1e-8), (ImprovedGAN, 1e-2), (BadGAN, 1e-8)])
def test_each_player_follows_its_own_loss_and_no_other(cls: type[GAN], epsilon: float) -> None:
    """One step of D and one of G with Adam's first step by hand: the sign of the gradient, as large as the rate."""
    method = gan(cls, learning_rate=1e-3, **{"epsilon": epsilon} if cls is ImprovedGAN else {})
    method.prepare(data())
    assert_steps_by_hand(method, quarters_batch(), d_by_hand, g_by_hand, rate=1e-3, epsilon=epsilon)


@both
def test_each_player_is_given_the_gradient_of_its_own_loss(cls: type[GAN], monkeypatch: pytest.MonkeyPatch) -> None:
    method, b, noise = gan(cls), quarters_batch(), Noise.seeded(1)
    method.prepare(data())
    given = gradients_given(monkeypatch, method)
    method.update(b)
    losses = {"d_adam": [d_by_hand(method, b, noise)], "g_adam": [g_by_hand(method, b, noise)]}
    assert_gradients_of(losses, given, method)


@both
def test_labels_reach_g_through_d_alone(cls: type[GAN]) -> None:
    """Other labels change D in the same step; with D's rate at 0 they change nothing of G."""
    held, free = [], []
    for shift in (0, 1):
        b = quarters_batch()
        y = (b.y_labelled + shift) % K  # type: ignore[operator]
        method, other = gan(cls), gan(cls)
        method.d_adam = torch.optim.SGD(method.d_parameters, 0.0)
        method._anneal = lambda: None
        method.update(Batch(b.x, Noise.seeded(1), b.x_labelled, y))
        held.append(weights(method.generator))
        other.update(Batch(b.x, Noise.seeded(1), b.x_labelled, y))
        free.append(weights(other.discriminator))
    assert all(torch.equal(held[0][name], value) for name, value in held[1].items())
    assert not all(torch.equal(free[0][name], value) for name, value in free[1].items())


@both
@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (50, 1.0), (60, 1.0), (75, 0.5), (81, 0.3), (88, 1 / 15), (90, 0.0), (95, 0.0)]
)
def test_the_rate_of_each_step(cls: type[GAN], step: int, factor: float) -> None:
    """The schedule of 90 steps: flat for two thirds, then down to its least; both players have it, and a restored one too."""
    b, least = quarters_batch(), {"least_rate": 0.001} if cls is BadGAN else {}
    method = gan(cls, schedule=90, learning_rate=0.01, **least)
    expected = 0.01 * max(factor, 0.1 if least else 0.0)
    method.update(b)
    for name, adam in method.optimizers().items():
        state = copy.deepcopy(adam.state_dict())  # as in a checkpoint, with a rate of its own
        method.optimizers()[name].load_state_dict(state)
    method.steps.fill_(step)
    before = weights(method)
    method.update(b)
    assert float(method.rate) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert method.d_adam.param_groups[0]["lr"] is method.rate and method.g_adam.param_groups[0]["lr"] is method.rate
    assert float(method.steps) == step + 1
    still = all(torch.equal(p, before[name]) for name, p in method.named_parameters() if p.requires_grad)
    assert still == (expected == 0)


@both
def test_prepare_sets_weight_normalisation_by_the_labelled_examples(cls: type[GAN]) -> None:
    """Without dropout each output then has mean 0 over those examples, and the logits the standard deviation 0.1."""
    still = UNDROPPED | ({"input_noise": 0.0} if cls is BadGAN else {})
    method, d = gan(cls, init_examples=30, **still), data()
    twin = copy.deepcopy(d)
    twin.noise.generator.set_state(d.noise.generator.get_state())
    method.prepare(d)
    chosen = twin.noise.permutation(40)[:30]
    logits = method.discriminator(2 * d.x_labelled[chosen] - 1, None)  # type: ignore[index]
    torch.testing.assert_close(logits.mean(0), torch.zeros(K), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.full((K,), 0.1), atol=1e-3, rtol=0)
    assert all(bool(p.isfinite().all()) for p in method.parameters())


@both
def test_an_undecided_discriminator_costs_the_known_losses(cls: type[GAN]) -> None:
    """All logits 0: D(x) = K / (K + 1)."""
    method = gan(cls)
    for p in method.discriminator.head.parameters():
        p.data.zero_()
    method.discriminator.head.g.data.zero_()
    losses = method.update(quarters_batch())
    assert float(losses["supervised"]) == pytest.approx(math.log(K))
    assert float(losses["unlabelled"]) == pytest.approx((math.log((K + 1) / K) + math.log(K + 1)) / 2)


@both
def test_it_learns_and_knows_new_examples(cls: type[GAN]) -> None:
    average = {"average_rate": 0.05} if cls is ImprovedGAN else {}
    method, noise = gan(cls, learning_rate=3e-3, schedule=200, **average), Noise.seeded(2)
    (x, y), (unlabelled, _) = quarters(24, seed=0), quarters(60, seed=3)
    method.prepare(Data(unlabelled, 1.0, noise, x, y))
    costs = [float(method.update(Batch(unlabelled, noise, x, y))["supervised"]) for _ in range(80)]
    assert sum(costs[-10:]) / 10 < 0.2 * costs[0]
    method.eval()
    new, truth = quarters(100, seed=1)
    assert float((method.predict(new) == truth).float().mean()) > 0.9


@both
@torch.no_grad()
def test_convolutions_for_svhn(cls: type[GAN]) -> None:
    method = gan(cls, spec=Spec("svhn", (3, 32, 32), 10), nets="svhn", components=10)
    x = Noise.seeded(0).uniform(3, 3, 32, 32)
    assert method.discriminator.features(x, None).shape == (3, 128)
    images = (method.generate(5, Noise.seeded(0)) + 1) / 2
    assert images.shape == (5, 3, 32, 32) and 0 <= float(images.min()) < float(images.max()) <= 1
    assert method.predict(x).shape == (3,)
