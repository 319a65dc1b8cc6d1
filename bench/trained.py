"""A trained method from its record and the weights beside it (`--keep-weights`).

from bench.trained import load
model = load("results/runs/mnist_unsup/paper/amm_k10/seed00.json").method
clusters = model.predict(images)  # float [B, 1, 28, 28] in [0, 1]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import checkpoint, record
from bench.errors import UserError, unread
from bench.plan import as_planned_today, build_config, method_of
from bench.sources import SOURCES
from bench.suite import Trial
from bench.trainer import weights_digest
from models.method import Method, Spec
from models.noise import Noise


@dataclass(frozen=True)
class Trained:
    """A method in evaluation mode, the trial that trained it, its whole record, and what it drew at each scoring."""

    method: Method
    trial: Trial
    record: dict[str, Any]
    drawn: list[Tensor]  # uint8 [K, C, H, W] each


def load(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """The trained method whose record lies at `path`. UserError: no such record, no weights, or weights of another trial."""
    path = Path(path)
    found = record.read(path)
    weights = path.with_suffix(".weights")
    if not weights.exists():
        final = found["status"] in record.FINAL
        how = " and another --out, or move the record away first" if final else ""
        raise UserError(f"{weights}: no such file; run the trial with --keep-weights{how}")
    foreign = UserError(
        f"{weights}: damaged, or not of the record beside it; move both away and run the trial with --keep-weights"
    )
    try:
        state = checkpoint.read(weights)
    except OSError as error:
        raise unread(error, weights) from None
    if state is None or state.get("digest") != found["digest"] or not isinstance(state.get("module"), dict):
        raise foreign
    trial = as_planned_today(Trial.from_json(found["trial"]))
    source = SOURCES[trial.data]
    noise = Noise.seeded(trial.init_seed, device)
    method = method_of(trial)(build_config(trial), Spec(source.name, source.shape, source.n_classes), noise)
    try:
        method.load_state_dict(state["module"])
    except RuntimeError:
        raise UserError(
            f"{weights}: made by other code, whose networks differ from today's; check out the commit that {path} names, "
            "or run the trial again with --keep-weights and another --out"
        ) from None
    if weights_digest(method) != (found["result"] or {}).get("weights_sha256"):  # of another run of the same trial
        raise foreign
    return Trained(method.to(device).eval(), trial, found, state.get("drawn", []))
