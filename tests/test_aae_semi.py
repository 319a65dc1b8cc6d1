"""Semi-supervised AAE: losses of its four phases by hand, who learns in which, and what labels are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.aae_semi import AAESemi, AAESemiConfig
from models.latent import one_hot
from models.method import Batch, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given, inputs_of

SPEC = Spec("digits", (1, 8, 8), 3)
SMALL: dict[str, Any] = {"nets": "digits", "components": 3, "hidden": 12, "init_std": 0.1, "d_init_std": 0.1}
OPTIMISERS = {"e": "encoder", "r": "decoder", "d": "d_"}


def made(**config: Any) -> AAESemi:
    return AAESemi(AAESemiConfig(**{**SMALL, **config}), SPEC, Noise.seeded(1))


def batch(seed: int = 0, n: int = 12, labelled: int = 6) -> Batch:
    """Class k lights row k."""
    noise = Noise.seeded(seed)
    x, y = 0.2 * noise.uniform(n + labelled, 1, 8, 8), torch.arange(n + labelled) % 3
    x[torch.arange(len(x)), 0, y] += 0.8
    return Batch(x[:n], noise, x[n:], y[n:])


def copied(method: AAESemi) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters()}


def moved(method: AAESemi, before: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, before[name])}


def silence(monkeypatch: pytest.MonkeyPatch, method: AAESemi, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(getattr(method, f"{name}_adam"), "step", lambda: None)


@pytest.mark.parametrize(
    ("still", "expected"),
    [("rd", {"encoder"}), ("ed", {"decoder"}), ("er", {"d_y", "d_z"}), ("d", {"encoder", "decoder"})],
)
def test_each_optimiser_moves_its_own_players(still: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    silence(monkeypatch, method, *still)
    before = copied(method)
    method.update(batch())
    assert moved(method, before) == expected


def test_both_discriminators_move_once_a_step_and_the_encoder_in_three_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = made(), []
    for name in OPTIMISERS:
        monkeypatch.setattr(getattr(method, f"{name}_adam"), "step", lambda name=name: calls.append(name))
    method.update(batch())
    assert calls == ["e", "r", "d", "e", "e"]


def by_hand(method: AAESemi, data: Batch, prior_y: Tensor, prior_z: Tensor) -> dict[str, Tensor]:
    """Every loss of a step with these draws from the priors, from the nets as they stand."""
    assert data.x_labelled is not None and data.y_labelled is not None
    everything = torch.cat([data.x, data.x_labelled])
    logits, z = method.encode(everything, None)
    y = torch.cat([F.softmax(logits[:12], 1), one_hot(data.y_labelled, 3)])  # the labelled ones' true classes
    squared = (method.decode(y, z, None) - everything).square().flatten(1).mean(1)
    logits, z = method.encode(data.x, None)
    rho_y, rho_z = (torch.sigmoid(d(code)) for d, code in ((method.d_y, F.softmax(logits, 1)), (method.d_z, z)))
    return {
        "reconstruction": squared[:12].mean(),
        "rebuilt": squared[12:].mean(),
        "d_y": -torch.sigmoid(method.d_y(prior_y)).log().mean() - (1 - rho_y).log().mean(),
        "d_z": -torch.sigmoid(method.d_z(prior_z)).log().mean() - (1 - rho_z).log().mean(),
        "e_y": -rho_y.log().mean(),
        "e_z": -rho_z.log().mean(),
        "supervised": F.cross_entropy(method.encode(data.x_labelled, None)[0], data.y_labelled),
    }


def test_losses_are_those_of_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data, seen = made(noise=0.0), batch(), []
    silence(monkeypatch, method, *OPTIMISERS)
    for d in (method.d_y, method.d_z):
        d.register_forward_pre_hook(lambda net, inputs: seen.append((net, inputs[0].detach())))
    losses = method.update(data)
    prior_y, prior_z = seen[0][1], seen[2][1]
    assert [net is method.d_y for net, _ in seen] == [True, True, False, False, True, False]
    assert torch.equal(prior_y.max(1).values, torch.ones(12)) and torch.equal(prior_y.sum(1), torch.ones(12))
    for name, value in by_hand(method, data, prior_y, prior_z).items():
        assert float(losses[name]) == pytest.approx(value.item(), rel=1e-4), name


def test_each_phase_descends_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's optimiser in reconstruction, against both discriminators, and by the labels; 4 is ours, from the scale."""
    method, data = made(noise=0.0), batch()
    given, y, z = gradients_given(monkeypatch, method), inputs_of(method.d_y), inputs_of(method.d_z)
    method.update(data)
    loss = by_hand(method, data, y[0], z[0])
    rebuilding = 4 * (loss["reconstruction"] + loss["rebuilt"])
    of_encoder = [rebuilding, loss["e_y"] + loss["e_z"], loss["supervised"]]
    losses = {"e_adam": of_encoder, "r_adam": [rebuilding], "d_adam": [loss["d_y"] + loss["d_z"]]}
    assert_gradients_of(losses, given, method)


def test_settings_are_those_of_the_original() -> None:
    c = AAESemiConfig()
    assert adams(made()) == dict.fromkeys(("e_adam", "r_adam", "d_adam"), pytest.approx((1e-4, 0.1, 0.999, 1e-8, 0)))
    assert (c.noise, c.hidden, c.momentum, c.init_std, c.d_init_std) == (0.3, 1000, 0.1, 0.02, 0.01)


def test_no_gradient_of_the_labels_reaches_z_and_none_of_rebuilding_labelled_images_reaches_y() -> None:
    method, data = made(), batch()
    assert data.x_labelled is not None and data.y_labelled is not None
    logits, z = method.encode(data.x_labelled, None)
    z_weight = dict(method.encoder.named_parameters())["layers.zμ.weight"]
    y_weight = dict(method.encoder.named_parameters())["layers.yμ.weight"]
    cross = F.cross_entropy(logits, data.y_labelled)
    assert torch.autograd.grad(cross, z_weight, retain_graph=True, allow_unused=True) == (None,)
    rebuilt = method.decode(one_hot(data.y_labelled, 3), z, None).sum()
    assert torch.autograd.grad(rebuilt, y_weight, allow_unused=True) == (None,)


def test_log_variances_are_neither_trained_nor_computed() -> None:
    method = made()
    names = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert names == {f"encoder.layers.{row}.{part}" for row in ("yσ", "zσ") for part in ("weight", "bias")}
    x = batch().x
    first, second = (method.encode(x, Noise.seeded(seed))[1] for seed in (0, 1))
    assert torch.equal(first, second)  # z is a function of x: the digits' nets have no dropout


def test_it_learns_the_classes_and_rebuilds() -> None:
    method = made(learning_rate=2e-3)
    first = method.update(batch(0))
    for step in range(60):
        losses = method.update(batch(step))
    assert all(bool(value.isfinite()) for value in losses.values())
    assert float(losses["reconstruction"]) < 0.5 * float(first["reconstruction"])
    method.eval()
    with torch.no_grad():
        assert torch.equal(method.predict(batch(99).x), torch.arange(12) % 3)
        assert method.embed(batch().x).shape == (12, 16)
        images = method.sample(torch.arange(5) % 3, Noise.seeded(0))
    assert images.shape == (5, 1, 8, 8) and float(images.min()) >= 0 and float(images.max()) <= 1
