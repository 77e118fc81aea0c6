"""Write Face Fusion's weights and their base model as one folder that plain diffusers runs.

In:  a base model of config/models.yaml; weights that train_generator made for it.
Out: <out>/  the base model's folder with face_fusion.safetensors, pipeline.py and the two modules
     that it needs:

         DiffusionPipeline.from_pretrained(out, custom_pipeline=out, trust_remote_code=True)
"""

from __future__ import annotations

from pathlib import Path

from pipeline_steps.io.weights import PROJECT_ROOT
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.registry import pick, read_models


def run(
    *,
    base_model: str,
    weights: Path,
    out: Path,
    models: Path = PROJECT_ROOT / "config" / "models.yaml",
) -> None:
    """Write the folder.

    Args:
        base_model: Name of the base model in the registry.
        weights: face_fusion.safetensors.
        out: Folder to write; there must be none.
        models: The registry.

    Raises:
        StepError: the folder is there, or the weights are of another base model.
    """
    from pipeline_steps.diffusion.packaging import write_package

    write_package(pick(read_models(models), base_model, "--base-model", "base_model"), weights, out)
    get_logger("package_generator").info("%s: open it by diffusers", out)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
