"""Triple-GAN: each player's loss by hand, who learns from it, the schedules in its steps, and the average that answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import pairs
from baselines.triplegan import TripleGAN, TripleGANConfig
from models.latent import one_hot
from models.method import Batch, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given, inputs_of

SPEC = Spec("synthetic", (1, 4, 4), 3)
SMALL: dict[str, Any] = {"components": 3, "backbone": "dense", "hidden": 12, "d_width": 10, "z_dim": 4, "epoch": 2}
DRY: dict[str, Any] = {"input_dropout": 0.0, "dropout": 0.0, "d_dropout": 0.0}
PLAYERS = {"c": "classifier", "g": "generator", "d": "discriminator"}


def made(**config: Any) -> TripleGAN:
    return TripleGAN(TripleGANConfig(**{**SMALL, **config}), SPEC, Noise.seeded(1))


def batch(seed: int = 0, n: int = 12, labelled: int = 6) -> Batch:
    """Class k lights row k."""
    noise = Noise.seeded(seed)
    x, y = 0.2 * noise.uniform(n + labelled, 1, 4, 4), torch.arange(n + labelled) % 3
    x[torch.arange(len(x)), 0, y] += 0.8
    return Batch(x[:n], noise, x[n:], y[n:])


def moved(method: TripleGAN, before: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, before[name])}


def copied(method: TripleGAN) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters()}


def silence(monkeypatch: pytest.MonkeyPatch, method: TripleGAN, *players: str) -> None:
    for player in players:
        monkeypatch.setattr(getattr(method, f"{player}_adam"), "step", lambda: None)


@pytest.mark.parametrize("player", list(PLAYERS))
def test_each_optimiser_moves_its_own_player(player: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    silence(monkeypatch, method, *(set(PLAYERS) - {player}))
    before = copied(method)
    method.update(batch())
    assert moved(method, before) - {"average"} == {PLAYERS[player]}


def by_hand(method: TripleGAN, data: Batch, z: Tensor) -> dict[str, Tensor]:
    """Every loss of a step that makes images of these z, from the nets as they stand; the first 3 true pairs are labelled."""
    assert data.x_labelled is not None and data.y_labelled is not None
    x, given, y = 2 * data.x - 1, 2 * data.x_labelled - 1, data.y_labelled
    chosen, noise = torch.arange(12) % 3, Noise.seeded(9)
    images = method.generator(z, None, one_hot(chosen, 3))
    p = F.softmax(method.classifier(x), 1)
    guess = p.argmax(1)

    def rho(images: Tensor, classes: Tensor) -> Tensor:
        return torch.sigmoid(method.judge(images, classes, noise))

    true = rho(torch.cat([given[:3], x[3:]]), torch.cat([y[:3], guess[3:]]))
    d = -true.log().mean() - 0.5 * (1 - rho(images, chosen)).log().mean() - 0.5 * (1 - rho(x, guess)).log().mean()
    own = F.cross_entropy(method.classifier(given), y)
    return {
        "d": d,
        "g": -0.5 * rho(images, chosen).log().mean(),
        "c": own - 0.3 * (p * p.log()).sum(1).mean() - 1e-3 * p.mean(0).log().mean(),
        "c_fooling": 0.5 * (p.max(1).values * -rho(x, guess).log()).mean(),
        "c_generated": F.cross_entropy(method.classifier(images), chosen),
    }


def test_losses_are_those_of_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no player moving and nothing dropped, all of them by hand from the nets as they stand."""
    method, data = made(**DRY, labelled_share=0.25), batch()
    silence(monkeypatch, method, "c", "g", "d")
    z = inputs_of(method.generator)
    losses = method.update(data)
    for name, value in by_hand(method, data, z[0]).items():
        assert float(losses[name]) == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize(("steps", "weight"), [(366 * 199 - 1, 0.0), (366 * 199, 0.03)])
