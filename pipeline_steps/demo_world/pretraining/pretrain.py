"""Train the weights of the embedded world from a seed: `make pretrain-demo-world`.

Everything is rendered; no photograph of a real person is involved. Stages keep their results below
--work and are not repeated when the command is given again; the finished weights are written below
--out, in half precision, with their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline_steps.demo_world.pretraining.pretrain_plan import Plan
from pipeline_steps.demo_world.pretraining.pretrain_stages import (
    half_size,
    render_stage,
    stored,
    train_attributes_stage,
    train_denoiser_stage,
    train_recogniser_stage,
)
from pipeline_steps.io.atomic import write_bytes, write_json
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.command_line import command_line
from pipeline_steps.study.command import run_main


def run(plan: Plan, *, work: Path, out: Path) -> None:
    """Go through all stages.

    Args:
        plan: the amounts.
        work: folder of stages in progress, about 5 GB with the default plan; each plan has a
            folder of its own in it.
        out: folder of the finished weights and of hashes.json, which names plan and files.
    """
    import torch

    torch.set_num_threads(plan.threads)
    work = work / plan.stages_key()
    facts = render_stage(plan, work / "images", 0)
    images = stored(work / "images64.npy", lambda: half_size(facts.images))
    for recogniser in plan.recognisers:
        train_recogniser_stage(plan, recogniser, work)
    train_attributes_stage(plan, work / "attributes.safetensors", images, facts)
    for name in (*(recogniser.name for recogniser in plan.recognisers), "attributes"):
        write_bytes(out / name / "model.safetensors", (work / f"{name}.safetensors").read_bytes())
    train_denoiser_stage(plan, work, out / "base_model", facts, images)
    files = sorted(
        p for p in out.rglob("*") if p.is_file() and p.name not in ("hashes.json", "README.md")
    )
    hashes = {p.relative_to(out).as_posix(): sha256_file(p) for p in files}
    write_json(out / "hashes.json", {"plan": asdict(plan), "sha256": hashes})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("demo_world.pretrain", __doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("tmp/pretrain"), help="stages in progress (5 GB)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("resources/demo_world"), help="the finished weights"
    )
    parser.add_argument(
        "--seed", type=int, default=Plan.seed, help="seed of everything that is drawn"
    )
    parser.add_argument(
        "--denoiser-steps",
        type=int,
        default=Plan.denoiser_steps,
        help="length of the longest stage",
    )
    args = parser.parse_args(argv)
    run(Plan(seed=args.seed, denoiser_steps=args.denoiser_steps), work=args.work, out=args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
