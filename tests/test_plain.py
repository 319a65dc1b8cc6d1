"""The plain game is the same game: networks, losses, priors, schedules and labels agree with those of the suites' rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import contenders, methods, plain, plan
from bench.sources import SOURCES
from bench.suite import Trial, load_suite
from models import adversarial
from models.amm import AMM
from models.layers import Net
from models.method import Batch, Data, Spec
from models.noise import Noise
from models.samm import SAMM

ROWS = ["mnist_unsup/amm_k10", "svhn_unsup/amm_k20", "svhn_semi/samm", "digits_unsup/amm", "plane_unsup/amm"]
MNIST, _, SEMI, DIGITS, PLANE = ROWS
DIMENSIONS = {"mnist": 64, "svhn": 64, "digits": 16, "plane": 2}  # of z
NETS = ("encoder", "prior", "decoder", "discriminator")

Built = tuple[Trial, plain.Game, AMM]


def _trial(row: str, **config: Any) -> Trial:
    suite, _, name = row.partition("/")
    trial = plan.trials(load_suite(suite), "paper", only=[name], seeds=[0])[0]
    return replace(trial, config={**trial.config, **config})


def _ours(trial: Trial) -> AMM:
    source = SOURCES[trial.data]
    spec = Spec(trial.data, source.shape, source.n_classes)
    method = methods.method_class(trial.method)(plan.build_config(trial), spec, Noise.seeded(0))
    assert isinstance(method, AMM)
    return method


def _net(method: AMM, name: str) -> Net | None:
    return method.prior.net if name == "prior" else getattr(method, name)


def _few(trial: Trial, n: int = 2) -> tuple[Tensor, ...]:
    """A step's examples, with others and their classes for SAMM."""
    labelled = _images(trial, n, 3), torch.arange(n) % trial.config["components"]
    return _images(trial, n, 2), *(labelled if trial.labels else ())


def _images(trial: Trial, n: int, seed: int) -> Tensor:
    return torch.randint(256, (n, *SOURCES[trial.data].shape), generator=torch.Generator().manual_seed(seed)) / 255


@pytest.fixture(params=ROWS)
def trial(request: pytest.FixtureRequest) -> Trial:
    torch.manual_seed(1)
    return _trial(request.param)


