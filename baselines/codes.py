"""What both AAEs share: the game of one discriminator of codes against the encoder (Makhzani et al., 2016, section 2).

No method is here.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from models import adversarial
from models.noise import Noise


class Game(NamedTuple):
    """A discriminator [B, d] -> [B, 1], codes drawn from its prior, and the encoder's, each [B, d].

    Both losses add N(0, std²) to what the discriminator sees, which hides that a softmax is no exact one-hot.
    """

    discriminator: nn.Module
    prior: Tensor
    code: Tensor

    def discriminator_loss(self, std: float, noise: Noise) -> Tensor:
        """That of telling the prior's codes from the encoder's, which get no gradient."""
        prior = self._judge(self.prior, std, noise)
        return adversarial.discriminator_loss(prior, self._judge(self.code.detach(), std, noise))

    def encoder_loss(self, std: float, noise: Noise) -> Tensor:
        """That of the encoder's codes not being taken for the prior's, non-saturating."""
        return adversarial.synthesis_loss(self._judge(self.code, std, noise))

    def _judge(self, code: Tensor, std: float, noise: Noise) -> Tensor:
        return self.discriminator(code + std * noise.normal(*code.shape)).flatten().float()
