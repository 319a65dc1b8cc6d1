"""Semi-supervised ALI (Dumoulin et al., 2016, section 4.3): a discriminator of pairs (x, z) that also names the class of x.

D(x, z) has K logits; that of class K + 1, "synthesised", is 0 (Salimans et al., 2016). Their log-sum-exp, log Z, is the logit
that a pair is inferred, (x, Gz(x)), and not synthesised, (Gx(z), z) with z ~ N(0, I):
D:  -E log p(y | x, Gz(x)) over labelled examples - E log σ(log Z(x, Gz(x))) / 2 - E log σ(-log Z(Gx(z), z)) / 2;
Gz: -E log σ(-log Z(x, Gz(x)));  Gx: -E log σ(log Z(Gx(z), z)): ALI's game, without feature matching.
The labels enter the loss of D alone. A class is the largest logit of D(x, μ_z(x)). The second classifier, "svm", is after the
paper's other protocol: an L2-SVM on features of the labelled examples (IshmaelBelghazi/ALI, experiments/semi_supervised_svhn.py).

Departures: the code of the published 7.42 % was never released (IshmaelBelghazi/ALI, issue 17), so how labels enter is a
reconstruction from the text; the halves are openai/improved-gan's. The nets are AMM's without y, as in `baselines.ali`: z has 64
dimensions for ALI's 256, D has no batch normalisation and dropout 0.1 for 0.2, leaks are 0.2 for 0.01, the last bias starts at 0
for the log odds of the data, kernels at N(0, 0.02²) for N(0, 0.01²). Running statistics are half those of the labelled examples.
The SVM reads this encoder, whose D knew labels, there one learned without; of its output μ_z alone, not the variances; a hidden
layer is averaged over its positions, features are standardised, and C is fixed: ALI picked it by validation labels.

Pitfalls: D must name classes of pairs, yet z says little of them. Ports of ALI needed noise on D's input, or steps of D left
out, to stay stable (9310gaurav/ali-pytorch).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn import functional as F

from baselines.losses import real_logit, unlabelled_loss
from models.adversarial import inference_loss, synthesis_loss
from models.layers import Net
from models.method import Batch, Data, Method, Spec
from models.noise import Noise
from models.tables import Amendment, Table, WithoutY, amend

_CLASSES = Amendment("p", "Channels", "1", "k", "D has a logit for each class; that of class k + 1 is 0")


@dataclass(frozen=True)
class ALISemiConfig:
    """Knobs of semi-supervised ALI; defaults are ALI's on SVHN (experiments/ali_svhn.py) unless said otherwise."""

    nets: Literal["mnist", "svhn", "digits", "plane"] = "svhn"  # layer tables: models/<nets>.py without y
    components: int = 10  # classes, K
    learning_rate: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999  # printed as 1e-3, which is this in the convention of its code
    momentum: float = 0.05  # of running statistics
    init_std: float = 0.02  # AMM's, like the nets; ALI's code has 0.01
    svm_c: float = 0.01  # C of the L2-SVM on standardised features; ours, ALI picked one of 50 by validation labels