@pytest.fixture(params=[*ROWS, "digits_unsup/amm_printed"], scope="module")
def built(request: pytest.FixtureRequest) -> Built:
    """A trial with its plain game and ours, which tests leave as they are."""
    torch.manual_seed(1)
    trial = _trial(request.param)
    return trial, plain.game(trial), _ours(trial)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """ε is 0, we drop nothing, y goes through the categories in turn, and the penalty is taken in the middle."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(Noise, "normal", lambda self, *shape: torch.zeros(shape))
    monkeypatch.setattr(Noise, "masks", lambda self, shapes, p, layout: [torch.full(shape, 1 - p) for shape in shapes])
    monkeypatch.setattr(Noise, "categorical", lambda self, p, n: torch.arange(n) % len(p))
    monkeypatch.setattr(torch, "multinomial", lambda p, n, replacement: torch.arange(n) % len(p))
    monkeypatch.setattr(Noise, "uniform", lambda self, *shape: torch.full(shape, 0.5))
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.full(shape, 0.5))


# the networks


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _useless(net: Net) -> int:
    """Biases that a table's rows do not need, since batch normalisation takes them away again; PyTorch's layers have them."""
    layers: Any = net.layers.values()
    return sum(layer.row.channels for layer in layers if layer.weight is not None and layer.bias is None)


def test_parameters_are_as_many_but_for_useless_biases(built: Built) -> None:
    trial, game, ours = built
    for name in NETS:
        net = _net(ours, name)
        expected = 0 if net is None else _parameters(net) + _useless(net)
        if trial.data == "digits" and name == "decoder":
            expected += 2 * (
                64 - 1
            )  # a linear map has a bias for each pixel, the two kernels of the last rows have one each
        assert _parameters(getattr(game, name)) == expected, name


def test_useless_biases_of_mnist_as_by_hand() -> None:
    ours = _ours(_trial(MNIST))
    counts = {
        "encoder": 2 * (32 + 32 + 64 + 64 + 128),
        "prior": 2 * 64,
        "decoder": 2 * (128 + 64 + 64 + 32 + 32),
        "discriminator": 0,
    }
    for name, count in counts.items():
        net = _net(ours, name)
        assert net is not None and _useless(net) == count, name


@pytest.mark.parametrize("k", [20, 30])
def test_more_components_are_more_parameters_in_the_same_places(k: int) -> None:
    ten, more = plain.game(_trial(MNIST)), plain.game(_trial(f"mnist_unsup/amm_k{k}"))
    for name, each in {"encoder": 2 * 129, "prior": 64, "decoder": 128, "discriminator": 64}.items():
        assert _parameters(getattr(more, name)) - _parameters(getattr(ten, name)) == (k - 10) * each, name


def _passes(trial: Trial, game: plain.Game, ours: AMM, n: int) -> Iterator[tuple[str, Callable[[Noise | None], Any]]]:
    """A forward pass of every network, plain and ours in turn: what it is called, and what makes its outputs."""
    k, d = trial.config["components"], DIMENSIONS[trial.config["nets"]]
    x, y = _images(trial, n, 4), torch.eye(k)[torch.arange(n) % k]
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(5))

    def encode(noise: Noise | None) -> list[Tensor]:
        h = ours.encoder(noise, x=x)
        return [h["y"], h["z"]]

    yield "encoder", lambda noise: game.encoder(x)
    yield "encoder", encode
    yield "labelled", lambda noise: [game.encoder.infer_z(x)]
    yield "labelled", lambda noise: [ours.encoder(noise, "z", x=x)["z"]]
    if (net := ours.prior.net) is not None:
        yield "prior", lambda noise: [game.prior(y)]
        yield "prior", lambda noise: [net(noise, y=y)["z"]]
    yield "decoder", lambda noise: [game.decoder(y, z)]
    yield "decoder", lambda noise: [ours.decoder(noise, y=y, z=z)["x"]]
    yield "discriminator", lambda noise: [game.discriminator(x, y, z)]
    yield "discriminator", lambda noise: [ours.discriminator(noise, x=x, y=y, z=z)["p"]]


def test_both_sides_take_the_same_products(built: Built) -> None:
    """Labelled examples included, of which z alone is inferred."""
    trial, game, ours = built
    few = _few(trial)
    means = (
        2 * len(few[0]) * trial.config["components"] * DIMENSIONS[trial.config["nets"]]
    )  # plain multiplies fixed ones
    expected = _flops(lambda noise: ours.tuples(Batch(few[0], Noise.seeded(0), *few[1:])))
    found = _flops(lambda noise: game.tuples(*few))
    assert found - (means if trial.config["prior"] == "fixed" else 0) == expected > 0


def test_forward_passes_do_the_same_products(built: Built) -> None:
    passes = list(_passes(*built, 2))
    for (name, theirs), (_, mine) in zip(passes[::2], passes[1::2], strict=True):
        assert _flops(theirs) == _flops(mine) > 0, name


def _flops(action: Callable[[Noise | None], Any]) -> int:
    with contenders.FlopCounter() as counter:
        action(Noise.seeded(0))
    return counter.total


def test_dropout_is_where_the_tables_have_it(built: Built) -> None:
    """As often with each probability on inputs of each size."""
    trial, game, ours = built
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in NETS}

    def note(name: str) -> Any:
        return lambda module, args, out: seen[name].append((module.p, args[0][0].numel()))

    modules = [(name, module) for name in NETS for module in getattr(game, name).modules()]
    hooks = [module.register_forward_hook(note(name)) for name, module in modules if isinstance(module, nn.Dropout)]
    for name, run in list(_passes(trial, game, ours, 2))[::2]:
        if name in NETS:
            run(None)
    for hook in hooks:
        hook.remove()
    for name in NETS:
        net = _net(ours, name)
        assert sorted(seen[name]) == sorted(_dropped(net) if net else []), name


def _dropped(net: Net) -> Iterator[tuple[float, int]]:
    """Probability and number of inputs of an example, for each row with dropout."""
    sizes = {name: torch.Size(shape).numel() for name, shape, _ in net.summary()}
    net.train()
    for row in net.rows:
        if row.dropout:
            inputs = [sizes[name] for name in row.inputs]
            yield row.dropout, sum(inputs) if row.join == "|" else inputs[0]


@pytest.mark.usefixtures("silent")
def test_with_equal_weights_forward_passes_give_the_same(trial: Trial) -> None:
    """Without ε and dropout; batch normalisation takes the statistics of the batch."""
    game, ours = plain.game(trial), _ours(trial)
    _equalise(game, ours)
    passes = list(_passes(trial, game, ours, 4))
    for (name, theirs), (_, mine) in zip(passes[::2], passes[1::2], strict=True):
        for a, b in zip(theirs(None), mine(None), strict=True):
            assert b.std() > 1e-3  # so that a mistake would show
            torch.testing.assert_close(a.flatten(), b.flatten(), rtol=2e-4, atol=2e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023


def _equalise(game: plain.Game, ours: AMM) -> None:
    """Weights that depend on their layer's shape and on whether it is y's, the same for plain and ours, and no dropout."""
    for name in NETS:
        for module in (getattr(game, name), _net(ours, name) or nn.Identity()):
            for path, part in module.named_modules():
                seed = 1 if path.removeprefix("layers.").startswith("y") else 2
                _equal(part, seed, transposed=name == "decoder" and isinstance(part, nn.Linear))


@torch.no_grad()
def _equal(part: nn.Module, seed: int, transposed: bool) -> None:
    if isinstance(part, nn.Dropout):
        part.p = 0.0
    bias, weight = getattr(part, "bias", None), getattr(part, "weight", None)
    if bias is not None:
        bias.fill_(0.1)
    if weight is None:
        return
    if weight.ndim == 1:  # of batch normalisation
        weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
        return
    matrix = weight.t() if transposed else weight.flatten(1)  # the first dimension of our rows, and all others
    values = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed)) * matrix.shape[1] ** -0.5
    weight.copy_((values.t() if transposed else values).reshape(weight.shape))


# a step


def test_a_step_moves_every_player_and_its_losses_are_finite(trial: Trial) -> None:
    game = plain.game(trial)
    weights = {name: [p for p in getattr(game, name).parameters() if p.ndim > 1] for name in NETS}
    before = {name: [p.detach().clone() for p in found] for name, found in weights.items()}
    losses = game.step(*_few(trial))
    assert all(loss.ndim == 0 and loss.isfinite() and not loss.requires_grad for loss in losses)
    for name, found in weights.items():
        assert bool(found) == (name != "prior" or trial.config["prior"] != "fixed")
        assert all(not torch.equal(p, q) for p, q in zip(found, before[name], strict=True)), name


@pytest.mark.usefixtures("double", "silent")
@pytest.mark.parametrize(
    ("row", "config"),
    [
        (PLANE, {}),
        (PLANE, {"schedule": "simultaneous", "prior": "learned_variance"}),
        (PLANE, {"prior": "fixed", "separation": 3.0}),
        (MNIST, {"learning_rate": 3e-3}),  # so that a wrong update of a kernel shows in the third loss
        (DIGITS, {}),
        (DIGITS, {"prior": "learned", "d_learning_rate": None, "penalty_dropout": False}),
        ("semi", {}),
        ("semi", {"schedule": "alternating", "p_y": "uniform", "prior": "fixed"}),
    ],
)
def test_with_equal_weights_the_games_go_the_same_way(row: str, config: dict[str, Any]) -> None:
    """Three steps without ε and dropout; every loss depends on the updates before it."""
    trial = replace(_trial(SEMI, nets="digits", **config), data="digits") if row == "semi" else _trial(row, **config)
    game, ours = plain.game(trial), _ours(trial)
    _equalise(game, ours)
    x, *labelled = _few(trial, 12)
    near = {"rtol": 1e-3, "atol": 0.0} if trial.data == "digits" else {}  # the decoder there has a bias for each pixel
    for _ in range(3):
        d_loss, g_loss = game.step(x, *labelled)
        mine = ours.update(Batch(x, Noise.seeded(0), *labelled))
        torch.testing.assert_close(d_loss, mine["d"] + mine["penalty"], **near)
        torch.testing.assert_close(g_loss, mine["q"] + mine["p"], **near)


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_schedules(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: one pair of tuples for all players. Alternating: a pair for D without gradients, then one for the new D."""
    game, seen = plain.game(_trial(PLANE, schedule=schedule)), []

    def tuples(x: Tensor) -> Any:
        seen.append(f"tuples, gradients {torch.is_grad_enabled()}")
        return plain.Game.tuples(game, x)

    monkeypatch.setattr(game, "tuples", tuples)
    for name in ("d", "g"):
        adam = getattr(game, f"{name}_adam")
        adam.register_step_pre_hook(lambda *_, name=name: seen.append(name))
    game.step(*_few(_trial(PLANE)))
    at_once = ["tuples, gradients True", "d", "g"]
    assert seen == (
        at_once if schedule == "simultaneous" else ["tuples, gradients False", "d", "tuples, gradients True", "g"]
    )


