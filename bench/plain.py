"""AMM's MNIST game (Tables 3-6, Algorithm 1) as a careful user would write it in plain PyTorch, for `bench.speed`.

It is the outside comparison, so it shares no code with `models`: PyTorch's modules with their default biases, memory layout
and dropout, the global random state, a DataLoader, binary cross-entropy on logits, and separate passes of D for each
loss. D is frozen during the generators' pass, which saves its useless weight gradients; many a user would not do so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

Tuple3 = tuple[Tensor, Tensor, Tensor]  # x, y, z
Shape = tuple[int, int, int, int]  # inputs, outputs, width, stride

Z = 64  # dimensions of z
LEAK, DROPOUT = 0.2, 0.2
ENCODER: tuple[Shape, ...] = ((1, 32, 2, 1), (32, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1), (64, 128, 4, 1))
DECODER: tuple[Shape, ...] = ((128, 64, 4, 1), (64, 64, 3, 1), (64, 32, 3, 2), (32, 32, 3, 2), (32, 1, 2, 1))


class Images(Dataset[Tensor]):
    """Stored images, uint8 [N, 1, 28, 28], each served as float in [0, 1]."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index].float() / 255


def loader(x: Tensor, batch: int = 100) -> DataLoader[Tensor]:
    """Shuffled batches of stored images; an incomplete last one is left out."""
    return DataLoader(Images(x), batch_size=batch, shuffle=True, drop_last=True)


def _conv(shape: Shape) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(DROPOUT), nn.Conv2d(*shape))


def _transposed(shape: Shape) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(DROPOUT), nn.ConvTranspose2d(*shape))


def _norms(shapes: tuple[Shape, ...]) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm2d(outputs) for _, outputs, _, _ in shapes)


class Encoder(nn.Module):
    """Table 3: x -> y [B, k, 1, 1] and z [B, 64, 1, 1], where each y-layer also reads the z-layer beside it."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.y = nn.ModuleList(_conv(shape) for shape in ENCODER)
        self.z = nn.ModuleList(_conv(shape) for shape in ENCODER)
        self.y_norm, self.z_norm = _norms(ENCODER), _norms(ENCODER)
        self.y_mean, self.y_log_variance = nn.Conv2d(128, k, 1), nn.Conv2d(128, k, 1)
        self.z_mean, self.z_log_variance = nn.Conv2d(128, Z, 1), nn.Conv2d(128, Z, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = z = x
        for y_layer, z_layer, y_norm, z_norm in zip(self.y, self.z, self.y_norm, self.z_norm, strict=True):
            y, z = y_layer(y), z_layer(z)
            y, z = F.leaky_relu(y_norm(y + z), LEAK), F.leaky_relu(z_norm(z), LEAK)
        y = sample(self.y_mean(y), self.y_log_variance(y))
        return torch.softmax(y, dim=1), sample(self.z_mean(z), self.z_log_variance(z))


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The reparametrised normal sample."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


class Prior(nn.Module):
    """Table 4: y -> z with unit variance."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(k, Z, 1),
            nn.BatchNorm2d(Z),
            nn.LeakyReLU(LEAK),
            nn.Dropout(DROPOUT),
            nn.Conv2d(Z, Z, 1),
            nn.BatchNorm2d(Z),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(Z, Z, 1),
        )

    def forward(self, y: Tensor) -> Tensor:
        mean: Tensor = self.mean(y)
        return mean + torch.randn_like(mean)


