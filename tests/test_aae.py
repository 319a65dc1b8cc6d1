"""AAE: initialisation, the three phases, learning on made-up images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.aae import AAE
from baselines.codes import Game
from models.method import Batch, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given, inputs_of, moved, stripes, weights

SPEC = Spec("toy", (1, 4, 4), 3)


def aae(seed: int = 0, spec: Spec = SPEC, **config: Any) -> AAE:
    small: dict[str, Any] = {"components": 3, "hidden": 32, "z_dim": 2, "init_std": 0.2}
    return AAE(AAE.Config(**small | config), spec, Noise.seeded(seed))


def test_weights_are_drawn_from_the_noise_alone() -> None:
    first = weights(aae(hidden=200, init_std=0.05))
    torch.manual_seed(7)
    for name, value in weights(aae(hidden=200, init_std=0.05)).items():
        assert torch.equal(value, first[name])
    assert float(first["encoder.2.weight"].std()) == pytest.approx(0.05, rel=0.02)
    assert all(not value.any() for name, value in first.items() if name.endswith("bias"))
    assert not torch.equal(first["encoder.0.weight"], weights(aae(1, hidden=200))["encoder.0.weight"])


def test_batchnorm_is_in_encoder_and_decoder_only() -> None:
    method = aae(batchnorm=True)
    counts = [
        sum(isinstance(layer, nn.BatchNorm1d) for layer in net.modules())
        for net in (method.encoder, method.decoder, method.d_y, method.d_z)
    ]
    assert counts == [2, 2, 0, 0]
    assert len(method.encoder) == 7


def test_zero_nets_cost_the_known_losses() -> None:
    method = aae(init_std=0.0)
    data = stripes()
    losses = method.update(Batch(torch.ones_like(data.x), data.noise))
    assert float(losses["reconstruction"]) == pytest.approx(0.25)
    for name, value in {"d_y": 2, "d_z": 2, "e_y": 1, "e_z": 1}.items():
        assert float(losses[name]) == pytest.approx(value * math.log(2), abs=1e-3)


def test_discriminators_see_codes_with_noise_of_the_given_std() -> None:
    def spread(code: Tensor) -> Tensor:
        return code.std(dim=1, keepdim=True)

    ones = torch.ones(1, 100_000)
    game = Game(spread, ones, ones)  # type: ignore[arg-type]
    for std in (0.3, 0.0):
        loss = math.log1p(math.exp(-std))  # of a discriminator whose logit is the spread
        assert float(game.encoder_loss(std, Noise.seeded(0))) == pytest.approx(loss, rel=1e-3)
        assert float(game.discriminator_loss(std, Noise.seeded(0))) == pytest.approx(2 * loss + std, rel=1e-3)


def test_the_prior_of_y_is_one_hot_and_uniform() -> None:
    method, seen = aae(noise=0.0), []
    method.d_y.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    method.update(stripes(3000))
    prior, y = seen[:2]
    assert torch.equal(prior.max(1).values, torch.ones(3000))
    torch.testing.assert_close(prior.mean(0), torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    torch.testing.assert_close(y.sum(1), torch.ones(3000))
    assert not y.requires_grad


def silence(method: AAE, names: tuple[str, ...]) -> None:
    """The optimisers of these names stop moving anything."""
    for name in names:
        for group in method.optimizers()[name].param_groups:
            group["lr"] = 0.0


@pytest.mark.parametrize(
    ("silenced", "expected"),
    [
        (("e_adam", "r_adam"), {"d_y", "d_z"}),
        (("d_adam", "e_adam"), {"decoder"}),
        (("d_adam", "r_adam"), {"encoder"}),
        (("d_adam",), {"encoder", "decoder"}),
    ],
)
def test_each_optimiser_moves_its_own_players(silenced: tuple[str, ...], expected: set[str]) -> None:
    method = aae()
    silence(method, silenced)
    before = weights(method)
    method.update(stripes())
    assert moved(method, before) == expected


def test_adversarial_gradients_reach_the_encoder_and_no_discriminator() -> None:
    """Without reconstruction and with D held still, the third phase alone moves anything: the encoder."""
    method = aae(reconstruction_weight=0.0)
    silence(method, ("d_adam",))
    before = weights(method)
    method.update(stripes())
    assert moved(method, before) == {"encoder"}


def by_hand(method: AAE, x: Tensor, prior_y: Tensor, prior_z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What reconstruction, both discriminators and the encoder minimise, with these draws from the priors."""
    y, z = method.encode(x)
    rho_y, rho_z, of_y, of_z = (
        torch.sigmoid(d(code))
        for d, code in ((method.d_y, y), (method.d_z, z), (method.d_y, prior_y), (method.d_z, prior_z))
    )
    judging = -of_y.log().mean() - (1 - rho_y).log().mean() - of_z.log().mean() - (1 - rho_z).log().mean()
    return 4 * (method.decode(y, z) - x).square().mean(), judging, -rho_y.log().mean() - rho_z.log().mean()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_each_phase_descends_its_own_loss(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam has an optimiser for each net, so that the encoder's steps twice; SGD one for each phase."""
    method, data = aae(optimizer=optimizer, noise=0.0), stripes()
    given, y, z = gradients_given(monkeypatch, method), inputs_of(method.d_y), inputs_of(method.d_z)
    method.update(data)
    rebuilding, judging, fooling = by_hand(method, data.x, y[0], z[0])
    if optimizer == "adam":
        losses = {"e_adam": [rebuilding, fooling], "r_adam": [rebuilding], "d_adam": [judging]}
    else:
        losses = {"r_sgd": [rebuilding], "d_sgd": [judging], "e_sgd": [fooling]}
    assert_gradients_of(losses, given, method)


def test_settings_are_those_of_musyoku() -> None:
    c = AAE.Config()
    assert adams(aae()) == dict.fromkeys(("e_adam", "r_adam", "d_adam"), pytest.approx((1e-4, 0.1, 0.999, 1e-8, 0)))
    assert (c.noise, c.input_dropout, c.hidden, c.init_std) == (0.3, 0.0, 1000, 0.01)


def test_momenta_and_the_rate_of_the_game_are_those_of_the_appendix() -> None:
    groups = {name: sgd.param_groups[0] for name, sgd in aae(optimizer="sgd").optimizers().items()}
    assert {name: group["momentum"] for name, group in groups.items()} == {"r_sgd": 0.9, "e_sgd": 0.1, "d_sgd": 0.1}
    assert groups["e_sgd"]["lr"] == groups["d_sgd"]["lr"] == 0.1 and AAE.Config().drop_after == 50 * 55_000 / 100


def test_reconstruction_improves() -> None:
    method, data = aae(learning_rate=5e-3), stripes()
    first = float(method.update(data)["reconstruction"])
    for _ in range(60):
        losses = method.update(data)
    assert all(math.isfinite(float(value)) for value in losses.values())
    assert float(losses["reconstruction"]) < first / 4


def test_categories_find_the_bright_row() -> None:
    method = aae(learning_rate=5e-3, beta1=0.5, batchnorm=True, z_dim=1)
    for step in range(300):
        method.update(stripes(60, seed=step))
    predicted = method.eval().predict(stripes(60, seed=999).x)
    assert len(set(predicted[:3].tolist())) == 3
    assert torch.equal(predicted, predicted[:3].repeat(20))


def test_same_seed_same_weights() -> None:
    runs = []
    for seed in (0, 0, 5):
        method = aae(seed)
        for step in range(3):
            method.update(stripes(seed=step))
        runs.append(weights(method))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not any(torch.equal(runs[0][name], runs[2][name]) for name in runs[0] if name.endswith("weight"))


@torch.no_grad()
@pytest.mark.parametrize(("output", "low", "high"), [("sigmoid", 0.0, 1.0), ("linear", -math.inf, math.inf)])
def test_answers(output: str, low: float, high: float) -> None:
    spec = Spec("plane", (2, 1, 1), 3)
    method, x = aae(spec=spec, output=output, init_std=1.0).eval(), 3 * Noise.seeded(2).normal(40, 2, 1, 1)
    y, z = method.encode(x)
    assert torch.equal(method.predict(x), y.argmax(1))
    assert torch.equal(method.predict(x), method.predict(x))
    assert torch.equal(method.embed(x), z)
    assert z.shape == (40, 2)
    assert method.reconstruct(x).shape == x.shape
    drawn = method.sample(torch.arange(40) % 3, Noise.seeded(0))
    assert drawn.shape == x.shape
    assert low <= float(drawn.min()) < float(drawn.max()) <= high
    assert (output == "linear") == (float(drawn.min()) < 0)


APPENDIX: dict[str, Any] = {"encoder_batchnorm": True, "input_dropout": 0.2, "noise": 0.0, "optimizer": "sgd"}


def test_the_appendix_normalises_the_encoder_with_its_heads_and_nothing_else() -> None:
    method = aae(**APPENDIX).train()
    nets = method.encoder, method.decoder, method.d_y, method.d_z
    assert [sum(isinstance(layer, nn.BatchNorm1d) for layer in net.modules()) for net in nets] == [3, 0, 0, 0]
    heads = method.encoder(stripes().x.flatten(1))
    assert torch.allclose(heads.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(heads.var(0, correction=0), torch.ones(5), atol=1e-2)


def test_pixels_are_dropped_only_while_it_learns() -> None:
    method, x = aae(**APPENDIX).eval(), stripes().x
    assert torch.equal(method.encode(x)[0], method.encode(x)[0])
    noise = Noise.seeded(3)
    kept = Noise.seeded(3).keep(x.flatten(1), 0.2)  # 0 or 1 / 0.8
    assert 0 < int((kept == 0).sum()) < kept.numel() and float(kept.max()) == pytest.approx(1.25)
    heads = method.encoder(x.flatten(1) * kept)
    assert torch.equal(method.encode(x, noise)[1], heads[:, 3:])


def test_a_step_of_the_appendix_is_sgd_with_momentum_in_three_phases() -> None:
    """The decoder and both discriminators move by their own rates and momenta alone; the encoder in two phases."""
    method, data = aae(optimizer="sgd", learning_rate=0.01), stripes()
    method.train()
    velocity: dict[str, Tensor] = {}
    for _ in range(3):
        before = weights(method)
        method.update(data)
        for name, p in method.named_parameters():
            assert p.grad is not None
            if name.startswith("encoder"):
                continue
            rate, momentum = (0.01, 0.9) if name.startswith("decoder") else (0.1, 0.1)
            velocity[name] = p.grad + (momentum * velocity[name] if name in velocity else 0)
            assert torch.allclose(p, before[name] - rate * velocity[name], atol=1e-6), name


def test_the_rates_of_the_appendix_fall_to_a_tenth() -> None:
    method, data = aae(**APPENDIX, learning_rate=0.01, drop_after=2), stripes()
    rates = []
    for _ in range(4):
        method.update(data)
        groups = (each.param_groups[0] for each in (method.r_sgd, method.e_sgd, method.d_sgd))
        rates.append([round(float(group["lr"]), 6) for group in groups])
    assert rates == [[0.01, 0.1, 0.1]] * 2 + [[0.001, 0.01, 0.01]] * 2


def test_the_appendix_learns_three_kinds_of_images() -> None:
    found = []
    for seed in range(3):
        method, noise = aae(seed, **APPENDIX, learning_rate=0.01, reconstruction_weight=8.0), Noise.seeded(seed)
        method.train()
        for _ in range(100):
            method.update(Batch(stripes().x, noise))
        clusters = method.eval().predict(stripes().x)
        table = torch.zeros(3, 3)
        table.index_put_((clusters, torch.arange(30) % 3), torch.ones(()), accumulate=True)
        found.append(float(table.max(1).values.sum()) / 30)
    assert found == [1.0] * 3