@pytest.mark.parametrize("row", [MNIST, "mnist_unsup/amm_k10_fixed"])
def test_the_penalty_with_and_without_dropout_in_d(row: str) -> None:
    trial = _trial(row)
    game, training = plain.game(trial), []
    game.discriminator.register_forward_hook(lambda *_: training.append(game.discriminator.training))
    game.step(*_few(trial))
    assert training == [True] * 4 + [trial.config["penalty_dropout"]]
    assert game.discriminator.training


def test_learning_rates_and_first_weights_are_those_of_the_trial(built: Built) -> None:
    trial, game, _ = built
    config = trial.config
    rates = config["learning_rate"], config["d_learning_rate"] or config["learning_rate"]
    for adam, rate in zip((game.g_adam, game.d_adam), rates, strict=True):
        (group,) = adam.param_groups
        assert group["lr"] == rate and group["betas"] == (0.5, 0.999)
    for name in NETS:
        parts = [
            part
            for part in getattr(game, name).modules()
            if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        ]
        weights = [part.weight.flatten() for part in parts]
        if weights:
            assert torch.cat(weights).std().item() == pytest.approx(config["init_std"], rel=0.25), name
        assert not any(part.bias is not None and part.bias.any() for part in parts)
    owned = [p for adam in (game.g_adam, game.d_adam) for p in adam.param_groups[0]["params"]]
    assert len(owned) == len(set(owned)) == sum(len(list(getattr(game, name).parameters())) for name in NETS)


