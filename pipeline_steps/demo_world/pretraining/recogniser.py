"""Training of the embedded recognisers: small iResNets, one of them a guide with a quality head.

Loss: CosFace (Wang et al., CVPR 2018) or ArcFace (Deng et al., CVPR 2019), with a margin that grows
from zero, so that a small network starts to learn at once. Quality head: CR-FIQA (Boutros et al.,
CVPR 2023): a sample's certainty ratio CCS / (NNCCS + 1 + eps), the cosine to its own class centre
over the cosine to the nearest other one, regressed by a smooth L1 loss.

The guide is what fine-tuning's identity losses follow, so it is also shown what fine-tuning may end
in: faces without eyes or features (degradation.py) have to lie far from everybody, and poor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_steps.demo_world.pretraining.autoencoder import CHUNK, to_batch
from pipeline_steps.demo_world.pretraining.degradation import degrade, faceless
from pipeline_steps.demo_world.pretraining.plan import Amounts, RecogniserPlan
from pipeline_steps.demo_world.pretraining.training import Run, Stage
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.metrics.verification import error_rates
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.seeds import seed_for

EPSILON = 1e-9
SCALE = 32.0  # of the cosines
MARGIN_RISE = 100_000  # images in which the margin rises
SMOOTH_L1_BETA = 0.5
FACELESS_SHARE = 0.25  # images without a face, beside a batch of faces
FAR = 0.1  # largest cosine of such an image to anybody
FAR_WEIGHT = 10.0


class Trainee(nn.Module):
    """A recogniser and, only while it is trained, the class centres and the number of images seen.

    Args:
        plan: its architecture and loss.
        people: number of training identities.
    """

    seen: Tensor

    def __init__(self, plan: RecogniserPlan, people: int) -> None:
        super().__init__()
        self.network = IResNet(
            plan.layers,
            plan.widths,
            embedding_dim=plan.embedding_dim,
            quality_head=plan.guides,
        )
        self.head = MarginHead(plan.embedding_dim, people, loss=plan.loss, scale=SCALE, margin=0)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def stage(
    plan: RecogniserPlan,
    columns: Mapping[str, np.ndarray],
    unseen: Mapping[str, np.ndarray],
    run: Run,
    *,
    seed: int,
    amounts: Amounts,
) -> Stage:
    """The training of a recogniser.

    Args:
        plan: which.
        columns: `crops` and `identity` of n photographs, see images.py.
        unseen: the same of people on whom it is measured.
        run: device and precision.
        seed: of weights, batches and degradations.
        amounts: length, batch and learning rate.
    """
    torch.manual_seed(seed_for(seed, plan.name))
    model = Trainee(plan, int(columns["identity"].max()) + 1).to(run.device).train()
    crops, identity = (
        torch.from_numpy(columns[name]).to(run.device) for name in ("crops", "identity")
    )

    def loss(count: int, generator: torch.Generator) -> Tensor:
        at = torch.randint(len(crops), (count,), generator=generator, device=run.device)
        faces = to_batch(crops[at])
        x = degrade(faces, generator)
        if plan.guides:
            x = torch.cat([x, faceless(faces[: int(FACELESS_SHARE * count)], generator)])
        with run.autocast():
            embeddings = model.network(x)
        model.head.margin = plan.margin * min(1.0, int(model.seen) / MARGIN_RISE)
        model.seen += count
        return _loss(model, embeddings.float(), identity[at])

    return Stage(
        name=plan.name,
        seed=seed,
        networks=model,
        loss=loss,
        measure=lambda average: quality(cast(Trainee, average).network, unseen, run),
        amounts=amounts,
        warm_up=10_000,
        hold=100_000,
        decay=5e-2,
    )


def _loss(model: Trainee, embeddings: Tensor, own: Tensor) -> Tensor:
    """Margin loss of the first len(own) embeddings, and of a guide also the two further terms."""
    faces, count = embeddings[: len(own)], len(own)
    cosines = model.head.cosines(embeddings)
    norms = faces.detach().norm(dim=1)
    total = functional.cross_entropy(model.head.logits(cosines[:count], own, norms), own)
    if model.network.qs is None:
        return total
    ratio = torch.cat(
        [certainty_ratio(cosines[:count].detach(), own), cosines.new_zeros(len(cosines) - count)]
    )
    poor = functional.smooth_l1_loss(
        model.network.qs(embeddings).squeeze(1), ratio, beta=SMOOTH_L1_BETA
    )
    nearest = cosines[count:].amax(1)
    return total + poor + FAR_WEIGHT * functional.relu(nearest - FAR).mean()


def certainty_ratio(cosines: Tensor, labels: Tensor) -> Tensor:
    """CR-FIQA's target, Eq. 4: CCS / (NNCCS + 1 + eps).

    Args:
        cosines: [n, n_identities] to all class centres.
        labels: int64 [n].

    Returns:
        [n]; about 0 for a sample like no other of its class, up to 1 and beyond for a clear one.
    """
    own = labels.unsqueeze(1)
    nearest_other = cosines.scatter(1, own, -math.inf).amax(dim=1)
    return cosines.gather(1, own).squeeze(1) / (nearest_other + 1 + EPSILON)


@torch.no_grad()
def quality(network: IResNet, columns: Mapping[str, np.ndarray], run: Run) -> dict[str, float]:
    """How well a recogniser in evaluation mode tells unseen people apart.

    Args:
        network: it.
        columns: `crops` and `identity` of n photographs, see images.py.
        run: device and precision.

    Returns:
        `eer` of all pairs; `faceless`, the mean cosine between faces and the same without features.
    """
    crops, identity = columns["crops"], columns["identity"]
    whole: list[Tensor] = []
    wiped: list[Tensor] = []
    for first in range(0, len(crops), CHUNK):
        x = to_batch(torch.from_numpy(crops[first : first + CHUNK]).to(run.device))
        generator = torch.Generator(run.device).manual_seed(first)
        with run.autocast():
            for found, images in ((whole, x), (wiped, faceless(x, generator))):
                found.append(functional.normalize(network(images).float()))
    a, b = torch.cat(whole), torch.cat(wiped)
    cosines = (a @ a.T).cpu().numpy()
    upper = np.triu(np.ones(cosines.shape, bool), 1)
    same = identity[:, None] == identity[None]
    rates = error_rates(cosines[same & upper], cosines[~same & upper])
    return {"eer": float(rates.eer), "faceless": float((a * b).sum(1).mean())}
