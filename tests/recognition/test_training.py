"""Training: what is learnt, when it slows down and stops, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.recognition import training
from pipeline_steps.recognition.backbones import embed, to_input
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.recognition.protocol import pair_distances, unit_rows
from pipeline_steps.recognition.training import Epoch, train
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.study.settings.recognition import RecogniseSettings

RANDAUGMENT = {
    "augmentation": "randaugment",
    "randaugment_operations": 2,
    "randaugment_magnitude": 9,
}


class Linear(nn.Module):
    """A one-layer embedder of 16 x 16 images: quick, and enough to separate colours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 8)
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(len(x))
        return self.fc(x.flatten(1))


def coloured(
    n_each: int = 8, n_identities: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Identities are colours; images vary in brightness and noise."""
    rng = np.random.default_rng(seed)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40]])
    labels = np.repeat(np.arange(n_identities), n_each)
    images = colours[labels][:, None, None] * rng.uniform(0.6, 1.2, (len(labels), 1, 1, 1))
    images = images + rng.normal(0, 25, (len(labels), 112, 112, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def fit(
    network: nn.Module | Callable[[], nn.Module] = Linear,
    accuracies: list[float] | None = None,
    *,
    loss: str = "cosface",
    validate: Callable[[nn.Module], float] | None = None,
    seed: int = 1,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], object] = lambda: None,
    **settings: Any,
) -> tuple[Any, list[Epoch]]:
    """Train on colours with a validation whose accuracies are given (or constant)."""
    torch.manual_seed(0)
    network = network if isinstance(network, nn.Module) else network()
    head = MarginHead(8, 4, loss=loss)
    images, labels = coloured()
    given = iter(accuracies or [])
    epochs = max(3, len(accuracies or []))
    options = {"input_size": 16, "batch_size": 8, "epochs": epochs, **settings}
    history = train(
        network,
        head,
        images,
        labels,
        RecogniseSettings(**options),
        validate=validate or (lambda network: next(given, 0.5)),
        seed=seed,
        checkpoint=checkpoint,
        stop=stop,
    )
    return network, history


def test_training_separates_identities() -> None:
    network, history = fit(epochs=15, stop_patience=99)
    assert history[-1].loss < 0.1 * history[0].loss
    images, _ = coloured(2, seed=3)
    pairs = images[[0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 2, 4, 4, 6, 6, 0]]
    distances = pair_distances(unit_rows(embed(network, pairs, input_size=16)))
    assert distances[:4].max() < distances[4:].min()


def test_learning_rate_and_stop_follow_torchs_plateau_rule() -> None:
    """Against torch's own scheduler, over accuracies with ties, new bests and long plateaus."""
    rng = np.random.default_rng(0)
    accuracies = [round(0.5 + 0.01 * float(a), 2) for a in rng.integers(0, 30, 60)]
    _, history = fit(accuracies=accuracies, epochs=60, stop_patience=1000)
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.1 / 512 * 8)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=0.1, patience=4, threshold=0.0, threshold_mode="abs", eps=0.0
    )
    expected = []
    for accuracy in accuracies:
        expected.append(optimiser.param_groups[0]["lr"])
        plateau.step(accuracy)
    assert [epoch.learning_rate for epoch in history] == pytest.approx(expected)
    assert expected[-1] < 1e-6


def test_it_stops_after_six_epochs_without_a_new_best_and_restores_the_best() -> None:
    seen: list[torch.Tensor] = []
    accuracies = [0.5, 0.6, 0.7, 0.7, 0.65, 0.6, 0.6, 0.6, 0.6, 0.9]
    given = iter(accuracies)

    def validate(network: nn.Module) -> float:
        seen.append(network.fc.weight.detach().clone())  # type: ignore[union-attr]
        return next(given)

    network, history = fit(validate=validate, epochs=50)
    assert [epoch.accuracy for epoch in history] == accuracies[:9]
    assert [epoch.epoch for epoch in history if epoch.best] == [1, 2, 3]
    torch.testing.assert_close(network.fc.weight, seen[2], rtol=0, atol=0)  # type: ignore[union-attr]
    assert not torch.equal(seen[2], seen[-1])
    assert not network.training


def test_epochs_before_the_first_validated_one_do_not_count() -> None:
    _, history = fit(accuracies=[0.9, 0.5], epochs=5, first_validated_epoch=4)
    assert [epoch.accuracy for epoch in history] == [None, None, None, 0.9, 0.5]


def test_the_last_epoch_is_always_validated() -> None:
    _, history = fit(epochs=2, first_validated_epoch=10)
    assert [epoch.accuracy for epoch in history] == [None, 0.5]


