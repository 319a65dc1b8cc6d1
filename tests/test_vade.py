"""VaDE: each term against torch.distributions, γ against scipy, the bound against brute force, the schedule, the start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from baselines.pretraining import fit_mixture
from baselines.vade import VaDE, category_term, code_term
from models.method import Batch, Data, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given, stripes

SPEC = Spec("toy", (1, 4, 4), 3)


def vade(seed: int = 0, **config: Any) -> VaDE:
    small: dict[str, Any] = {"components": 3, "hidden": 16, "last": 24, "z_dim": 2, "pretraining_batch": 15}
    return VaDE(VaDE.Config(**small | config), SPEC, Noise.seeded(seed))


def mixed(seed: int = 0, **config: Any) -> VaDE:
    """With components, and π, that differ."""
    method, noise = vade(seed, **config), Noise.seeded(100 + seed)
    for p, scale in ((method.mean, 1.0), (method.log_variance, 0.5), (method.logits, 0.7)):
        p.data = scale * noise.normal(*p.shape)
    return method


def rows(n: int = 60, seed: int = 1) -> Data:
    """Images whose bright row is row i mod 3."""
    images = stripes(n, seed)
    return Data(images.x, 1.0, images.noise)


def normal(mean: Tensor, log_variance: Tensor) -> Any:
    return Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)


def draws(seed: int = 0, b: int = 5, k: int = 4, d: int = 3) -> tuple[Tensor, ...]:
    """γ [B, K], μ and log σ² [B, d], components [K, d] twice."""
    noise = Noise.seeded(seed)
    gamma = noise.normal(b, k).softmax(1)
    return gamma, noise.normal(b, d), noise.normal(b, d), noise.normal(k, d), noise.normal(k, d)


def test_the_code_term_is_the_expected_kl() -> None:
    gamma, mean, log_variance, mean_c, log_variance_c = draws()
    kl = kl_divergence(normal(mean[:, None], log_variance[:, None]), normal(mean_c, log_variance_c))
    torch.testing.assert_close(code_term(*draws()), (gamma * kl).sum(1))
    assert bool((code_term(*draws()) > 0).all())


def test_the_category_term_is_the_kl_to_pi() -> None:
    gamma, pi = draws()[0], torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = kl_divergence(Categorical(gamma), Categorical(pi))
    torch.testing.assert_close(category_term(gamma.log(), pi.log()), expected)
    torch.testing.assert_close(category_term(pi.log()[None], pi.log()), torch.zeros(1))


def test_gamma_is_bayes_rule() -> None:
    method, z = mixed(), 2 * Noise.seeded(3).normal(7, 2)
    pi = method.logits.detach().double().exp()
    pairs = zip(method.mean.tolist(), method.log_variance.exp().tolist(), strict=True)
    densities = [torch.from_numpy(multivariate_normal(m, v).pdf(z.double().numpy())) for m, v in pairs]
    joint = torch.stack(densities, 1) * pi
    gamma = method.log_gamma(z).exp().double()
    torch.testing.assert_close(gamma, joint / joint.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_gamma_far_from_all_components_is_still_a_distribution() -> None:
    log_gamma = mixed().log_gamma(torch.full((1, 2), 1e3)).detach()  # every density is 0 in float32
    assert bool(log_gamma.isfinite().all())
    assert float(log_gamma.exp().sum()) == pytest.approx(1)


def test_the_terms_are_the_negative_elbo() -> None:
    """E over z of the sum over every c of γ_c log [q(z | x) γ_c / (p(x | z) p(z | c) π_c)], with γ at another draw of z."""
    method, n = mixed(), 120_000
    x = rows(1).x
    with torch.no_grad():
        found = sum(value.mean() for value in method.terms(x.expand(n, -1, -1, -1), Noise.seeded(5)).values())
        mean, log_variance = method.encode(x)
        z = mean + torch.exp(0.5 * log_variance) * Noise.seeded(6).normal(2, n, 2)
        likelihood = Bernoulli(logits=method.decoder(z[0]), validate_args=False).log_prob(x.flatten(1)).sum(1)
        log_g, log_pi = method.log_gamma(z[1]), method.logits.log_softmax(0)
        log_q = normal(mean, log_variance).log_prob(z[0])
        log_p = normal(method.mean, method.log_variance).log_prob(z[0][:, None])
        ratio = (log_q - likelihood)[:, None] + log_g - log_p - log_pi
        expected = (log_g.exp() * ratio).sum(1)
    error = 5 * float(expected.std()) * (2 / n) ** 0.5
    assert error < 0.1 and float(found) == pytest.approx(float(expected.mean()), abs=error)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_negative_terms_stay_below_the_evidence(seed: int) -> None:
    """log p(x) by enumeration of c and a sum over a fine grid of z."""
    method, x, n = mixed(seed, z_dim=1), (rows(1, seed).x > 0.5).float(), 4000
    z = torch.linspace(-12, 12, 6001)[:, None]
    with torch.no_grad():
        log_prior = torch.logsumexp(
            normal(method.mean, method.log_variance).log_prob(z[:, None]) + method.logits.log_softmax(0), 1
        )
        likelihood = Bernoulli(logits=method.decoder(z)).log_prob(x.flatten(1)).sum(1)
        assert float(log_prior.exp().sum() * 24 / 6000) == pytest.approx(1, abs=1e-3)
        evidence = torch.logsumexp(log_prior + likelihood, 0) + math.log(24 / 6000)
        bound = -sum(value.mean() for value in method.terms(x.expand(n, -1, -1, -1), Noise.seeded(5)).values())
    assert -40 < float(bound) < float(evidence)


def test_the_learning_rate_follows_the_authors_schedule() -> None:
    epochs = torch.tensor([0, 9, 10, 19, 20, 210, 219, 3000])
    expected = torch.tensor([2e-3, 2e-3, 1.8e-3, 1.8e-3, 1.62e-3, 2e-3 * 0.9**21, 2e-3 * 0.9**21, 2e-4])
    data, method = rows(), vade(1)
    method.examples.fill_(20)
    found = []
    for epoch in epochs:
        method.step.fill_(epoch)
        method.update(Batch(data.x[:20], data.noise))
        found.append(method.adam.param_groups[0]["lr"])
    torch.testing.assert_close(torch.stack(found), expected)


def test_the_schedule_counts_whole_batches_and_lives_in_the_buffers() -> None:
    data = rows(50)
    config: dict[str, Any] = {"pretraining_epochs": 0, "decay_epochs": 2, "decay": 0.5, "least_learning_rate": 1e-6}
    method = vade(**config)
    method.prepare(data)
    rates = []
    for _ in range(9):  # two steps of 20 an epoch, four at each rate; 10 examples are left over
        method.update(Batch(data.x[:20], data.noise))
        rates.append(round(2e-3 / float(method.adam.param_groups[0]["lr"])))
    assert rates == [1, 1, 1, 1, 2, 2, 2, 2, 4]
    other = vade(1, **config)
    other.load_state_dict(method.state_dict())
    other.update(Batch(data.x[:20], data.noise))
    assert float(other.adam.param_groups[0]["lr"]) == pytest.approx(5e-4)


def test_the_mixture_finds_separate_blobs() -> None:
    noise, k, n = Noise.seeded(0), 4, 4000
    centres = 20 * torch.eye(4)
    stds = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None].expand(4, 4)
    y = torch.arange(n) % k
    codes = centres[y] + stds[y] * noise.normal(n, 4)
    mean, variance = fit_mixture(codes, k, 0.5, 1, 7)
    order = mean.argmax(1).argsort()
    assert torch.equal(mean.argmax(1)[order], torch.arange(4))
    torch.testing.assert_close(mean[order], centres, atol=0.3, rtol=0)
    torch.testing.assert_close(variance[order], stds.square() + 0.5, atol=0, rtol=0.15)
    assert torch.equal(fit_mixture(codes, k, 0.5, 1, 7)[0], mean)
    assert float(fit_mixture(codes, k, 1e-6, 1, 7)[1].min()) < 0.4


def test_preparation_learns_to_reconstruct_and_separates_the_rows() -> None:
    data, method = rows(), vade(pretraining_epochs=100, n_init=3)
    errors = [(method.reconstruct(data.x) - data.x).square().mean().detach()]
    method.prepare(data)
    errors.append((method.reconstruct(data.x) - data.x).square().mean().detach())
    assert float(errors[1]) < 0.2 * float(errors[0])
    assert torch.equal(method.logits, torch.zeros(3))  # π is uniform
    clusters = method.predict(data.x).view(-1, 3)
    assert bool((clusters == clusters[0]).all()) and clusters[0].unique().numel() == 3
    with torch.no_grad():
        codes = method.embed(data.x).view(-1, 3, 2).transpose(0, 1)
    torch.testing.assert_close(method.mean[clusters[0]], codes.mean(1), atol=1e-3, rtol=1e-3)
    variance = codes.var(1, correction=0) + method.config.variance_floor
    torch.testing.assert_close(method.log_variance[clusters[0]].exp(), variance, atol=0, rtol=1e-2)


def test_preparation_leaves_the_log_variances_and_the_optimiser_alone() -> None:
    method = vade(pretraining_epochs=2)
    head = method.encoder[-1]
    assert isinstance(head, nn.Linear)
    before = head.weight.detach().clone()
    method.prepare(rows())
    assert torch.equal(head.weight[2:], before[2:]) and not torch.equal(head.weight[:2], before[:2])
    assert not method.adam.state and int(method.step) == 0 and int(method.examples) == 60


def test_steps_keep_the_clusters_and_tighten_the_bound() -> None:
    data, method = rows(), vade(pretraining_epochs=100, n_init=3)
    method.prepare(data)
    bounds = [sum(map(float, method.update(Batch(data.x, data.noise)).values())) for _ in range(200)]
    assert sum(bounds[-20:]) < sum(bounds[:20]) - 20
    clusters = method.predict(data.x).view(-1, 3)
    assert bool((clusters == clusters[0]).all()) and clusters[0].unique().numel() == 3


def test_one_step_moves_nets_and_mixture() -> None:
    method, data = mixed(), rows()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    losses = method.update(Batch(data.x, data.noise))
    assert all(not torch.equal(p, before[name]) for name, p in method.named_parameters())
    assert losses.keys() == {"reconstruction", "code", "category"}
    assert method.adam.param_groups[0]["eps"] == 1e-4 and int(method.step) == 1


def test_a_step_is_given_the_gradient_of_the_sum_of_the_three_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    method, x = mixed(), rows().x
    given = gradients_given(monkeypatch, method)
    method.update(Batch(x, Noise.seeded(5)))
    terms = method.terms(x, Noise.seeded(5))
    loss = terms["reconstruction"] + terms["code"] + terms["category"]
    assert_gradients_of({"adam": [loss.sum() / 60]}, given, method)


def test_settings_are_those_of_the_sources() -> None:
    c = VaDE.Config()
    assert adams(vade()) == {"adam": pytest.approx((2e-3, 0.9, 0.999, 1e-4, 0))}
    assert (c.pretraining_epochs, c.pretraining_batch, c.pretraining_learning_rate) == (50, 256, 1e-3)
    assert (c.n_init, c.variance_floor, c.log_variance_limit, c.init_gain) == (1, 1e-3, 10, 2**0.5)


def test_a_huge_log_variance_stays_bounded() -> None:
    method, data = vade(), rows()
    head = method.encoder[-1]
    assert isinstance(head, nn.Linear) and head.bias is not None
    head.weight.data.zero_()
    head.bias.data = torch.tensor([0.5, -1.0, 1e6, -1e6])
    mean, log_variance = method.encode(data.x[:1])
    torch.testing.assert_close(torch.cat([mean, log_variance], 1), torch.tensor([[0.5, -1.0, 10.0, -10.0]]))
    assert all(math.isfinite(value) for value in method.update(Batch(data.x, data.noise)).values())
    head.bias.data[2:] = torch.tensor([0.5, -1.0])  # ordinary values pass almost unchanged
    torch.testing.assert_close(method.encode(data.x[:1])[1], torch.tensor([[0.5, -1.0]]), atol=0.01, rtol=0)


def test_samples_decode_codes_of_their_component() -> None:
    method, y = mixed(), torch.tensor([0, 2, 2])
    method.log_variance.data.fill_(-60.0)
    image = method.sample(y, Noise.seeded(0))
    torch.testing.assert_close(image, torch.sigmoid(method.decoder(method.mean[y])).view(3, 1, 4, 4))
    assert torch.equal(method.log_gamma(method.mean).argmax(1), torch.arange(3))


def test_the_nets_have_the_papers_widths() -> None:
    method = VaDE(VaDE.Config(), Spec("mnist", (1, 28, 28), 10), Noise.seeded(0))
    widths = [
        [(layer.in_features, layer.out_features) for layer in net if isinstance(layer, nn.Linear)]
        for net in (method.encoder, method.decoder)
    ]
    assert widths[0] == [(784, 500), (500, 500), (500, 2000), (2000, 20)]
    assert widths[1] == [(10, 2000), (2000, 500), (500, 500), (500, 784)]
