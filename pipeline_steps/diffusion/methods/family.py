"""What a method declares: its family, what it adds to the objective, which settings it reads.

A family says what has to be trained before its methods can show a person, and what the sampler is
handed then. Everything that differs between families is asked here; nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Choosing(Protocol):
    """The part of the fine-tuning's settings that a method is asked about."""

    @property
    def choice(self) -> object: ...

    @property
    def optimiser(self) -> str: ...


@dataclass(frozen=True)
class Family:
    """What the methods of one kind have in common.

    Attributes:
        trains: Per person an adapter, one set of weights for all, or nothing.
        shows_people: Whether images show given people; if not, nobody looks for a likeness.
        named: Whether a person enters as the rare word of the prompts.
        handed: ``<module below the package>:<definition>`` of what the sampler is handed, a
            ``sampling.plan.Handed``; by name, for it loads torch. It is a root of the code that
            samples stand on.
        trained_by: Likewise of what trains its one set of weights, a
            ``training.weights.WeightsTraining``; empty: none.
        reads: The section of the sample step's settings that is the family's own; empty: none.
    """

    trains: Literal["adapters", "weights", "nothing"]
    shows_people: bool
    named: bool
    handed: str
    trained_by: str = ""
    reads: Literal["", "references", "embeddings"] = ""

    @property
    def embeds(self) -> bool:
        """Whether a person enters as a face embedding, so also somebody who does not exist."""
        return self.reads == "embeddings"


REFERENCES = Family(
    "weights",
    True,
    False,
    "diffusion.sampling.references:References",
    "diffusion.training.generator:Training",
    "references",
)
EMBEDDINGS = Family(
    "weights",
    True,
    False,
    "diffusion.sampling.embeddings:Embeddings",
    "diffusion.training.id3:Training",
    "embeddings",
)
UNTUNED = Family("nothing", False, False, "diffusion.sampling.plan:BaseAlone")
ADAPTERS = Family("adapters", True, True, "diffusion.sampling.plan:Adapters")


@dataclass(frozen=True)
class Method:
    """A way to show people; one module of this package.

    Attributes:
        family: What is trained, and what the sampler is handed.
        identity_term: (anchor, positive, negative, margin) -> [n], added to prior-preserving noise
            prediction; None: nothing is.
        uses: Names of the optional settings that the term reads; the others do not enter the
            method's configuration, so that changing them reruns nothing.
    """

    family: Family = ADAPTERS
    identity_term: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    uses: frozenset[str] = frozenset()

    @property
    def trains(self) -> bool:
        """Whether every person has to be trained before images can be sampled."""
        return self.family.trains == "adapters"

    def needs_faces(self, settings: Choosing) -> bool:
        """Whether its training looks at faces: in its objective, or to choose a step."""
        return self.trains and (self.identity_term is not None or settings.choice is not None)

    def branches(self, settings: Choosing) -> set[str]:
        """Names of the branches of the ledger's ``adapters`` that its training takes."""
        taken = {
            "faces": self.needs_faces(settings),
            "identity_term": self.identity_term is not None,
            "choice": settings.choice is not None,
            settings.optimiser: True,
        }
        return {name for name, is_taken in taken.items() if is_taken}


# Of every identity term.
IDENTITY_SETTINGS = frozenset({"identity_weight", "timestep_weighting", "min_face_size"})
