"""ALI: tables without y, the game on pairs, k-means on the embedding."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.ali import ALI
from models.kmeans import nearest
from models.layers import Net
from models.method import Batch, Data, Spec
from models.noise import Noise
from models.tables import Table, WithoutY
from tests.players import adams, assert_gradients_of, gradients_given

NETS = ("mnist", "digits", "plane")
SHAPES = {"mnist": (1, 28, 28), "digits": (1, 8, 8), "plane": (2, 1, 1)}
DIMENSIONS = {"mnist": 64, "digits": 16, "plane": 2}


def tables(name: str) -> ModuleType:
    return importlib.import_module(f"models.{name}")


def cut(table: Table) -> Table:
    return WithoutY(**vars(table))


def ali(nets: str = "digits", seed: int = 0, **config: Any) -> ALI:
    small: dict[str, Any] = {"nets": nets, "components": 3, "n_init": 2}
    return ALI(ALI.Config(**small | config), Spec(nets, SHAPES[nets], 3), Noise.seeded(seed))


def batch(nets: str = "digits", n: int = 16, seed: int = 1) -> Batch:
    noise = Noise.seeded(seed)
    return Batch(noise.uniform(n, *SHAPES[nets]), noise)


def test_each_dropout_is_that_of_its_player() -> None:
    x, y = batch("mnist", 4).x, torch.zeros(4, 64, 1, 1)
    for g, d in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        method = ali("mnist", g_dropout=g, d_dropout=d)
        dry = {"means": g == 0, "logits": d == 0}
        means = [method.encoder(Noise.seeded(seed), x=x)["zμ"] for seed in (1, 2)]
        logits = [method.logit(x, y, Noise.seeded(seed)) for seed in (1, 2)]
        assert {"means": torch.equal(*means), "logits": torch.equal(*logits)} == dry


def weights(method: ALI) -> list[Tensor]:
    return [p.detach().clone() for p in method.parameters()]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("table", ["ENCODER", "ENCODER_15", "DECODER", "DISCRIMINATOR"])
def test_a_cut_table_has_no_y_left_that_depends_on_y_alone(name: str, table: str) -> None:
    rows = cut(getattr(tables(name), table)).rows(10)
    known: set[str] = set()
    for row in rows:
        assert row.name != "y"
        assert known.issuperset(row.inputs)
        known.add(row.name)
    assert [row.name for row in rows if not row.inputs] == {"ENC": ["x"], "DEC": ["z"], "DIS": ["x", "z"]}[table[:3]]


@pytest.mark.parametrize("name", NETS)
def test_every_row_of_a_cut_table_is_used(name: str) -> None:
    for table, output in (("ENCODER", "z"), ("DECODER", "x"), ("DISCRIMINATOR", "p")):
        rows = cut(vars(tables(name))[table]).rows(10)
        read = {name for row in rows for name in row.inputs}
        assert {row.name for row in rows} - read == {output}


@pytest.mark.parametrize("name", NETS)
def test_shapes_go_from_images_to_z_and_back(name: str) -> None:
    noise, nets = Noise.seeded(0), tables(name)
    encoder, decoder, discriminator = (Net(cut(t), 10, noise) for t in (nets.ENCODER, nets.DECODER, nets.DISCRIMINATOR))
    z = encoder(noise, x=noise.normal(4, *SHAPES[name]))["z"]
    x = decoder(noise, z=z)["x"]
    assert z.shape == (4, DIMENSIONS[name], 1, 1)
    assert x.shape == (4, *SHAPES[name])
    assert discriminator(noise, x=x, z=z)["p"].shape == (4, 1, 1, 1)


def test_terms_of_y_leave_sums_and_concatenations_and_amendments_stay() -> None:
    rows = {row.name: row for row in cut(tables("mnist").DISCRIMINATOR).rows(10)}
    assert (rows["p0"].inputs, rows["p0"].channels) == (("x5", "z2"), 192)
    assert rows["p"].inputs == ("p2",)
    decoder = {row.name: row for row in cut(tables("digits").DECODER).rows(10)}
    assert (decoder["x"].inputs, decoder["x"].activation) == (("z3",), "Sigmoid")
    plane = {row.name: row for row in cut(tables("plane").DECODER).rows(10)}
    assert plane["y1a"].inputs == ("z1",)


def test_number_of_components_changes_no_net() -> None:
    few, many = ali(components=3), ali(components=50)
    assert [p.shape for p in few.parameters()] == [p.shape for p in many.parameters()]
    assert many.centres.shape == (50, 16)


def test_an_undecided_discriminator_costs_the_known_losses() -> None:
    method = ali()
    for parameter in method.d_parameters:
        parameter.data.zero_()
    losses = method.update(batch())
    assert float(losses["d"]) == pytest.approx(2 * math.log(2))
    assert float(losses["q"]) == float(losses["p"]) == pytest.approx(math.log(2))
    assert float(losses["penalty"]) == 0


def test_penalty_of_a_constant_discriminator_is_its_weight() -> None:
    method = ali(penalty_weight=10.0)
    for parameter in method.d_parameters:
        parameter.data.zero_()
    assert float(method.update(batch())["penalty"]) == pytest.approx(10, abs=1e-3)


def test_penalty_is_the_joint_gradient_of_x_and_z() -> None:
    method = ali("plane", penalty_weight=1.0)
    method.logit = lambda x, z, noise: 3 * x.flatten(1).sum(1) + 4 * z.flatten(1).sum(1)  # type: ignore[method-assign]
    noise = Noise.seeded(0)
    q, p = ((noise.normal(5, 2, 1, 1), noise.normal(5, 2, 1, 1)) for _ in range(2))
    expected = (math.sqrt(2 * 3**2 + 2 * 4**2) - 1) ** 2
    assert float(method.penalty(q, p, noise)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_both_optimisers_are_given_the_gradients_of_their_players_losses(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without saturation: -E log D(q) - E log(1 - D(p)) and the penalty against -E log(1 - D(q)) - E log D(p)."""
    method, data = ali(penalty_weight=weight, init_std=0.2), batch()
    given, stream = gradients_given(monkeypatch, method), data.noise.generator.get_state()
    method.update(data)
    data.noise.generator.set_state(stream)
    z = data.noise.normal(16, 16, 1, 1)
    q = data.x, method.encoder(data.noise, x=data.x)["z"]
    p = method.decoder(data.noise, z=z)["x"], z
    rho_q, rho_p = (torch.sigmoid(method.logit(*pair, data.noise)) for pair in (q, p))
    of_d = -rho_q.log().mean() - (1 - rho_p).log().mean()
    if weight:
        u = data.noise.uniform(16).view(16, 1, 1, 1)
        between = [(u * a + (1 - u) * b).detach().requires_grad_() for a, b in zip(q, p, strict=True)]
        slopes = torch.autograd.grad(method.logit(*between, data.noise).sum(), between, create_graph=True)
        length = torch.cat([slope.flatten(1) for slope in slopes], 1).norm(dim=1)
        of_d = of_d + weight * (length - 1).square().mean()
    of_g = -(1 - rho_q).log().mean() - rho_p.log().mean()
    assert_gradients_of({"d_adam": [of_d], "g_adam": [of_g]}, given, method)


