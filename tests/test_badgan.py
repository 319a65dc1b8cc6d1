"""Bad GAN: the pull-away term by brute force, both phases by hand, the schedule, initialisation by data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.badgan import BadGAN, pull_away
from models.method import Batch, Data, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, assert_steps_by_hand, gradients_given

K = 4
SPEC = Spec("toy", (1, 8, 8), K)


def gan(seed: int = 0, spec: Spec = SPEC, **config: Any) -> BadGAN:
    small: dict[str, Any] = {
        "nets": "digits",
        "components": K,
        "hidden": 24,
        "z_dim": 5,
        "schedule": 100,
    }
    return BadGAN(BadGAN.Config(**small | config), spec, Noise.seeded(seed))


def patterns(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of K classes: one bright quarter each, in uniform noise."""
    noise = Noise.seeded(seed)
    y = noise.integers(K, n)
    x = 0.5 * noise.uniform(n, 2, 4, 2, 4)
    x[torch.arange(n), y // 2, :, y % 2] += 0.4
    return x.reshape(n, 1, 8, 8), y


def batch(n: int = 12, labelled: int = 8, seed: int = 1) -> Batch:
    x, y = patterns(labelled, seed + 100)
    return Batch(patterns(n, seed)[0], Noise.seeded(seed), x, y)


def data(labelled: int = 40, seed: int = 0) -> Data:
    return Data(patterns(60, seed)[0], 1.0, Noise.seeded(seed), *patterns(labelled, seed + 1))


def weights(net: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pairs(rows: list[list[float]]) -> float:
    """The mean over ordered pairs of different rows of their squared cosine, one pair after the other."""
    total = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i != j:
                dot = sum(p * q for p, q in zip(a, b, strict=True))
                total += dot**2 / (sum(p * p for p in a) * sum(q * q for q in b))
    return total / (len(rows) * (len(rows) - 1))


@pytest.mark.parametrize(("n", "width"), [(2, 3), (7, 4), (5, 20)])
def test_pull_away_is_the_mean_over_pairs(n: int, width: int) -> None:
    features = 10 * Noise.seeded(n).normal(n, width)
    assert float(pull_away(features)) == pytest.approx(pairs(features.double().tolist()), rel=1e-4)


def test_pull_away_of_orthogonal_equal_opposite_and_empty_features() -> None:
    assert float(pull_away(torch.eye(5) * torch.arange(1.0, 6.0)[:, None])) == 0
    equal = torch.tensor([[3.0, 4.0]]).repeat(6, 1)
    assert float(pull_away(equal)) == pytest.approx(1)
    assert float(pull_away(equal * torch.tensor([1, -1, 2, -2, 1, 5])[:, None])) == pytest.approx(
        1
    )  # lengths and signs
    features = torch.zeros(3, 2, requires_grad=True)
    pull_away(features).backward()
    assert pull_away(features).item() == 0 and bool(features.grad.isfinite().all())  # type: ignore[union-attr]


def test_descent_on_the_pull_away_term_turns_features_apart() -> None:
    features = torch.tensor([[1.0, 0.2], [1.0, -0.2]], requires_grad=True)
    (slope,) = torch.autograd.grad(pull_away(features), features)
    assert float(pull_away((features - 0.1 * slope).detach())) < pull_away(features).item()
    assert float((slope * features).sum(1).detach().abs().max()) < 1e-6  # their lengths do not matter


def test_losses_are_those_of_probabilities_over_k_plus_one_classes() -> None:
    """D's from a plain softmax on the pass that it makes; its rate is 0, so that G plays against the same D."""
    method, b = gan(learning_rate=0.0, least_rate=0.0), batch()
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
    given = p_u[:, :K] / p_u[:, :K].sum(1, keepdim=True)  # among the K classes alone
    assert float(losses["entropy"]) == pytest.approx(float(-(given * given.log()).sum() / 12), rel=1e-4)
    wanted = twin.discriminator.features(2 * b.x - 1, noise).mean(0)
    found = twin.discriminator.features(twin.generator(noise.uniform(12, 5)), noise)
    assert float(losses["g"]) == pytest.approx((wanted - found.mean(0)).abs().mean().item(), rel=1e-4)
    assert float(losses["pull_away"]) == pytest.approx(pairs(found.tolist()), rel=1e-4)


def d_by_hand(method: BadGAN, b: Batch, noise: Noise) -> Tensor:
    """What D minimises with the images and masks of this stream."""
    with torch.no_grad():
        images = method.generator(noise.uniform(12, 5))
    logits = method.discriminator(torch.cat([2 * b.x_labelled - 1, 2 * b.x - 1, images]), noise)  # type: ignore[operator]
    z = logits.exp().sum(1)
    loss = -(logits[:8].gather(1, b.y_labelled[:, None])[:, 0] - z[:8].log()).mean()  # type: ignore[index]
    p = logits[8:20].exp() / z[8:20, None]
    loss = loss - 0.1 * (p * p.log()).sum(1).mean()
    return loss - 0.5 * (z[8:20] / (1 + z[8:20])).log().mean() + 0.5 * (1 + z[20:]).log().mean()


def g_by_hand(method: BadGAN, b: Batch, noise: Noise) -> Tensor:
    """What G minimises with the z and masks that follow in the stream."""
    wanted = method.discriminator.features(2 * b.x - 1, noise).mean(0).detach()
    found = method.discriminator.features(method.generator(noise.uniform(12, 5)), noise)
    cosine = F.cosine_similarity(found[:, None], found, dim=2)[~torch.eye(12, dtype=torch.bool)]
    return (wanted - found.mean(0)).abs().mean() + 0.8 * cosine.square().mean()


def test_each_player_follows_its_own_loss_and_no_other() -> None:
    """One step of D and one of G with Adam's first step by hand: the sign of the gradient, as large as the rate."""
    method, b = gan(learning_rate=1e-3), batch()
    method.prepare(data())
    assert_steps_by_hand(method, b, d_by_hand, g_by_hand, rate=1e-3, epsilon=1e-8)


def test_each_player_is_given_the_gradient_of_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    method, b, noise = gan(), batch(), Noise.seeded(1)
    method.prepare(data())
    given = gradients_given(monkeypatch, method)
    method.update(b)
    losses = {"d_adam": [d_by_hand(method, b, noise)], "g_adam": [g_by_hand(method, b, noise)]}
    assert_gradients_of(losses, given, method)


def test_settings_are_those_of_the_original() -> None:
    c, (d, g) = BadGAN.Config(), (pytest.approx((1e-3, beta1, 0.999, 1e-8, 0)) for beta1 in (0.5, 0))
    assert adams(gan()) == {"d_adam": d, "g_adam": g}
    assert (c.schedule, c.least_rate, c.init_examples) == (900 * 1145, 1e-4, 7 * 64)
    assert (c.input_noise, c.input_dropout, c.dropout) == (0.05, 0.15, 0.5)
    assert (c.slope, c.z_dim, c.init_std) == (0.2, 100, 0.05)


def test_labels_reach_g_through_d_alone() -> None:
    """Other labels change D in the same step; with D's rate at 0 they change nothing of G."""
    nets = []
    for shift in (0, 1):
        method, b = gan(), batch()
        method.d_adam = torch.optim.SGD(method.d_parameters, 0.0)  # type: ignore[assignment]
        method._anneal = lambda: None  # type: ignore[method-assign]
        method.update(Batch(b.x, Noise.seeded(1), b.x_labelled, (b.y_labelled + shift) % K))  # type: ignore[operator]
        nets.append(weights(method.generator))
    assert same(*nets)
    discriminators = []
    for shift in (0, 1):
        method, b = gan(), batch()
        method.update(Batch(b.x, Noise.seeded(1), b.x_labelled, (b.y_labelled + shift) % K))  # type: ignore[operator]
        discriminators.append(weights(method.discriminator))
    assert not same(*discriminators)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (50, 1.0), (60, 1.0), (75, 0.5), (81, 0.3), (88, 0.1), (90, 0.1), (95, 0.1)]
)
def test_the_rate_of_each_step(step: int, factor: float) -> None:
    """The schedule of 90 steps: flat for two thirds, then down to its least; both players have it, and a restored one too."""
    method, b = gan(schedule=90, learning_rate=0.01, least_rate=0.001), batch()
    method.update(b)
    for name, adam in method.optimizers().items():
        state = copy.deepcopy(adam.state_dict())  # as in a checkpoint, with a rate of its own
        method.optimizers()[name].load_state_dict(state)
    method.steps.fill_(step)
    method.update(b)
    assert float(method.rate) == pytest.approx(0.01 * factor, rel=1e-4, abs=1e-9)
    assert method.d_adam.param_groups[0]["lr"] is method.rate and method.g_adam.param_groups[0]["lr"] is method.rate
    assert float(method.steps) == step + 1