# losses


def test_losses_are_those_of_the_paper() -> None:
    q, p = torch.tensor([-2.0, 0.5, 30.0]), torch.tensor([1.0, -0.3, 4.0])
    torch.testing.assert_close(plain.discriminator_loss(q, p), adversarial.discriminator_loss(q, p))
    ours = adversarial.inference_loss(q) + adversarial.synthesis_loss(p)
    torch.testing.assert_close(plain.generator_loss(q, p), ours)


def test_penalty_is_that_of_the_paper() -> None:
    class D(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return (x.square().flatten(1).sum(1) + 2 * y.sum(1)) * z.sum(1)

    g = torch.Generator().manual_seed(0)
    sides = [tuple(torch.rand(5, *shape, generator=g) for shape in ((1, 3, 3), (4,), (2,))) for _ in "qp"]
    torch.manual_seed(3)
    found = plain.gradient_penalty(D(), *sides)
    torch.manual_seed(3)
    torch.testing.assert_close(found, adversarial.gradient_penalty(D(), *sides, torch.rand(5)))


# the latent variables


def test_shapes(built: Built) -> None:
    trial, game, _ = built
    x, *labelled = _few(trial, 3)
    q, p = game.tuples(x, *labelled)
    n, k = (6 if labelled else 3), trial.config["components"]
    d = DIMENSIONS[trial.config["nets"]]
    for side in (q, p):
        assert [part.shape for part in side] == [(n, *x.shape[1:]), (n, k), (n, d)]
        assert torch.allclose(side[1].sum(1), torch.ones(n))
        assert game.discriminator(*side).shape == (n,)
    if trial.data != "plane":
        assert p[0].min() >= 0 and p[0].max() <= 1


@pytest.mark.parametrize("row", [DIGITS, "plane_unsup/amm_fixed"])
def test_the_fixed_prior_stays_where_it_is(row: str) -> None:
    """No parameters, means at the given distance, those of ours, and unit variance."""
    torch.manual_seed(0)
    trial = _trial(row)
    prior, ours, k = plain.game(trial).prior, _ours(trial).prior, trial.config["components"]
    assert not list(prior.parameters())
    z = prior(torch.eye(k).repeat_interleave(4000, 0)).view(k, 4000, -1)
    torch.testing.assert_close(z.mean(1), ours.fixed_mean, rtol=0, atol=0.08)
    assert z.mean(1).norm(dim=1).allclose(torch.full((k,), 4.0), atol=0.1)
    torch.testing.assert_close(z.std(1), torch.ones_like(ours.fixed_mean), rtol=0, atol=0.05)


def test_a_learned_prior_has_unit_or_learned_variance() -> None:
    torch.manual_seed(0)
    y = torch.eye(6)[torch.zeros(4000, dtype=torch.int64)]
    for kind, std in (("learned", 1.0), ("learned_variance", 0.5)):
        prior: Any = plain.game(_trial(PLANE, prior=kind)).prior
        nn.init.constant_(prior.mean.bias, 2.0)
        if prior.log_variance is not None:
            nn.init.constant_(prior.log_variance.bias, -1.386)
            nn.init.zeros_(prior.log_variance.weight)
        z = prior(y)
        assert z.std(0).tolist() == pytest.approx([std] * 2, abs=0.05), kind
        assert z.mean(0).tolist() == pytest.approx((2 + prior.mean.weight[:, 0]).tolist(), abs=0.1), kind


@pytest.mark.parametrize(("p_y", "expected"), [("labels", [0.5, 0.0, 0.5]), ("uniform", [1 / 3] * 3)])
def test_p_of_y_is_counted_or_uniform(p_y: str, expected: list[float]) -> None:
    torch.manual_seed(0)
    trial = _trial(SEMI, nets="plane", components=3, p_y=p_y)
    game, y_labelled = plain.game(trial, torch.tensor([0, 2, 2, 0])), torch.tensor([0, 1, 2])
    assert game.p_y.tolist() == pytest.approx(expected)
    method = _ours(trial)
    assert isinstance(method, SAMM)
    x = torch.rand(4, 2, 1, 1)
    method.prepare(Data(x, 1.0, Noise.seeded(0), x, torch.tensor([0, 2, 2, 0])))
    assert torch.equal(game.p_y, method.prior.p_y)
    (_, y, _), (_, drawn, _) = game.tuples(torch.rand(1000, 2, 1, 1), torch.rand(3, 2, 1, 1), y_labelled)
    assert torch.equal(y[-3:], torch.eye(3))  # the labelled game's y is given
    assert drawn.mean(0).tolist() == pytest.approx(expected, abs=0.06)


def test_without_labels_p_of_y_is_uniform(built: Built) -> None:
    _, game, ours = built
    assert torch.equal(game.p_y, ours.prior.p_y)


def test_no_gradient_of_the_labelled_game_reaches_the_y_branch() -> None:
    game = plain.game(_trial(SEMI, nets="digits"))
    game.encoder.infer_z(torch.rand(4, 1, 8, 8)).sum().backward()
    reached = {name.split(".")[0] for name, p in game.encoder.named_parameters() if p.grad is not None}
    assert reached == {"z", "z_norm", "z_mean", "z_log_variance"}


def test_labels_go_to_samm_alone() -> None:
    x, y = torch.rand(2, 2, 1, 1), torch.tensor([0, 1])
    with pytest.raises(AssertionError, match="SAMM learns from labelled examples, AMM from none"):
        plain.game(_trial(PLANE)).step(x, x, y)
    with pytest.raises(AssertionError, match="SAMM learns from labelled examples, AMM from none"):
        plain.game(_trial(SEMI, nets="plane")).step(x)


# data


def test_batches_of_images() -> None:
    x = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8)
    found = list(plain.loader(x, 4))
    assert len(found) == 2 and all(batch.shape == (4, 1, 28, 28) and batch.dtype == torch.float32 for batch in found)
    served = torch.cat(found).flatten(1)
    assert all((row == x.flatten(1) * (1 / 255)).all(1).any() for row in served) and len(served.unique(dim=0)) == 8


