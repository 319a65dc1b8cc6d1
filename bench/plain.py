"""AMM's game (Algorithms 1 and 2) as a careful user would write it in plain PyTorch, for `bench.speed`.

It is the outside comparison, so it shares no code with `models`: PyTorch's modules (`bench.plain_nets`) with their default
biases, memory layout and dropout, the global random state, DataLoaders, binary cross-entropy on logits, and separate passes
of D for each loss. D is frozen during the generators' pass, which saves its useless weight gradients; many a user would not
do so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.plain_nets import NETS, prior
from bench.suite import Trial

Tuple3 = tuple[Tensor, Tensor, Tensor]  # x, y, z

METHODS = ("models.amm:AMM", "models.samm:SAMM")
KNOWN: dict[str, tuple[Any, ...]] = {  # what a trial's config may say; `Config` reads the numbers and some of these
    "nets": tuple(NETS),
    "factorisation": (7,),
    "prior": ("learned", "learned_variance", "fixed"),
    "y_sample": ("softmax",),
    "y_draws": (1,),
    "y_reads": ("features",),
    "decoder_y": ("linear",),
    "penalty": ("gradient",),
    "penalty_between": ("sides",),
    "penalty_norm": ("joint",),
    "penalty_y": (1.0,),
    "penalty_on": ("logit",),
    "y_log_variance": (0.0,),
    "y_noise": ("learned",),
    "average_rate": (0.0,),
    "g_dropout": (1.0,),
    "d_dropout": (1.0,),
    "schedule": ("simultaneous", "alternating"),
    "d_steps": (1,),
    "saturating": (False,),
    "beta1": (0.5,),
    "beta2": (0.999,),
    "momentum": (0.1,),
    "pool_first": (False,),
    "p_y": ("labels", "uniform"),
    "discriminators": ("one",),
}


# data


class Images(Dataset[Tensor]):
    """Stored examples, [N, C, H, W], each served as float, multiplied by `scale`."""

    def __init__(self, x: Tensor, scale: float) -> None:
        self.x, self.scale = x, scale

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index].float() * self.scale


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """The same with their classes, int64 [N]."""

    def __init__(self, x: Tensor, y: Tensor, scale: float) -> None:
        self.images, self.y = Images(x, scale), y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.y[index]


def loader(x: Tensor, batch: int = 100, scale: float = 1 / 255) -> DataLoader[Tensor]:
    """Shuffled batches of stored examples; an incomplete last one is left out."""
    return DataLoader(Images(x, scale), batch_size=batch, shuffle=True, drop_last=True)


def labelled_loader(
    x: Tensor, y: Tensor, examples: int, batch: int = 100, scale: float = 1 / 255
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of stored examples and their classes for an epoch of `examples`: one random order of all after another."""
    labelled = LabelledImages(x, y, scale)
    return DataLoader(labelled, batch, sampler=RandomSampler(labelled, num_samples=examples), drop_last=True)


