"""The random stream: frequencies within five standard errors, replayable, the same for equal seeds."""

from __future__ import annotations

import math

import pytest
import torch

from models.noise import Noise

N = 200_001  # odd, so that the last 64-bit word of a mask is used in part


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_keep_drops_p_and_has_mean_one(p: float) -> None:
    mask = Noise.seeded(1).keep(torch.empty(N), p)
    dropped = (mask == 0).double().mean().item()
    error = math.sqrt(p * (1 - p) / N)
    assert abs(dropped - p) < 5 * error + 2**-16
    assert abs(mask.double().mean().item() - 1) < 5 * error / (1 - p) + 2**-15
    assert mask.dtype == torch.float32


def test_keep_has_two_values() -> None:
    assert torch.equal(Noise.seeded(2).keep(torch.empty(N), 0.2).unique(), torch.tensor([0.0, 1.25]))


def test_a_mask_drawn_in_parts_is_the_one_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for part in (8, N):
        monkeypatch.setattr("models.noise.PART", part)
        masks.append(Noise.seeded(2).keep(torch.empty(1003), 0.2))
    assert torch.equal(*masks)


def test_keep_with_p_zero_keeps_everything() -> None:
    assert torch.equal(Noise.seeded(3).keep(torch.empty(N), 0.0), torch.ones(N))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 1, 1), (2, 3, 1, 1), (7, 3, 3), (4, 4), (0, 3)])
def test_keep_has_any_shape(shape: tuple[int, ...]) -> None:
    mask = Noise.seeded(4).keep(torch.empty(shape), 0.5)
    assert mask.shape == shape
    assert bool(((mask == 0) | (mask == 2)).all())


@pytest.mark.parametrize("shape", [(5, 3, 7, 7), (1, 4, 3, 3), (6, 1, 2, 2), (4, 8, 1, 1)])
def test_keep_has_the_layout_of_what_it_masks(shape: tuple[int, ...]) -> None:
    like = torch.ones(shape).to(memory_format=torch.channels_last)
    mask = Noise.seeded(14).keep(like, 0.25)
    assert mask.shape == shape
    assert mask.is_contiguous(memory_format=torch.channels_last)
    kept = (mask > 0).double().mean().item()
    assert abs(kept - 0.75) < 5 * math.sqrt(0.25 * 0.75 / mask.numel())


def test_masks_of_either_layout_are_one_draw_in_the_order_of_their_memory() -> None:
    shapes = [(2, 3, 4, 4), (5, 2, 1, 1)]
    last = Noise.seeded(15).masks(shapes, 0.25)
    usual = Noise.seeded(15).masks(shapes, 0.25, torch.contiguous_format)
    for mask, other, shape in zip(last, usual, shapes, strict=True):
        assert mask.shape == other.shape == shape and other.is_contiguous()
        assert mask.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(mask.permute(0, 2, 3, 1).flatten(), other.flatten())
        assert set(other.unique().tolist()) <= {0.0, 1.0}


def test_masks_that_scale_make_up_for_what_they_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Noise.seeded(15).masks([(2, 3, 4, 4)], 0.25)[0]
    assert not Noise.seeded(15).scales  # on a CPU the weights do
    monkeypatch.setattr(Noise, "scales", True)
    assert torch.equal(Noise.seeded(15).masks([(2, 3, 4, 4)], 0.25)[0], plain / 0.75)


def test_the_elements_of_one_word_are_independent() -> None:
    quarters = Noise.seeded(5).keep(torch.empty(400_000), 0.5).view(-1, 4).double() - 1  # -1 or 1
    correlation = quarters.T @ quarters / len(quarters)
    assert (correlation - torch.eye(4)).abs().max() < 5 / math.sqrt(len(quarters))


def test_normal_and_uniform_have_their_moments() -> None:
    noise = Noise.seeded(6)
    normal, uniform = noise.normal(N).double(), noise.uniform(N).double()
    assert abs(normal.mean()) < 5 / math.sqrt(N)
    assert abs(normal.var() - 1) < 5 * math.sqrt(2 / N)
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * N)
    assert uniform.min() >= 0 and uniform.max() < 1


def test_categorical_follows_its_probabilities() -> None:
    p = torch.tensor([0.5, 0.3, 0.0, 0.2])
    drawn = Noise.seeded(7).categorical(p, N)
    frequency = drawn.bincount(minlength=4) / N
    assert drawn.dtype == torch.int64 and drawn.shape == (N,)
    assert frequency[2] == 0
    assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / N).sqrt() + 1e-9).all())


def test_integers_and_permutation_cover_their_range() -> None:
    noise = Noise.seeded(8)
    counts = noise.integers(5, 50_000).bincount(minlength=5)
    assert len(counts) == 5
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(50_000 * 0.2 * 0.8)
    order = noise.permutation(101)
    assert torch.equal(order.sort().values, torch.arange(101))
    assert not torch.equal(order, torch.arange(101))


def test_seed_fits_numpy_and_moves_on() -> None:
    noise = Noise.seeded(9)
    seeds = [noise.seed() for _ in range(1000)]
    assert all(isinstance(s, int) and 0 <= s < 2**31 for s in seeds)
    assert len(set(seeds)) > 990
    assert max(seeds) > 2**30


def _everything(noise: Noise) -> list[torch.Tensor]:
    drawn = [
        noise.normal(3, 2),
        noise.uniform(5),
        noise.keep(torch.empty(3, 3), 0.2),
        noise.categorical(torch.ones(4) / 4, 6),
    ]
    return [*drawn, noise.integers(9, 3), noise.permutation(7), torch.tensor(noise.seed())]


def _equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_equal_seeds_give_equal_streams_and_others_do_not() -> None:
    assert _equal(_everything(Noise.seeded(10)), _everything(Noise.seeded(10)))
    assert not torch.equal(Noise.seeded(10).normal(8), Noise.seeded(11).normal(8))
    assert torch.equal(Noise.seeded(2**63 - 1).normal(2), Noise.seeded(2**63 - 1).normal(2))


def test_a_restored_state_replays_the_stream() -> None:
    noise = Noise.seeded(12)
    noise.normal(17)
    state = noise.generator.get_state()
    first = _everything(noise)
    second = _everything(noise)
    noise.generator.set_state(state)
    assert _equal(first, _everything(noise))
    assert not _equal(first, second)


def test_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    _everything(Noise.seeded(13))
    assert torch.equal(before, torch.get_rng_state())
