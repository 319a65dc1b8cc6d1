"""Improved GAN: both phases by hand, who hears of what, the schedule, the average that answers, initialisation by data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.improvedgan import ImprovedGAN
from models.method import Batch, Data, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, assert_steps_by_hand, gradients_given

K = 4
SPEC = Spec("toy", (1, 8, 8), K)


def gan(seed: int = 0, spec: Spec = SPEC, **config: Any) -> ImprovedGAN:
    small: dict[str, Any] = {
        "nets": "digits",
        "components": K,
        "hidden": 24,
        "z_dim": 5,
        "schedule": 100,
    }
    return ImprovedGAN(ImprovedGAN.Config(**small | config), spec, Noise.seeded(seed))


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


def test_losses_are_those_of_probabilities_over_k_plus_one_classes() -> None:
    """D's from a plain softmax on the pass that it makes; its rate is 0, so that G plays against the same D."""
    method, b = gan(learning_rate=0.0), batch()
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
    assert float(losses["train_error"]) == float((p_l[:, :K].argmax(1) != b.y_labelled).float().mean())
    wanted = twin.discriminator.features(2 * b.x - 1, noise).mean(0)
    got = twin.discriminator.features(twin.generator(noise.uniform(12, 5)), noise).mean(0)
    assert float(losses["g"]) == pytest.approx((wanted - got).abs().mean().item(), rel=1e-4)


def d_by_hand(method: ImprovedGAN, b: Batch, noise: Noise) -> Tensor:
    """What D minimises with the images and masks of this stream."""
    with torch.no_grad():
        images = method.generator(noise.uniform(12, 5))
    logits = method.discriminator(torch.cat([2 * b.x_labelled - 1, 2 * b.x - 1, images]), noise)  # type: ignore[operator]
    z = logits.exp().sum(1)
    loss = -(logits[:8].gather(1, b.y_labelled[:, None])[:, 0] - z[:8].log()).mean()  # type: ignore[index]
    return loss - 0.5 * (z[8:20] / (1 + z[8:20])).log().mean() + 0.5 * (1 + z[20:]).log().mean()


def g_by_hand(method: ImprovedGAN, b: Batch, noise: Noise) -> Tensor:
    """What G minimises with the z and masks that follow in the stream."""
    wanted = method.discriminator.features(2 * b.x - 1, noise).mean(0).detach()
    found = method.discriminator.features(method.generator(noise.uniform(12, 5)), noise).mean(0)
    return (wanted - found).abs().mean()


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_each_player_follows_its_own_loss_and_no_other(epsilon: float) -> None:
    """One step of D and one of G with Adam's first step by hand: the sign of the gradient, as large as the rate."""
    method, b = gan(learning_rate=1e-3, epsilon=epsilon), batch()
    method.prepare(data())
    assert_steps_by_hand(method, b, d_by_hand, g_by_hand, rate=1e-3, epsilon=epsilon)


def test_each_player_is_given_the_gradient_of_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    method, b, noise = gan(), batch(), Noise.seeded(1)
    method.prepare(data())
    given = gradients_given(monkeypatch, method)
    method.update(b)
    losses = {"d_adam": [d_by_hand(method, b, noise)], "g_adam": [g_by_hand(method, b, noise)]}
    assert_gradients_of(losses, given, method)


