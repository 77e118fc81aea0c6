"""When training slows down, stops, and which epoch it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ROUNDING = 1e-9  # equal accuracies may differ by the rounding of an average over folds


@dataclass(frozen=True)
class Epoch:
    """One row of the history; `accuracy` is None where the epoch was not validated."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float | None
    best: bool


@dataclass(frozen=True)
class Schedule:
    """When training slows down and stops.

    Attributes:
        kind: plateau (the learning rate drops when validation stops improving, and training stops
            when it does so for longer) or step (it drops after fixed epochs; all are trained).
        epochs: largest number of epochs.
        factor: factor by which the learning rate drops.
        plateau_patience: validated epochs without a new best before it drops.
        stop_patience: validated epochs without a new best after which training stops.
        milestones: epochs after which it drops; only with step.
        first_validated_epoch: epochs before it are not validated; the last one always is.
    """

    kind: Literal["plateau", "step"] = "plateau"
    epochs: int = 200
    factor: float = 0.1
    plateau_patience: int = 4
    stop_patience: int = 6
    milestones: tuple[int, ...] = ()
    first_validated_epoch: int = 1

    def validates(self, epoch: int) -> bool:
        """Whether this epoch (from 1) is validated."""
        return epoch >= self.first_validated_epoch or epoch >= self.epochs


@dataclass
class Progress:
    """What a schedule has seen so far.

    Attributes:
        history: finished epochs.
        best_accuracy: of the epochs validated so far; None before the first.
        since_best: validated epochs since then.
    """

    history: list[Epoch] = field(default_factory=list)
    best_accuracy: float | None = None
    since_best: int = 0

    def add(self, epoch: Epoch) -> bool:
        """Note a finished epoch, whose `best` is decided here; True where it is a new best."""
        best = epoch.accuracy is not None and (
            self.best_accuracy is None or epoch.accuracy > self.best_accuracy + ROUNDING
        )
        if best:
            self.best_accuracy, self.since_best = epoch.accuracy, 0
        elif epoch.accuracy is not None:
            self.since_best += 1
        self.history.append(
            Epoch(epoch.epoch, epoch.learning_rate, epoch.loss, epoch.accuracy, best)
        )
        return best

    def ends(self, schedule: Schedule) -> bool:
        """Whether training is over after the last epoch."""
        if not self.history:
            return False
        stops = schedule.kind == "plateau" and self.since_best >= schedule.stop_patience
        return stops or self.history[-1].epoch >= schedule.epochs

    def drops(self, schedule: Schedule) -> bool:
        """Whether the learning rate drops after the last epoch."""
        last = self.history[-1]
        if schedule.kind == "step":
            return last.epoch in schedule.milestones
        waited = self.since_best and self.since_best % (schedule.plateau_patience + 1) == 0
        return last.accuracy is not None and bool(waited)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; floats survive exactly."""
        return {
            "history": [list(vars(epoch).values()) for epoch in self.history],
            "best_accuracy": self.best_accuracy,
            "since_best": self.since_best,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Progress:
        """What `to_json` gave."""
        history = [Epoch(*row) for row in value["history"]]
        return Progress(history, value["best_accuracy"], int(value["since_best"]))
