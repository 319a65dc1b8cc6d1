"""What AMM shows of itself while it runs: each reading against its definition, and none changes the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.suite import Trial
from bench.trainer import Run, weights_digest
from models import instruments
from models.amm import AMM, AMMConfig
from models.method import Batch, Spec
from models.noise import Noise
from models.samm import SAMM, SAMMConfig

CPU = torch.device("cpu")
SPEC = Spec("digits", (1, 8, 8), 10)
Make = Callable[..., Trial]


def _model(**knobs: object) -> AMM:
    config = AMMConfig(nets="digits", init_std=0.1, **knobs)  # type: ignore[arg-type]
    return AMM(config, SPEC, Noise.seeded(0))


def _batch(n: int = 40) -> Batch:
    return Batch(Noise.seeded(1).uniform(n, 1, 8, 8), Noise.seeded(2))


@pytest.mark.parametrize("factorisation", [6, 7, 15])
@pytest.mark.parametrize("prior", ["learned", "learned_variance", "fixed", "standard"])
def test_every_reading_is_finite_and_nothing_moves(factorisation: int, prior: str) -> None:
    model = _model(factorisation=factorisation, prior=prior)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    readings = model.instruments(_batch())
    assert all(math.isfinite(float(value)) for value in readings.values())
    assert ("gradient_prior" in readings) == prior.startswith("learned")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_samm_reads_both_games() -> None:
    model = SAMM(SAMMConfig(nets="digits", init_std=0.1), SPEC, Noise.seeded(0))
    batch = _batch()
    labelled = Batch(batch.x, batch.noise, batch.x, torch.arange(40) % 10)
    readings = model.instruments(labelled)
    assert 0 <= float(readings["overlap"]) <= 1
    assert float(readings["entropy_y"]) < math.log(10) + 1e-6


def test_overlap_counts_pairs_on_the_wrong_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()

    def logit(xyz: list[Tensor], noise: Noise | None) -> Tensor:
        """D as a line through x alone, which is brighter on the side of q."""
        return sum(part.flatten(1).sum(1) * weight for part, weight in zip(xyz, (1.0, 0.0, 0.0), strict=True))

    monkeypatch.setattr(model, "logit", logit)
    bright, dim = torch.full((4, 1, 8, 8), 0.9), torch.full((4, 1, 8, 8), 0.1, requires_grad=True)
    y, z = torch.full((4, 10, 1, 1), 0.1, requires_grad=True), torch.zeros(4, 16, 1, 1, requires_grad=True)
    monkeypatch.setattr(model, "tuples", lambda batch: ((bright, y, z), (dim, y, z)))
    monkeypatch.setattr(model, "players", lambda: {})
    readings = model.instruments(_batch(4))
    assert float(readings["overlap"]) == 0
    assert float(readings["logit_q_std"]) == 0
    # ∇ logit is 1 in each of 64 pixels, everywhere, with or without dropout
    assert float(readings["slope"]) == pytest.approx(8, rel=1e-5)
    assert float(readings["slope_x"]) == pytest.approx(8, rel=1e-5)
    assert [float(readings[name]) for name in ("slope_y", "slope_z", "slope_std", "slope_clean_std")] == [0] * 4
    # D reads neither y nor z
    assert float(readings["swap_y"]) == float(readings["swap_z"]) == 0
    # y is uniform for every example: the entropy of its mean is that of each, and it tells nothing about x
    assert float(readings["entropy_y"]) == pytest.approx(math.log(10), rel=1e-5)
    assert float(readings["entropy_y_given_x"]) == pytest.approx(math.log(10), rel=1e-5)

    monkeypatch.setattr(model, "tuples", lambda batch: ((dim, y, z), (bright, y, z)))
    assert float(model.instruments(_batch(4))["overlap"]) == 1


def test_gradient_norms_are_those_of_the_losses() -> None:
    """Without dropout, noise of ŷ and ẑ the same numbers come from the losses by hand."""
    model = _model(prior="fixed", penalty="none")
    readings = model.instruments(_batch())
    batch = _batch()
    q, p = model.tuples(batch)
    logit_q, logit_p = model.logits(q, p, batch.noise)
    softplus = torch.nn.functional.softplus
    players = model.players()
    for loss, names in (
        (softplus(-logit_q).mean() + softplus(logit_p).mean(), ["d"]),
        (
            softplus(logit_q).mean() + softplus(-logit_p).mean(),
            ["encoder", "decoder"],
        ),  # Eqs. 13 and 14, not saturating
    ):
        for name in names:
            found = torch.autograd.grad(loss, players[name], retain_graph=True, allow_unused=True)
            by_hand = torch.cat([gradient.flatten() for gradient in found if gradient is not None]).norm()
            assert float(readings[f"gradient_{name}"]) == pytest.approx(float(by_hand), rel=1e-4), name
    assert float(readings["means_apart"]) == pytest.approx(4 * math.sqrt(2), rel=1e-6)


def test_the_means_apart_are_the_nearest_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(prior="fixed", penalty="none")
    means = torch.arange(10.0)[:, None] ** 2 * torch.eye(1, 16)
    monkeypatch.setattr(model.prior, "moments", lambda: (means, torch.ones(10, 16)))
    assert float(model.instruments(_batch())["means_apart"]) == 1


@pytest.mark.parametrize("dropout", [True, False])
def test_the_slope_is_read_under_dropout_as_the_penalty_takes_it(dropout: bool) -> None:
    model = AMM(
        AMMConfig(nets="mnist14", init_std=0.1, penalty_dropout=dropout),
        Spec("mnist14", (1, 14, 14), 10),
        Noise.seeded(0),
    )
    readings = model.instruments(Batch(Noise.seeded(1).uniform(8, 1, 14, 14), Noise.seeded(2)))
    assert (float(readings["slope_std"]) == float(readings["slope_clean_std"])) != dropout


def test_what_y_tells_about_x_leaves_out_what_noise_decides() -> None:
    """A crisp y that noise alone decides tells nothing; one that the means decide tells all."""
    model = _model(y_noise="fixed", y_log_variance=8.0)
    noisy = model.instruments(_batch())
    assert float(noisy["noise_y"]) == pytest.approx(math.exp(4), rel=1e-5)
    assert float(noisy["entropy_y_given_x"]) < 0.1 and float(noisy["information_y"]) < 0.02
    sure = _model(y_noise="fixed", y_log_variance=-30.0)
    with torch.no_grad():
        sure.encoder.layers["yμ"].weight.mul_(1e4)
    readings = sure.instruments(_batch())
    assert float(readings["information_y"]) > 0.3


@pytest.mark.parametrize("kept", ["y", "z"])
def test_exchanges_show_which_code_is_read(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    """D and decoder that read one code alone, as known functions: the other's exchange changes nothing."""
    model = _model()
    y = torch.eye(10)[torch.arange(40) % 10][:, :, None, None]
    z = Noise.seeded(3).normal(40, 16, 1, 1)
    code = {"y": y, "z": z}[kept].flatten(1)
    score, value = torch.arange(float(code.shape[1])), code[:, :1, None, None].expand(-1, 1, 8, 8)

    def drawn(noise: Noise | None, **codes: Tensor) -> dict[str, Tensor]:
        return {"x": codes[kept][:, :1].expand(-1, 1, 8, 8)}

    monkeypatch.setattr(model, "logit", lambda xyz, noise: xyz["xyz".index(kept)].flatten(1) @ score)
    monkeypatch.setattr(model.decoder, "forward", drawn)
    readings = instruments._heeded(model, (value, y, z), (value, y, z))
    other = "z" if kept == "y" else "y"
    assert float(readings[f"swap_{other}"]) == float(readings[f"redraw_{other}"]) == 0
    moved = code - code.roll(1, 0)
    assert float(readings[f"swap_{kept}"]) == pytest.approx(float((moved @ score).abs().mean()), rel=1e-5)
    assert float(readings[f"redraw_{kept}"]) == pytest.approx(float(moved[:, 0].square().mean()), rel=1e-5)


