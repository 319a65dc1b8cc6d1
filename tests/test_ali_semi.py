"""Semi-supervised ALI: one step by hand, who hears of what, the classes of D, and the SVM against scikit-learn's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

from baselines.ali_semi import ALISemi, fit_svm
from models.method import Batch, Data, Spec
from models.noise import Noise
from tests.players import adams, assert_gradients_of, gradients_given, quarters, quarters_batch, weights

K = 4
SHAPES = {"digits": (1, 8, 8), "svhn": (3, 32, 32)}


def ali(nets: str = "digits", seed: int = 0, **config: Any) -> ALISemi:
    small: dict[str, Any] = {"nets": nets, "components": K, "init_std": 0.1}
    return ALISemi(ALISemi.Config(**small | config), Spec(nets, SHAPES[nets], K), Noise.seeded(seed))


def moved(method: ALISemi, b: Batch) -> set[str]:
    """Names of the parameters that a step changes."""
    before = weights(method)
    method.update(b)
    return {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}


def test_d_has_a_logit_for_each_class_and_says_so() -> None:
    method, b = ali(), quarters_batch()
    assert method.logits(b.x, Noise.seeded(0).normal(12, 16), None).shape == (12, K)
    assert any("logit for each class" in text for text in method.departures())
    assert "y" not in method.discriminator.sizes  # the class is D's answer, not its input


def test_losses_are_those_of_probabilities_over_k_plus_one_classes() -> None:
    """Both players' losses from a plain softmax; the digits' nets have no dropout, and one pass draws z, ε and ε in turn."""
    method, b = ali(), quarters_batch()
    twin, noise = copy.deepcopy(method), Noise.seeded(1)
    losses = method.update(b)
    given, free = twin.encoder(noise, "z", x=b.x_labelled)["z"], twin.encoder(noise, "z", x=b.x)["z"]
    z = noise.normal(12, 16, 1, 1)
    sides = (b.x_labelled, given), (b.x, free), (twin.decoder(noise, z=z)["x"], z)

    def probabilities(x: Tensor, z: Tensor) -> Tensor:
        logits = twin.discriminator(None, x=x, z=z)["p"].flatten(1).detach().double()
        return torch.softmax(torch.cat([logits, torch.zeros(len(x), 1)], 1), 1)

    p_l, p_q, p_p = (probabilities(*side) for side in sides)  # type: ignore[arg-type]
    named = p_l[torch.arange(8), b.y_labelled] / p_l[:, :K].sum(1)
    assert float(losses["supervised"]) == pytest.approx(float(-named.log().mean()), rel=1e-4)
    inferred, synthesised = -p_q[:, :K].sum(1).log().mean(), -p_p[:, K].log().mean()
    assert float(losses["unlabelled"]) == pytest.approx(float(inferred + synthesised) / 2, rel=1e-4)
    assert float(losses["q"]) == pytest.approx(float(-p_q[:, K].log().mean()), rel=1e-4)
    assert float(losses["p"]) == pytest.approx(float(-p_p[:, :K].sum(1).log().mean()), rel=1e-4)


def test_both_optimisers_are_given_the_gradients_of_their_players_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and both halves of the K + 1st class for D; E log(1 + Z) on inferred pairs, E log((1 + Z) / Z) on others."""
    method, b = ali(), quarters_batch()
    assert b.x_labelled is not None and b.y_labelled is not None
    given, noise = gradients_given(monkeypatch, method), Noise.seeded(1)
    method.update(b)
    named = method.encoder(noise, "z", x=b.x_labelled)["z"]
    free, z = method.encoder(noise, "z", x=b.x)["z"], noise.normal(12, 16, 1, 1)
    sides = (b.x_labelled, named), (b.x, free), (method.decoder(noise, z=z)["x"], z)
    labelled, inferred, synthesised = (method.logits(*side, None).exp() for side in sides)
    q, p = inferred.sum(1), synthesised.sum(1)
    supervised = -(labelled[torch.arange(8), b.y_labelled] / labelled.sum(1)).log().mean()
    of_d = supervised - 0.5 * (q / (1 + q)).log().mean() + 0.5 * (1 + p).log().mean()
    of_g = (1 + q).log().mean() + ((1 + p) / p).log().mean()
    assert_gradients_of({"d_adam": [of_d], "g_adam": [of_g]}, given, method)


def test_settings_are_those_of_the_original_but_for_the_start_and_the_svm() -> None:
    c = ALISemi.Config()
    assert adams(ali()) == dict.fromkeys(("d_adam", "g_adam"), pytest.approx((1e-4, 0.5, 0.999, 1e-8, 0)))
    assert (c.momentum, c.init_std, c.svm_c) == (0.05, 0.02, 0.01)


