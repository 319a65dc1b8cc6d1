"""What a run of AMM looks like from inside: the game's state on one batch, read whenever the bench scores.

Nothing here changes the run: it draws from a stream of its own, and running statistics and weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from models.adversarial import discriminator_loss, slope_norms
from models.method import Batch
from models.nets import running_statistics_kept

if TYPE_CHECKING:
    from models.amm import AMM, Tuple3


def read(model: AMM, batch: Batch) -> dict[str, Tensor]:
    """Scalars by name, of one batch in training mode.

    overlap: how often D finds a tuple of p more like q's than a tuple of q; 0 tells all apart, 1/2 none.
    logit_q_std, logit_p_std: spread of D's logits.
    slope, slope_std: mean and spread of ‖∇ logit‖ between q's and p's tuples, which Eq. 18 wants to be 1, with dropout where
        the penalty has it, whatever its variant. That penalty is at least the square of the spread; the least over all
        scales of D is slope_std² / (slope² + slope_std²). slope_clean_std: the spread without dropout.
    slope_x, slope_y, slope_z: mean ‖∇ logit‖ of each input, over both sides.
    swap_y, swap_z: what D makes of each: mean change, in either direction, of its logit of a tuple of q whose y, or z, is
        replaced by another example's, without dropout. 0 means that D does not read it.
    redraw_y, redraw_z: the same for the decoder and the tuples of p: mean squared change of a pixel. Where redraw_z is large and
        redraw_y small, z decides what is drawn and y is free to disagree with it.
    gradient_d, gradient_encoder, gradient_decoder, gradient_prior: norm of the gradient of each player's loss, D's without
        the penalty.
    entropy_y, entropy_y_given_x: of the mean of ŷ, and the mean over examples of that of a drawn ŷ, in nats. The second is how
        soft ŷ is, not how sure q(y | x) is: noise makes a crisp ŷ too.
    information_y: what y tells about x under q, in nats: the entropy of q(y) less the mean one of q(y | x).
    noise_y: mean σ of Eq. 8, which a few large ones can carry.
    means_apart: the smallest distance between two component means.
    reconstruction: mean squared error of a pixel, of `AMM.reconstruct` by the encoders that learn and the batch's statistics.
    """
    with running_statistics_kept(model), torch.enable_grad():
        q, p = model.tuples(batch)
        found = _game(model, q, p, batch) | _penalty(model, q, p, batch) | _latent(model, q[1][: len(batch.x)], batch)
        found |= _heeded(model, q, p)
    return {name: value.detach() for name, value in found.items()}


def _game(model: AMM, q: Tuple3, p: Tuple3, batch: Batch) -> dict[str, Tensor]:
    joint = [torch.cat(pair) for pair in zip(q, p, strict=True)]
    logit = model.logit(joint, batch.noise)
    logit_q, logit_p = logit.chunk(2)
    slopes = torch.autograd.grad(logit.sum(), [t for t in joint if t.requires_grad], retain_graph=True)
    found = {"overlap": (logit_p[:, None] > logit_q).float().mean()}
    found |= {"logit_q_std": logit_q.std(), "logit_p_std": logit_p.std()}
    found |= {f"slope_{name}": slope.flatten(1).norm(dim=1).mean() for name, slope in zip("xyz", slopes, strict=True)}
    l_q, l_p = model.generator_losses(logit_q, logit_p)
    for name, parameters in model.players().items():
        loss = discriminator_loss(logit_q, logit_p) if name == "d" else l_q + l_p
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found[f"gradient_{name}"] = _norm(gradients)
    return found


def _penalty(model: AMM, q: Tuple3, p: Tuple3, batch: Batch) -> dict[str, Tensor]:
    u = batch.noise.uniform(len(q[0]))
    dropout = batch.noise if model.config.penalty_dropout else None
    slope = slope_norms(lambda *xyz: model.logit(xyz, dropout), q, p, u)
    clean = slope_norms(lambda *xyz: model.logit(xyz, None), q, p, u)
    return {"slope": slope.mean(), "slope_std": slope.std(), "slope_clean_std": clean.std()}


@torch.no_grad()
def _heeded(model: AMM, q: Tuple3, p: Tuple3) -> dict[str, Tensor]:
    (x, y, z), (_, code_y, code_z) = q, p
    logit, drawn = model.logit(q, None), model.decoder(None, y=code_y, z=code_z)["x"]
    return {
        "swap_y": F.l1_loss(model.logit((x, y.roll(1, 0), z), None), logit),
        "swap_z": F.l1_loss(model.logit((x, y, z.roll(1, 0)), None), logit),
        "redraw_y": F.mse_loss(model.decoder(None, y=code_y.roll(1, 0), z=code_z)["x"], drawn),
        "redraw_z": F.mse_loss(model.decoder(None, y=code_y, z=code_z.roll(1, 0))["x"], drawn),
    }


@torch.no_grad()
def _latent(model: AMM, y: Tensor, batch: Batch) -> dict[str, Tensor]:
    y = y.flatten(1)
    means, _ = model.prior.moments()
    found = {"entropy_y": _entropy(y.mean(0)), "entropy_y_given_x": _entropy(y).mean()}
    h = model.encode(batch.x, None)
    q = model.probabilities(h)
    found |= {"information_y": _entropy(q.mean(0)) - _entropy(q).mean(), "noise_y": model.noise_y(h).mean()}
    if len(means) > 1:
        found["means_apart"] = F.pdist(means).min()
    return found | {"reconstruction": F.mse_loss(model.decoded(h), batch.x)}


def _entropy(p: Tensor) -> Tensor:
    """-Σ p log p over the last dimension, in nats."""
    return torch.special.entr(p).sum(-1)


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