class ALISemi(Method):
    """Encoder, decoder and D move at once from one forward pass, as in ALI's code."""

    Config = ALISemiConfig
    needs_labels = True
    svm_weight: Tensor
    svm_bias: Tensor

    def __init__(self, config: ALISemiConfig, spec: Spec, noise: Noise) -> None:
        super().__init__(config, spec, noise)
        c = config
        nets = importlib.import_module(f"models.{c.nets}")

        def net(table: Table) -> Net:
            return Net(WithoutY(**vars(table)), c.components, noise, c.momentum, c.init_std)

        self.encoder = net(nets.ENCODER)  # Gz(x)
        self.decoder = net(nets.DECODER)  # Gx(z)
        self.discriminator = net(amend(nets.DISCRIMINATOR, _CLASSES))
        self.dimensions = self.decoder.sizes["z"][0]
        hidden = [row for row in self.encoder.rows if row.activation == "Leak"][-3:]
        self.read = [*(row.name for row in hidden), "zμ"]  # the SVM's features
        width = sum(row.channels for row in hidden) + self.dimensions
        self.register_buffer("svm_weight", torch.zeros(c.components, width, device=noise.device))
        self.register_buffer("svm_bias", torch.zeros(c.components, device=noise.device))

        self.d_parameters = list(self.discriminator.parameters())
        self.g_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        betas = (c.beta1, c.beta2)
        self.d_adam = torch.optim.Adam(self.d_parameters, c.learning_rate, betas, fused=True)
        self.g_adam = torch.optim.Adam(self.g_parameters, c.learning_rate, betas, fused=True)

    def logits(self, x: Tensor, z: Tensor, noise: Noise | None) -> Tensor:
        """D's logits [B, K] of pairs (x, z)."""
        return self.discriminator(noise, x=x, z=z)["p"].flatten(1).float()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all players on examples [M, C, H, W], labelled ones of classes int64 [L], and M synthesised ones."""
        x, y, noise = batch.x_labelled, batch.y_labelled, batch.noise
        assert x is not None and y is not None, "a step needs labelled examples"
        with torch.no_grad():
            given = self.encoder(noise, "z", x=x)["z"]
        free, z = self.encoder(noise, "z", x=batch.x)["z"], noise.normal(len(batch.x), self.dimensions, 1, 1)
        pairs = torch.cat([batch.x, self.decoder(noise, z=z)["x"], x]), torch.cat([free, z, given])
        q, p, labelled = self.logits(*pairs, noise).split([len(free), len(z), len(x)])
        supervised, unlabelled = F.cross_entropy(labelled, y), unlabelled_loss(q, p)
        l_q, l_p = inference_loss(real_logit(q)), synthesis_loss(real_logit(p))
        self.d_adam.zero_grad()
        self.g_adam.zero_grad()
        (supervised + unlabelled).backward(inputs=self.d_parameters, retain_graph=True)
        (l_q + l_p).backward(inputs=self.g_parameters)
        self.d_adam.step()
        self.g_adam.step()
        named = {"supervised": supervised, "unlabelled": unlabelled, "q": l_q, "p": l_p}
        return {name: value.detach() for name, value in named.items()}

    def features(self, x: Tensor) -> Tensor:
        """What the SVM reads of images: the encoder's last three hidden layers and μ_z(x), [B, F]."""
        h = self.encoder(None, x=x)
        return torch.cat([h[name].flatten(2).mean(2) for name in self.read], 1)

    def finish(self, data: Data) -> None:
        """Fits the SVM to the labelled examples."""
        assert data.x_labelled is not None and data.y_labelled is not None
        features = torch.cat([self.features(x.float() * data.scale) for x in data.x_labelled.split(250)])
        weight, bias = fit_svm(features, data.y_labelled, self.config.components, self.config.svm_c)
        self.svm_weight.copy_(weight)
        self.svm_bias.copy_(bias)

    def predict(self, x: Tensor) -> Tensor:
        """The class with D's largest logit at (x, μ_z(x)), int64 [B]."""
        return self.logits(x, self.embed(x), None).argmax(1)

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        """Both classifiers: `predict`'s, and as "svm" that of the features."""
        return {"predict": self.predict(x), "svm": F.linear(self.features(x), self.svm_weight, self.svm_bias).argmax(1)}

    def embed(self, x: Tensor) -> Tensor:
        """μ_z(x), [B, d]."""
        return self.encoder(None, "zμ", x=x)["zμ"].flatten(1)


def fit_svm(features: Tensor, y: Tensor, k: int, c: float) -> tuple[Tensor, Tensor]:
    """Weights [k, F] and biases [k] of one L2-SVM (squared hinge) for each class, on features [N, F] before standardising.

    A class without examples gets a bias of -inf.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    scaled, classes = ((features - mean) / std).cpu().numpy(), y.cpu().numpy()
    weight, bias = torch.zeros(k, features.shape[1]), torch.full((k,), -torch.inf)
    for label in set(classes.tolist()):
        svm = LinearSVC(C=c, dual=False).fit(scaled, classes == label)
        weight[label], bias[label] = torch.from_numpy(svm.coef_[0]), float(svm.intercept_[0])
    weight = weight.to(features.device) / std
    return weight, bias.to(features.device) - weight @ mean