def test_prepare_sets_weight_normalisation_by_the_labelled_examples() -> None:
    """Without dropout each output then has mean 0 over those examples, and the logits the standard deviation 0.1."""
    method, d = gan(input_noise=0.0, input_dropout=0.0, dropout=0.0, init_examples=30), data()
    twin = copy.deepcopy(d)
    twin.noise.generator.set_state(d.noise.generator.get_state())
    method.prepare(d)
    chosen = twin.noise.permutation(40)[:30]
    logits = method.discriminator(2 * d.x_labelled[chosen] - 1, None)  # type: ignore[index]
    torch.testing.assert_close(logits.mean(0), torch.zeros(K), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.full((K,), 0.1), atol=1e-3, rtol=0)
    assert all(bool(p.isfinite().all()) for p in method.parameters())


def test_an_undecided_discriminator_costs_the_known_losses() -> None:
    """All logits 0: D(x) = K / (K + 1)."""
    method = gan()
    for p in method.discriminator.head.parameters():
        p.data.zero_()
    method.discriminator.head.g.data.zero_()
    losses = method.update(batch())
    assert float(losses["supervised"]) == pytest.approx(math.log(K))
    assert float(losses["unlabelled"]) == pytest.approx((math.log((K + 1) / K) + math.log(K + 1)) / 2)


def test_it_learns_and_knows_new_examples() -> None:
    method, noise = gan(learning_rate=3e-3, schedule=200), Noise.seeded(2)
    (x, y), (unlabelled, _) = patterns(24, seed=0), patterns(60, seed=3)
    method.prepare(Data(unlabelled, 1.0, noise, x, y))
    costs = [float(method.update(Batch(unlabelled, noise, x, y))["supervised"]) for _ in range(80)]
    assert sum(costs[-10:]) / 10 < 0.2 * costs[0]
    method.eval()
    new, truth = patterns(100, seed=1)
    assert float((method.predict(new) == truth).float().mean()) > 0.9


@torch.no_grad()
def test_convolutions_for_svhn() -> None:
    method = gan(spec=Spec("svhn", (3, 32, 32), 10), nets="svhn", components=10)
    x = Noise.seeded(0).uniform(3, 3, 32, 32)
    assert method.discriminator.features(x, None).shape == (3, 128)
    images = (method.generate(5, Noise.seeded(0)) + 1) / 2
    assert images.shape == (5, 3, 32, 32) and 0 <= float(images.min()) < float(images.max()) <= 1
    assert method.predict(x).shape == (3,)
