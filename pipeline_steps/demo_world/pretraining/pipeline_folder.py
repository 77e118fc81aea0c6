"""Write the embedded base model as a Stable Diffusion folder that plain diffusers opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.demo_world.pretraining.denoiser_training import SCHEDULE
from pipeline_steps.io.atomic import write_text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


def write_pipeline(
    folder: Path,
    *,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer_folder: Path,
) -> None:
    """Save every part in half precision; the tokenizer's files are copied as they are.

    Args:
        folder: the pipeline's, made where it is not there.
        autoencoder, unet, text: trained networks, float32; they are the same afterwards.
        tokenizer_folder: where `build_tokenizer` wrote.
    """
    from diffusers import DDPMScheduler

    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("vae", autoencoder), ("unet", unet), ("text_encoder", text)):
        kept = {k: v.detach().clone() for k, v in module.state_dict().items()}
        module.half().save_pretrained(folder / name, safe_serialization=True)
        module.float().load_state_dict(kept)
    # Stored in half precision, computed in single: transformers opens a part in the precision that
    # its configuration names, diffusers in single precision, and the parts have to fit each other.
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    DDPMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer_folder / name, folder / "tokenizer" / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
