"""AMM, the Adversarially Learned Mixture Model: Algorithm 1.

Two joint distributions are matched in one game. Inference side: x from the data, y and z from the encoder. Synthesis side:
y from p(y), z from p(z | y), x from the decoder. The discriminator sees tuples (x, y, z).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from models import instruments
from models.adversarial import discriminator_loss, gradient_penalty, inference_loss, roth_penalty, synthesis_loss
from models.latent import expected_softmax, one_hot, straight_through
from models.layers import Layer, Net
from models.method import Batch, Data, Method, Spec
from models.nets import Averaged, refit_statistics
from models.noise import Noise
from models.prior import Kind, build_prior
from models.tables import GivenZ, leaky_y

Tuple3 = tuple[Tensor, Tensor, Tensor]  # x, y, z
DRAWS = 1024  # of ε for the expectation over Eq. 8's noise in an answer
STATISTICS = 10  # batches of a thousand training examples that give averaged encoders their running statistics
TINY = 1e-30  # a slope of D's loss below which the ratio of the players' slopes would overflow


@dataclass(frozen=True)
class AMMConfig:
    """Knobs of AMM; where the paper is silent the default follows ALI (Dumoulin et al., 2016) unless said otherwise."""

    nets: Literal["mnist", "svhn", "digits", "plane", "mnist14"] = "mnist"  # layer tables: models/<nets>.py
    components: int = 10  # K (section 4.2)
    factorisation: Literal[6, 7, 15] = 7  # 7 as Tables 3 and 7 wire it; 6 as Algorithm 1 writes it; 15: y reads x alone
    y_reads: Literal["features", "z"] = "features"  # of the z-branch: Table 3; or the z that was drawn, as Eq. 7 says
    decoder_y: Literal["linear", "leaky"] = "linear"  # Tables 5 and 9: its sums have no activation; leaky: z's, ours
    prior: Kind = "learned"  # p(z | y), Table 4
    separation: float = 4.0  # of the means from the origin: prior "fixed", and "separated" at the start; ours
    y_sample: Literal["softmax", "straight_through"] = "softmax"  # what D sees of q(y | x); Eq. 9
    penalty: Literal["gradient", "roth", "none"] = "gradient"  # Eq. 18; Roth et al. (2017), whose γ is the weight
    penalty_weight: float = 10.0  # λ for MNIST (section 4.1)
    penalty_dropout: bool = True  # D keeps its dropout while the penalty is taken; not said in the paper
    penalty_between: Literal["sides", "origins"] = "sides"  # q's and p's tuples, which D compares; origins: section 4.1
    penalty_norm: Literal["joint", "each"] = "joint"  # section 4.1: one norm of the gradient in x, y and z; or one each
    penalty_y: float = 1.0  # length of y in that norm: at 5, D may be five times as steep in y; ours
    penalty_on: Literal["logit", "probability"] = "logit"  # D in Eq. 18; Gulrajani et al. have the logit
    schedule: Literal["simultaneous", "alternating"] = "simultaneous"  # Algorithm 1: all losses before any update; ALI
    d_steps: int = 1  # updates of D per update of the generators, alternating only; Algorithm 1 has one
    saturating: bool = False  # generators minimise Eq. 13 itself instead of Algorithm 2's losses
    learning_rate: float = 2e-4  # α (section 4)
    d_learning_rate: float | None = None  # of D; α unless given
    beta1: float = 0.5  # section 4
    beta2: float = 0.999  # Kingma & Ba; not said in the paper
    momentum: float = 0.1  # of running statistics; PyTorch's default
    init_std: float = 0.02  # kernels ~ N(0, init_std²) (section 4)
    y_log_variance: float = 0.0  # where the bias of yσ starts, which no data has shaped yet; 0 is noise of std 1
    y_draws: int = 1  # of ε, whose softmaxes are averaged to ŷ; Eqs. 8 and 9 print one, see `encode`
    y_noise: Literal["learned", "fixed"] = "learned"  # fixed: the log-variance of Eq. 8 stays y_log_variance, ours
    g_dropout: float = 1.0  # factor on the tables' probabilities in encoder, prior and decoder; 0 leaves dropout out
    d_dropout: float = 1.0  # the same in D
    average_rate: float = 0.0  # at which the encoders that answer follow those that learn; 0: they are the same
    pool_first: bool = False  # pool before normalisation and activation, as the columns stand in Tables 7 and 10

    def __post_init__(self) -> None:
        for name in ("d_steps", "y_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.schedule == "simultaneous" and self.d_steps != 1:
            raise ValueError("d_steps other than 1 needs schedule: alternating")
        usuals = {"penalty_between": "sides", "penalty_norm": "joint", "penalty_y": 1.0, "penalty_on": "logit"}
        for name, usual in usuals.items():
            if getattr(self, name) != usual and self.penalty != "gradient":
                raise ValueError(f"{name} other than {usual} needs penalty: gradient")
        if self.components == 1 and self.prior.startswith("learned"):
            # one Gaussian has nothing to be apart from, and Table 4 normalises over y, which is a constant then
            raise ValueError(f"prior: {self.prior} is for 2 components or more; use prior: standard")
        if self.y_reads == "z" and self.factorisation != 7:
            raise ValueError(f"y_reads: z needs factorisation: 7, got {self.factorisation}")
        if self.separation != 4.0 and self.prior not in ("fixed", "separated"):
            raise ValueError(f"separation other than 4.0 needs prior: fixed or separated, got {self.prior}")
        if self.pool_first and self.nets != "svhn":
            raise ValueError(f"pool_first needs nets: svhn, the ones that pool, got {self.nets}")
        if self.penalty_y <= 0:
            raise ValueError(f"penalty_y must be above 0, got {self.penalty_y}")
        if not 0 <= self.average_rate <= 1:
            raise ValueError(f"average_rate must lie between 0 and 1, got {self.average_rate}")


class AMM(Method):
    """Algorithm 1, with the penalty of Eq. 18 in the loss of D."""

    Config = AMMConfig

    def __init__(self, config: AMMConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        nets = importlib.import_module(f"models.{c.nets}")
        options: dict[str, Any] = {"momentum": c.momentum, "std": c.init_std, "pool_first": c.pool_first}
        options["dropout"] = c.g_dropout
        k = c.components

        if c.factorisation == 6:  # Gy(x) and Gz(x, Gy(x))
            self.encoder_y = Net(nets.ENCODER_Y, k, noise, **options)
            self.encoder_z = Net(nets.ENCODER_Z, k, noise, **options)
        else:
            table = nets.ENCODER if c.factorisation == 7 else nets.ENCODER_15
            self.encoder = Net(GivenZ(**vars(table)) if c.y_reads == "z" else table, k, noise, **options)
        encoders = dict(self.named_children())  # the first has the rows of y
        self.prior = build_prior(c.prior, nets, k, c.separation, noise, **options)  # Gz(y)
        decoder = leaky_y(nets.DECODER) if c.decoder_y == "leaky" else nets.DECODER
        self.decoder = Net(decoder, k, noise, **options)  # Gx(y, Gz(y))
        self.discriminator = Net(nets.DISCRIMINATOR, k, noise, **options | {"dropout": c.d_dropout})

        with torch.no_grad():
            spread = cast(Layer, cast(Net, next(iter(encoders.values()))).layers["yσ"])
            cast(Tensor, spread.bias).fill_(c.y_log_variance)
            if c.y_noise == "fixed":
                cast(Tensor, spread.weight).zero_()
        spread.requires_grad_(c.y_noise == "learned")
        averages = {name: Averaged(net, c.average_rate) for name, net in encoders.items() if c.average_rate}
        self.averages = nn.ModuleDict(averages)

        self.d_parameters = list(self.discriminator.parameters())
        generators = (p for name, p in self.named_parameters() if not name.startswith("discriminator"))
        self.g_parameters = [p for p in generators if p.requires_grad]
        betas = (c.beta1, c.beta2)
        d_learning_rate = c.learning_rate if c.d_learning_rate is None else c.d_learning_rate
        self.d_adam = torch.optim.Adam(self.d_parameters, d_learning_rate, betas, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, c.learning_rate, betas, fused=True)

    # the two sides of the game

    def encode(self, x: Tensor, noise: Noise | None) -> dict[str, Tensor]:
        """Rows yμ, y, zμ, z of q(y, z | x), each [B, channels, 1, 1]; without `noise`, y = softmax(μ) and z = μ.

        Under Eq. 6 z is drawn given ŷ, as Algorithm 1 has it; Eq. 10 prints h_y(x), its logits. With several `y_draws` ŷ is the
        mean of their softmaxes, by which Kendall & Gal (2017, Eq. 12), whom section 2.2 follows, classify under noise: a
        large σ makes it soft instead of crisp. `y_sample: straight_through` keeps its largest entry alone, without noise too.
        """
        h: dict[str, Tensor] = self._y_net()(noise, x=x)
        if self.config.y_draws > 1 and noise is not None:
            draws = noise.normal(len(x), self.config.y_draws, self.config.components)
            h["y"] = expected_softmax(h["yμ"].flatten(1), self.noise_y(h), draws)[:, :, None, None]
        if self.config.y_sample == "straight_through":
            h["y"] = straight_through(h["y"])
        return self._encoder("encoder_z")(noise, x=x, y=h["y"]) | h if self.config.factorisation == 6 else h

    def _encoder(self, name: str) -> Net:
        """The net of this name, or its average where one is kept and an answer is wanted."""
        averaged = self.averages[name].net if self.averages and not self.training else getattr(self, name)
        return cast(Net, averaged)

    def _y_net(self) -> Net:
        """The encoder with the rows of y."""
        return self._encoder("encoder_y" if self.config.factorisation == 6 else "encoder")

    def inferred(self, x: Tensor, noise: Noise) -> Tuple3:
        """(x, ŷ, ẑ) ~ q."""
        h = self.encode(x, noise)
        return x, h["y"], h["z"]

    def synthesised(self, n: int, noise: Noise) -> Tuple3:
        """(x̃, y, z) ~ p(y) p(z | y) p(x | y, z), Eq. 11."""
        category = self.prior.sample_y(n, noise)
        z = self.prior.sample_z(category, noise)
        y = one_hot(category, self.config.components)[:, :, None, None]
        return self.decoder(noise, y=y, z=z)["x"], y, z

    def tuples(self, batch: Batch) -> tuple[Tuple3, Tuple3]:
        """What the game compares: as many tuples of the inference side, q, as of the synthesis side, p."""
        return self.inferred(batch.x, batch.noise), self.synthesised(len(batch.x), batch.noise)

    # the game

    def logit(self, xyz: Sequence[Tensor], noise: Noise | None) -> Tensor:
        """D's logit of tuples (x, y, z), [B]."""
        return judged(self.discriminator, xyz, noise)

    def logits(self, q: Tuple3, p: Tuple3, noise: Noise) -> tuple[Tensor, Tensor]:
        """D's logits of both sides, [B] each, in one pass: D has no batch normalisation, so its rows are independent."""
        logit_q, logit_p = self.logit(_joint(q, p), noise).chunk(2)
        return logit_q, logit_p

    def penalty(self, q: Tuple3, p: Tuple3, noise: Noise) -> Tensor:
        """λ times Eq. 18, or the regulariser that the Config names."""
        c = self.config
        if c.penalty_between == "origins":  # real or prior samples (x, y, z), synthesised or inferred samples (x̃, ŷ, ẑ)
            q, p = (q[0], *p[1:]), (p[0], *q[1:])
        dropout = noise if c.penalty_dropout else None

        def logit(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            value = self.logit((x, y if c.penalty_y == 1 else y / c.penalty_y, z), dropout)
            return value if c.penalty_on == "logit" else torch.sigmoid(value)

        if c.penalty == "gradient":
            if c.penalty_y != 1:
                q, p = ((x, c.penalty_y * y, z) for x, y, z in (q, p))
            u = noise.uniform(len(q[0]))
            return c.penalty_weight * gradient_penalty(logit, q, p, u, c.penalty_norm == "joint")
        if c.penalty == "roth":
            return c.penalty_weight * roth_penalty(logit, q, p)
        return q[0].new_zeros(())

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One pass of Algorithm 1's loop body on M examples x, [M, C, H, W]."""
        if self.config.schedule == "alternating":
            return self._alternate(batch)
        q, p = self.tuples(batch)
        joint = _joint(q, p)
        seen = [t.detach().requires_grad_() for t in joint]  # D's copy of x, y and z
        logit = self.logit(seen, batch.noise)
        logit_q, logit_p = logit.chunk(2)
        l_d, penalty = discriminator_loss(logit_q, logit_p), self.penalty(q, p, batch.noise)
        l_q, l_p = self.generator_losses(logit_q, logit_p)

        d_slope, g_slope = (torch.autograd.grad(loss, logit, retain_graph=True)[0] for loss in (l_d, l_q + l_p))
        # of a D that is sure; the generators' must not be lost
        d_slope = torch.where(d_slope.abs() < TINY, TINY, d_slope)
        # D's rows are independent, so one backward pass serves both players: a tuple's gradient for the generators is its
        # gradient for D times the ratio of the slopes of their losses
        losses = {logit: d_slope, penalty: torch.ones_like(penalty)} if penalty.requires_grad else {logit: d_slope}
        gradients = torch.autograd.grad([*losses], [*seen, *self.d_parameters], [*losses.values()])
        by_tuple, d_gradients = gradients[: len(seen)], gradients[len(seen) :]
        ratio = (g_slope / d_slope)[:, None, None, None]
        g_gradients = torch.autograd.grad(joint, self.g_parameters, [ratio * gradient for gradient in by_tuple])
        _step(self.d_adam, self.d_parameters, d_gradients)
        _step(self.g_adam, self.g_parameters, g_gradients)
        self._average()
        return _report(l_d, penalty, l_q, l_p, logit_q, logit_p)

    def _alternate(self, batch: Batch) -> dict[str, Tensor]:
        """D first, `d_steps` times on freshly drawn tuples of the same examples x, then the generators against the new D."""
        noise = batch.noise
        for _ in range(self.config.d_steps):
            with torch.no_grad():
                q, p = self.tuples(batch)
            l_d, penalty = discriminator_loss(*self.logits(q, p, noise)), self.penalty(q, p, noise)
            _step(self.d_adam, self.d_parameters, torch.autograd.grad(l_d + penalty, self.d_parameters))
        logit_q, logit_p = self.logits(*self.tuples(batch), noise)
        l_q, l_p = self.generator_losses(logit_q, logit_p)
        _step(self.g_adam, self.g_parameters, torch.autograd.grad(l_q + l_p, self.g_parameters))
        self._average()
        return _report(l_d, penalty, l_q, l_p, logit_q, logit_p)

    def _average(self) -> None:
        for name, average in self.averages.items():
            cast(Averaged, average).update(getattr(self, name))

    def generator_losses(self, logit_q: Tensor, logit_p: Tensor) -> tuple[Tensor, Tensor]:
        """L of Gy and Gz(x), which only logit_q reaches, and of Gx and Gz(y), which only logit_p reaches."""
        return inference_loss(logit_q, self.config.saturating), synthesis_loss(logit_p, self.config.saturating)

    # answers

    def finish(self, data: Data) -> None:
        """Averaged encoders get running statistics of their own, from some training examples, without dropout as in answers."""
        if self.averages:
            some = (x for x in islice(data.batches(1000), STATISTICS) if len(x) > 1)  # one example has no variance
            refit_statistics(self.averages, lambda x: self.encode(x, None), some)

    def predict(self, x: Tensor) -> Tensor:
        """The category with the largest μ_y(x), int64 [B]."""
        return self._y_net()(None, "yμ", x=x)["yμ"].flatten(1).argmax(1)

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        """By classifier: `predict`'s; as "bayes" Eq. 19 on μ_z(x), section 4.3.2; as "mode" the likeliest category of q(y | x).

        The paper does not say which of the first and the last is Gy's answer. With `y_noise: fixed` every category has the same
        noise and they are the same but for the draws that estimate the last.
        """
        h = self.encode(x, None)
        return {
            "predict": h["yμ"].flatten(1).argmax(1),
            "bayes": self.prior.classify(h["zμ"].flatten(1)),
            "mode": self.probabilities(h).argmax(1),
        }

    def probabilities(self, h: dict[str, Tensor]) -> Tensor:
        """q(y | x), [B, K], from `encode`'s rows, by draws of the noise of Eq. 8 that are the same at every call."""
        mean = h["yμ"].flatten(1)
        return expected_softmax(mean, self.noise_y(h), Noise.seeded(0, mean.device).normal(DRAWS, mean.shape[1]))

    def noise_y(self, h: dict[str, Tensor]) -> Tensor:
        """σ of Eq. 8, [B, K], from `encode`'s rows."""
        return torch.exp(0.5 * self._y_net().log_variance("yσ", h).flatten(1))

    def embed(self, x: Tensor) -> Tensor:
        """μ_z(x), [B, d]."""
        return self.encode(x, None)["zμ"].flatten(1)

    def sample(self, y: Tensor, noise: Noise) -> Tensor:
        """Images drawn from the components y, int64 [B]; as [B, C, H, W] in the range of the data."""
        z = self.prior.sample_z(y, noise)
        return self.decoder(None, y=one_hot(y, self.config.components), z=z)["x"]

    def instruments(self, batch: Batch) -> dict[str, Tensor]:
        """What a run looks like from inside, see `models.instruments`."""
        return instruments.read(self, batch)

    def players(self) -> dict[str, list[Tensor]]:
        """Parameters by player: D, the encoder, the decoder, and the prior if it learns."""
        parts: dict[str, list[Tensor]] = {
            name: [p for p in part.parameters() if p.requires_grad] for name, part in self.named_children()
        }
        encoder = [p for name in ("encoder", "encoder_y", "encoder_z") for p in parts.get(name, [])]
        found: dict[str, list[Tensor]] = {"d": list(self.d_parameters), "encoder": encoder}
        found |= {name: parts[name] for name in ("decoder", "prior")}
        return {name: parameters for name, parameters in found.items() if parameters}

    def reconstruct(self, x: Tensor) -> Tensor:
        """Gx(y, z) at z = μ_z(x) and y = softmax(μ_y(x)), of which `y_sample: straight_through` keeps the largest entry."""
        return self.decoded(self.encode(x, None))

    def decoded(self, h: dict[str, Tensor]) -> Tensor:
        """The same from `encode`'s rows."""
        return cast(Tensor, self.decoder(None, y=h["y"], z=h["zμ"])["x"])

    def interpolate(self, a: Tensor, b: Tensor, t: float) -> Tensor:
        """Images from codes (y, z) at `t` in [0, 1] of the way from those of a to those of b, [B, C, H, W]."""
        h, k = self.encode(a, None), self.encode(b, None)
        return self.decoder(None, y=h["y"].lerp(k["y"], t), z=h["zμ"].lerp(k["zμ"], t))["x"]


def judged(discriminator: Net, xyz: Sequence[Tensor], noise: Noise | None) -> Tensor:
    """A discriminator's logit of tuples (x, y, z), [B]."""
    x, y, z = xyz
    return discriminator(noise, x=x, y=y, z=z)["p"].flatten().float()


def _joint(q: Tuple3, p: Tuple3) -> list[Tensor]:
    """x, y and z of both sides, q first, each [2B, ...]."""
    return [torch.cat(pair) for pair in zip(q, p, strict=True)]


def _step(adam: torch.optim.Adam, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # the fused Adam of a CPU reads both as plain memory, so a gradient in another layout would move the wrong weights
        same = gradient.stride() == parameter.stride()
        parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
    adam.step()


def _report(l_d: Tensor, penalty: Tensor, l_q: Tensor, l_p: Tensor, q: Tensor, p: Tensor) -> dict[str, Tensor]:
    """Scalars by name: the losses of Algorithm 1, the penalty with its weight, D's mean logits on both sides."""
    named = {"d": l_d, "penalty": penalty, "q": l_q, "p": l_p, "logit_q": q.mean(), "logit_p": p.mean()}
    return {name: value.detach() for name, value in named.items()}