def test_batches_go_on_without_end_and_without_labels_are_alone() -> None:
    points = torch.arange(10.0).view(5, 2, 1, 1)
    steps = list(islice(plain.batches(points, 2, 0.5), 5))  # into the third epoch
    assert [len(step) for step in steps] == [1] * 5
    (first,), (second,) = steps[:2]
    seen = torch.cat([first, second]).view(4, 2)
    assert len(seen.unique(dim=0)) == 4 and all((row == 0.5 * points.view(5, 2)).all(1).any() for row in seen)


@pytest.mark.parametrize("n_labels", [3, 7])
def test_labelled_batches_are_one_order_after_another(n_labels: int) -> None:
    """Fewer labels than a batch included; each class stays with its example."""
    x, labels = torch.zeros(12, 1, 8, 8, dtype=torch.uint8), torch.arange(n_labels)
    x_labelled = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    steps = list(islice(plain.batches(x, 4, 1 / 16, x_labelled, labels), 7))
    assert all(given.shape == free.shape == (4, 1, 8, 8) and len(y) == 4 for free, given, y in steps)
    assert all(torch.equal(given[:, 0, 0, 0] * 16, y.float()) for _, given, y in steps)
    epoch = torch.cat([y for _, _, y in steps[:3]])
    for start in range(0, 12 - n_labels + 1, n_labels):
        assert sorted(epoch[start : start + n_labels].tolist()) == labels.tolist()