class Decoder(nn.Module):
    """Table 5: y, z -> x [B, 1, 28, 28]; the y-branch has no activation."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.y_in, self.z_in = nn.ConvTranspose2d(k, 128, 1), nn.ConvTranspose2d(Z, 128, 1)
        self.y = nn.ModuleList(_transposed(shape) for shape in DECODER)
        self.z = nn.ModuleList(_transposed(shape) for shape in DECODER)
        normed = ((Z, 128, 1, 1), *DECODER[:-1])
        self.y_norm, self.z_norm = _norms(normed), _norms(normed)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        y, z = self.y_in(y), self.z_in(z)
        for y_norm, z_norm, y_layer, z_layer in zip(self.y_norm, self.z_norm, self.y, self.z, strict=True):
            y, z = y_norm(y + z), F.leaky_relu(z_norm(z), LEAK)
            y, z = y_layer(y), z_layer(z)
        return torch.sigmoid(y + z)


class Discriminator(nn.Module):
    """Table 6: x, y, z -> logit [B]."""

    def __init__(self, k: int) -> None:
        super().__init__()
        x = [module for shape in ENCODER for module in (*_conv(shape), nn.LeakyReLU(LEAK))]
        self.x = nn.Sequential(*x[1:])  # no dropout on the image itself
        self.y = nn.Sequential(nn.Conv2d(k, 64, 1), nn.LeakyReLU(LEAK), _conv((64, 64, 1, 1)), nn.LeakyReLU(LEAK))
        self.z = nn.Sequential(nn.Conv2d(Z, 64, 1), nn.LeakyReLU(LEAK), _conv((64, 64, 1, 1)), nn.LeakyReLU(LEAK))
        wide = (256, 256, 1, 1)
        self.joint = nn.Sequential(
            _conv(wide), nn.LeakyReLU(LEAK), _conv(wide), nn.LeakyReLU(LEAK), _conv((256, 1, 1, 1))
        )

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        logit: Tensor = self.joint(torch.cat([self.x(x), self.y(y), self.z(z)], dim=1))
        return logit.flatten()


def discriminator_loss(logit_q: Tensor, logit_p: Tensor) -> Tensor:
    """D calls q (encoder) real and p (decoder) fake."""
    real = F.binary_cross_entropy_with_logits(logit_q, torch.ones_like(logit_q))
    return real + F.binary_cross_entropy_with_logits(logit_p, torch.zeros_like(logit_p))


def generator_loss(logit_q: Tensor, logit_p: Tensor) -> Tensor:
    """The same with the labels swapped."""
    return discriminator_loss(logit_p, logit_q)


def gradient_penalty(discriminator: nn.Module, q: Tuple3, p: Tuple3) -> Tensor:
    """(|gradient of D| - 1)² at random points between pairs of tuples, one norm over x, y and z together."""
    u = torch.rand(len(q[0]), 1, 1, 1)
    points = [(u * a.detach() + (1 - u) * b.detach()).requires_grad_() for a, b in zip(q, p, strict=True)]
    gradients = torch.autograd.grad(discriminator(*points).sum(), points, create_graph=True)
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
    return ((torch.sqrt(flat.square().sum(1) + 1e-12) - 1) ** 2).mean()


class PlainAMM:
    """The four players, two Adams, and one step of all of them."""

    def __init__(self, k: int = 10) -> None:
        self.k = k
        self.encoder, self.prior, self.decoder = Encoder(k), Prior(k), Decoder(k)
        self.discriminator = Discriminator(k)
        for player in (self.encoder, self.prior, self.decoder, self.discriminator):
            player.apply(_initialise)
        generators = nn.ModuleList([self.encoder, self.prior, self.decoder])
        self.g_adam = torch.optim.Adam(generators.parameters(), 2e-4, (0.5, 0.999))
        self.d_adam = torch.optim.Adam(self.discriminator.parameters(), 2e-4, (0.5, 0.999))

    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both players move at once on x, [B, 1, 28, 28]; returns the losses of D (with the penalty) and the generators."""
        q = (x, *self.encoder(x))
        y = F.one_hot(torch.randint(self.k, (len(x),)), self.k).float()[:, :, None, None]
        z = self.prior(y)
        p = (self.decoder(y, z), y, z)

        self.discriminator.requires_grad_(False)
        g_loss = generator_loss(self.discriminator(*q), self.discriminator(*p))
        self.g_adam.zero_grad()
        g_loss.backward()
        self.discriminator.requires_grad_(True)

        logit_q = self.discriminator(*(part.detach() for part in q))
        logit_p = self.discriminator(*(part.detach() for part in p))
        d_loss = discriminator_loss(logit_q, logit_p) + 10 * gradient_penalty(self.discriminator, q, p)
        self.d_adam.zero_grad()
        d_loss.backward()

        self.d_adam.step()
        self.g_adam.step()
        return d_loss.detach(), g_loss.detach()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
