"""Algorithm 1: who learns from which loss, compared with the same game written out by hand."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from models import svhn
from models.amm import AMM, AMMConfig, Tuple3
from models.latent import one_hot
from models.layers import Layer
from models.method import Batch, Data, Spec
from models.noise import Noise
from models.tables import GivenZ, TableError

SPECS = {
    "plane": Spec("plane", (2, 1, 1), 3),
    "digits": Spec("digits", (1, 8, 8), 10),
    "mnist": Spec("mnist", (1, 28, 28), 10),
    "svhn": Spec("svhn", (3, 32, 32), 10),
}
PLAIN: dict[str, Any] = {"components": 3, "init_std": 0.3}


def _amm(nets: str = "plane", **config: Any) -> AMM:
    return AMM(AMMConfig(**{"nets": nets, **config}), SPECS[nets], Noise.seeded(1))


def _x(nets: str = "plane", n: int = 16, seed: int = 2) -> Tensor:
    return Noise.seeded(seed).uniform(n, *SPECS[nets].shape)


def _update(model: AMM, x: Tensor, seed: int = 3) -> dict[str, Tensor]:
    return model.update(Batch(x, Noise.seeded(seed)))


def _encoder(model: AMM) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if name.startswith("encoder")}


def _synthesis(model: AMM) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if name.startswith(("prior", "decoder"))}


def _generators(model: AMM) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if not name.startswith("discriminator")}


# the game by hand: no logits shared between players, every loss differentiated for its own players


def _inferred(model: AMM, x: Tensor, noise: Noise) -> Tuple3:
    if model.config.factorisation != 6:
        h = model.encoder(noise, x=x)
        return x, h["y"], h["z"]
    y = model.encoder_y(noise, x=x)["y"]
    return x, y, model.encoder_z(noise, x=x, y=y)["z"]


def _synthesised(model: AMM, n: int, noise: Noise) -> Tuple3:
    y = one_hot(torch.multinomial(model.prior.p_y, n, replacement=True, generator=noise.generator), 3)[:, :, None, None]
    assert model.prior.net is not None
    z = model.prior.net(noise, y=y)["z"]
    return model.decoder(noise, y=y, z=z)["x"], y, z


def _rho(model: AMM, side: Tuple3) -> Tensor:
    """D's probability of the inference side, in float64; the tables for the plane have no dropout."""
    return torch.sigmoid(_logit(model, *side).double())


