"""Improved GAN's own: its settings and the average that answers; tests/test_feature_matching.py has what Bad GAN shares."""

from __future__ import annotations

import pytest
import torch
from test_feature_matching import data, gan

from baselines.improvedgan import ImprovedGAN
from models.noise import Noise
from tests.players import adams, quarters, quarters_batch


def test_settings_are_those_of_the_original_but_for_epsilon() -> None:
    c = ImprovedGAN.Config()
    assert adams(gan(ImprovedGAN)) == dict.fromkeys(("d_adam", "g_adam"), pytest.approx((3e-4, 0.5, 0.999, 1e-8, 0)))
    assert (c.schedule, c.average_rate, c.init_examples) == (900 * 732, 1e-4, 500)
    assert (c.input_dropout, c.dropout, c.slope, c.z_dim, c.init_std) == (0.2, 0.5, 0.2, 100, 0.05)


def test_the_average_starts_at_zero_and_answers() -> None:
    method, b = gan(ImprovedGAN, average_rate=0.25), quarters_batch()
    # those that are not trained are scales set once for all
    expected = [(0 if p.requires_grad else 1) * p.detach().clone() for p in method.discriminator.parameters()]
    assert all(map(torch.equal, method.average.parameters(), expected))
    for _ in range(3):
        method.update(b)
        expected = [
            old + 0.25 * (p.detach() - old) for old, p in zip(expected, method.discriminator.parameters(), strict=True)
        ]
    for mine, other in zip(method.average.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.detach(), other)
    x = quarters(200, 5)[0]
    with torch.no_grad():
        answer = method.predict(x)
        assert torch.equal(answer, method.average.net(2 * x - 1).argmax(1))
        for p in method.discriminator.parameters():
            p.zero_()
        assert torch.equal(method.predict(x), answer) and len(answer.unique()) > 1


def test_the_average_has_the_scales_that_prepare_sets_and_no_more() -> None:
    method = gan(ImprovedGAN)
    method.prepare(data())
    for mine, other in zip(method.average.net.parameters(), method.discriminator.parameters(), strict=True):
        assert torch.equal(mine, torch.zeros_like(mine) if other.requires_grad else other)


@torch.no_grad()
def test_pictures_are_drawn_in_the_range_of_images() -> None:
    images = gan(ImprovedGAN).sample(torch.zeros(5, dtype=torch.int64), Noise.seeded(0))
    assert images.shape == (5, 1, 8, 8) and 0 <= float(images.min()) < float(images.max()) <= 1
