"""A diffusers pipeline that shows people from photographs, by Face Fusion's weights.

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipe("photo of a person", faces=[Image.open("a.png"), Image.open("b.png")]).images

Beside it in the folder lie a Stable Diffusion pipeline and `face_fusion.safetensors`. It needs
diffusers, PyTorch, NumPy and safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion, Keys, Look, together
from pipeline_steps.diffusion.fused_attention import allowed as allowed  # what is copied with it


class FaceFusionPipeline(StableDiffusionPipeline):
    """StableDiffusionPipeline with references."""

    _fusion: FaceFusion | None = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        *args: Any,
        faces: Sequence[Any] = (),
        guide_away: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """StableDiffusionPipeline's call with people.

        Args:
            prompt: One text or several; or give `prompt_embeds`.
            args: StableDiffusionPipeline's.
            faces: PIL images of one person, square, best cut round the head; or such a list for
                each of several people, whom all images then show together. None: nobody.
            guide_away: Guidance's other side sees no face, so that likeness is guided, too.
            cross_attention_kwargs: StableDiffusionPipeline's; "ip_adapter_masks" holds a mask of
                each person as `IPAdapterMaskProcessor.preprocess` makes them, [people, 1, h, w].
                Several people without masks give a morph of them.
            options: StableDiffusionPipeline's.

        Raises:
            ValueError: there are not as many masks as people.
        """
        attention = dict(cross_attention_kwargs or {})
        masks = attention.pop("ip_adapter_masks", None)
        fusion = self._opened()
        if faces:
            people = [list(own) if isinstance(own, (list, tuple)) else [own] for own in faces]
            if not any(isinstance(own, (list, tuple)) for own in faces):
                people = [[one for own in people for one in own]]
            if masks is not None:
                masks = torch.as_tensor(masks, device=self._execution_device)
                masks = masks.flatten(0, -3) if masks.ndim > 3 else masks
            given = options.get("prompt_embeds", prompt)
            count = 1 if isinstance(given, str) else len(given)
            count *= options.get("num_images_per_prompt") or 1
            guided = options.get("guidance_scale", 7.5) > 1
            look = together([self._keys(fusion, own) for own in people], masks)
            first = count if guided and guide_away else 0
            rows = torch.arange(first, count * (1 + guided), device=self._execution_device)
            fusion.look(Look(look.keys, rows, torch.zeros_like(rows), look.may_attend))
        try:
            return super().__call__(
                prompt, *args, cross_attention_kwargs=attention or None, **options
            )
        finally:
            fusion.look(None)

    def _opened(self) -> FaceFusion:
        if self._fusion is None:
            fusion = FaceFusion(self.unet)
            fusion.load(load_file(Path(self.config._name_or_path) / FILE_NAME))
            self._fusion = fusion
        return self._fusion

    def _keys(self, fusion: FaceFusion, images: Sequence[Any]) -> Keys:
        """Keys of one person's references."""
        side = self.unet.config.sample_size * self.vae_scale_factor
        fitted = [one.convert("RGB").resize((side, side), 2) for one in images]  # bilinear
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in fitted]))
        device, dtype = self._execution_device, self.unet.dtype
        signed = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(device, self.vae.dtype)
        clean: Tensor = self.vae.encode(signed).latent_dist.mean * self.vae.config.scaling_factor
        nothing = self.encode_prompt("", device, 1, False)[0].expand(len(clean), -1, -1)
        times = torch.zeros(len(clean), dtype=torch.long, device=device)
        hidden = fusion.hidden_of(lambda: self.unet(clean.to(dtype), times, nothing))
        return fusion.keys({name: states[None] for name, states in hidden.items()})