def test_a_discriminator_at_zero_costs_the_known_losses_and_moves_alone() -> None:
    """All logits 0: D(x, z) = K / (K + 1)."""
    method = ali()
    method.discriminator.get_parameter("layers.p.weight").data.zero_()
    losses = copy.deepcopy(method).update(quarters_batch())
    assert float(losses["supervised"]) == pytest.approx(math.log(K))
    assert float(losses["unlabelled"]) == pytest.approx((math.log((K + 1) / K) + math.log(K + 1)) / 2)
    assert float(losses["q"]) == pytest.approx(math.log(K + 1))
    assert float(losses["p"]) == pytest.approx(math.log((K + 1) / K))
    names = moved(method, quarters_batch())
    assert names and all(name.startswith("discriminator.layers.p.") for name in names)


def test_labels_teach_d_alone() -> None:
    """Two steps from the same weights that differ in the labels differ in D's weights and in no other."""
    first, second = ali(), ali()
    b = quarters_batch()
    first.update(b)
    second.update(Batch(b.x, Noise.seeded(1), b.x_labelled, (b.y_labelled + 1) % K))  # type: ignore[operator]
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        if not name.startswith("discriminator"):
            assert torch.equal(p, q), name
    assert not torch.equal(*(m.discriminator.get_parameter("layers.p.weight") for m in (first, second)))


def test_all_players_move() -> None:
    method = ali()
    assert moved(method, quarters_batch()) == {name for name, _ in method.named_parameters()}


@pytest.mark.parametrize("labelled", [3, 12, 20])
def test_labelled_batches_of_another_size(labelled: int) -> None:
    method = ali()
    assert all(bool(value.isfinite()) for value in method.update(quarters_batch(labelled=labelled)).values())


def test_it_learns_and_knows_new_examples_by_both_classifiers() -> None:
    method, noise = ali(learning_rate=1e-3), Noise.seeded(2)
    (x, y), (unlabelled, _) = quarters(20, seed=0), quarters(60, seed=3)
    for _ in range(60):
        losses = method.update(Batch(unlabelled, noise, x, y))
    assert float(losses["supervised"]) < 0.05
    new, truth = quarters(100, seed=1)
    method.eval()
    with torch.no_grad():
        method.finish(Data(unlabelled, 1.0, noise, x, y))
        answers = method.predictions(new)
    assert answers.keys() == {"predict", "svm"}
    for name, answer in answers.items():
        assert float((answer == truth).float().mean()) > 0.9, name
    assert torch.equal(answers["predict"], method.predict(new))


def test_d_reads_the_mean_of_z_with_an_image_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen, judge = ali().eval(), list[Tensor](), ALISemi.logits
    monkeypatch.setattr(method, "logits", lambda x, z, noise: seen.append(z) or judge(method, x, z, noise))
    x, _ = quarters(8, seed=1)
    method.predict(x)
    assert torch.equal(seen[0], method.embed(x)) and seen[0].std() > 0


@torch.no_grad()
def test_features_are_the_last_hidden_layers_and_the_mean_of_z() -> None:
    method, x = ali().eval(), quarters(5, 0)[0]
    h = method.encoder(None, x=x)
    torch.testing.assert_close(method.features(x), torch.cat([h[n].flatten(1) for n in ("z1a", "z2a", "zμ")], 1))
    deep = ali("svhn").eval()
    assert deep.read == ["x7", "z1a", "z2a", "zμ"]
    x = Noise.seeded(0).uniform(2, 3, 32, 32)
    assert deep.features(x).shape == (2, 384 + 192 + 96 + 64)
    x7 = deep.encoder(None, x=x)["x7"]
    torch.testing.assert_close(deep.features(x)[:, :384], x7.sum((2, 3)) / 36)


def test_the_svm_is_that_of_scikit_learn() -> None:
    noise = Noise.seeded(0)
    y = torch.arange(60) % K
    features = 2 * noise.normal(K, 6)[y] + noise.normal(60, 6) * torch.tensor([1.0, 10, 1, 1, 0.1, 1]) + 5
    weight, bias = fit_svm(features, y, K, 0.1)
    known = make_pipeline(StandardScaler(), LinearSVC(C=0.1, dual=False)).fit(features.numpy(), y.numpy())
    decision = torch.from_numpy(known.decision_function(features.numpy())).float()
    torch.testing.assert_close(features @ weight.T + bias, decision, rtol=0.02, atol=0.02)


def test_a_class_without_labels_is_never_an_answer() -> None:
    features, y = Noise.seeded(0).normal(20, 3), torch.arange(20) % 2 * 2  # classes 0 and 2
    weight, bias = fit_svm(features, y, K, 1.0)
    answers = (100 * Noise.seeded(1).normal(200, 3) @ weight.T + bias).argmax(1)
    assert set(answers.tolist()) == {0, 2}
    assert bool(weight.isfinite().all())
    assert bias.isinf().tolist() == [False, True, False, True]  # also where both others are unlikely
