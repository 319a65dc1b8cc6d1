"""The first two steps of every suite's rows against those on record: losses, the size of gradients, what comes of them.

Of a method without steps what comes of the fit. After two steps many a classifier gives all examples one answer: then losses,
gradients and the other outputs hold it.
Other tests say what each part should be; this one, that no step changes unseen: a dropout that is left out, a scale, a rate.
In double precision, but for SVHN's nets, whose convolutions would take four times as long.
After a wanted change: `AMM_GOLDEN=write python -m pytest -m "slow or not slow" tests/test_steps.py`, then read the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.methods import method_class
from bench.plan import build_config, trials
from bench.sources import SOURCES
from bench.suite import Trial, load_suite, names
from models.method import Batch, Data, Method, Spec
from models.noise import Noise

GOLDEN = Path(__file__).parent / "golden" / "steps"
EXAMPLES, BATCH, LABELLED = 24, 6, 4
WITHOUT_STEPS = 120  # examples of a method that fits all at once, to fifty components or ten neighbours
DOUBLE = 1e-5, 1e-5, 1e-9  # relative tolerance of the first step, of all that follows, and the least absolute one
SINGLE = 5e-3, 2e-2, 1e-6  # other processors add up in another order, and Adam's first moves follow signs
OF_SVHN = {"amm_k20", "lalnets", "samm", "improvedgan", "badgan", "ali", "triplegan"}
SLOW = {  # rows whose like the default tests see: of another size, or on the nets of digits
    "mnist_unsup": {
        *("amm_k20", "amm_k30", "amm_k20_works", "amm_k30_works", "amm_k30_draws", "amm_k30_draws_100"),
        *("amm_k10_given_y", "amm_k10_draws_100", "amm_k10_draws_wide", "amm_k10_works_draws_100"),
        *("aae_k30_appendix", "gmvae_k30", "vade_300"),
    },
    "ablation_mnist14": {row.row for row in load_suite("ablation_mnist14").rows if row.row.endswith("_20")},
    "svhn_semi": {"improvedgan", "badgan", "ali", "triplegan"},
}


def rows(suite: str) -> list[Trial]:
    """One trial of each row; on SVHN's nets, which take a second a step, one row of a kind."""
    first = trials(load_suite(suite), "paper", seeds=load_suite(suite).seeds[:1])
    return [trial for trial in first if trial.data != "svhn" or trial.row in OF_SVHN]


def first_steps(trial: Trial) -> dict[str, Any]:
    """The losses and moments of two steps on made-up images of different brightness, and what the method then answers."""
    source, noise = SOURCES[trial.data], Noise.seeded(3)
    cls, scale = method_class(trial.method), 1.0 if source.scale == 1 else 1 / 255
    n, steps = (EXAMPLES, 2) if cls.iterative else (WITHOUT_STEPS, 0)
    x = noise.uniform(n, *source.shape) ** (torch.arange(n) % 10 / 2).view(-1, 1, 1, 1)
    x = x if scale == 1 else (x * 255).round().to(torch.uint8)
    y = torch.arange(LABELLED) % source.n_classes
    labelled = (x[:LABELLED], y) if trial.labels else (None, None)
    data = Data(x, scale, noise, *labelled)
    method = cls(build_config(trial), Spec(source.name, source.shape, source.n_classes), noise)
    method.prepare(data)
    told = []
    for step in range(steps):
        index = torch.arange(step * BATCH, (step + 1) * BATCH)
        given = (data.take(torch.arange(LABELLED)), y) if trial.labels else (None, None)
        values = method.update(Batch(data.take(index), noise, *given, index)) | _moments(method)
        told.append(_rounded(values))
    inside = method.instruments(Batch(data.take(index), noise, *given, index)) if steps else {}
    method.eval()
    with torch.no_grad():
        method.finish(data)
        x = data.take(torch.arange(n))
        answers = {name: ids.tolist() for name, ids in method.predictions(x).items()}
        shown = ("embed", "reconstruct", "log_odds") if steps else ()  # a fit's axes have no sign
        made = {name: getattr(method, name)(x) for name in shown if hasattr(method, name)}
        if hasattr(method, "sample"):
            made["sample"] = method.sample(torch.arange(2) % trial.config.get("components", 2), noise)
    return {"steps": told, "inside": _rounded(inside), "made": _rounded(made), "answers": answers}


def _rounded(values: dict[str, Tensor]) -> dict[str, float]:
    """Numbers to six digits; of a tensor's, such as an image's, their mean with weights from 1 to 2, so that each has its own."""
    means = {name: (value.flatten() * torch.linspace(1, 2, value.numel())).mean() for name, value in values.items()}
    return {name: float(f"{mean.item():.6g}") for name, mean in sorted(means.items())}


def _moments(method: Method) -> dict[str, Tensor]:
    """The norm of each optimiser's first moments or momenta: after one step that of the gradient, but for a factor."""
    found = {}
    for name, optimizer in method.optimizers().items():
        kept = [state.get("exp_avg", state.get("momentum_buffer")) for state in optimizer.state.values()]
        found[f"moments of {name}"] = (
            torch.stack([m.double().square().sum() for m in kept if m is not None]).sum().sqrt()
        )
    return found


@pytest.mark.parametrize(
    ("suite", "slow"),
    [*((suite, False) for suite in names()), *(pytest.param(suite, True, marks=pytest.mark.slow) for suite in SLOW)],
)
def test_the_first_steps_are_those_on_record(suite: str, slow: bool, request: pytest.FixtureRequest) -> None:
    single = load_suite(suite).data == "svhn"
    if not single:
        request.getfixturevalue("double")
    of_suite = rows(suite)
    made = {trial.row: first_steps(trial) for trial in of_suite if slow == (trial.row in SLOW.get(suite, ()))}
    path = GOLDEN / f"{suite}.json"
    golden = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    writing = os.environ.get("AMM_GOLDEN") == "write"
    if writing:
        golden |= made
        path.parent.mkdir(exist_ok=True)
        lines = (f"{json.dumps(t.row)}: {json.dumps(golden[t.row])}" for t in of_suite if t.row in golden)
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        golden = json.loads(path.read_text(encoding="utf-8"))
    assert writing or golden.keys() == {trial.row for trial in of_suite}  # the slow rows are written after the others
    wrong = [row for row in made if not _alike(made[row], golden[row], SINGLE if single else DOUBLE)]
    assert made and not wrong, {row: (made[row], golden[row]) for row in wrong}


def _alike(made: dict[str, Any], golden: dict[str, Any], near: tuple[float, float, float]) -> bool:
    first, later, least = near
    sides = ([*found["steps"], found["inside"], found["made"]] for found in (made, golden))
    equal = (
        a == pytest.approx(b, rel=later if at else first, abs=least)
        for at, (a, b) in enumerate(zip(*sides, strict=True))
    )
    return made["answers"] == golden["answers"] and all(equal)
