"""Algorithm 2: both games written out by hand, who learns from which of them, and p(y) of the labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.nn import functional as F

from models.amm import Tuple3
from models.latent import one_hot
from models.layers import Layer, Net
from models.method import Batch, Data, Spec
from models.noise import Noise
from models.samm import SAMM, SAMMConfig

SPECS = {
    "plane": Spec("plane", (2, 1, 1), 3),
    "digits": Spec("digits", (1, 8, 8), 10),
    "svhn": Spec("svhn", (3, 32, 32), 10),
}
PLAIN: dict[str, Any] = {"components": 3, "init_std": 0.3, "penalty_weight": 10.0}
FREQUENT = [0] * 5 + [1] * 2 + [2] * 3  # labelled classes, p(y) = 0.5, 0.2, 0.3
M = 8


def _samm(nets: str = "plane", labels: list[int] | None = None, **config: Any) -> SAMM:
    model = SAMM(SAMMConfig(**{"nets": nets, **config}), SPECS[nets], Noise.seeded(1))
    model.prepare(_data(nets, FREQUENT if labels is None else labels))
    return model


def _data(nets: str, labels: list[int]) -> Data:
    x = Noise.seeded(7).uniform(len(labels), *SPECS[nets].shape)
    return Data(x, 1.0, Noise.seeded(8), x, torch.tensor(labels))


def _batch(nets: str = "plane", m: int = M, seed: int = 3) -> Batch:
    """M unlabelled examples and M others with classes."""
    noise = Noise.seeded(2)
    x, x_labelled = (noise.uniform(m, *SPECS[nets].shape) for _ in range(2))
    return Batch(x, Noise.seeded(seed), x_labelled, noise.integers(3, m))


def _given(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.x_labelled is not None and batch.y_labelled is not None
    return batch.x_labelled, batch.y_labelled


def _named(model: SAMM, *starts: str) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if name.startswith(starts)}


def _gy(model: SAMM) -> dict[str, Tensor]:
    """The parameters of Gy: a network of its own in Eq. 6, the rows y1, y1a, ... of one encoder otherwise."""
    return _named(model, "encoder_y.", "encoder.layers.y")


def _gz(model: SAMM) -> dict[str, Tensor]:
    """All other parameters of the inference side; a trunk that y and z share is one of z's layers."""
    gy = _gy(model)
    return {name: p for name, p in _named(model, "encoder").items() if name not in gy}


# Algorithm 2 by hand on the nets for the plane, whose D and encoders have no dropout


def _z_of_x(model: SAMM, x: Tensor, noise: Noise) -> Tensor:
    """The z-branch of ENCODER alone, layer by layer."""
    h = x
    for name in ("z1", "z1a", "z2", "z2a"):
        h = model.encoder.layers[name](h, noise)
    mean: Tensor = model.encoder.layers["zμ"](h, noise)
    log_variance = model.encoder.layers["zσ"].linear(h)  # type: ignore[operator]
    return mean + torch.exp(0.5 * log_variance) * noise.normal(*mean.shape)


class ByHand:
    """The tuples of both games in the order in which SAMM draws them; the synthesised ones of both are one batch."""

    def __init__(self, model: SAMM, batch: Batch, noise: Noise) -> None:
        x, y = _given(batch)
        given = one_hot(y, 3)[:, :, None, None]
        if model.config.factorisation == 6:
            free = model.encoder_y(noise, x=batch.x)["y"]
            self.q_u: Tuple3 = batch.x, free, model.encoder_z(noise, x=batch.x, y=free)["z"]
            self.q_l: Tuple3 = x, given, model.encoder_z(noise, x=x, y=given)["z"]
        else:
            h = model.encoder(noise, x=batch.x)
            self.q_u = batch.x, h["y"], h["z"]
            self.q_l = x, given, _z_of_x(model, x, noise)
        category = torch.multinomial(model.prior.p_y, 2 * M, replacement=True, generator=noise.generator)
        prior_y = one_hot(category, 3)[:, :, None, None]
        assert model.prior.net is not None
        prior_z = model.prior.net(noise, y=prior_y)["z"]
        image = model.decoder(noise, y=prior_y, z=prior_z)["x"]
        self.p_u: Tuple3 = image[:M], prior_y[:M], prior_z[:M]
        self.p_l: Tuple3 = image[M:], prior_y[M:], prior_z[M:]
        d = model.discriminator
        self.d_l = d if model.config.discriminators == "one" else model.discriminator_labelled
        self.q_sides, self.p_sides = [(d, self.q_u), (self.d_l, self.q_l)], [(d, self.p_u), (self.d_l, self.p_l)]

    def pairs(self, origins: bool = False) -> list[tuple[Net, Tuple3, Tuple3]]:
        """D and the 2M pairs whose straight lines Eq. 18 draws from, each a batch of one."""
        pairs = []
        for (d, q), (_, p) in zip(self.q_sides, self.p_sides, strict=True):
            for i in range(M):
                (x, y_hat, z_hat), (x_tilde, y, z) = ([t[i : i + 1].detach() for t in side] for side in (q, p))
                ends = ((x, y, z), (x_tilde, y_hat, z_hat)) if origins else ((x, y_hat, z_hat), (x_tilde, y, z))
                pairs.append((d, *ends))
        return pairs


