"""What the trainer and the sampler need of any latent diffusion model, and how its networks run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline_steps.runtime.logs import get_logger

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Where larger pieces of the autoencoder stop to pay: a CPU's caches overflow, a GPU is full.
DECODE_CHUNK = {"cpu": 2, "cuda": 8}

Switch = Literal["auto", "on", "off"]
Predict = Callable[[Tensor, Tensor, "Conditioning"], Tensor]  # see BaseModel.predict


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts.

    Attributes:
        hidden: float [n, tokens, d], for cross-attention.
        added: Further conditions by the network's own names, each [n, ...]; empty for most models.
    """

    hidden: Tensor
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hidden)

    def take(self, index: Tensor | Sequence[int]) -> Conditioning:
        """The rows of ``index``, in its order."""
        rows = torch.as_tensor(index, device=self.hidden.device)
        return Conditioning(
            self.hidden[rows], {name: value[rows] for name, value in self.added.items()}
        )


@dataclass
class BaseModel:
    """A frozen latent diffusion model.

    Attributes:
        name: Its name in the weights registry.
        resolution: Side of its images in pixels.
        unet: Denoising network (diffusers' UNet2DConditionModel).
        vae: Autoencoder (diffusers' AutoencoderKL).
        text_encoders: Networks that ``encode`` calls.
        scheduler_config: Configuration of the noise schedule, as diffusers stores it.
        alphas_cumprod: abar_t, float64 [T].
        encode: Prompts -> conditioning; None is an empty negative prompt.
        size: Height and width of images that are no squares of ``resolution``.
    """

    name: str
    resolution: int
    unet: Any
    vae: Any
    text_encoders: list[nn.Module]
    scheduler_config: dict[str, Any]
    alphas_cumprod: Tensor
    encode: Callable[[Sequence[str | None]], Conditioning]
    size: tuple[int, int] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen weights."""
        return next(self.unet.parameters()).dtype

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = self.size or (self.resolution, self.resolution)
        return int(self.unet.config.in_channels), height // factor, width // factor

    def to(self, device: str | torch.device, precision: str | torch.dtype) -> BaseModel:
        """Move all networks, in place; ``precision`` is "fp32", "bf16", "fp16" or a torch type."""
        dtype = PRECISIONS[precision] if isinstance(precision, str) else precision
        for network in (self.unet, self.vae, *self.text_encoders):
            # Module.to: diffusers' own warns of layers to keep in float32 where there are none.
            nn.Module.to(network, device=device, dtype=dtype)
            nn.Module.to(network, memory_format=torch.channels_last)
            network.requires_grad_(False).eval()
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str | None]) -> Conditioning:
        """Conditioning of each prompt, None for an empty negative one; once for equal ones."""
        unique = sorted(set(prompts), key=lambda prompt: (prompt is not None, prompt or ""))
        rows = [unique.index(prompt) for prompt in prompts]
        encoded = self.encode(unique).take(rows)
        if self.size is None or "time_ids" not in encoded.added:
            return encoded
        sizes = encoded.added["time_ids"].clone()  # original size, crop, target size
        sizes[:, [0, 1]] = sizes[:, [4, 5]] = sizes.new_tensor(self.size)
        return replace(encoded, added={**encoded.added, "time_ids": sizes})

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Conditioning,
        network: Callable[..., Any] | None = None,
    ) -> Tensor:
        """The network's output for z_t [n, c, h, w] at t [n], in the type of ``noisy``.

        ``network`` is called in place of the denoising network, e.g. a compiled version of it.
        """
        result = (self.unet if network is None else network)(
            noisy.to(self.dtype),
            timesteps,
            encoder_hidden_states=condition.hidden,
            added_cond_kwargs=dict(condition.added) or None,
            return_dict=False,
        )[0]
        return result.to(noisy.dtype)

    @torch.no_grad()
    def encode_images(self, images: Tensor, chunk: int = 8) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's posterior.

        Args:
            images: float [n, 3, resolution, resolution] in [-1, 1].
            chunk: Images per pass.

        Returns:
            Two float tensors [n, c, h, w] in the latent scale of the denoising network, so that
            ``mean + std * noise`` is a draw of z_0.
        """
        shift = self.vae.config.shift_factor or 0.0
        factor = float(self.vae.config.scaling_factor)
        means, deviations = [], []
        for part in images.split(chunk):
            posterior = self.vae.encode(part.to(self.device, self.dtype)).latent_dist
            means.append(((posterior.mean - shift) * factor).to(images.dtype))
            deviations.append((posterior.std * factor).to(images.dtype))
        return torch.cat(means), torch.cat(deviations)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, resolution, resolution], about [-1, 1] and not clamped; differentiable."""
        shift = self.vae.config.shift_factor or 0.0
        scaled = latents / float(self.vae.config.scaling_factor) + shift
        return self.vae.decode(scaled.to(self.dtype), return_dict=False)[0].to(latents.dtype)


def read_tokens(tokenizer: Any, prompts: Sequence[str | None], device: Any) -> Tensor:
    """Numbers of the prompts' words, int64 [n, the tokenizer's length]; None is the empty text."""
    ids: Tensor = tokenizer(
        [prompt or "" for prompt in prompts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids.to(device)


def read_schedule(folder: Any) -> tuple[dict[str, Any], Tensor]:
    """Noise schedule of a pipeline folder: its configuration and abar as float64 [T]."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    return dict(scheduler.config), scheduler.alphas_cumprod.double()


