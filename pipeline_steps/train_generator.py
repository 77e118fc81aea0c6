"""Train the weights of a method that shows anybody from photographs, once for a base model.

In:  <images>                            images in the wild with captions, see list_pictures.
Out: <out>/face_fusion.safetensors       W_kf and W_vf of every cross-attention layer, by
                                         diffusers' names of processors;
     <out>/training.json                 settings, seed, hashes, losses;
     <out>/items.json                    the key under which they are finished: nothing is trained
                                         again under the same one.
     <out>/checkpoints/ holds the state of the training. SIGTERM, SIGUSR1 and Ctrl-C save it and end
     the step with exit status 75; run again, it goes on from there, as after a crash.

Source: "Fusion is all you need: Face Fusion for customized identity-preserving image synthesis".
"""

from __future__ import annotations

from pathlib import Path

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
        frozen: The step's configuration, with the role base_model; the variant says base_model and
            method.
        images: Folder or archive of the images.
        out: Folder of the weights.
        device: "cpu" or "cuda".
        checkpoint_minutes: Time between two savings of the state; changes no result.

    Raises:
        StepError: there is no image, or the training diverged.
        Interrupted: a signal asked to stop; what was reached is saved.
    """
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.face_fusion import FILE_NAME
    from pipeline_steps.diffusion.training.generator import Training, list_pictures, train
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
    with stop_requested() as stop:
        base = load_base_model(frozen.weights["base_model"], device, settings.precision)
        training = Training(base, pictures, settings, frozen.seed)
        train(training, saved, 60 * checkpoint_minutes, stop)
    weights = {name: tensor.half().cpu() for name, tensor in training.fusion.state().items()}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise StepError("training diverged; lower train_generator.learning_rate")
    save_tensors(out / FILE_NAME, weights)
    losses = [round(loss, 6) for loss in training.losses]
    record = told | {"key": made_under, "seed": frozen.seed, "losses": losses}
    record |= {"weights_sha256": sha256_file(out / FILE_NAME), "versions": made_with(frozen)}
    write_json(out / RECORD, record)
    store.add({"generator": store.item(made_under, [FILE_NAME, RECORD])})
    saved.clear()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
