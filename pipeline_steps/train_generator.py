"""Train the weights of a method that shows anybody, once for a base model.

In:  <images>                            images in the wild with captions, see list_pictures.
Out: <out>/face_fusion.safetensors       Face Fusion: W_kf and W_vf of every cross-attention layer,
                                         by diffusers' names of processors;
     <out>/id3.safetensors               ID3: its condition network, what is trained of the
                                         denoiser, and the attributes of some training images;
     <out>/training.json                 settings, seed, hashes, losses, terms of the losses;
     <out>/items.json                    the key under which they are finished: nothing is trained
                                         again under the same one.
     <out>/checkpoints/ holds the state of the training. SIGTERM, SIGUSR1 and Ctrl-C save it and end
     the step with exit status 75; run again, it goes on from there, as after a crash.

Source: "Fusion is all you need: Face Fusion for customized identity-preserving image synthesis";
"ID3: Identity-Preserving-yet-Diversified Diffusion Models for Synthetic Face Recognition".
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings
from pipeline_steps.study.store import Store
from pipeline_steps.study.versions import made_with

if TYPE_CHECKING:
    from pipeline_steps.diffusion.training.weights import WeightsTraining

STATE = Path("checkpoints", "state.safetensors")
RECORD = "training.json"


def run(
    frozen: Frozen[GeneratorSettings],
    *,
    images: Path,
    out: Path,
    device: str = "cpu",
    checkpoint_minutes: float = 5.0,
) -> None:
    """Train the weights of one base model and write them.

    Args:
        frozen: The step's configuration, with the role base_model, and recogniser where the method
            knows people by embeddings; the variant says base_model and method.
        images: Folder or archive of the images.
        out: Folder of the weights.
        device: "cpu" or "cuda".
        checkpoint_minutes: Time between two savings of the state; changes no result.

    Raises:
        StepError: there is no image, or the training diverged.
        Interrupted: a signal asked to stop; what was reached is saved.
    """
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.training.generator import list_pictures
    from pipeline_steps.diffusion.training.weights import train
    from pipeline_steps.io.tensors import save_tensors

    settings, log = frozen.settings, get_logger("train_generator")
    pictures = list_pictures(images, settings.caption)
    told = {
        "method": frozen.variant["method"],
        "settings": settings.model_dump(mode="json", exclude={"images", "weights"}),
        "base_model": frozen.weights["base_model"].name,  # noise is keyed by it
        "images": pictures.sha256(),
    }
    made_under = key(frozen, **told)
    store = Store(out, made_with(frozen))
    if store.find("generator", made_under):
        log.info("these weights are finished and kept")
        return
    alone = sum(place in others for place, others in enumerate(pictures.others))
    log.info("%d images, %d of them their own reference", len(pictures.images), alone)
    saved = Checkpoint(out / STATE, made_under)
    module, _, name = METHODS[frozen.variant["method"]].family.trained_by.partition(":")
    kind: Callable[..., WeightsTraining] = getattr(import_module(f"pipeline_steps.{module}"), name)
    with stop_requested() as stop:
        base = load_base_model(frozen.weights["base_model"], device, settings.precision)
        training = kind(base, pictures, frozen, out / STATE.parent, stop)
        train(training, saved, 60 * checkpoint_minutes, stop)
    weights = {
        name: tensor.half().cpu().contiguous() for name, tensor in training.weights().items()
    }
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise StepError("training diverged; lower train_generator.learning_rate")
    file = training.file_name
    save_tensors(out / file, weights | training.beside())
    losses = [round(loss, 6) for loss in training.losses]
    record = told | {"key": made_under, "seed": frozen.seed, "losses": losses}
    record["terms"] = {of: [round(x, 6) for x in curve] for of, curve in training.terms.items()}
    record |= {"weights_sha256": sha256_file(out / file), "versions": made_with(frozen)}
    write_json(out / RECORD, record)
    store.add({"generator": store.item(made_under, [file, RECORD])})
    for part in (out / STATE.parent).glob("faces-*.safetensors"):  # embeddings of people
        part.unlink()
    saved.clear()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