def test_settings_are_those_of_the_original_but_for_epsilon() -> None:
    c = ImprovedGAN.Config()
    assert adams(gan()) == dict.fromkeys(("d_adam", "g_adam"), pytest.approx((3e-4, 0.5, 0.999, 1e-8, 0)))
    assert (c.schedule, c.average_rate, c.init_examples) == (900 * 732, 1e-4, 500)
    assert (c.input_dropout, c.dropout, c.slope, c.z_dim, c.init_std) == (0.2, 0.5, 0.2, 100, 0.05)


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
    ("step", "factor"), [(0, 1.0), (50, 1.0), (60, 1.0), (75, 0.5), (81, 0.3), (90, 0.0), (95, 0.0)]
)
def test_the_rate_of_each_step(step: int, factor: float) -> None:
    """The schedule of 90 steps: flat for two thirds, then down to 0; both players have it, and a restored one too."""
    method, b = gan(schedule=90, learning_rate=0.01), batch()
    method.update(b)
    for name, adam in method.optimizers().items():
        state = copy.deepcopy(adam.state_dict())  # as in a checkpoint, with a rate of its own
        method.optimizers()[name].load_state_dict(state)
    method.steps.fill_(step)
    before = weights(method)
    method.update(b)
    assert float(method.rate) == pytest.approx(0.01 * factor, rel=1e-4, abs=1e-9)
    assert method.d_adam.param_groups[0]["lr"] is method.rate and method.g_adam.param_groups[0]["lr"] is method.rate
    assert float(method.steps) == step + 1
    trained = [p for p in method.parameters() if p.requires_grad]
    held = [old for p, old in zip(method.parameters(), before, strict=True) if p.requires_grad]
    assert same(trained, held) == (factor == 0)  # type: ignore[arg-type]


def test_the_average_starts_at_zero_and_answers() -> None:
    method, b = gan(average_rate=0.25), batch()
    trained = [p.requires_grad for p in method.discriminator.parameters()]  # the others are scales set once for all
    expected = [
        (0 if t else 1) * p.detach().clone() for p, t in zip(method.discriminator.parameters(), trained, strict=True)
    ]
    assert same(weights(method.average), expected)
    for _ in range(3):
        method.update(b)
        expected = [
            old + 0.25 * (p.detach() - old) for old, p in zip(expected, method.discriminator.parameters(), strict=True)
        ]
    for mine, other in zip(weights(method.average), expected, strict=True):
        torch.testing.assert_close(mine, other)
    x = patterns(200, 5)[0]
    with torch.no_grad():
        answer = method.predict(x)
        assert torch.equal(answer, method.average.net(2 * x - 1).argmax(1))
        for p in method.discriminator.parameters():
            p.zero_()
        assert torch.equal(method.predict(x), answer) and len(answer.unique()) > 1


def test_prepare_sets_weight_normalisation_by_the_labelled_examples() -> None:
    """Without dropout each output then has mean 0 over those examples, and the logits the standard deviation 0.1."""
    method, d = gan(input_dropout=0.0, dropout=0.0, init_examples=30), data()
    twin = copy.deepcopy(d)
    twin.noise.generator.set_state(d.noise.generator.get_state())
    method.prepare(d)
    chosen = twin.noise.permutation(40)[:30]
    logits = method.discriminator(2 * d.x_labelled[chosen] - 1, None)  # type: ignore[index]
    torch.testing.assert_close(logits.mean(0), torch.zeros(K), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.full((K,), 0.1), atol=1e-3, rtol=0)
    assert all(bool(p.isfinite().all()) for p in method.parameters())
    for mine, other in zip(method.average.net.parameters(), method.discriminator.parameters(), strict=True):
        assert torch.equal(mine, torch.zeros_like(mine) if other.requires_grad else other)


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
    method, noise = gan(learning_rate=3e-3, average_rate=0.05, schedule=200), Noise.seeded(2)
    (x, y), (unlabelled, _) = patterns(24, seed=0), patterns(60, seed=3)
    method.prepare(Data(unlabelled, 1.0, noise, x, y))
    errors = [float(method.update(Batch(unlabelled, noise, x, y))["train_error"]) for _ in range(80)]
    assert errors[0] > 0.3 and sum(errors[-10:]) / 10 < 0.1
    new, truth = patterns(100, seed=1)
    assert float((method.predict(new) == truth).float().mean()) > 0.9


@torch.no_grad()
def test_convolutions_for_svhn() -> None:
    method = gan(spec=Spec("svhn", (3, 32, 32), 10), nets="svhn", components=10)
    x = Noise.seeded(0).uniform(3, 3, 32, 32)
    assert method.discriminator.features(x, None).shape == (3, 128)
    images = method.sample(torch.zeros(5, dtype=torch.int64), Noise.seeded(0))
    assert images.shape == (5, 3, 32, 32) and 0 <= float(images.min()) < float(images.max()) <= 1
    assert method.predict(x).shape == (3,)
