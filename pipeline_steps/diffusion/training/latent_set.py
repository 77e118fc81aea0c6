"""Images in the autoencoder's latent space, encoded once for all steps of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentSet:
    """Images in the autoencoder's latent space.

    Attributes:
        mean: Posterior mean in the denoising network's scale, float [n, c, h, w].
        std: Posterior standard deviation, the same shape.
        embeddings: Face embeddings, float [n, d] on the CPU, NaN for an image without a face; None
            where the method needs none.
        prompt: The one prompt of all images.
    """

    mean: Tensor
    std: Tensor
    embeddings: Tensor | None
    prompt: str

    def __len__(self) -> int:
        return len(self.mean)
