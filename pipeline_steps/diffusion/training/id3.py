"""ID3's objective on a batch of images whose embeddings and attributes are known.

    |eps - eps'|^2 + r abar_t |z_0 - x0|^2 - k lambda(t) <y, phi(x0)>

x0 is the one-step estimate of the clean latents, phi the recogniser on the face of the decoded
estimate, found where the image itself has it. lambda is ``objectives.id_weight``; r, k and abar_t
are inferred, as is a copy of y with noise in the place of y, which teaches the network what the
anchors of people who do not exist will ask: embeddings beside those of faces.

Source: ID3 (Xu et al., NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.guide import load_guide
from pipeline_steps.diffusion.id3 import FILE_NAME, TRAINED_ON, ConditionNetwork, Id3
from pipeline_steps.diffusion.objectives import (
    add_noise,
    id_weight,
    likeness_loss,
    min_snr_weight,
    noise_prediction_loss,
    predict_x0,
    prediction_target,
    reconstruction_loss,
)
from pipeline_steps.diffusion.training.faces import KnownFaces
from pipeline_steps.diffusion.training.generator import Pictures
from pipeline_steps.diffusion.training.weights import PURPOSE, Terms, WeightsTraining
from pipeline_steps.io.hashes import sha256_json
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.key import weights_hash
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import EmbeddingTrainingSettings, GeneratorSettings

MOST_FACTS = 1000  # training images whose attributes stand beside the weights


@dataclass(frozen=True)
class Batch:
    """Images of a step, all on the device.

    Attributes:
        clean, noise: z_0 and eps, float [n, c, h, w].
        timesteps: int64 [n].
        embeddings: y, float [n, d].
        attributes: s, float [n, 4], NaN where not known.
        boxes: of the faces, pixels, [n, 4].
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    embeddings: Tensor
    attributes: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Objective:
    """How the terms count, and what is left out.

    Attributes:
        reconstruction: r.
        likeness: k.
        looked_at: images of a batch, the first, whose estimates are decoded for the inner product.
        snr_cap: see objectives.min_snr_weight; None: all times alike.
        nearest: least cosine of y with noise to y; 1: without noise.
        drop: share of embeddings that are left out, and of each attribute.
    """

    reconstruction: float
    likeness: float
    looked_at: int
    snr_cap: float | None
    nearest: float
    drop: float

    def told(self, batch: Batch, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """y and s as the network is told them; draws on the device of the stream."""

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=stream, device=stream.device).to(batch.clean.device)

        y = torch.nn.functional.normalize(batch.embeddings)
        beside = torch.randn(y.shape, generator=stream, device=stream.device).to(y)
        beside = torch.nn.functional.normalize(beside - (beside * y).sum(1, keepdim=True) * y)
        cosine = self.nearest + (1 - self.nearest) * draw(len(y), 1)
        y = cosine * y + (1 - cosine**2).clamp(min=0).sqrt() * beside
        # Both at once, too: guidance leads away from anybody of any age.
        nothing = draw(len(y), 1) < self.drop
        y = torch.where(nothing | (draw(len(y), 1) < self.drop), torch.nan, y)
        hidden = nothing | (draw(*batch.attributes.shape) < self.drop)
        return y, torch.where(hidden, torch.nan, batch.attributes)

    def of(
        self,
        base: BaseModel,
        network: Id3,
        embed: Callable[[Tensor, Tensor], Tensor],
        batch: Batch,
        stream: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its terms without their factors, detached.

        Args:
            base: schedule, text encoders and autoencoder.
            network: in training.
            embed: images [n, 3, h, w] in [-1, 1] and boxes -> embeddings, differentiable.
            batch: the images.
            stream: of what is left out.
        """
        abar = base.alphas_cumprod[batch.timesteps]
        noisy = add_noise(batch.clean, batch.noise, abar)
        condition = network.tell(base, *self.told(batch, stream))
        output = base.predict(noisy, batch.timesteps, condition, network.unet)
        target = prediction_target(batch.clean, batch.noise, abar, base.prediction_type)
        errors = noise_prediction_loss(output, target)
        estimate = predict_x0(noisy, output, abar, base.prediction_type)
        rebuilt = reconstruction_loss(batch.clean, estimate, abar)
        weights = torch.ones_like(errors)
        if self.snr_cap is not None:
            weights = min_snr_weight(abar, self.snr_cap, base.prediction_type).to(errors)
        total = (weights * errors + self.reconstruction * rebuilt).mean()
        terms = {"noise": errors.mean(), "reconstruction": rebuilt.mean()}
        if self.likeness and (n := min(self.looked_at, len(batch.clean))):
            faces = embed(base.decode(estimate[:n]).clamp(-1, 1), batch.boxes[:n]).float()
            factor = id_weight(batch.timesteps[:n], base.train_timesteps)
            likeness = likeness_loss(faces, batch.embeddings[:n], factor).mean()
            total = total + self.likeness * likeness
            terms["likeness"] = likeness
        return total, {name: value.detach() for name, value in terms.items()}


class Training(WeightsTraining):
    """ID3's network in training.

    Args:
        base: Base model; its autoencoder stays as it is.
        pictures: What is trained on.
        frozen: The step's configuration, with the role recogniser.
        scratch: Folder for what is known of the images.
        stop: Asked while that is made.
    """

    file_name = FILE_NAME

    def __init__(
        self,
        base: BaseModel,
        pictures: Pictures,
        frozen: Frozen[GeneratorSettings],
        scratch: Path,
        stop: StopRequest,
    ) -> None:
        self._how = how = frozen.settings.embeddings or EmbeddingTrainingSettings()
        guide = load_guide(frozen.weights["recogniser"], str(base.device), how.min_face_size)
        networks = [weights_hash(frozen.weights[role]) for role in ("base_model", "recogniser")]
        key = sha256_json([pictures.sha256(), networks, how.min_face_size])
        self._faces = faces = KnownFaces(base, pictures, guide, scratch, key, stop)
        self._embed = guide.embed
        seed = torch_generator(frozen.seed, *PURPOSE, base.name, "weights").initial_seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = base.unet.config.cross_attention_dim
            condition = ConditionNetwork(faces.embeddings.shape[1], width, how.hidden, how.tokens)
            denoiser = base.unet
            if how.start == "nothing":
                denoiser = type(base.unet).from_config(base.unet.config)
        # What is trained is in single precision, whatever the base model's is.
        self._network = Id3(denoiser, condition, how.trains).to(base.device, torch.float32)
        self._objective = Objective(
            reconstruction=how.reconstruction,
            likeness=how.likeness,
            looked_at=how.looked_at,
            snr_cap=frozen.settings.snr_cap,
            nearest=how.nearest,
            drop=how.drop,
        )
        named = {n: p for n, p in self._network.named_parameters() if p.requires_grad}
        super().__init__(base, frozen, named, len(faces))

    def loss(self, at: Sequence[int], stream: torch.Generator) -> tuple[Tensor, Terms]:
        """See the module."""
        faces, device, n = self._faces, self.base.device, len(at)
        whose = [[k] if self._how.embedding_of == "image" else faces.of_person(k) for k in at]
        picks = torch.rand(n, generator=stream).tolist()
        of = [rows[int(pick * len(rows))] for rows, pick in zip(whose, picks, strict=True)]
        t = torch.randint(self.base.train_timesteps, (n,), generator=stream).to(device)
        noise = torch.randn(2, n, *self.base.latent_shape, generator=stream).to(device)
        mean, std = faces.latents(at)
        batch = Batch(
            mean + std * noise[0],
            noise[1],
            t,
            faces.embeddings[of].to(device),
            faces.attributes[list(at)].to(device),
            faces.boxes[list(at)].to(device),
        )
        half = self.settings.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return self._objective.of(self.base, self._network, self._embed, batch, stream)

    def beside(self) -> dict[str, Tensor]:
        """Attributes of some training images, from which sampling draws."""
        stream = torch_generator(self.seed, *PURPOSE, self.base.name, "facts")
        chosen = torch.randperm(len(self._faces), generator=stream)[:MOST_FACTS]
        return {TRAINED_ON: self._faces.attributes[chosen]}
