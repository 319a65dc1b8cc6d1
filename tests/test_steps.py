"""The first two steps of every suite's rows against those on record: losses, the size of gradients, answers.

Other tests say what each part should be; this one, that no step changes unseen: a dropout that is left out, a scale, a rate.
After a wanted change: `AMM_GOLDEN=write python -m pytest tests/test_steps.py`, then read the diff.
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
REL = 1e-3, 2e-2  # other processors add up in another order, and Adam's first moves follow signs
EQUAL = 0.8  # of the answers: some are close calls
OF_SVHN = {"amm_k20", "lalnets", "samm", "improvedgan", "badgan", "ali", "triplegan"}
SLOW = {"ablation_mnist14"}


def rows(suite: str) -> list[Trial]:
    """One trial of each row that takes steps; on SVHN's nets, which take a second a step, one row of a kind."""
    found = [trial for trial in trials(load_suite(suite), "paper") if method_class(trial.method).iterative]
    first = [trial for trial in found if trial.seed == load_suite(suite).seeds[0]]
    return [trial for trial in first if trial.data != "svhn" or trial.row in OF_SVHN]


def first_steps(trial: Trial) -> dict[str, Any]:
    """The losses and moments of two steps on made-up images of different brightness, and what the method then answers."""
    source, noise = SOURCES[trial.data], Noise.seeded(3)
    scale = 1.0 if source.scale == 1 else 1 / 255
    x = noise.uniform(EXAMPLES, *source.shape) ** (torch.arange(EXAMPLES) % 10 / 2).view(-1, 1, 1, 1)
    x = x if scale == 1 else (x * 255).round().to(torch.uint8)
    y = torch.arange(LABELLED) % source.n_classes
    labelled = (x[:LABELLED], y) if trial.labels else (None, None)
    data = Data(x, scale, noise, *labelled)
    method = method_class(trial.method)(build_config(trial), Spec(source.name, source.shape, source.n_classes), noise)
    method.prepare(data)
    told = []
    for start in (0, BATCH):
        index = torch.arange(start, start + BATCH)
        given = (data.take(torch.arange(LABELLED)), y) if trial.labels else (None, None)
        values = method.update(Batch(data.take(index), noise, *given, index)) | _moments(method)
        told.append({name: float(f"{value.item():.6g}") for name, value in sorted(values.items())})
    method.eval()
    with torch.no_grad():
        method.finish(data)
        answers = {name: ids.tolist() for name, ids in method.predictions(data.take(torch.arange(EXAMPLES))).items()}
    return {"steps": told, "answers": answers}


def _moments(method: Method) -> dict[str, Tensor]:
    """The norm of each optimiser's first moments or momenta: after one step that of the gradient, but for a factor."""
    found = {}
    for name, optimizer in method.optimizers().items():
        kept = [state.get("exp_avg", state.get("momentum_buffer")) for state in optimizer.state.values()]
        found[f"moments of {name}"] = (
            torch.stack([m.double().square().sum() for m in kept if m is not None]).sum().sqrt()
        )
    return found


@pytest.mark.parametrize("suite", [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW)) for s in names()])
def test_the_first_steps_are_those_on_record(suite: str) -> None:
    made = {trial.row: first_steps(trial) for trial in rows(suite)}
    path = GOLDEN / f"{suite}.json"
    if os.environ.get("AMM_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        lines = (f"{json.dumps(row)}: {json.dumps(found)}" for row, found in made.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert made.keys() == golden.keys()
    wrong = [row for row in made if not _alike(made[row], golden[row])]
    assert not wrong, {row: (made[row], golden[row]) for row in wrong}


def _alike(made: dict[str, Any], golden: dict[str, Any]) -> bool:
    near = all(
        a == pytest.approx(b, rel=rel, abs=1e-6) for a, b, rel in zip(made["steps"], golden["steps"], REL, strict=True)
    )
    pairs = [
        (a, b)
        for name in golden["answers"]
        for a, b in zip(made["answers"][name], golden["answers"][name], strict=True)
    ]
    return near and sum(a == b for a, b in pairs) >= EQUAL * len(pairs)