def to_uint8(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in [-1, 1] (clamped here) as uint8 of the same shape.

    One that holds NaN or infinity is black all over: what part of it could be seen shows nothing.
    """
    images = images.detach().float()
    finite = images.isfinite().flatten(1).all(dim=1)[:, None, None, None]
    scaled = (images.clamp(-1.0, 1.0) + 1.0) * 127.5
    return torch.where(finite, scaled, 0.0).round().to(torch.uint8)


def to_signed(images: Tensor) -> Tensor:
    """Images uint8 [n, 3, h, w] as float32 of the same shape in [-1, 1]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [n, 3, h, w], got {images.dtype} {list(images.shape)}")
    return images.float() / 127.5 - 1.0


def to_arrays(images: Tensor) -> NDArray[np.uint8]:
    """uint8 [n, 3, h, w] as a contiguous NumPy array [n, h, w, 3]."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy(), dtype=np.uint8)


@dataclass(frozen=True)
class Runtime:
    """How a fleet runs.

    Attributes:
        decode_chunk: Images that the autoencoder decodes together; None: as suits the device.
        redecode: Decode without a graph to look for faces, and again with one, piece by piece,
            where there is one: memory for one piece's graph instead of all, for a decoding more.
        compile: Compile the denoising network and the decoder and, on a GPU, replay the former's
            kernels as CUDA graphs. "auto": on a GPU only.
        checkpointing: Recompute the network's activations in the backward pass: less memory for
            about a third more time.
    """

    decode_chunk: int | None = None
    redecode: bool = False
    compile: Switch = "auto"
    checkpointing: bool = False

    def chunk_on(self, device: torch.device | str) -> int:
        """Images that the autoencoder decodes together on a device."""
        return self.decode_chunk or DECODE_CHUNK.get(torch.device(device).type, 1)


def compiled_networks(
    base: BaseModel, switch: Switch
) -> tuple[Callable[..., Any] | None, Callable[[Tensor], Tensor] | None]:
    """The denoising network and ``base.decode``, compiled at their first call; None, None: as is.

    On a GPU the denoising network's kernels, forward and backward, are recorded and replayed as
    CUDA graphs: its shapes are the same in every step. The decoder's pieces may differ in size and
    are compiled without.
    """
    on_gpu = base.device.type == "cuda"
    if switch == "off" or (switch == "auto" and not on_gpu):
        return None, None
    torch.compiler.reset()  # an earlier fleet's adapters are other modules
    network = torch.compile(base.unet, mode="reduce-overhead" if on_gpu else "default")

    def unet(*args: Any, **kwargs: Any) -> Any:
        # Outputs of the last step's graphs may be overwritten from here on.
        torch.compiler.cudagraph_mark_step_begin()
        return network(*args, **kwargs)

    return unet, torch.compile(base.decode)


def compiled_predict(base: BaseModel, switch: Switch) -> Predict | None:
    """``base.predict`` with a compiled network; None where the switch leaves it as it is."""
    network, _ = compiled_networks(base, switch)
    return None if network is None else with_fallback(base, network)


def with_fallback(base: BaseModel, network: Callable[..., Any]) -> Predict:
    """``base.predict`` through another network until that fails; then a warning, and without."""
    works = True

    def predict(noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        nonlocal works
        if works:
            try:
                # A replayed graph's output is overwritten by the next replay.
                return base.predict(noisy, timesteps, condition, network).clone()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                works = False
                get_logger("sample").warning("compiling failed, going on without: %s", error)
        return base.predict(noisy, timesteps, condition)

    return predict
