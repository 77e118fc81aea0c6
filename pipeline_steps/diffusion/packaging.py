"""A base model and Face Fusion's weights as one folder that plain diffusers runs without us.

diffusers drops processor weights that it does not know, so the folder brings its own pipeline:

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safetensors.torch import load_file

from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.weights import Weights, locate
from pipeline_steps.runtime.errors import StepError

CODE = {"standalone": "pipeline.py", "face_fusion": None, "fused_attention": None}


def write_package(base_model: Weights, weights: Path, out: Path) -> None:
    """Write the folder.

    Args:
        base_model: A Stable Diffusion pipeline folder of the registry.
        weights: `face_fusion.safetensors` that was trained for it.
        out: Folder to write; there must be none.

    Raises:
        StepError: the folder is there, the base model is of another architecture, or the weights
            are not its.
    """
    if out.exists():
        raise StepError(f"{out} exists: remove it, or name another folder")
    if base_model.architecture != "stable-diffusion":
        raise StepError(
            f"base model {base_model.name!r} is of the architecture {base_model.architecture!r}; "
            "packages are made of stable-diffusion alone"
        )
    try:
        FaceFusion(load_base_model(base_model).unet).load(load_file(weights))
    except ValueError as error:
        raise StepError(f"{weights} does not fit {base_model.name!r}: {error}") from error
    shutil.copytree(locate(base_model), out)
    if (vae := base_model.components.get("vae")) is not None:
        shutil.rmtree(out / "vae")
        shutil.copytree(locate(vae), out / "vae")
    shutil.copyfile(weights, out / FILE_NAME)
    for module, name in CODE.items():
        text = Path(__file__).with_name(f"{module}.py").read_text("utf-8")
        own = re.sub(r"from pipeline_steps\.diffusion\.(\w+) import", r"from .\1 import", text)
        write_text(out / (name or f"{module}.py"), own)