def batches(
    x: Tensor,
    batch: int = 100,
    scale: float = 1 / 255,
    x_labelled: Tensor | None = None,
    y_labelled: Tensor | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """What one step after another is given, without end: (x,), or (x, x_labelled, y_labelled)."""
    unlabelled = loader(x, batch, scale)
    if x_labelled is None or y_labelled is None:
        while True:
            yield from zip(unlabelled, strict=True)
    labelled = labelled_loader(x_labelled, y_labelled, len(x), batch, scale)
    while True:
        yield from ((free, *given) for free, given in zip(unlabelled, labelled, strict=True))


# losses


def discriminator_loss(logit_q: Tensor, logit_p: Tensor) -> Tensor:
    """D calls q (encoder) real and p (decoder) fake."""
    real = F.binary_cross_entropy_with_logits(logit_q, torch.ones_like(logit_q))
    return real + F.binary_cross_entropy_with_logits(logit_p, torch.zeros_like(logit_p))


def generator_loss(logit_q: Tensor, logit_p: Tensor) -> Tensor:
    """The same with the labels swapped."""
    return discriminator_loss(logit_p, logit_q)


def gradient_penalty(discriminator: nn.Module, q: Tuple3, p: Tuple3) -> Tensor:
    """Eq. 18: (|gradient of D| - 1)² at random points between pairs of tuples, one norm over x, y and z together."""
    u = torch.rand(len(q[0]), device=q[0].device)
    points = [_between(a, b, u).requires_grad_() for a, b in zip(q, p, strict=True)]
    gradients = torch.autograd.grad(discriminator(*points).sum(), points, create_graph=True)
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
    return ((torch.sqrt(flat.square().sum(1) + 1e-12) - 1) ** 2).mean()


def _between(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    u = u.view(-1, *[1] * (a.ndim - 1))
    return u * a.detach() + (1 - u) * b.detach()


# the game


@dataclass(frozen=True)
class Config:
    """The knobs of a trial that the game reads; `p_y` is None for AMM, which learns without labels."""

    nets: str
    components: int
    prior: str
    separation: float
    penalty_weight: float
    penalty_dropout: bool
    schedule: str
    learning_rate: float
    d_learning_rate: float | None
    init_std: float
    p_y: str | None = None


READ = {item.name for item in fields(Config)}


class Game(nn.Module):
    """The four players, two Adams, and one step of all of them.

    Args:
        y_labelled: classes of the labelled examples, int64 [N], whose frequencies are p(y) if `config` says so; without
            them p(y) is uniform.
    """

    p_y: Tensor

    def __init__(self, config: Config, y_labelled: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.k = config, config.components
        counted = y_labelled if config.p_y == "labels" else None
        count = torch.ones(self.k) if counted is None else torch.bincount(counted, minlength=self.k)
        self.register_buffer("p_y", count / count.sum())

        nets = NETS[config.nets](self.k)
        self.encoder, self.prior = nets.encoder, prior(config.prior, nets, self.k, config.separation)
        self.decoder, self.discriminator = nets.decoder, nets.discriminator
        for module in self.modules():
            _initialise(module, config.init_std)

        betas = (0.5, 0.999)
        d_learning_rate = config.learning_rate if config.d_learning_rate is None else config.d_learning_rate
        generators = [p for net in (self.encoder, self.prior, self.decoder) for p in net.parameters()]
        self.g_adam = torch.optim.Adam(generators, config.learning_rate, betas)
        self.d_adam = torch.optim.Adam(self.discriminator.parameters(), d_learning_rate, betas)

    def step(self, x: Tensor, *labelled: Tensor) -> tuple[Tensor, Tensor]:
        """All players move on x, [B, C, H, W], at once or D before the generators.

        Args:
            labelled: for SAMM further examples [M, C, H, W] and their classes, int64 [M].

        Returns:
            The losses of D (with the penalty) and of the generators.
        """
        if self.config.schedule == "alternating":
            with torch.no_grad():
                q, p = self.tuples(x, *labelled)
            d_loss = self._d_gradients(q, p)
            self.d_adam.step()
            g_loss = self._g_gradients(*self.tuples(x, *labelled))
            self.g_adam.step()
        else:
            q, p = self.tuples(x, *labelled)
            g_loss, d_loss = self._g_gradients(q, p), self._d_gradients(q, p)
            self.d_adam.step()
            self.g_adam.step()
        return d_loss, g_loss

    def tuples(self, x: Tensor, *labelled: Tensor) -> tuple[Tuple3, Tuple3]:
        """(x, y, z) of the encoder's side and as many of the decoder's; with labels both games of Algorithm 2 in one batch."""
        assert len(labelled) == (0 if self.config.p_y is None else 2), (
            "SAMM learns from labelled examples, AMM from none"
        )
        y, z = self.encoder(x)
        if labelled:
            x_labelled, y_labelled = labelled
            x = torch.cat([x, x_labelled])
            y = torch.cat([y, self._one_hot(y_labelled)])
            z = torch.cat([z, self.encoder.infer_z(x_labelled)])
        y_prior = self._one_hot(torch.multinomial(self.p_y, len(x), replacement=True))
        z_prior = self.prior(y_prior)
        return (x, y, z), (self.decoder(y_prior, z_prior), y_prior, z_prior)

    def _one_hot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.k).float()

    def _g_gradients(self, q: Tuple3, p: Tuple3) -> Tensor:
        """The generators' loss, with its gradients in their parameters."""
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self.discriminator(*q), self.discriminator(*p))
        self.g_adam.zero_grad()
        loss.backward()
        self.discriminator.requires_grad_(True)
        return loss.detach()

    def _d_gradients(self, q: Tuple3, p: Tuple3) -> Tensor:
        """D's loss and penalty, with their gradients in its parameters."""
        logit_q = self.discriminator(*(part.detach() for part in q))
        logit_p = self.discriminator(*(part.detach() for part in p))
        loss = discriminator_loss(logit_q, logit_p) + self.config.penalty_weight * self._penalty(q, p)
        self.d_adam.zero_grad()
        loss.backward()
        return loss.detach()

    def _penalty(self, q: Tuple3, p: Tuple3) -> Tensor:
        if self.config.penalty_dropout:
            return gradient_penalty(self.discriminator, q, p)
        self.discriminator.eval()  # which leaves out dropout alone, as D has no batch normalisation
        penalty = gradient_penalty(self.discriminator, q, p)
        self.discriminator.train()
        return penalty


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, std)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


# trials


def game(trial: Trial, y_labelled: Tensor | None = None) -> Game:
    """The plain game of a trial, for SAMM with p(y) from `y_labelled` as in `Game`; ValueError if there is none."""
    if missing := _missing(trial):
        raise ValueError(f"no plain version of {missing}")
    return Game(Config(**{key: value for key, value in trial.config.items() if key in READ}), y_labelled)


def knows(trial: Trial) -> bool:
    """Whether there is a plain version of the trial."""
    return not _missing(trial)


def _missing(trial: Trial) -> str:
    """The first thing in a trial that has no plain version, or ""."""
    if trial.method not in METHODS:
        return trial.method
    if trial.precision != "fp32":
        return f"precision: {trial.precision}"
    if trial.batch_labelled is not None:
        return f"batch_labelled: {trial.batch_labelled}"
    free = READ - set(KNOWN)
    return next((f"{k}: {v}" for k, v in trial.config.items() if k not in free and v not in KNOWN.get(k, ())), "")
