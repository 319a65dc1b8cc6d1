"""What Triple-GAN and SGAN share: each loss by brute force and at its extremes, each schedule at steps worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import log_expit, log_softmax
from torch import Tensor, nn

from baselines import pairs
from baselines.blocks import Block, Chain
from baselines.losses import conditional_entropy
from baselines.pair_nets import JointDiscriminator, classifier, conditional_generator, inference_net, pair_discriminator
from models.latent import one_hot
from models.method import Spec
from models.nets import normal_
from models.noise import Noise

LOGITS = 5 * Noise.seeded(0).normal(40, 4)
SVHN = Spec("svhn", (3, 32, 32), 10)


def test_binary_cross_entropies_are_those_of_a_probability() -> None:
    logit = Noise.seeded(1).normal(50)
    p = torch.sigmoid(logit.double())
    assert float(pairs.real(logit)) == pytest.approx(float(-p.log().mean()), rel=1e-5)
    assert float(pairs.fake(logit)) == pytest.approx(float(-(1 - p).log().mean()), rel=1e-5)


@pytest.mark.parametrize("value", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_binary_cross_entropies_stay_finite_with_a_slope_where_a_probability_rounds(value: float) -> None:
    logit = torch.tensor([value], requires_grad=True)
    assert float(pairs.real(logit.detach())) == pytest.approx(-float(log_expit(value)), rel=1e-6)
    assert float(pairs.fake(logit.detach())) == pytest.approx(-float(log_expit(-value)), rel=1e-6)
    (slope,) = torch.autograd.grad(pairs.real(logit), logit)
    assert float(slope) == pytest.approx(-1 / (1 + math.exp(min(value, 700))), abs=1e-6)


def _brute(logits: Tensor) -> tuple[float, float]:
    p = torch.from_numpy(log_softmax(logits.double().numpy(), 1)).exp()
    entropy = sum(-float(v) * math.log(float(v)) for row in p for v in row) / len(p)
    return entropy, -sum(math.log(float(v)) for v in p.mean(0)) / p.shape[1]


def test_entropy_and_balance_by_brute_force() -> None:
    entropy, even = _brute(LOGITS)
    assert float(conditional_entropy(LOGITS)) == pytest.approx(entropy, rel=1e-5)
    assert float(pairs.balance(LOGITS)) == pytest.approx(even, rel=1e-5)


def test_entropy_and_balance_at_their_extremes() -> None:
    sure = 300 * torch.eye(4)
    assert float(conditional_entropy(sure)) == pytest.approx(0, abs=1e-6)
    assert float(pairs.balance(sure)) == pytest.approx(math.log(4))  # each class once: as even as can be
    assert float(conditional_entropy(torch.zeros(6, 4))) == pytest.approx(math.log(4))
    one_class = 300 * one_hot(torch.zeros(6, dtype=torch.int64), 4)
    assert float(pairs.balance(one_class)) == pytest.approx(225, rel=1e-5)  # finite: (0 + 3 * 300) / 4


def test_the_classifiers_loss_is_its_weighted_sum() -> None:
    y = torch.tensor([0, 3, 1])
    labelled = LOGITS[:3].double().numpy()
    cross = -sum(log_softmax(labelled, 1)[i, c] for i, c in enumerate(y.tolist())) / 3
    entropy, even = _brute(LOGITS[3:])
    loss = float(pairs.classifier_loss(LOGITS[:3], y, LOGITS[3:], 0.3, 0.01))
    assert loss == pytest.approx(cross + 0.3 * entropy + 0.01 * even, rel=1e-5)


def test_epochs_count_from_one_and_decay_sets_in_after_the_last_full_one() -> None:
    steps = torch.tensor([0, 365, 366, 366 * 299, 366 * 300 - 1, 366 * 300, 366 * 999])
    epoch = pairs.epoch_of(steps, 366)
    assert epoch.tolist() == [1, 1, 2, 300, 300, 301, 1000]
    factors = pairs.decay(epoch, 300, 0.995).tolist()
    assert factors == pytest.approx([1, 1, 1, 1, 1, 0.995, 0.995**700], rel=1e-5)


def test_generated_classes_are_even() -> None:
    y = pairs.even_classes(200, 10, torch.device("cpu"))
    assert torch.bincount(y).tolist() == [20] * 10


@pytest.mark.parametrize(
    ("epoch", "labelled", "guessed", "generated"),
    [
        (-49, 200, 0, 0),  # while C is pretrained
        (1, 200, 0, 0),
        (9, 200, 0, 0),
        (10, 184, 16, 0),
        (19, 184, 16, 0),
        (50, 120, 80, 0),
        (100, 40, 160, 0),
        (399, 40, 160, 0),
        (400, 40, 150, 10),
        (1000, 40, 150, 10),
    ],
)
def test_the_true_pairs_of_d_xy_by_epoch(epoch: int, labelled: int, guessed: int, generated: int) -> None:
    source = pairs.composition(torch.tensor(epoch), 200)
    assert source.tolist() == [0] * labelled + [1] * guessed + [2] * generated
    fifth = pairs.composition(torch.tensor(epoch), 20)  # a smaller batch has the same shares, to whole pairs
    counts = torch.bincount(fifth, minlength=3).tolist()
    assert sum(counts) == 20
    assert all(abs(10 * c - n) < 10 for c, n in zip(counts, (labelled, guessed, generated), strict=True))


def test_descend_moves_these_parameters_alone_at_the_rate_it_is_given() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    adam = torch.optim.Adam([a], torch.tensor(0.5), fused=True)
    adam.param_groups[0]["lr"] = torch.tensor(9.0)  # what a checkpoint left there
    pairs.descend((a * b).sum(), [a], adam, torch.tensor(0.25))
    torch.testing.assert_close(a.detach(), torch.full((2,), 0.75))
    assert b.grad is None and torch.equal(b.detach(), torch.ones(2))


def _layers(net: nn.Module) -> list[tuple[str, int, int]]:
    blocks = [block for block in net.modules() if isinstance(block, Block)]
    return [("w" if b.weight_normed else "b" if b.norm else "-", *b.layer.weight.shape[:2]) for b in blocks]


def test_the_layers_are_those_of_the_codes() -> None:
    assert _layers(pair_discriminator("conv_large", SVHN.shape, 10, 32, 0.2)) == [
        ("w", 32, 13), ("w", 32, 42), ("w", 64, 42), ("w", 64, 74), ("w", 128, 74), ("w", 128, 138), ("w", 1, 138),
    ]  # fmt: skip
    assert _layers(classifier("conv_large", SVHN, 10, 0, (0.2, 0.5)))[-2:] == [("b", 128, 256), ("b", 10, 128)]
    assert _layers(inference_net("conv_large", SVHN.shape, 0, 100)) == [
        ("b", 64, 3), ("b", 128, 64), ("b", 256, 128), ("b", 512, 256), ("-", 100, 2048),
    ]  # fmt: skip
    assert _layers(JointDiscriminator("conv_large", SVHN.shape, 0, 100)) == [
        ("-", 512, 100), ("-", 512, 512), ("-", 128, 3), ("b", 256, 128), ("b", 512, 256), ("-", 1024, 8704), ("-", 1, 1024),
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "spec"), [("conv_large", SVHN), ("dense", Spec("digits", (1, 8, 8), 10))])
def test_nets_take_and_give_what_they_say(backbone: str, spec: Spec) -> None:
    noise, n = Noise.seeded(0), 4
    y, z = one_hot(torch.arange(n), 10), noise.uniform(n, 7)
    g: Chain = normal_(conditional_generator(backbone, spec, 10, 16, 7), noise, 0.05)  # type: ignore[arg-type]
    x = g(z, None, y)
    assert x.shape == (n, *spec.shape) and float(x.abs().max()) <= 1
    d_xy = normal_(pair_discriminator(backbone, spec.shape, 10, 8, 0.2), noise, 0.5)  # type: ignore[arg-type]
    assert d_xy(x, None, y).shape == (n, 1)
    assert not torch.equal(d_xy(x, None, y), d_xy(x, None, y.flip(0)))
    d_xz = normal_(JointDiscriminator(backbone, spec.shape, 16, 7), noise, 0.5)  # type: ignore[arg-type]
    assert d_xz(x, z).shape == (n,)
    i = normal_(inference_net(backbone, spec.shape, 16, 7), noise, 0.05)  # type: ignore[arg-type]
    assert i(x).shape == (n, 7)