def test_settings_are_those_of_the_paper_but_for_those_of_amm() -> None:
    """AMM's are the rate and the start; ALI has no penalty."""
    c = ALI.Config()
    assert adams(ali()) == dict.fromkeys(("d_adam", "g_adam"), pytest.approx((2e-4, 0.5, 0.999, 1e-8, 0)))
    assert (c.penalty_weight, c.init_std, c.momentum, c.g_dropout, c.d_dropout) == (0, 0.02, 0.1, 1, 1)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_every_parameter_gets_the_gradient_of_its_own_player(penalty: float) -> None:
    """At D = 0 the generators see no gradient, so they must stand still while D's last layer moves."""
    method = ali(penalty_weight=penalty)
    dict(method.named_parameters())["discriminator.layers.p.weight"].data.zero_()
    before = weights(method)
    method.update(batch())
    moved = {name for (name, p), old in zip(method.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert "discriminator.layers.p.weight" in moved
    assert all(name.startswith("discriminator") for name in moved)
    before = weights(method)
    method.update(batch())
    assert not any(torch.equal(p, old) for p, old in zip(method.parameters(), before, strict=True))


def test_same_seed_same_weights() -> None:
    runs = []
    for seed in (0, 0, 5):
        method = ali(seed=seed)
        for step in range(3):
            method.update(batch(seed=step))
        runs.append(weights(method))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_training_stays_finite() -> None:
    method = ali("plane", learning_rate=1e-3, init_std=0.1)
    for step in range(60):
        losses = method.update(batch("plane", seed=step))
    assert all(math.isfinite(float(value)) for value in losses.values())
    assert 0 < float(losses["d"]) < 2


def trained_data() -> Data:
    y = torch.arange(60) % 3
    x = 10.0 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])[y] + 0.01 * Noise.seeded(0).normal(60, 2)
    return Data(x.view(60, 2, 1, 1), 1.0, Noise.seeded(3))


@torch.no_grad()
def test_finish_clusters_embeddings_and_predict_is_deterministic() -> None:
    data, method = trained_data(), ali("plane", init_std=0.5).eval()
    method.finish(data)
    x = data.take(torch.arange(60))
    predicted = method.predict(x)
    assert torch.equal(predicted, predicted[:3].repeat(20))
    assert len(set(predicted.tolist())) == 3
    assert torch.equal(predicted, method.predict(x))
    assert torch.equal(predicted, nearest(method.embed(x), method.state_dict()["centres"]))


@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
def test_answers_have_the_shape_of_the_data(name: str) -> None:
    method, x = ali(name).eval(), batch(name, 5).x
    assert method.embed(x).shape == (5, DIMENSIONS[name])
    assert method.reconstruct(x).shape == x.shape
    assert method.sample(torch.zeros(5, dtype=torch.int64), Noise.seeded(0)).shape == x.shape