def test_each_player_is_given_the_gradient_of_its_own_loss(
    steps: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C's has R_P from the first step of epoch 200 on, epochs being those of the original."""
    method, data = made(**DRY, labelled_share=0.25, init_std=0.3, epoch=TripleGANConfig.epoch), batch()
    method.steps.fill_(steps)
    given, z = gradients_given(monkeypatch, method), inputs_of(method.generator)
    method.update(data)
    loss = by_hand(method, data, z[0])
    of_c = loss["c"] + 0.01 * loss["c_fooling"] + weight * loss["c_generated"]
    assert_gradients_of({"d_adam": [loss["d"]], "g_adam": [loss["g"]], "c_adam": [of_c]}, given, method)


def test_settings_are_those_of_the_original() -> None:
    c = TripleGANConfig()
    assert adams(made()) == dict.fromkeys(("c_adam", "g_adam", "d_adam"), pytest.approx((3e-4, 0.5, 0.999, 1e-8, 0)))
    assert (c.decay_from, c.decay, c.average_rate, c.labelled_share) == (300, 0.995, 0.01, 0.1)
    assert (c.input_dropout, c.dropout, c.d_dropout, c.z_dim, c.init_std) == (0.2, 0.5, 0.2, 100, 0.05)


def _c_gradient(monkeypatch: pytest.MonkeyPatch, **config: Any) -> Tensor:
    """C's gradient in its first step, D and G held still."""
    method = made(**DRY, **config)
    silence(monkeypatch, method, "c", "g", "d")
    method.update(batch())
    return torch.cat([p.grad.flatten() for p in method.c_parameters if p.grad is not None])


def test_generated_pairs_teach_c_from_their_epoch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    without = _c_gradient(monkeypatch, generated_weight=0.0)
    torch.testing.assert_close(_c_gradient(monkeypatch, generated_from=2), without)  # this is epoch 1
    assert not torch.allclose(_c_gradient(monkeypatch, generated_from=1), without)


def test_the_game_with_d_teaches_c_through_its_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    without = _c_gradient(monkeypatch, adversarial_weight=0.0)
    assert not torch.allclose(_c_gradient(monkeypatch, adversarial_weight=1.0), without)


def test_the_rate_falls_with_the_epochs() -> None:
    method, rates = made(decay_from=2, decay=0.5), []
    for step in range(8):
        method.update(batch(step))
        rates.append(float(method.rate))
    assert rates == pytest.approx([3e-4 * f for f in (1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25)])
    assert all(adam.param_groups[0]["lr"] is method.rate for adam in method.optimizers().values())


def test_generated_images_leave_cs_running_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = made(**DRY), batch()
    silence(monkeypatch, method, "c", "g", "d")
    norm = method.classifier.head.norm
    assert norm is not None and data.x_labelled is not None
    mean = norm.running_mean.clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        for x in (data.x_labelled, data.x):
            features = method.classifier.features(2 * x - 1)
            mean = 0.9 * mean + 0.1 * F.linear(features, method.classifier.head.layer.weight).mean(0)
    fresh = made(**DRY)
    silence(monkeypatch, fresh, "c", "g", "d")
    fresh.update(data)
    torch.testing.assert_close(fresh.classifier.head.norm.running_mean, mean)  # type: ignore[union-attr]


def test_the_average_answers() -> None:
    method = made(average_rate=0.25)
    name, start = "average.net.head.layer.weight", torch.zeros(3, 12)
    for step in range(3):
        method.update(batch(step))
        start = start + 0.25 * (method.classifier.head.layer.weight.detach() - start)
        torch.testing.assert_close(dict(method.named_parameters())[name].detach(), start)
    method.eval()
    x, seen = batch(7).x, []
    method.average.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert torch.equal(method.predict(x), method.average.net(2 * x - 1).argmax(1))
    assert torch.equal(seen[0], 2 * x - 1)  # so little trained, the answers are all alike
    assert not any(p.requires_grad for p in method.average.parameters())


def test_it_learns_the_classes_and_draws_images() -> None:
    method = made(learning_rate=3e-3, average_rate=0.1)
    for step in range(120):
        losses = method.update(batch(step))
    assert all(bool(value.isfinite()) for value in losses.values())
    method.eval()
    assert torch.equal(method.predict(batch(99).x), torch.arange(12) % 3)
    with torch.no_grad():
        images = method.sample(torch.arange(5) % 3, Noise.seeded(0))
    assert images.shape == (5, 1, 4, 4) and float(images.min()) >= 0 and float(images.max()) <= 1


def test_pairs_of_an_epoch_in_the_config_are_those_of_the_code() -> None:
    config = TripleGANConfig()
    assert config.epoch == 73_257 // 200
    assert round(config.labelled_share * 200) == 20
    assert float(pairs.decay(pairs.epoch_of(torch.tensor(366 * 300), config.epoch), config.decay_from, 0.5)) == 0.5
