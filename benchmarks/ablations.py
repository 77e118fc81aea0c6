"""What Face Fusion's choices are worth: python benchmarks/ablations.py --photographs FOLDER

    joint      as it is: one softmax, clean references, no dropout of them, with the identity term;
               with 1, 2 and 4 references
    separate   attention to faces is a second one, added to that to the text (as IP-Adapter's)
    noised     references carry the noise of the image's own timestep, in training and sampling
    dropout    a tenth of the images of a batch sees no reference in training
    no term    without the identity term

All begin at the same weights, see the same batches and take the same small number of steps, far
fewer than weights need: what is compared is how fast they learn, not how far they get. Photographs
are those of pretrain (--work), rendered before; people measured are of another population. Prints a
table with 95 % intervals and adds it to --out as `ablations`, after each variant.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from face_fusion import JUDGES, World, entry
from measured import Row, add, table
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.demo_world.pretraining import face_fusion
from pipeline_steps.demo_world.pretraining.face_fusion import COLUMNS, People
from pipeline_steps.demo_world.pretraining.images import Photographs, load
from pipeline_steps.demo_world.pretraining.plan import PLANS
from pipeline_steps.demo_world.pretraining.training import BETAS, CLIP_NORM, Run
from pipeline_steps.demo_world.rendering.population import PRETRAINING
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, to_signed
from pipeline_steps.diffusion.face_fusion import FaceFusion, FusedAttention, Keys, Look
from pipeline_steps.diffusion.guide import frozen_copy
from pipeline_steps.diffusion.objectives import add_noise
from pipeline_steps.diffusion.sampling.references import OnePersonEach, joined
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.seeds import seed_for, torch_generator

PLAN = PLANS["cpu"]
BATCH, WARM_UP, DROPPED = 8, 20, 0.1


class SeparateAttention(FusedAttention):
    """Attention to the text, and beside it a second one to the faces, added."""

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        face_key, face_value = (
            (x if look.whom is None else x[look.whom]).to(query.dtype) for x in look.keys[self.name]
        )
        text = F.scaled_dot_product_attention(query, key, value)
        return text + F.scaled_dot_product_attention(query, face_key, face_value)


@dataclass(frozen=True)
class Variant:
    """What differs from the method as it is."""

    processor: type[FusedAttention] = FusedAttention
    noised: bool = False
    dropped: float = 0.0
    identity_weight: float = face_fusion.IDENTITY_WEIGHT
    counts: tuple[int, ...] = (4,)


VARIANTS = {
    "joint": Variant(counts=(4, 2, 1)),
    "separate": Variant(processor=SeparateAttention),
    "noised": Variant(noised=True),
    "dropout": Variant(dropped=DROPPED),
    "no term": Variant(identity_weight=0.0),
}


def noised_keys(
    base: BaseModel, fusion: FaceFusion, clean: Tensor, t: Tensor, generator: torch.Generator
) -> Keys:
    """Keys of references [n, count, c, h, w] that carry the noise of timesteps int64 [n]."""
    n, count = clean.shape[:2]
    times = t.repeat_interleave(count)
    noise = torch.randn(clean.shape, generator=generator).flatten(0, 1)
    noisy = add_noise(clean.flatten(0, 1), noise, base.alphas_cumprod[times])
    nothing = base.encode_prompts([None] * len(noisy))
    with torch.no_grad():
        hidden = fusion.hidden_of(lambda: base.predict(noisy, times, nothing))
    return fusion.keys({name: of.unflatten(0, (n, count)) for name, of in hidden.items()})


def trained(
    base: BaseModel, variant: Variant, people: People, guide: nn.Module, run: Run, steps: int
) -> FaceFusion:
    """Weights after so many steps, on the base model's network."""
    fusion = FaceFusion(base.unet, variant.processor)
    fusion.initialise(torch_generator(PLAN.seed, "face_fusion", "weights"))

    def look(references: Tensor, t: Tensor, generator: torch.Generator) -> Look:
        seeing = (torch.rand(len(t), generator=generator) >= variant.dropped).nonzero()[:, 0]
        if variant.noised:
            keys = noised_keys(base, fusion, people.mean[references], t, generator)
        else:
            keys = fusion.keys({k: h[references] for k, h in people.hidden.items()})
        return Look(keys, rows=seeing, whom=seeing)

    rate = PLAN.face_fusion.learning_rate
    optimiser = torch.optim.AdamW(fusion.parameters(), lr=rate, betas=BETAS, fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        generator = torch.Generator().manual_seed(seed_for(PLAN.seed, "ablations", step))
        own = None if variant.dropped == 0 and not variant.noised else look
        loss = face_fusion.loss_of(
            *(base, fusion, guide, people, BATCH, run, generator),
            look=own,
            identity_weight=variant.identity_weight,
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(fusion.parameters(), CLIP_NORM)
        optimiser.step()
    fusion.look(None)
    return fusion


def following(
    base: BaseModel, bank: OnePersonEach, references: Tensor
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """A predict whose references carry the noise of the time that the image is at."""
    clean = [base.encode_images(to_signed(own))[0] for own in references]

    def predict(noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        look = next(iter(bank.fusion.layers.values())).look
        generator = torch.Generator().manual_seed(int(timesteps[0]))
        keys = joined(
            [noised_keys(base, bank.fusion, of[None], timesteps[:1], generator) for of in clean]
        )
        bank.fusion.look(None if look is None else Look(keys, look.rows, look.whom))
        return base.predict(noisy, timesteps, condition)

    return predict


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="of pretrain's --work")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--trained-on", type=int, default=100, help="people, a multiple of ten")
    parser.add_argument("--people", type=int, default=12, help="who are measured")
    parser.add_argument("--images", type=int, default=3, help="of each and each prompt set")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    run = Run(Path(), None, "cpu", bfloat16=False, over=lambda: False)
    world = World(args.people, args.images)
    base = load_base_model(entry("demo"))
    judges = [load_recogniser(entry(name)) for name in JUDGES]
    photographs = Photographs(PLAN.seed, PRETRAINING, args.trained_on, PLAN.each)
    columns, reading = load(args.photographs, photographs, *COLUMNS), FaceFusion(base.unet)
    people = People.of(columns, PLAN.each, base, reading, judges, run, seed=PLAN.seed)
    reading.remove()
    rows: list[Row] = []
    for name in args.variants:
        variant, started = VARIANTS[name], time.process_time()
        fusion = trained(base, variant, people, frozen_copy(judges[0].network), run, args.steps)
        seconds = time.process_time() - started
        rows.append(Row(f"{name}: processor seconds of {args.steps} steps", seconds, None, None, 1))
        for count in variant.counts:
            bank = world.bank(base, fusion, count, away=True)
            predict = following(base, bank, world.references(count)) if variant.noised else None
            found = world.measured(f"{name}, {count} references", base, bank, predict)
            rows += found
            print(table([rows[-len(found) - 1], *found]), flush=True)
        fusion.remove()
        if args.out:
            add(args.out, "ablations", rows, steps=args.steps, trained_on=args.trained_on)


if __name__ == "__main__":
    main()
