"""Fine-tune the base model to each identity of a cohort.

In:  dataset/                            prepared images, identity table, manifest, and for methods
                                         with an identity term the embeddings;
     prior/<base model>/                 prior preservation images with their embeddings.
Out: <out>/<identity>/pytorch_lora_weights.safetensors   opens with pipe.load_lora_weights(folder);
     <out>/<identity>/training.json      settings, seed, hashes, losses, and the content key;
     <out>/<identity>/choice.svg         where finetune.choice is set: what was tried at which step;
     <out>/cohorts/<k>-of-<n>.json       what the cohort holds.
     An identity whose training.json carries the same key is not trained again. One that cannot be
     trained does not stop the others; the step then fails at its end and names it.
     <out>/checkpoints/ holds the state of identities in training. SIGTERM, SIGUSR1 and Ctrl-C save
     it and end the step with exit status 75; run again, it goes on from there, as after a crash.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 3 (Eq. 8 corrected), with DreamBooth and
PortraitBooth as the methods it compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.identities.dataset import Subject, cohort_of, read_subjects
from pipeline_steps.io.atomic import write_json
from pipeline_steps.runtime.command_line import step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import StopRequest, stop_requested
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.diffusion import FinetuneSettings

if TYPE_CHECKING:
    from pipeline_steps.diffusion.training.face_region import FaceEmbedder
    from pipeline_steps.diffusion.training.runtime import Switch

CHECKPOINTS = "checkpoints"
CHECKPOINT_MINUTES = 5.0


def run(
    frozen: Frozen[FinetuneSettings],
    *,
    dataset: Path,
    prior: Path,
    out: Path,
    cohort: int = 0,
    cohorts: int = 1,
    device: str = "cpu",
    at_once: int | None = None,
    compile_networks: Switch = "auto",
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    faces: FaceEmbedder | None = None,
) -> dict[str, str]:
    """Fine-tune a cohort and write weights, records and the cohort's file.

    Args:
        frozen: The step's configuration, with the role base_model and, for methods with an identity
            term, recogniser; the variant says base_model and method.
        dataset: Folder of the prepared dataset.
        prior: Folder of the prior set.
        out: Folder of the method's weights.
        cohort: Number of the cohort, from 0.
        cohorts: Number of cohorts.
        device: "cpu" or "cuda".
        at_once: Most identities trained together; changes no result. None: as many as pay and fit.
        compile_networks: See ``Runtime.compile``; changes no result beyond float error.
        checkpoint_minutes: Time between two checkpoints; changes no result.
        faces: Detector and recogniser; None: MTCNN and the recogniser of the configuration.

    Returns:
        Identity to its content key.

    Raises:
        StepError: inputs are missing, or some identities could not be trained.
        Interrupted: a signal asked to stop; what was reached is saved.
    """
    from pipeline_steps.diffusion.training.finetune_key import common_key, subject_key
    from pipeline_steps.diffusion.training.training_record import is_finished

    method = frozen.variant.get("method", "")
    if method not in METHODS:
        raise StepError(f"variant.method is {method!r}; expected {', '.join(METHODS)}")
    log = get_logger("finetune")
    subjects = cohort_of(read_subjects(dataset), cohort, cohorts)
    common = common_key(frozen, method, prior)
    keys: dict[str, str] = {}
    failures: dict[str, str] = {}
    pending: list[Subject] = []
    for subject in subjects:
        try:
            keys[subject.identity] = subject_key(common, frozen.settings, method, subject, dataset)
        except StepError as error:
            failures[subject.identity] = str(error)
            continue
        if is_finished(out / subject.identity, keys[subject.identity]):
            log.info("%s is finished and kept", subject.identity)
        else:
            pending.append(subject)
    if pending:
        with stop_requested() as stop:
            failures |= _train(
                frozen,
                method,
                pending,
                keys,
                stop,
                dataset=dataset,
                prior=prior,
                out=out,
                device=device,
                at_once=at_once,
                compile_networks=compile_networks,
                checkpoint_minutes=checkpoint_minutes,
                faces=faces,
            )
    if failures:
        reasons = "; ".join(f"{identity}: {reason}" for identity, reason in failures.items())
        raise StepError(
            f"{len(failures)} of {len(subjects)} identities were not fine-tuned ({reasons}). The "
            "others are finished and will be kept: remove or repair the named ones, and run again"
        )
    write_json(
        out / "cohorts" / f"{cohort}-of-{cohorts}.json",
        {identity: {"key": key} for identity, key in keys.items()},
    )
    return keys


def _train(
    frozen: Frozen[FinetuneSettings],
    method: str,
    pending: Sequence[Subject],
    keys: Mapping[str, str],
    stop: StopRequest,
    *,
    dataset: Path,
    prior: Path,
    out: Path,
    device: str,
    at_once: int | None,
    compile_networks: Switch,
    checkpoint_minutes: float,
    faces: FaceEmbedder | None,
) -> dict[str, str]:
    """Train the identities and write their results; returns those that failed, with the reason."""
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.training.checkpoints import Checkpoints
    from pipeline_steps.diffusion.training.choice import Trials
    from pipeline_steps.diffusion.training.cohort_plan import Backoff, plan_cohort
    from pipeline_steps.diffusion.training.face_region import load_faces
    from pipeline_steps.diffusion.training.fleet import Fleet
    from pipeline_steps.diffusion.training.fleet_run import FleetRun, plan_fleets
    from pipeline_steps.diffusion.training.runtime import Runtime
    from pipeline_steps.diffusion.training.training_data import encode_subjects, prior_latents
    from pipeline_steps.diffusion.training.training_record import save_result

    settings = frozen.settings
    with_faces = settings.needs_faces(method)
    base = load_base_model(frozen.weights["base_model"], device)
    if with_faces and faces is None:
        faces = load_faces(frozen.weights["recogniser"], device, settings.min_face_size or 20)
    # Images are encoded once, in full precision; what follows may be narrower.
    in_objective = METHODS[method].identity_term is not None
    prior_set = prior_latents(base, prior, with_embeddings=in_objective)
    data = encode_subjects(
        base, pending, settings, dataset, stop, seed=frozen.seed, with_faces=with_faces
    )
    base.to(device, settings.precision)

    def open_fleet(identities: Sequence[str], runtime: Runtime) -> Fleet:
        return Fleet(
            base,
            method,
            {identity: data.images[identity] for identity in identities},
            prior_set,
            settings,
            seed=frozen.seed,
            faces=faces,
            runtime=runtime,
        )

    trials = None
    if settings.choice is not None and faces is not None:
        held_out = {identity: rows for identity, (_, rows) in data.held_out.items()}
        trials = Trials(settings.choice, held_out, faces, seed=frozen.seed, token=settings.token)
    checkpoints = Checkpoints(out / CHECKPOINTS, keys)
    train = FleetRun(method, checkpoints, 60 * checkpoint_minutes, stop, trials)
    identities = list(data.images)
    most = plan_cohort(identities, open_fleet, device=device, at_once=at_once)
    backoff = Backoff(open_fleet, device, Runtime(compile=compile_networks))
    for plan in plan_fleets(identities, checkpoints, at_once=most, cohort=len(keys)):
        state = train.take_over(plan)
        for identity, result in backoff.run(plan.identities, train, state).items():
            if result.finite:
                choice = None
                if trials is not None:
                    choice = trials.record(identity) | {"held_out": data.held_out[identity][0]}
                save_result(
                    frozen, data.subjects[identity], keys[identity], result, out / identity, choice
                )
            else:
                data.failures[identity] = "training diverged; lower finetune.learning_rate"
            checkpoints.remove(identity)
    return data.failures


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("finetune", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--prior", type=Path, required=True, help="folder of the prior set")
    parser.add_argument("--cohort", type=int, default=0, help="number of the cohort, from 0")
    parser.add_argument("--cohorts", type=int, default=1, help="number of cohorts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the method's weights")
    parser.add_argument(
        "--at-once",
        type=_at_once,
        metavar="N",
        help="most identities trained together, or auto (default): as many as pay and fit; changes "
        "speed and memory only",
    )
    parser.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the networks; auto (default): on a GPU; changes speed only",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=CHECKPOINT_MINUTES,
        metavar="M",
        help=f"time between two checkpoints (default {CHECKPOINT_MINUTES:g})",
    )
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, FinetuneSettings)
    with gpu_lease() as device:
        run(
            frozen,
            dataset=arguments.dataset,
            prior=arguments.prior,
            out=arguments.out,
            cohort=arguments.cohort,
            cohorts=arguments.cohorts,
            device=device,
            at_once=arguments.at_once,
            compile_networks=arguments.compile,
            checkpoint_minutes=arguments.checkpoint_minutes,
        )
    return 0


def _at_once(text: str) -> int | None:
    return None if text == "auto" else max(1, int(text))


if __name__ == "__main__":
    raise SystemExit(run_main(main))
