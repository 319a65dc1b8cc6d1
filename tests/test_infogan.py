"""InfoGAN: the bound L_I, the nets of openai/InfoGAN, who moves whom, batch statistics, learning on made-up images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.infogan import InfoGAN, InfoGANConfig, category_bound, code_bound
from models.latent import component_log_density
from models.method import Spec
from models.noise import Noise
from tests.players import moved, stripes, weights

SPEC = Spec("toy", (1, 4, 4), 3)
ARCHS = pytest.mark.parametrize("arch", ["mlp", "conv"])


def infogan(seed: int = 0, spec: Spec = SPEC, **config: Any) -> InfoGAN:
    small: dict[str, Any] = {"components": 3, "codes": 1, "noise_dim": 4, "hidden": 16, "q_hidden": 8, "channels": 4}
    return InfoGAN(InfoGANConfig(**{"arch": "mlp", "init_std": 0.2} | small | config), spec, Noise.seeded(seed))


# the bound


def test_category_bound_is_mutual_information_less_the_divergence_of_q_by_enumeration() -> None:
    counts = torch.tensor([[6, 2, 1, 3], [1, 8, 1, 2], [4, 0, 7, 1]])  # of images x (columns) by category y, 12 each
    pairs = [(y, x) for y in range(3) for x in range(4) for _ in range(int(counts[y, x]))]
    y, x = torch.tensor(pairs).T
    joint = counts.double() / counts.sum()
    p_x, posterior = joint.sum(0), joint / joint.sum(0)
    information = sum(
        float(joint[a, b] * (joint[a, b] / (p_x[b] / 3)).log()) for a in range(3) for b in range(4) if joint[a, b]
    )
    exact = posterior.T.clamp_min(1e-30).log().float()
    assert float(category_bound(exact[x], y)) == pytest.approx(information, abs=1e-6)

    logits = Noise.seeded(0).normal(4, 3)
    gap = sum(
        float(p_x[b] * posterior[a, b] * (posterior[a, b].log() - logits[b].double().log_softmax(0)[a]))
        for a in range(3)
        for b in range(4)
        if joint[a, b]
    )
    assert gap > 0.1
    assert float(category_bound(logits[x], y)) == pytest.approx(information - gap, abs=1e-6)


def test_category_bound_ends_at_log_k_and_starts_at_nothing() -> None:
    y = torch.arange(10)
    assert float(category_bound(100 * torch.eye(10), y)) == pytest.approx(math.log(10), abs=1e-6)
    assert float(category_bound(torch.zeros(10, 10), y)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.0, 0.0), (0.4, -0.3)])
def test_code_bound_of_a_linear_mean_has_a_closed_form(slope: float, shift: float) -> None:
    """With mean = slope c + shift, E (c - mean)² = (1 - slope)² / 3 + shift²; the entropy of U[-1, 1] is log 2."""
    n = 10_000
    c = ((torch.arange(n) + 0.5) / n * 2 - 1)[:, None].expand(n, 2)  # the midpoint rule for the uniform density
    error = (1 - slope) ** 2 / 3 + shift**2
    expected = 2 * (math.log(2) - 0.5 * math.log(2 * math.pi) - 0.5 * error)
    assert float(code_bound(slope * c + shift, c)) == pytest.approx(expected, abs=1e-5)


def test_code_bound_is_a_sum_over_codes_of_normal_densities() -> None:
    noise = Noise.seeded(3)
    mean, c = noise.normal(50, 3), 2 * noise.uniform(50, 3) - 1
    density = component_log_density(c, mean, torch.zeros(50, 3)).diagonal()  # of each c under its own mean
    torch.testing.assert_close(code_bound(mean, c), density.mean() + 3 * math.log(2))


# the nets of openai/InfoGAN


def test_conv_nets_have_the_shapes_and_parameters_of_the_original() -> None:
    method = InfoGAN(InfoGANConfig(), Spec("mnist", (1, 28, 28), 10), Noise.seeded(0))
    shapes: list[tuple[int, ...]] = []
    for layer in method.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    features = method.trunk(method.sample(torch.arange(2), Noise.seeded(1)))
    assert method.d_head(features).shape == (2, 1) and method.q_head(features).shape == (2, 12)
    generator = [(1024,), (6272,), (64, 14, 14), (1, 28, 28)]
    trunk = [(64, 14, 14), (128, 7, 7), (1024,)]
    assert shapes == [*generator, *trunk, (1,), (128,), (12,)]

    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in method.named_children()}
    assert counts == {  # weights, then two of each batch normalisation's channels, or a bias without one
        "generator": (74 * 1024 + 2048) + (1024 * 6272 + 2 * 6272) + (128 * 64 * 16 + 128) + (64 * 16 + 1),
        "trunk": (64 * 16 + 64) + (64 * 128 * 16 + 256) + (6272 * 1024 + 2048),
        "q_head": (1024 * 128 + 256) + (128 * 12 + 12),
        "d_head": 1024 + 1,
    }
    assert counts["generator"] == 6_645_121 and counts["trunk"] == 6_556_992


def test_padding_is_same_of_tensorflow() -> None:
    """SAME with width 4 and stride 2 takes 2 zeros, one on either side, where the side is even."""
    method = infogan(arch="conv", spec=Spec("toy", (1, 8, 8), 3))
    first = next(layer for layer in method.trunk if isinstance(layer, nn.Conv2d))
    x = Noise.seeded(0).normal(1, 1, 8, 8)
    padded = torch.zeros(10, 10)
    padded[1:9, 1:9] = x[0, 0]
    for i, j in ((0, 0), (1, 2), (3, 3)):
        patch = padded[2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        torch.testing.assert_close(first(x)[0, :, i, j], (first.weight[:, 0] * patch).sum((1, 2)))


def test_initial_weights_are_drawn_from_the_noise_and_cut_in_the_convolutions_of_d() -> None:
    big: dict[str, Any] = {"arch": "conv", "hidden": 256, "channels": 32, "init_std": 0.02}
    first = weights(infogan(**big))
    torch.manual_seed(7)
    assert all(torch.equal(value, first[name]) for name, value in weights(infogan(**big)).items())
    assert not torch.equal(first["d_head.weight"], weights(infogan(1, **big))["d_head.weight"])
    assert all(not value.any() for name, value in first.items() if name.endswith("bias"))
    four = {name: value for name, value in first.items() if value.ndim == 4}
    cut, whole = four["trunk.2.weight"], four["generator.9.weight"]
    assert 0.0395 < float(cut.abs().max()) <= 0.04 < float(whole.abs().max())
    # variance of a normal cut at 2: 1 - 4 φ(2) / (2 Φ(2) - 1)
    inside = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert float(cut.std()) == pytest.approx(0.02 * math.sqrt(inside), rel=0.02)
    assert float(whole.std()) == pytest.approx(0.02, rel=0.02)


def test_conv_refuses_sides_that_do_not_halve_twice() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        infogan(arch="conv", spec=Spec("plane", (2, 1, 1), 3))
    assert infogan(spec=Spec("plane", (2, 1, 1), 3)).sample(torch.arange(3), Noise.seeded(0)).shape == (3, 2, 1, 1)


def test_codes_are_uniform_in_their_ranges_and_reach_the_generator_in_order() -> None:
    method, seen = infogan(codes=2), []
    method.generator.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    y = torch.arange(3000) % 3
    _, c = method.generate(y, Noise.seeded(0))
    code = seen[0]
    assert code.shape == (3000, 3 + 2 + 4)
    assert torch.equal(code[:, :3], torch.eye(3)[y]) and torch.equal(code[:, 3:5], c)
    assert -1 <= float(code[:, 3:].min()) < -0.99 and 0.99 < float(code[:, 3:].max()) <= 1
    torch.testing.assert_close(code[:, 3:].var(0), torch.full((6,), 1 / 3), atol=0.03, rtol=0)


# one step


def log_rho(method: InfoGAN, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log ρ, log(1 - ρ), log q(y | x) and means of c, of the mlp's layers written out, normalised over this batch."""

    def dense(h: Tensor, layers: list[nn.Module]) -> Tensor:
        h = h @ layers[0].weight.T  # type: ignore[operator, union-attr]
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        h = h * layers[1].weight + layers[1].bias  # type: ignore[operator]
        return torch.where(h > 0, h, 0.01 * h)

    parts = {
        name: [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.BatchNorm1d)]
        for name, net in method.named_children()
    }
    first = F.leaky_relu(parts["trunk"][0](x.flatten(1)), 0.01)
    features = dense(first, parts["trunk"][1:])
    out = parts["q_head"][2](dense(features, parts["q_head"][:2]))
    rho = torch.sigmoid(method.d_head(features)[:, 0])
    return rho.log(), (1 - rho).log(), out[:, :3].log_softmax(1), out[:, 3:]