def test_one_component_has_no_distance() -> None:
    config = AMMConfig(nets="digits", components=1, prior="standard")
    readings = AMM(config, SPEC, Noise.seeded(0)).instruments(_batch())
    assert "means_apart" not in readings and float(readings["entropy_y"]) == 0


def test_readings_change_no_result(make_trial: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"method": "models.amm:AMM", "data": "digits", "steps": 6, "validate": 2, "batch": 20}
    config = {"nets": "digits", "components": 10}

    def finished() -> Run:
        run = Run(replace(make_trial(**fields), config=config), CPU)
        run.advance(lambda: False, lambda step, steps: None, lambda run: None)
        return run

    read = finished()
    assert [set(point["instruments"]) >= {"overlap", "slope_z"} for point in read.curve] == [True] * 3
    again = finished()
    assert again.curve == read.curve
    seen = list[tuple[bool, int]]()

    def instruments(self: AMM, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append((self.training, batch.noise.seed()))
        return {"x": torch.tensor(math.nan)}

    monkeypatch.setattr(AMM, "instruments", instruments)
    other = finished()
    assert all(training for training, _ in seen) and len({seed for _, seed in seen}) == 3  # noise of its own each time
    assert weights_digest(other.method) == weights_digest(read.method)
    assert [point["instruments"] for point in other.curve] == [{}] * 3  # what is not finite is left out
