"""Fine-tuning one identity as the published recipe describes it, in the plain way.

One instance and one prior image per step, eager; both images encoded by the autoencoder and both
prompts by the text encoders in every step; PEFT's layers; facenet-pytorch's MTCNN on the decoded
image, with a wait for the device at each of its stages; losses read in every step. On a GPU: half
precision by autocast with a gradient scaler, adapters in single precision.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.faces.recogniser import Recogniser
from pipeline_steps.study.settings.diffusion import FinetuneSettings


class ReferenceLoop:
    """An identity in training.

    Args:
        base: Base model; its denoising network is copied.
        images: float [n, 3, s, s] in [-1, 1] of the identity, on the CPU.
        prior: float [m, 3, s, s], the prior images.
        embeddings: Face embeddings [n, d] and [m, d] of both; None: DreamBooth.
        prompts: Of the identity's images, and of the prior images.
        recogniser: Judge of the identity term.
        settings: Resolved.
        default_box: Used where no face is found, so that a step costs the same with networks whose
            images are noise; None: such a step has no identity term.
        seed: Of the draws.
    """

    def __init__(
        self,
        base: BaseModel,
        images: Tensor,
        prior: Tensor,
        embeddings: tuple[Tensor, Tensor] | None,
        prompts: tuple[str, str],
        recogniser: Recogniser,
        settings: FinetuneSettings,
        *,
        default_box: NDArray[np.float32] | None = None,
        seed: int = 0,
    ) -> None:
        from facenet_pytorch import MTCNN
        from peft import LoraConfig

        self.base, self.images, self.prior = base, images, prior
        self.embeddings, self.prompts, self.recogniser = embeddings, prompts, recogniser
        self.settings, self.default_box = settings, default_box
        self.device = base.device
        self.detector = MTCNN(device=self.device, min_face_size=settings.min_face_size or 20)
        self.unet = nn.Module.to(copy.deepcopy(base.unet), memory_format=torch.contiguous_format)
        self.unet.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                init_lora_weights="gaussian",
                target_modules=list(settings.targets),
            )
        )
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float()
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.rates = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, settings.steps)
        self.half = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self) -> float:
        """One optimiser step; returns the loss."""
        i = int(torch.randint(len(self.images), (1,), generator=self.generator))
        j = int(torch.randint(len(self.prior), (1,), generator=self.generator))
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
            loss = self._loss(i, j)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.rates.step()
        self.optimiser.zero_grad()
        return float(loss.detach())

    def _loss(self, i: int, j: int) -> Tensor:
        base = self.base
        pixels = torch.stack([self.images[i], self.prior[j]]).to(self.device, base.dtype)
        with torch.no_grad():
            posterior = base.vae.encode(pixels).latent_dist
            clean = posterior.sample().float() * base.vae.config.scaling_factor
            condition = base.encode(self.prompts)
        noise = torch.randn(clean.shape, generator=self.generator).to(self.device)
        t = torch.randint(1000, (2,), generator=self.generator).to(self.device)
        abar = base.alphas_cumprod[t].float().view(2, 1, 1, 1)
        noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
        output = base.predict(noisy, t, condition, self.unet).float()
        loss = F.mse_loss(output[:1], noise[:1]) + F.mse_loss(output[1:], noise[1:])
        if self.embeddings is None:
            return loss
        estimate = (noisy[:1] - (1 - abar[:1]).sqrt() * output[:1]) / abar[:1].sqrt()
        decoded = base.decode(estimate).float().clamp(-1, 1)
        box = self._box(decoded)
        if box is None:
            return loss
        x1, y1, x2, y2 = box
        face = F.interpolate(decoded[:, :, y1:y2, x1:x2], size=(112, 112), mode="bilinear")
        anchor = self.recogniser.embed_tensor(face)
        positive, negative = (rows.to(self.device) for rows in self.embeddings)
        gap = F.cosine_similarity(negative[j : j + 1], anchor)
        gap = gap - F.cosine_similarity(positive[i : i + 1], anchor)
        weight = (1 - t[0] / 1000) ** 2
        return loss + weight * (gap + (self.settings.margin or 0.0)).clamp(min=0).sum()

    def _box(self, decoded: Tensor) -> tuple[int, int, int, int] | None:
        side = decoded.shape[-1]
        image = ((decoded[0].detach() + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        boxes, _ = self.detector.detect(image)
        chosen = self.default_box if boxes is None else max(boxes, key=_area)
        if chosen is None:
            return None
        x1, y1, x2, y2 = (int(min(max(value, 0), side)) for value in chosen)
        return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