def _logit(model: AMM, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    logit: Tensor = model.discriminator(None, x=x, y=y, z=z)["p"].flatten()
    return logit


def _eq_18(model: AMM, q: Tuple3, p: Tuple3, u: Tensor) -> Tensor:
    u = u[:, None, None, None]
    points = [(u * a.detach() + (1 - u) * b.detach()).requires_grad_() for a, b in zip(q, p, strict=True)]
    gradients = torch.autograd.grad(_logit(model, *points).sum(), points, create_graph=True)
    norm = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    return model.config.penalty_weight * ((norm - 1) ** 2).mean()


def _d_gradients(model: AMM, q: Tuple3, p: Tuple3, noise: Noise) -> list[Tensor]:
    q, p = (tuple(t.detach() for t in side) for side in (q, p))  # type: ignore[assignment]
    loss = -torch.log(_rho(model, q)).mean() - torch.log(1 - _rho(model, p)).mean()
    if model.config.penalty == "gradient":
        loss = loss + _eq_18(model, q, p, noise.uniform(len(q[0])))
    return list(torch.autograd.grad(loss, list(model.discriminator.parameters())))


def _g_gradients(model: AMM, q: Tuple3, p: Tuple3) -> dict[str, Tensor]:
    rho_q, rho_p = _rho(model, q), _rho(model, p)
    if model.config.saturating:
        inference, synthesis = torch.log(rho_q).mean(), torch.log(1 - rho_p).mean()
    else:
        inference, synthesis = -torch.log(1 - rho_q).mean(), -torch.log(rho_p).mean()
    gradients = dict(zip(_encoder(model), torch.autograd.grad(inference, list(_encoder(model).values())), strict=True))
    synthesis_gradients = torch.autograd.grad(synthesis, list(_synthesis(model).values()))
    return gradients | dict(zip(_synthesis(model), synthesis_gradients, strict=True))


def _compare(model: AMM, d: list[Tensor], g: dict[str, Tensor]) -> None:
    """Gradients and Adam's first moments after a first step."""
    by_name = dict(model.named_parameters())
    named = dict(zip([n for n in by_name if n.startswith("discriminator")], d, strict=True)) | g
    assert set(named) == set(by_name)
    for name, gradient in named.items():
        parameter = by_name[name]
        adam = model.d_adam if name.startswith("discriminator") else model.g_adam
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6), name
        assert torch.allclose(adam.state[parameter]["exp_avg"], 0.5 * gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("saturating", [False, True])
@pytest.mark.parametrize("penalty", ["gradient", "none"])
@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_a_simultaneous_step_is_algorithm_1(factorisation: int, penalty: str, saturating: bool) -> None:
    config = {**PLAIN, "factorisation": factorisation, "penalty": penalty, "saturating": saturating}
    model, by_hand = _amm(**config), _amm(**config)
    losses = _update(model, _x())
    noise = Noise.seeded(3)
    q, p = _inferred(by_hand, _x(), noise), _synthesised(by_hand, 16, noise)
    g = _g_gradients(by_hand, q, p)
    assert max(gradient.abs().max().item() for gradient in g.values()) > 1e-3
    _compare(model, _d_gradients(by_hand, q, p, noise), g)
    rho_q, rho_p = _rho(by_hand, q), _rho(by_hand, p)
    assert losses["d"].item() == pytest.approx((-torch.log(rho_q).mean() - torch.log(1 - rho_p).mean()).item(), 1e-5)
    assert losses["logit_q"].item() == pytest.approx(torch.logit(rho_q).mean().item(), abs=1e-5)
    assert losses["logit_p"].item() == pytest.approx(torch.logit(rho_p).mean().item(), abs=1e-5)


@pytest.mark.parametrize("bias", [0.0, 60.0, 200.0, -200.0])
def test_one_backward_pass_of_d_serves_both_players_however_sure_d_is(bias: float) -> None:
    """At ±200 the slope of D's loss is 0 in float32, where that of the generators' is 1."""
    model, by_hand = (_amm(**PLAIN, penalty="none") for _ in range(2))
    for net in (model, by_hand):
        net.discriminator.get_submodule("layers.p").bias.data.fill_(bias)  # type: ignore[union-attr, operator]
    _update(model, _x())
    noise = Noise.seeded(3)
    q, p = _inferred(by_hand, _x(), noise), _synthesised(by_hand, 16, noise)
    logit_q, logit_p = _logit(by_hand, *q), _logit(by_hand, *p)
    generators = torch.nn.functional.softplus(logit_q).mean() + torch.nn.functional.softplus(-logit_p).mean()
    expected = torch.autograd.grad(generators, by_hand.g_parameters)
    assert max(gradient.abs().max().item() for gradient in expected) > 1e-3
    for (name, parameter), gradient in zip(_generators(model).items(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("nets", ["plane", "digits", "mnist", "svhn"])
def test_the_step_is_adams(nets: str) -> None:
    """The first step of Adam moves every weight by alpha g / (|g| + eps), in whatever layout weight and gradient lie."""
    config = {**PLAIN, "learning_rate": 1e-3, "d_learning_rate": 5e-3}
    model, before = _amm(nets, **config), _amm(nets, **config)
    _update(model, _x(nets, 4))
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert new.grad is not None
        alpha = 5e-3 if name.startswith("discriminator") else 1e-3
        assert torch.allclose(new, old - alpha * new.grad / (new.grad.abs() + 1e-8), atol=1e-6), name


@pytest.mark.parametrize("d_steps", [1, 3])
def test_an_alternating_step_updates_d_first(d_steps: int) -> None:
    config = {**PLAIN, "schedule": "alternating", "d_steps": d_steps, "d_learning_rate": 0.05}
    model, by_hand = _amm(**config), _amm(**config)
    _update(model, _x())
    noise = Noise.seeded(3)
    for _ in range(d_steps):
        q, p = _inferred(by_hand, _x(), noise), _synthesised(by_hand, 16, noise)
        for parameter, gradient in zip(by_hand.d_parameters, _d_gradients(by_hand, q, p, noise), strict=True):
            parameter.grad = gradient
        by_hand.d_adam.step()
    new = _g_gradients(by_hand, _inferred(by_hand, _x(), noise), _synthesised(by_hand, 16, noise))
    by_name = dict(model.named_parameters())
    for a, b in zip(model.d_parameters, by_hand.d_parameters, strict=True):
        # D has redundant weights whose gradient is rounding, and Adam's first steps are as long for those
        assert torch.allclose(a, b, atol=1e-3)
    for name, gradient in new.items():
        actual = by_name[name].grad
        assert actual is not None
        assert torch.allclose(actual, gradient, rtol=1e-2, atol=1e-4), name
    assert [int(s["step"]) for s in model.d_adam.state.values()] == [d_steps] * len(model.d_parameters)
    assert [int(s["step"]) for s in model.g_adam.state.values()] == [1] * len(model.g_parameters)


def test_schedules_differ_only_in_what_d_the_generators_meet() -> None:
    """With one D step, the first D of both schedules is the same; the generators' gradients are not."""
    a, b = (_amm(**PLAIN, schedule=s, d_learning_rate=0.05) for s in ("simultaneous", "alternating"))
    _update(a, _x())
    _update(b, _x())
    for p, q in zip(a.d_parameters, b.d_parameters, strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.allclose(p.grad, q.grad, atol=1e-6)
    gaps = []
    for p, q in zip(a.g_parameters, b.g_parameters, strict=True):
        assert p.grad is not None and q.grad is not None
        gaps.append((p.grad - q.grad).abs().max().item())
    assert max(gaps) > 1e-3


def _reaches(loss: Tensor, parameters: dict[str, Tensor]) -> set[bool]:
    gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {gradient is not None and bool(gradient.any()) for gradient in gradients}


@pytest.mark.parametrize("nets", ["plane", "digits"])
@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_each_generator_loss_reaches_its_own_side(nets: str, factorisation: int) -> None:
    model = _amm(nets, **PLAIN, factorisation=factorisation)
    noise = Noise.seeded(4)
    q, p = model.inferred(_x(nets), noise), model.synthesised(16, noise)
    inference, synthesis = model.generator_losses(*model.logits(q, p, noise))
    assert _reaches(inference, _encoder(model)) == {True}
    assert _reaches(inference, _synthesis(model)) == {False}
    assert _reaches(synthesis, _synthesis(model)) == {True}
    assert _reaches(synthesis, _encoder(model)) == {False}


def test_logits_of_both_sides_come_in_order() -> None:
    model = _amm(**PLAIN)
    noise = Noise.seeded(5)
    q, p = model.inferred(_x(), noise), model.synthesised(16, noise)
    for together, alone in zip(model.logits(q, p, noise), (q, p), strict=True):
        assert torch.allclose(together, _logit(model, *alone), atol=1e-6)


def test_the_optimisers_share_the_parameters_between_them() -> None:
    model = _amm("digits", factorisation=6)
    owned = [id(p) for adam in model.optimizers().values() for group in adam.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    assert set(model.optimizers()) == {"d_adam", "g_adam"}
    for adam in model.optimizers().values():
        assert adam.defaults["betas"] == (0.5, 0.999) and adam.defaults["lr"] == 2e-4 and adam.defaults["eps"] == 1e-8


# what sees what


def _z_branch(model: AMM) -> dict[str, Tensor]:
    return {name: p for name, p in model.encoder.named_parameters() if name.split(".")[1].startswith("z")}


def _y_branch(model: AMM) -> dict[str, Tensor]:
    return {name: p for name, p in model.encoder.named_parameters() if name.split(".")[1].startswith("y")}


@pytest.mark.parametrize("nets", ["plane", "digits"])
@pytest.mark.parametrize(("factorisation", "y_sees_z"), [(7, True), (15, False)])
def test_what_y_and_z_see_in_one_encoder(nets: str, factorisation: int, y_sees_z: bool) -> None:
    model = _amm(nets, **PLAIN, factorisation=factorisation)
    noise = Noise.seeded(6)
    h = model.encode(_x(nets), noise)
    y, z = ((h[name] * noise.normal(*h[name].shape)).sum() for name in ("y", "z"))
    assert True in _reaches(z, _z_branch(model)) and _reaches(z, _y_branch(model)) == {False}
    assert True in _reaches(y, _y_branch(model))
    assert (True in _reaches(y, _z_branch(model))) is y_sees_z


@pytest.mark.parametrize("nets", ["plane", "digits"])
def test_in_eq_6_z_depends_on_the_given_y_and_y_on_x_alone(nets: str) -> None:
    model = _amm(nets, **PLAIN, factorisation=6).eval()
    h = model.encode(_x(nets), None)
    categories = [one_hot(torch.full((16,), k), 3) for k in range(2)]
    z = [model.encoder_z(None, x=_x(nets), y=y)["zμ"] for y in categories]
    assert (z[0] - z[1]).abs().max() > 1e-3
    again = model.encoder_z(None, x=_x(nets), y=h["y"])["zμ"]
    assert torch.equal(again, h["zμ"])
    to_y = torch.autograd.grad(h["zμ"].sum(), list(model.encoder_y.parameters()), allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in to_y)
    weights = list(model.encoder_z.parameters())
    assert torch.autograd.grad(h["y"].square().sum(), weights, allow_unused=True) == (None,) * len(weights)


@pytest.mark.parametrize("y_sample", ["softmax", "straight_through"])
def test_d_sees_the_y_that_the_config_names(y_sample: str) -> None:
    model = _amm(**PLAIN, y_sample=y_sample)
    _, y, _ = model.inferred(_x(), Noise.seeded(7))
    soft = model.encoder(Noise.seeded(7), x=_x())["y"]
    expected = soft if y_sample == "softmax" else one_hot(soft.flatten(1).argmax(1), 3)[:, :, None, None]
    assert torch.allclose(y, expected, atol=1e-6)
    assert not torch.allclose(soft.max(1).values, torch.ones(()), atol=1e-2)


@pytest.mark.parametrize("factorisation", [6, 7])
def test_several_draws_of_the_noise_of_y_are_averaged(factorisation: int) -> None:
    """ŷ is near E[softmax(μ + σ ⊙ ε)] with many draws, and σ learns; z of Eq. 6 is drawn given that ŷ."""
    model = _amm(**PLAIN, factorisation=factorisation, y_draws=2000, y_log_variance=2.0)
    h = model.encode(_x(), Noise.seeded(7))
    expected = model.probabilities(h)
    assert float((h["y"].flatten(1) - expected).detach().abs().max()) < 0.06
    one = _amm(**PLAIN, factorisation=factorisation, y_log_variance=2.0).encode(_x(), Noise.seeded(7))
    assert float((one["y"].flatten(1) - expected).detach().abs().max()) > 0.2
    spread = cast(Layer, model._y_net().layers["yσ"])
    (slope,) = torch.autograd.grad(h["y"].square().sum(), [cast(Tensor, spread.bias)], retain_graph=True)
    assert bool(slope.all())
    if factorisation == 6:
        z = model.encoder_z(None, "zμ", x=_x(), y=h["y"])["zμ"]
        assert torch.allclose(z, h["zμ"], atol=1e-6)
    assert torch.allclose(model.encode(_x(), None)["y"].flatten(1), torch.softmax(h["yμ"].flatten(1), 1))


@pytest.mark.parametrize("nets", ["plane", "digits", "mnist"])
def test_y_is_inferred_from_the_drawn_z_where_the_config_says_so(nets: str) -> None:
    """Then the noise of z moves y and y teaches the spread of z; as Table 3 has it neither does. In answers z is its mean."""
    for reads in ("features", "z"):
        model = _amm(nets, **PLAIN, y_reads=reads, g_dropout=0.0)
        x = _x(nets)
        one, other = (model.encode(x, Noise.seeded(seed)) for seed in (1, 2))
        assert torch.equal(one["yμ"], other["yμ"]) == (reads == "features")
        spread = [p for p in cast(Layer, model.encoder.layers["zσ"]).parameters() if p.requires_grad]
        slopes = torch.autograd.grad(one["yμ"].square().sum(), spread, allow_unused=True)
        assert all((slope is None) == (reads == "features") for slope in slopes)
        model.eval()
        answer = model.encode(x, None)
        assert torch.equal(answer["z"], answer["zμ"])
        with torch.no_grad():
            for parameter in model.encoder.layers["zμ"].parameters():
                parameter.zero_()
        assert torch.equal(model.encode(x, None)["yμ"], answer["yμ"]) == (reads == "features")
    assert "Eq. 7" in " ".join(model.departures())


@pytest.mark.parametrize("nets", ["digits", "mnist", "svhn"])
def test_as_printed_y_adds_one_picture_whatever_z_is(nets: str) -> None:
    """No sum of y in Tables 5 and 9 has an activation: two categories' logits of a pixel differ by the same for every z."""
    spread = {}
    for decoder_y in ("linear", "leaky"):
        model = _amm(nets, components=3, init_std=0.05, decoder_y=decoder_y).eval()
        z = model.prior.sample_z(torch.arange(3), Noise.seeded(4)).double()
        decoder = model.decoder.double()
        categories = (one_hot(torch.full((3,), k), 3).double()[:, :, None, None] for k in (0, 1))
        first, second = (torch.logit(decoder(None, y=y, z=z)["x"]) for y in categories)
        spread[decoder_y] = ((first - second).std(0).mean() / (first - second).abs().mean()).item()
    assert spread["linear"] < 1e-6 < 1e-2 < spread["leaky"]
    with pytest.raises(TableError, match="without an activation"):
        _amm("plane", **PLAIN, decoder_y="leaky")


def test_pooled_maps_cannot_read_z() -> None:
    with pytest.raises(TableError, match="no map"):
        GivenZ(**vars(svhn.ENCODER)).rows(10)
    with pytest.raises(ValueError, match="factorisation: 7"):
        AMMConfig(y_reads="z", factorisation=6)


def test_the_synthesised_tuple_is_one_category() -> None:
    model = _amm(**PLAIN, prior="fixed", separation=50.0)
    _, y, z = model.synthesised(64, Noise.seeded(8))
    mean = model.prior.moments()[0]
    assert torch.equal(y.flatten(1).sum(1), torch.ones(64)) and len(y.flatten(1).argmax(1).unique()) == 3
    assert torch.equal(torch.cdist(z.flatten(1), mean).argmin(1), y.flatten(1).argmax(1))


# the penalty


def test_penalty_dropout_is_the_configs_choice() -> None:
    noise = Noise.seeded(9)
    for keeps in (True, False):
        model = _amm("mnist", init_std=0.1, penalty_dropout=keeps)
        with torch.no_grad():
            p = model.synthesised(4, noise)
        values = {model.penalty(p, p, Noise.seeded(s)).item() for s in range(3)}  # u plays no part here
        assert (len({round(v, 3) for v in values}) > 1) is keeps


@pytest.mark.parametrize("penalty", ["gradient", "roth"])
def test_penalty_weight_multiplies(penalty: str) -> None:
    one, ten = (_amm(**PLAIN, penalty=penalty, penalty_weight=w) for w in (1.0, 10.0))
    a, b = (_update(model, _x())["penalty"] for model in (one, ten))
    assert a > 0 and torch.allclose(10 * a, b)
    assert _update(_amm(**PLAIN, penalty="none"), _x())["penalty"] == 0


@pytest.mark.parametrize("factorisation", [6, 7])
def test_penalty_between_origins_pairs_real_and_prior_with_synthesised_and_inferred(factorisation: int) -> None:
    """Section 4.1's (x, y, z) and (x̃, ŷ, ẑ), pair by pair; the losses of the game still compare q with p."""
    config = {**PLAIN, "factorisation": factorisation}
    origins, sides = (_amm(**config, penalty_between=between) for between in ("origins", "sides"))
    by_hand, noise = _amm(**config), Noise.seeded(3)
    losses, others = _update(origins, _x()), _update(sides, _x())
    (x, y_hat, z_hat), (x_tilde, y, z) = _inferred(by_hand, _x(), noise), _synthesised(by_hand, 16, noise)
    total = torch.zeros(())
    for i, u in enumerate(noise.uniform(16)):
        pairs = ((x, x_tilde), (y, y_hat), (z, z_hat))
        point = [(u * a[i : i + 1] + (1 - u) * b[i : i + 1]).detach().requires_grad_() for a, b in pairs]
        gradients = torch.autograd.grad(_logit(by_hand, *point).sum(), point)
        total += (torch.cat([g.flatten() for g in gradients]).norm() - 1) ** 2
    assert losses["penalty"].item() == pytest.approx(10.0 * total.item() / 16, rel=1e-4)
    assert losses["penalty"].item() != pytest.approx(others["penalty"].item(), rel=1e-3)
    for name in ("d", "q", "p", "logit_q", "logit_p"):
        assert torch.equal(losses[name], others[name])


LINE = [torch.linspace(0.1, 0.4, 2), torch.linspace(-0.5, 0.9, 3), torch.full((2,), 0.2)]


@pytest.mark.parametrize("length", [1.0, 5.0])
@pytest.mark.parametrize("norm", ["joint", "each"])
@pytest.mark.parametrize(("of", "factor"), [("logit", 1.0), ("probability", 0.25)])  # sigmoid'(0) = 1/4
def test_penalty_norm_and_what_it_is_of(
    norm: str, of: str, factor: float, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A D whose logit is a line, so that both penalties are known."""
    model = _amm(**PLAIN, penalty_norm=norm, penalty_y=length, penalty_on=of, penalty_weight=1.0)
    line = lambda xyz, noise: sum(v.flatten(1) @ w for v, w in zip(xyz, LINE, strict=True))
    monkeypatch.setattr(model, "logit", line)
    x, y, z = (torch.zeros(4, n, 1, 1) for n in (2, 3, 2))
    slopes = [factor * w.norm().item() for w in LINE]
    slopes[1] /= length
    joint = (sum(slope**2 for slope in slopes) ** 0.5 - 1) ** 2
    expected = joint if norm == "joint" else sum((slope - 1) ** 2 for slope in slopes)
    assert model.penalty((x, y, z), (x, y, z), Noise.seeded(1)).item() == pytest.approx(expected, rel=1e-4)


def test_the_penalty_is_taken_at_y_itself_however_steep_d_may_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = _amm(**PLAIN, penalty_y=5.0, penalty_weight=1.0), []

    def bowl(xyz: tuple[Tensor, ...], noise: Noise | None) -> Tensor:
        seen.append(xyz[1].detach())
        return sum((v.flatten(1).square().sum(1) for v in xyz), torch.zeros(4))

    monkeypatch.setattr(model, "logit", bowl)
    x, y, z = (torch.full((4, n, 1, 1), 0.5) for n in (2, 3, 2))
    found = model.penalty((x, y, z), (x, y, z), Noise.seeded(1)).item()
    assert all(torch.allclose(point, y) for point in seen)
    slope = math.sqrt(2 + 2 + 3 / 25)  # 2 v in each of x and z, in y a fifth of it
    assert found == pytest.approx((slope - 1) ** 2, rel=1e-4)


@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_the_noise_of_y_starts_where_the_config_says(factorisation: int) -> None:
    config = {"factorisation": factorisation, "init_std": 1e-6}
    quiet, loud = (_amm(**config, y_log_variance=value) for value in (-2.0, 2.0))
    spreads = [model.encode(_x(n=1000), Noise.seeded(4))["yσ"].std().item() for model in (quiet, loud)]
    assert spreads == [pytest.approx(math.exp(-1), rel=0.05), pytest.approx(math.exp(1), rel=0.05)]


@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_a_fixed_noise_of_y_stays_whatever_is_learned(factorisation: int) -> None:
    model = _amm(factorisation=factorisation, init_std=0.5, y_noise="fixed", y_log_variance=2.0, learning_rate=0.1)
    learned = _amm(factorisation=factorisation, init_std=0.5, y_log_variance=2.0, learning_rate=0.1)
    for amm in (model, learned):
        amm.update(Batch(_x(), Noise.seeded(1)))
        amm.eval()
    with torch.no_grad():
        sigma, other = (amm.noise_y(amm.encode(_x(), None)) for amm in (model, learned))
    assert torch.allclose(sigma, torch.full_like(sigma, math.e), rtol=1e-6) and other.std() > 0.1
    assert len(learned.g_parameters) - len(model.g_parameters) == 2
    assert sum(map(len, model.players().values())) == len(model.g_parameters) + len(model.d_parameters)


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("factorisation", [6, 7])
def test_answers_can_come_from_averaged_encoders(factorisation: int, schedule: str) -> None:
    config = {"factorisation": factorisation, "schedule": schedule, "init_std": 0.3, "learning_rate": 0.05}
    plain, averaged, last = (_amm(**config, average_rate=rate) for rate in (0.0, 0.25, 1.0))
    names = [name for name, _ in plain.named_parameters() if name.startswith("encoder")]
    mean = {name: p.clone() for name, p in plain.named_parameters()}
    for step in range(3):
        for amm in (plain, averaged, last):
            amm.update(Batch(_x(), Noise.seeded(step)))
        for name in names:
            mean[name] += 0.25 * (dict(plain.named_parameters())[name] - mean[name])
    assert all(torch.equal(p, dict(averaged.named_parameters())[name]) for name, p in plain.named_parameters())
    assert len(averaged.g_parameters) == len(plain.g_parameters)
    for name, p in averaged.averages.named_parameters():
        net, _, rest = name.replace(".net.", ".", 1).partition(".")
        torch.testing.assert_close(p, mean[f"{net}.{rest}"], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        z, mine, newest = (amm.eval().embed(_x()) for amm in (plain, averaged, last))
        assert torch.equal(z, newest) and not torch.allclose(z, mine)
        sigma, mine = (amm.noise_y(amm.encode(_x(), None)) for amm in (plain, averaged))
        assert not torch.allclose(sigma, mine)


@pytest.mark.parametrize("factorisation", [6, 7])
def test_averaged_encoders_answer_with_statistics_of_their_own(factorisation: int) -> None:
    model = _amm("mnist", factorisation=factorisation, init_std=0.3, average_rate=0.25)
    x = _x("mnist", 24)
    for step in range(2):
        model.update(Batch(x, Noise.seeded(step)))
    model.eval()
    learning = {name: b.clone() for name, b in model.named_buffers() if not name.startswith("averages")}
    with torch.no_grad():
        model.finish(Data(x, 1.0, Noise.seeded(0)))
        answers = [model.encode(part, None)["zμ"] for part in (x, x[:7])]
        for net in model.averages.modules():
            if isinstance(net, torch.nn.BatchNorm2d):
                assert not net.training
                net.train()
        alone = model.encode(x, None)["zμ"]  # normalised by its own batch, which is all of the data
    torch.testing.assert_close(answers[0], alone, rtol=0.05, atol=0.05)  # 24 / 23 in the variance of every layer
    torch.testing.assert_close(answers[1], answers[0][:7])
    with torch.no_grad():  # a last batch of one example, which has no variance, is left out
        model.finish(Data(x.repeat(42, 1, 1, 1)[:1001], 1.0, Noise.seeded(0)))
    assert all(torch.isfinite(b).all() for b in model.averages.buffers())
    assert all(torch.equal(dict(model.named_buffers())[name], b) for name, b in learning.items())


def test_those_statistics_are_of_the_first_ten_thousand_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Tensor]()
    monkeypatch.setattr("models.amm.refit_statistics", lambda net, forward, batches: seen.extend(batches))
    x = _x(n=10_500)
    _amm(average_rate=0.25).finish(Data(x, 1.0, Noise.seeded(0)))
    assert [len(part) for part in seen] == [1000] * 10 and torch.equal(torch.cat(seen), x[:10_000])


@pytest.mark.parametrize(("side", "factor"), [("g", 0.0), ("d", 0.0), ("g", 2.0)])
def test_dropout_can_be_left_out_of_either_player(side: str, factor: float) -> None:
    model = _amm("mnist", **{f"{side}_dropout": factor})
    rates = {
        "d": {row.dropout for row in model.discriminator.rows},
        "g": {row.dropout for net in (model.encoder, model.decoder, model.prior.net) for row in net.rows},  # type: ignore[union-attr]
    }
    assert rates.pop(side) == {0.0, 0.2 * factor}
    assert rates == {name: {0.0, 0.2} for name in rates}


# variants


VARIANTS: list[dict[str, Any]] = [
    *({"factorisation": f} for f in (6, 7, 15)),
    *({"prior": p} for p in ("learned", "learned_variance", "separated", "fixed", "standard")),
    *({"penalty": p} for p in ("gradient", "roth", "none")),
    *({"y_sample": "straight_through", "factorisation": f} for f in (6, 7)),
    {"penalty_dropout": False},
    {"penalty_between": "origins"},
    {"penalty_norm": "each", "penalty_on": "probability"},
    {"penalty_y": 5.0},
    {"y_log_variance": 2.0, "g_dropout": 0.0, "d_dropout": 0.0},
    {"y_noise": "fixed"},
    {"y_draws": 3, "factorisation": 6},
    {"y_reads": "z"},
    {"average_rate": 0.1, "factorisation": 6},
    {"saturating": True},
    {"schedule": "alternating", "d_steps": 2, "factorisation": 6, "prior": "fixed"},
    {"schedule": "alternating", "penalty": "none"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("nets", ["plane", "digits"])
def test_every_variant_takes_two_steps(nets: str, variant: dict[str, Any]) -> None:
    model = _amm(nets, **variant)
    before = {name: p.clone() for name, p in model.named_parameters()}
    noise = Noise.seeded(10)
    for _ in range(2):
        losses = model.update(Batch(_x(nets, 8), noise))
        assert set(losses) == {"d", "penalty", "q", "p", "logit_q", "logit_p"}
        assert all(v.ndim == 0 and not v.requires_grad and bool(torch.isfinite(v)) for v in losses.values())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert still == []


def test_the_mnist_networks_take_a_step() -> None:
    model = _amm("mnist")
    losses = _update(model, _x("mnist", 4))
    assert all(bool(torch.isfinite(v)) for v in losses.values())
    assert losses["d"].item() == pytest.approx(1.386, abs=0.1)  # 2 log 2 while D knows nothing


@pytest.mark.parametrize("factorisation", [6, 7])
def test_pool_first_reaches_the_networks(factorisation: int) -> None:
    """Table 7 pools before batch normalisation then; nothing else differs, the kernels least."""
    first, last = (_amm("svhn", factorisation=factorisation, init_std=0.1, pool_first=f) for f in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))
    named = [(name, layer) for name, layer in first.named_modules() if isinstance(layer, Layer)]
    assert {layer.pool_first for name, layer in named if name.startswith("encoder")} == {True}
    assert not any(layer.pool_first for layer in last.modules() if isinstance(layer, Layer))
    with torch.no_grad():
        z, other = (model.encode(_x("svhn", 2), None)["zμ"] for model in (first, last))
    assert (z - other).abs().max() > 1e-3 * other.abs().max()


@pytest.mark.parametrize("nets", ["plane", "digits"])
def test_the_same_seed_gives_the_same_weights(nets: str) -> None:
    def weights(seed: int) -> list[Tensor]:
        model, noise = _amm(nets), Noise.seeded(seed)
        for step in range(3):
            model.update(Batch(_x(nets, seed=step), noise))
        return list(model.state_dict().values())

    first, again, other = weights(11), weights(11), weights(12)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_global_stream_plays_no_part() -> None:
    state = torch.get_rng_state()
    _update(_amm("digits"), _x("digits"))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"penalty": "roth", "penalty_on": "probability"}, "penalty_on other than logit needs penalty: gradient"),
        ({"penalty": "none", "penalty_norm": "each"}, "penalty_norm other than joint needs penalty: gradient"),
        ({"penalty": "none", "penalty_y": 5.0}, "penalty_y other than 1.0 needs penalty: gradient"),
        ({"components": 1}, "prior: learned is for 2 components or more; use prior: standard"),
        ({"components": 1, "prior": "learned_variance"}, "prior: learned_variance is for 2 components or more"),
        ({"separation": 2.0}, "separation other than 4.0 needs prior: fixed or separated, got learned"),
        ({"pool_first": True}, "pool_first needs nets: svhn, the ones that pool, got mnist"),
        ({"penalty_y": 0.0}, "penalty_y must be above 0, got 0.0"),
        ({"average_rate": 1.5}, "average_rate must lie between 0 and 1, got 1.5"),
        ({"average_rate": -0.1}, "average_rate must lie between 0 and 1, got -0.1"),
    ],
)
def test_knobs_that_would_be_passed_over_or_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AMMConfig(**wrong)


@pytest.mark.parametrize("knob", ["g_dropout", "d_dropout"])
def test_a_factor_that_makes_a_dropout_probability_of_one_is_refused(knob: str) -> None:
    with pytest.raises(ValueError, match="5.0 times the table's dropout gives a probability of 1"):
        _amm("mnist", **{knob: 5.0})


def test_more_d_steps_need_the_alternating_schedule() -> None:
    with pytest.raises(ValueError, match="d_steps other than 1 needs schedule: alternating"):
        AMMConfig(d_steps=2)
    assert AMMConfig(d_steps=2, schedule="alternating").d_steps == 2


def test_d_steps_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="d_steps"):
        AMMConfig(d_steps=0, schedule="alternating")


def test_a_d_learning_rate_of_zero_is_zero() -> None:
    assert _amm(d_learning_rate=0.0).d_adam.defaults["lr"] == 0.0


# answers


@pytest.mark.parametrize("factorisation", [6, 7, 15])
@pytest.mark.parametrize("nets", ["plane", "digits", "mnist"])
def test_answers_have_their_shapes_and_do_not_vary(nets: str, factorisation: int) -> None:
    model = _amm(nets, factorisation=factorisation, init_std=0.2).eval()
    x, d = _x(nets, 6), {"plane": 2, "digits": 16, "mnist": 64}[nets]
    with torch.no_grad():
        first = [*model.predictions(x).values(), model.embed(x), model.reconstruct(x)]
        _ = model.sample(torch.zeros(2, dtype=torch.int64), Noise.seeded(13))
        again = [*model.predictions(x).values(), model.embed(x), model.reconstruct(x)]
        samples = [model.sample(torch.tensor([0, 9, 3, 3]), Noise.seeded(s)) for s in (14, 14, 15)]
    assert [tuple(t.shape) for t in first] == [(6,), (6,), (6,), (6, d), tuple(x.shape)]
    assert {answer.dtype for answer in first[:3]} == {torch.int64}
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert samples[0].shape == (4, *SPECS[nets].shape)
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


def test_pictures_are_decoded_from_the_codes_that_their_names_say() -> None:
    model = _amm("digits", init_std=0.2).eval()
    x, y = _x("digits", 4), torch.tensor([0, 9, 3, 3])

    def decoded(y: Tensor, z: Tensor) -> Tensor:
        return cast(Tensor, model.decoder(None, y=y, z=z)["x"])

    with torch.no_grad():
        z = model.prior.sample_z(y, Noise.seeded(7))
        assert torch.equal(model.sample(y, Noise.seeded(7)), decoded(one_hot(y, 10), z))
        h = model.encoder(None, x=x)
        soft, mean = h["yμ"].flatten(1).softmax(1), h["zμ"].flatten(1)
        pictures = decoded(soft, mean)
        torch.testing.assert_close(model.reconstruct(x), pictures)
        for code in ((soft.roll(1, 1), mean), (soft, mean.roll(1, 0))):
            assert not torch.allclose(decoded(*code), pictures)
        for t in (0.0, 0.25, 1.0):
            between = [(1 - t) * part[:2] + t * part[2:] for part in (soft, mean)]
            torch.testing.assert_close(model.interpolate(x[:2], x[2:], t), decoded(*between))


def test_predict_is_the_largest_mean_whatever_the_rest_of_the_batch() -> None:
    model = _amm("digits", init_std=0.2).eval()
    x = _x("digits", 40) * 4 - 2
    with torch.no_grad():
        whole = model.predict(x)
        assert torch.equal(whole, torch.cat([model.predict(part) for part in x.split(7)]))
        assert torch.equal(whole, model.encoder(None, x=x)["y"].flatten(1).argmax(1))
    assert len(whole.unique()) > 1


def test_bayes_is_the_nearest_mean_of_a_uniform_spherical_mixture() -> None:
    model = _amm("digits", init_std=0.3, prior="fixed").eval()
    x = _x("digits", 40)
    with torch.no_grad():
        nearest = torch.cdist(model.embed(x), model.prior.moments()[0]).argmin(1)
        assert torch.equal(model.predictions(x)["bayes"], nearest)
    assert len(nearest.unique()) > 1


@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_predictions_are_those_of_the_means_and_of_the_whole_q(factorisation: int) -> None:
    """The y-branch by its largest mean and by how often it draws a category, the z-branch by Eq. 19 with the prior's p(y)."""
    model = _amm("digits", init_std=0.2, prior="fixed", separation=1.0, factorisation=factorisation).eval()
    p_y = torch.tensor([0.3, 0.02, 0.2, 0.02, 0.2, 0.02, 0.2, 0.02, 0.01, 0.01])
    model.prior.p_y.copy_(p_y)
    x = _x("digits", 40) * 4 - 2
    with torch.no_grad():
        answers, h = model.predictions(x), model.encode(x, None)
        assert torch.equal(model.predict(x), answers["predict"])
        noise = Noise.seeded(12)
        drawn = torch.stack([model.encode(x, noise)["y"].flatten(1) for _ in range(2000)]).mean(0)
    assert list(answers) == ["predict", "bayes", "mode"]
    assert torch.equal(answers["predict"], h["yμ"].flatten(1).argmax(1))
    distance = torch.cdist(h["zμ"].flatten(1).double(), model.prior.moments()[0].double())
    assert torch.equal(answers["bayes"], (p_y.log() - 0.5 * distance.square()).argmax(1))
    assert not torch.equal(answers["bayes"], distance.argmin(1))
    assert not torch.equal(answers["bayes"], answers["predict"])
    expected = model.probabilities(h)
    assert torch.equal(answers["mode"], expected.argmax(1))
    torch.testing.assert_close(expected, drawn, atol=0.08, rtol=0)


def test_a_category_with_a_large_sigma_can_be_likelier_than_the_one_with_the_largest_mean() -> None:
    model = _amm("digits", init_std=1e-6).eval()
    with torch.no_grad():
        model.encoder.layers["yμ"].bias.copy_(torch.tensor([2.0] + [0.0] * 9))
        model.encoder.layers["yσ"].bias.copy_(torch.tensor([-9.0] * 9 + [6.0]))
        answers = model.predictions(_x("digits", 3))
    assert answers["predict"].tolist() == [0] * 3 and answers["mode"].tolist() == [9] * 3


@pytest.mark.parametrize("k", [20, 30])
@pytest.mark.parametrize("nets", ["plane", "digits", "mnist"])
def test_more_components_than_classes(nets: str, k: int) -> None:
    model = _amm(nets, components=k, init_std=0.2).eval()
    with torch.no_grad():
        h = model.encode(_x(nets, 4), None)
        assert h["y"].shape == (4, k, 1, 1)
        assert model.prior.moments()[0].shape[0] == k
        assert model.sample(torch.tensor([k - 1]), Noise.seeded(16)).shape == (1, *SPECS[nets].shape)
        q, p = model.inferred(_x(nets, 4), Noise.seeded(17)), model.synthesised(4, Noise.seeded(17))
        assert [logit.shape for logit in model.logits(q, p, Noise.seeded(18))] == [(4,), (4,)]