def test_remainders_are_dropped_and_small_sets_make_one_batch() -> None:
    network, _ = fit(batch_size=10, epochs=1)
    assert network.batches == [10, 10, 10]  # 32 images
    network, history = fit(batch_size=128, epochs=1)
    assert network.batches == [32]
    assert history[0].learning_rate == pytest.approx(0.1 / 512 * 32)


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    weights = [fit(seed=seed, **RANDAUGMENT)[0].fc.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_backbones_gradient_is_clipped() -> None:
    before = Linear().state_dict()
    moved = []
    for clip_norm in (1e-6, 5.0):
        network = Linear()
        network.load_state_dict(before)
        fit(network, clip_norm=clip_norm, weight_decay=0.0, epochs=1)
        moved.append((network.fc.weight.detach() - before["fc.weight"]).norm().item())
    assert moved[0] < 1e-7
    assert moved[1] > 1e-3


def test_divergence_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="epoch"):
        fit(learning_rate_per_512=1e38, clip_norm=1e38)


def test_bfloat16_trains_too() -> None:
    _, history = fit(precision="bfloat16", epochs=10, stop_patience=99)
    assert history[-1].loss < 0.2 * history[0].loss


def test_input_is_rgb_in_minus_one_to_one_and_shrunk_by_area() -> None:
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[..., 0] = 255
    images[:, :2, :2, 2] = 255
    x = to_input(images, 2)
    assert x.shape == (1, 3, 2, 2)
    assert x[0, 0].eq(1).all()
    assert x[0, 1].eq(-1).all()
    assert x[0, 2].tolist() == [[1, -1], [-1, -1]]
    with pytest.raises(ValueError, match="uint8"):
        to_input(images.float(), 2)


def test_batch_size_changes_no_embedding() -> None:
    network, _ = fit()
    images, _ = coloured(2)
    one = embed(network, images, input_size=16, batch_size=1)
    all_at_once = embed(network, images, input_size=16)
    np.testing.assert_allclose(one, all_at_once, atol=1e-6)


def test_a_step_schedule_drops_at_its_milestones_and_trains_all_epochs() -> None:
    """Against torch's own scheduler."""
    settings = {"schedule": "step", "milestones": (3, 7, 8), "plateau_factor": 0.5}
    _, history = fit(accuracies=[0.5] * 12, stop_patience=1, **settings)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1 / 512 * 8)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 7, 8], gamma=0.5)
    expected = []
    for _ in range(12):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        steps.step()
    assert [epoch.learning_rate for epoch in history] == pytest.approx(expected)
    assert [epoch.epoch for epoch in history if epoch.best] == [1]


class Dropping(Linear):
    """With batch normalisation and dropout, so that buffers and random draws count."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(self.dropout(x)))


def spread(network: nn.Module) -> float:
    """A stand-in for an accuracy that depends on the weights."""
    return float(network.fc.weight.detach().std() * 10 % 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("at", [1, 4, 6, 13, 15])  # in, at the end of, and between epochs of 4
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, at: int) -> None:
    options: dict[str, Any] = {
        "loss": "adaface",
        "validate": spread,
        **RANDAUGMENT,
        "epochs": 4,
        "plateau_patience": 0,
    }
    whole, expected = fit(Dropping, **options)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "key")
    asked = iter([False] * (at - 1) + [True])
    with pytest.raises(Interrupted):
        fit(Dropping, **options, checkpoint=checkpoint, stop=lambda: next(asked))
    resumed, history = fit(Dropping, **options, checkpoint=checkpoint)
    assert len(resumed.batches) == 16 - at  # type: ignore[arg-type]
    assert history == expected
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_state_is_saved_within_long_epochs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, steps = Checkpoint(tmp_path / "state.safetensors", "key"), []
    save = Checkpoint.save

    def saves(self: Checkpoint, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        save(self, tensors, values)
        steps.append(values["step"])

    monkeypatch.setattr(Checkpoint, "save", saves)
    fit(checkpoint=checkpoint, epochs=1)
    assert steps == [0]  # after the epoch
    checkpoint.clear()
    steps.clear()
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    fit(checkpoint=checkpoint, epochs=1)
    assert steps == [1, 2, 3, 4, 0]


def test_state_of_another_training_or_a_broken_file_is_not_picked_up(tmp_path: Path) -> None:
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        fit(checkpoint=Checkpoint(tmp_path / "state", "key"), stop=lambda: next(asked))
    other, _ = fit(checkpoint=Checkpoint(tmp_path / "state", "other"))
    assert len(other.batches) == 12  # type: ignore[arg-type]
    file = tmp_path / "state"
    file.write_bytes(file.read_bytes()[:-9])
    again, _ = fit(checkpoint=Checkpoint(file, "other"))
    assert len(again.batches) == 12  # type: ignore[arg-type]


def test_adaface_trains_too() -> None:
    _, history = fit(loss="adaface", epochs=15, stop_patience=99)
    assert history[-1].loss < 0.3 * history[0].loss