def _logit(d: Net, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    logit: Tensor = d(None, x=x, y=y, z=z)["p"].flatten()
    return logit


def _rho(d: Net, side: Tuple3) -> Tensor:
    return torch.sigmoid(_logit(d, *side).double())


def _eq_18(model: SAMM, hand: ByHand, noise: Noise, origins: bool = False) -> Tensor:
    """Pair by pair."""
    total = torch.zeros(())
    for u, (d, a, b) in zip(noise.uniform(2 * M), hand.pairs(origins), strict=True):
        point = [(u * s + (1 - u) * t).requires_grad_() for s, t in zip(a, b, strict=True)]
        gradients = torch.autograd.grad(_logit(d, *point).sum(), point, create_graph=True)
        total = total + (torch.cat([g.flatten() for g in gradients]).norm() - 1) ** 2
    return model.config.penalty_weight * total / (2 * M)


def _gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    return dict(zip(parameters, gradients, strict=True))


def _d_gradients(model: SAMM, hand: ByHand, noise: Noise) -> dict[str, Tensor]:
    """∇ of L_D^u + L_D^l and of Eq. 18 by D's parameters."""
    d, d_l = model.discriminator, hand.d_l
    l_u = -torch.log(_rho(d, hand.q_u)).sum() / (2 * M) - torch.log(1 - _rho(d, hand.p_u)).sum() / (2 * M)
    l_l = -torch.log(_rho(d_l, hand.q_l)).sum() / (2 * M) - torch.log(1 - _rho(d_l, hand.p_l)).sum() / (2 * M)
    penalty = _eq_18(model, hand, noise) if model.config.penalty == "gradient" else torch.zeros(())
    return _gradients(l_u + l_l + penalty, _named(model, "discriminator"))


def _g_gradients(model: SAMM, hand: ByHand) -> dict[str, Tensor]:
    """∇ of L^u for Gy, of L^u + L^l for Gz, Gx and Gz(y)."""
    if model.config.saturating:
        inference = [torch.log(_rho(*q)).sum() / (2 * M) for q in hand.q_sides]
        synthesis = [torch.log(1 - _rho(*p)).sum() / (2 * M) for p in hand.p_sides]
    else:
        inference = [-torch.log(1 - _rho(*q)).sum() / (2 * M) for q in hand.q_sides]
        synthesis = [-torch.log(_rho(*p)).sum() / (2 * M) for p in hand.p_sides]
    gradients = _gradients(inference[0], _gy(model)) | _gradients(inference[0] + inference[1], _gz(model))
    return gradients | _gradients(synthesis[0] + synthesis[1], _named(model, "prior", "decoder"))


VARIANTS: list[dict[str, Any]] = [{}, {"penalty": "none"}, {"saturating": True}, {"prior": "learned"}]


@pytest.mark.parametrize("config", [*VARIANTS, {"discriminators": "two"}], ids=str)
@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_a_simultaneous_step_is_algorithm_2(factorisation: int, config: dict[str, Any]) -> None:
    model, by_hand = (_samm(**PLAIN, factorisation=factorisation, **config) for _ in range(2))
    batch, noise = _batch(), Noise.seeded(3)
    losses = model.update(batch)
    hand = ByHand(by_hand, batch, noise)
    expected = _g_gradients(by_hand, hand) | _d_gradients(by_hand, hand, noise)
    assert torch.equal(batch.noise.generator.get_state(), noise.generator.get_state())
    assert set(expected) == set(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        adam = model.d_adam if name.startswith("discriminator") else model.g_adam
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name
        assert torch.allclose(adam.state[parameter]["exp_avg"], 0.5 * expected[name], rtol=1e-4, atol=1e-6), name
    for players in (_gy, _gz):
        assert max(expected[name].abs().max().item() for name in players(by_hand)) > 1e-3
    with torch.no_grad():
        l_d = -sum(torch.log(_rho(*q)).sum().item() / (2 * M) for q in hand.q_sides)
        l_d -= sum(torch.log(1 - _rho(*p)).sum().item() / (2 * M) for p in hand.p_sides)
    assert losses["d"].item() == pytest.approx(l_d, rel=1e-5)


@pytest.mark.parametrize(("d_steps", "discriminators"), [(1, "one"), (3, "one"), (1, "two")])
@pytest.mark.parametrize("factorisation", [6, 7])
def test_an_alternating_step_updates_d_first(factorisation: int, d_steps: int, discriminators: str) -> None:
    config = {**PLAIN, "factorisation": factorisation, "schedule": "alternating", "d_learning_rate": 0.02}
    config["discriminators"] = discriminators
    model, by_hand = (_samm(**config, d_steps=d_steps) for _ in range(2))
    batch, noise = _batch(), Noise.seeded(3)
    model.update(batch)
    for _ in range(d_steps):
        for name, gradient in _d_gradients(by_hand, ByHand(by_hand, batch, noise), noise).items():
            by_hand.get_parameter(name).grad = gradient
        by_hand.d_adam.step()
    expected = _g_gradients(by_hand, ByHand(by_hand, batch, noise))
    assert torch.equal(batch.noise.generator.get_state(), noise.generator.get_state())
    for name, parameter in _named(model, "discriminator").items():
        # D has redundant weights whose gradient is rounding, and Adam's first steps are as long for those
        assert torch.allclose(parameter, by_hand.get_parameter(name), atol=1e-3), name
    for name, gradient in expected.items():
        actual = model.get_parameter(name).grad
        assert actual is not None
        assert torch.allclose(actual, gradient, rtol=1e-2, atol=1e-4), name
    assert [int(s["step"]) for s in model.d_adam.state.values()] == [d_steps] * len(model.d_parameters)
    assert [int(s["step"]) for s in model.g_adam.state.values()] == [1] * len(model.g_parameters)


# who learns from which game


def _reaches(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, bool]:
    """Whether a gradient, not None and not all zero, reaches each parameter."""
    gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: g is not None and bool(g.any()) for name, g in zip(parameters, gradients, strict=True)}


def _check_who_learns(model: SAMM, batch: Batch) -> None:
    m = len(batch.x)
    q, p = model.tuples(batch)
    logit_q, logit_p = model.logits(q, p, batch.noise)
    assert len(logit_q) == len(logit_p) == 2 * m
    gy, gz, synthesis = _gy(model), _gz(model), _named(model, "prior", "decoder")
    assert gy and gz and len(gy) + len(gz) + len(synthesis) == len(model.g_parameters)
    unlabelled, labelled = (F.softplus(half).sum() for half in logit_q.chunk(2))
    assert set(_reaches(unlabelled, gy | gz).values()) == {True}
    assert set(_reaches(labelled, gy).values()) == {False}
    assert set(_reaches(labelled, gz).values()) == {True}
    assert set(_reaches(unlabelled + labelled, synthesis).values()) == {False}
    for game in logit_p.chunk(2):
        assert set(_reaches(F.softplus(-game).sum(), synthesis).values()) == {True}
        assert set(_reaches(F.softplus(-game).sum(), gy | gz).values()) == {False}


@pytest.mark.parametrize("nets", ["plane", "digits"])
@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_no_gradient_of_the_labelled_game_reaches_gy(nets: str, factorisation: int) -> None:
    config = {**PLAIN, "init_std": 0.1}  # no logit so large that its sigmoid is 0 or 1
    _check_who_learns(_samm(nets, **config, factorisation=factorisation), _batch(nets))


@pytest.mark.parametrize("factorisation", [6, 7])
def test_in_table_7_the_labelled_game_reaches_the_trunk_and_the_z_branch(factorisation: int) -> None:
    model = _samm("svhn", factorisation=factorisation, init_std=0.05)
    rows = {name.split(".")[-3] if ".norm." in name else name.split(".")[-2] for name in _gz(model)}
    assert {f"x{i}" for i in range(1, 8)} | {"z1", "z2", "z2a", "zμ", "zσ"} <= rows
    _check_who_learns(model, _batch("svhn", 2))


# the tuples


@pytest.mark.parametrize("nets", ["plane", "digits"])
@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_the_labelled_forward_leaves_the_statistics_of_the_y_rows(nets: str, factorisation: int) -> None:
    model = _samm(nets, **PLAIN, factorisation=factorisation)
    before = {name: b.clone() for name, b in model.named_buffers() if name.startswith("encoder")}
    model.labelled(*_given(_batch(nets)), Noise.seeded(4))
    moved = {name for name, b in model.named_buffers() if name in before and not torch.equal(b, before[name])}
    of_y = {name for name in before if name.startswith(("encoder_y.", "encoder.layers.y"))}
    assert of_y and moved == set(before) - of_y


@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_the_labelled_tuple_carries_its_example_and_its_class(factorisation: int) -> None:
    model, batch = _samm(**PLAIN, factorisation=factorisation), _batch()
    x_labelled, y_labelled = _given(batch)
    (x, y, z), p = model.tuples(batch)
    assert [tuple(t.shape) for t in (x, y, z)] == [tuple(t.shape) for t in p]
    assert torch.equal(x, torch.cat([batch.x, x_labelled]))
    assert torch.equal(y[M:].flatten(1), torch.eye(3)[y_labelled])
    assert not torch.equal(y[:M].flatten(1).amax(1), torch.ones(M))
    # only in Eq. 6 does the given class change what z is inferred
    other = model.labelled(x_labelled, (y_labelled + 1) % 3, Noise.seeded(5))[2]
    same = model.labelled(x_labelled, y_labelled, Noise.seeded(5))[2]
    assert torch.equal(other, same) is (factorisation != 6)


def test_each_game_may_have_a_discriminator_of_its_own() -> None:
    """Also where a step has fewer labelled examples."""
    model, batch = _samm(**PLAIN, discriminators="two"), _batch()
    x, y = _given(batch)
    with torch.no_grad():
        for parameter in model.discriminator_labelled.parameters():
            parameter.mul_(-0.5)
    q, p = model.tuples(Batch(batch.x, batch.noise, x[:3], y[:3]))
    games = [(model.discriminator, slice(0, M)), (model.discriminator_labelled, slice(M, M + 3))]
    wanted_q, wanted_p = (torch.cat([_logit(d, *(t[rows] for t in side)) for d, rows in games]) for side in (q, p))
    assert torch.allclose(model.logit(q, None), wanted_q) and torch.allclose(model.logit(p, None), wanted_p)
    assert torch.allclose(torch.stack(model.logits(q, p, Noise.seeded(4))), torch.stack([wanted_q, wanted_p]))
    assert set(model.players()["d"]) == set(_named(model, "discriminator").values())
    options = [{key: value for key, value in group.items() if key != "params"} for group in model.d_adam.param_groups]
    assert len(options) == 2 and options[0] == options[1]  # one rate for both


# p(y) and Eq. 19


def test_p_y_is_the_frequency_of_the_classes_among_the_labels() -> None:
    labels = [4, 0, 4, 4, 1, 0, 4, 1, 4, 2]  # class 3 does not occur
    model = _samm(labels=labels, components=5)
    assert torch.allclose(model.prior.p_y, torch.tensor([labels.count(k) / 10 for k in range(5)]))
    assert model.prior.p_y[3] == 0
    n = 20_000
    frequency = model.synthesised(n, Noise.seeded(9))[1].flatten(1).mean(0)
    assert frequency[3] == 0
    for k in range(5):
        assert abs(float(frequency[k]) - labels.count(k) / 10) < 5 * (0.25 / n) ** 0.5


def test_p_y_is_uniform_on_request() -> None:
    model = _samm(components=5, p_y="uniform")
    assert torch.equal(model.prior.p_y, torch.full((5,), 0.2))


def test_a_class_without_labels_is_never_answered() -> None:
    """Not even at the mean of its own component."""
    config: dict[str, Any] = {"components": 4, "prior": "fixed", "separation": 20.0}
    labels, uniform = (_samm(labels=[0, 1, 3], p_y=p_y, **config) for p_y in ("labels", "uniform"))
    mean = labels.prior.moments()[0]
    assert uniform.prior.classify(mean).tolist() == [0, 1, 2, 3]
    at_means = labels.prior.classify(mean).tolist()
    assert at_means[:2] == [0, 1] and at_means[3] == 3 and at_means[2] in (1, 3)


@pytest.mark.parametrize(("nets", "k", "std", "spread"), [("plane", 5, 0.3, 1.0), ("digits", 7, 0.1, 0.25)])
def test_bayes_is_eq_19_with_learned_variances(nets: str, k: int, std: float, spread: float) -> None:
    labels = [0] * 60 + [1] * 3 + [2] * 25 + list(range(3, k)) * 4
    model = _samm(nets, labels, components=k, prior="learned_variance", init_std=std).eval()
    noise = Noise.seeded(10)
    moments = []
    for name, scale in (("zμ", spread), ("zσ", 0.7 * spread)):
        assert isinstance(model.prior.net, Net)
        layer = model.prior.net.layers[name]
        assert isinstance(layer, Layer) and layer.weight is not None and layer.bias is not None
        layer.weight.data, layer.bias.data = (scale * noise.normal(*p.shape) for p in (layer.weight, layer.bias))
        moments.append((layer.weight[:, :, 0, 0].T + layer.bias).detach().double())
    mean, variance = moments[0], moments[1].exp()
    x = 8 * noise.uniform(300, *SPECS[nets].shape) - 4
    with torch.no_grad():
        got, z = model.predictions(x), model.encode(x, None)["zμ"].flatten(1).double()
        assert torch.equal(got["predict"], model.predict(x))

    def answer(variance: Tensor, p_y: list[float]) -> tuple[Tensor, Tensor]:
        """Eq. 19 and by how much its winner wins."""
        density = [multivariate_normal(mean[j], variance[j].diag().numpy()).logpdf(z) for j in range(k)]
        score = torch.stack([torch.as_tensor(d) for d in density], 1) + torch.tensor(p_y, dtype=torch.float64).log()
        best = score.topk(2).values
        return score.argmax(1), best[:, 0] - best[:, 1]

    p_y = [labels.count(j) / len(labels) for j in range(k)]
    expected, margin = answer(variance, p_y)
    decided = margin > 1e-3  # elsewhere rounding decides
    assert decided.sum() > 280
    assert torch.equal(got["bayes"][decided], expected[decided])
    assert len(expected.unique()) > 2
    for other in (answer(torch.ones_like(variance), p_y)[0], answer(variance, [1 / k] * k)[0]):
        assert not torch.equal(other[decided], expected[decided])  # the variances and p(y) matter here


# the penalty


@pytest.mark.parametrize("between", ["sides", "origins"])
@pytest.mark.parametrize("factorisation", [6, 7])
def test_eq_18_runs_over_the_pairs_of_both_games(factorisation: int, between: str) -> None:
    config = {**PLAIN, "factorisation": factorisation}
    model, by_hand = _samm(**config, penalty_between=between), _samm(**config)
    batch, noise = _batch(), Noise.seeded(3)
    reported = model.update(batch)["penalty"].item()
    hand = ByHand(by_hand, batch, noise)
    state = noise.generator.get_state()
    values = {}
    for kind in ("sides", "origins"):
        noise.generator.set_state(state)
        values[kind] = _eq_18(by_hand, hand, noise, origins=kind == "origins").item()
    assert reported == pytest.approx(values[between], rel=1e-4)
    assert abs(values["sides"] - values["origins"]) > 1e-3 * abs(values["sides"])


# what a trial needs


def test_p_y_is_in_the_state_of_a_trial() -> None:
    model, fresh = _samm(**PLAIN), SAMM(SAMMConfig(nets="plane", **PLAIN), SPECS["plane"], Noise.seeded(2))
    assert torch.allclose(model.state_dict()["prior.p_y"], torch.tensor([0.5, 0.2, 0.3]))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.prior.p_y, model.prior.p_y)


VARIANTS: list[dict[str, Any]] = [
    {"y_sample": "straight_through"},
    {"y_draws": 3},
    {"penalty": "roth"},
    {"prior": "fixed"},
    {"prior": "standard"},
    {"schedule": "alternating", "d_steps": 2, "penalty_between": "origins"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("factorisation", [6, 7, 15])
def test_every_variant_moves_every_weight(factorisation: int, variant: dict[str, Any]) -> None:
    model = _samm("digits", factorisation=factorisation, **variant)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for seed in range(2):
        losses = model.update(_batch("digits", seed=seed))
        assert all(v.ndim == 0 and not v.requires_grad and bool(torch.isfinite(v)) for v in losses.values())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == [] and all(bool(torch.isfinite(p).all()) for p in model.parameters())