def information(method: InfoGAN, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """log Q(y | x) + log Q(c | x), whose mean is L_I up to a constant."""
    _, _, log_q, mean = log_rho(method, x)
    return log_q[torch.arange(len(y)), y] - 0.5 * (c - mean).square().sum(1)


def test_two_steps_equal_the_original_trainer_written_out() -> None:
    method, other, weight = infogan(mi_weight=0.7), infogan(mi_weight=0.7), 0.7
    judges = [p for net in (other.trunk, other.q_head, other.d_head) for p in net.parameters()]
    # plain descent, as Adam would turn the rounding of a gradient of 0 into a step
    d_descent, g_descent = torch.optim.SGD(judges, 0.2), torch.optim.SGD(other.generator.parameters(), 0.1)
    method.d_adam = torch.optim.SGD(method.d_parameters, 0.2)  # type: ignore[assignment]
    method.g_adam = torch.optim.SGD(method.g_parameters, 0.1)  # type: ignore[assignment]
    noise = Noise.seeded(1)
    noise.uniform(30, 1, 4, 4)  # as `stripes` has drawn
    data = stripes()
    for _ in range(2):
        losses = method.update(data)
        y = noise.integers(3, 30)
        fake, c = other.generate(y, noise)
        fake = fake.detach()
        d = -(log_rho(other, data.x)[0] + log_rho(other, fake)[1]).mean()
        other.zero_grad()
        (d - weight * information(other, fake, y, c).mean()).backward()
        d_descent.step()
        y = noise.integers(3, 30)  # drawn afresh, and judged by the new D
        fake, c = other.generate(y, noise)
        g = -log_rho(other, fake)[0].mean()
        other.zero_grad()
        (g - weight * information(other, fake, y, c).mean()).backward()
        g_descent.step()
        torch.testing.assert_close((losses["d"], losses["g"]), (d.detach(), g.detach()))
    torch.testing.assert_close(weights(method), weights(other), atol=1e-5, rtol=1e-4)


def test_optimisers_are_those_of_the_original() -> None:
    groups = [infogan().optimizers()[name].param_groups[0] for name in ("g_adam", "d_adam")]
    assert [(group["lr"], group["betas"], group["eps"]) for group in groups] == [
        (1e-3, (0.5, 0.999), 1e-8),
        (2e-4, (0.5, 0.999), 1e-8),
    ]


def test_weight_and_start_are_those_of_the_original() -> None:
    c = InfoGANConfig()
    assert (c.mi_weight, c.init_std, c.slope, c.codes, c.noise_dim) == (1.0, 0.02, 0.01, 2, 62)


def silence(method: InfoGAN, names: tuple[str, ...]) -> None:
    """The optimisers of these names stop moving anything."""
    for name in names:
        for group in method.optimizers()[name].param_groups:
            group["lr"] = 0.0


DEAF: dict[str, Any] = {"mi_weight": 0.0}
JUDGES = {"trunk", "q_head", "d_head"}


@ARCHS
@pytest.mark.parametrize(
    ("silenced", "blind", "config", "expected"),
    [
        ("g_adam", False, {}, JUDGES),  # one optimiser holds both heads and the trunk
        ("g_adam", False, DEAF, {"trunk", "d_head"}),  # D's loss alone leaves Q
        ("g_adam", True, {}, JUDGES),  # the trunk moves for Q, and the head for its own loss
        ("g_adam", True, DEAF, {"d_head"}),
        ("d_adam", False, {}, {"generator"}),
        ("d_adam", False, DEAF, {"generator"}),
        ("d_adam", True, {}, {"generator"}),  # by the bound alone
        ("d_adam", True, DEAF, set()),
    ],
)
def test_who_gets_a_gradient_from_what(
    arch: str, silenced: str, blind: bool, config: dict[str, Any], expected: set[str]
) -> None:
    """A blind head of D, all zeros, sends no gradient back: what then moves behind it moves by the bound."""
    method = infogan(arch=arch, **config)
    silence(method, (silenced,))
    if blind:
        method.d_head.weight.data.zero_()
    before = weights(method)
    method.update(stripes())
    assert moved(method, before) == expected


def test_zero_nets_cost_the_known_losses() -> None:
    losses = infogan(init_std=0.0, d_learning_rate=0.0, g_learning_rate=0.0).update(stripes(3000))
    assert float(losses["d"]) == pytest.approx(2 * math.log(2), abs=1e-6)
    assert float(losses["g"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(losses["mi_y"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["mi_c"]) == pytest.approx(math.log(2) - 0.5 * math.log(2 * math.pi) - 1 / 6, abs=0.01)


# batch statistics


@ARCHS
def test_running_statistics_of_d_and_q_are_those_of_real_images_alone(arch: str) -> None:
    method, data = infogan(arch=arch, d_learning_rate=0.0), stripes()
    reference = infogan(arch=arch)
    reference.q_head(reference.trunk(data.x))  # one pass of the real batch, in training mode
    method.update(data)
    for name in ("trunk", "q_head"):
        found, expected = getattr(method, name), getattr(reference, name)
        assert any(key.endswith("running_mean") for key in found.state_dict())
        torch.testing.assert_close(found.state_dict(), expected.state_dict())
    norms = [layer for layer in method.generator if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [2] * len(norms)  # G has its own, of both phases


def test_answers_use_running_statistics_and_leave_them() -> None:
    method, x = infogan(), stripes(6).x
    for step in range(3):
        method.update(stripes(seed=step))
    method.eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    logits = method.q_head(method.trunk(x))
    torch.testing.assert_close(method.q_head(method.trunk(x[:1])), logits[:1])
    assert torch.equal(method.predict(x), logits[:, :3].argmax(1))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


# learning


@ARCHS
def test_categories_find_the_bright_row(arch: str) -> None:
    method = infogan(arch=arch, hidden=32, codes=0, mi_weight=0.3, d_learning_rate=5e-3, g_learning_rate=5e-3)
    for step in range(100):
        losses = method.update(stripes(60, seed=step))
    assert float(losses["mi_y"]) > 0.8 * math.log(3)
    predicted = method.eval().predict(stripes(60, seed=999).x)
    assert len(set(predicted[:3].tolist())) == 3
    assert torch.equal(predicted, predicted[:3].repeat(20))


def test_same_seed_same_weights() -> None:
    runs = []
    for seed in (0, 0, 5):
        method = infogan(seed)
        for step in range(3):
            method.update(stripes(seed=step))
        runs.append(weights(method))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["d_head.weight"], runs[2]["d_head.weight"])