# trials


@pytest.mark.parametrize("row", [*ROWS, "mnist_unsup/amm_k30", "mnist_unsup/amm_k10_fixed", "plane_unsup/amm_fixed"])
def test_it_knows_these_rows(row: str) -> None:
    assert plain.knows(_trial(row))


@pytest.mark.parametrize(
    ("row", "fields", "config", "said"),
    [
        ("digits_unsup/aae", {}, {}, "baselines.aae:AAE"),
        (PLANE, {"precision": "bf16"}, {}, "precision: bf16"),
        (PLANE, {"batch_labelled": 20}, {}, "batch_labelled: 20"),
        (PLANE, {}, {"factorisation": 6}, "factorisation: 6"),
        (PLANE, {}, {"prior": "standard"}, "prior: standard"),
        (PLANE, {}, {"d_steps": 2}, "d_steps: 2"),
        (PLANE, {}, {"pool_first": True}, "pool_first: True"),
        (PLANE, {}, {"new_knob": 1}, "new_knob: 1"),
    ],
)
def test_it_refuses_what_it_does_not_know(row: str, fields: dict[str, Any], config: dict[str, Any], said: str) -> None:
    trial = replace(_trial(row, **config), **fields)
    assert not plain.knows(trial)
    with pytest.raises(ValueError, match=f"^no plain version of {said}$"):
        plain.game(trial)
