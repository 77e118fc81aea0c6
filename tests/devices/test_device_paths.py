"""What runs on a GPU: every tensor on the right device, CPU's numbers, and no needless waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from benchmarks.random_models import write_random_pipeline
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, Runtime
from pipeline_steps.diffusion.sampling.sampler import (
    SCHEDULERS,
    ImageRequest,
    Sampling,
    sample,
    sample_latents,
)
from pipeline_steps.diffusion.training.choice import Trials
from pipeline_steps.diffusion.training.data import Recipe
from pipeline_steps.diffusion.training.memory import plan_size
from pipeline_steps.faces.detection import Detector, crop_and_resize
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.faces.recogniser import Recogniser
from pipeline_steps.io.tensors import send
from pipeline_steps.recognition.augmentation import randaugment
from pipeline_steps.recognition.margins import MARGINS, MarginHead
from pipeline_steps.recognition.training import train
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.study.settings.diffusion import ChoiceSettings, FinetuneSettings
from pipeline_steps.study.settings.recognition import RecogniseSettings
from tests.devices import full_width
from tests.devices.card_tensor import CardTensor
from tests.devices.pretended_card import pretended_card
from tests.diffusion.tiny_study import base_weights
from tests.diffusion.toy_fleet import NAMES, SETTINGS, CentreFace, a_fleet

EAGER = Runtime(compile="off")
WAITS_PER_DETECTION = 4  # a mask, and what each of the three networks says
FACE = np.ascontiguousarray(data.astronaut()[20:180, 140:300])  # NASA, public domain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_pipeline(tmp_path_factory.mktemp("tiny"))


def opened(folder: Path, precision: str = "fp32") -> BaseModel:
    return load_base_model(base_weights(folder), "cpu", precision)


def faces_on(device: str) -> CentreFace:
    faces = CentreFace()
    faces.projection = faces.projection.to(device)
    return faces


def values(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, CardTensor)
    return tensor.values


@pytest.mark.parametrize(
    ("optimiser", "runtime"),
    [("adamw", EAGER), ("adamw8bit", Runtime(compile="off", redecode=True, decode_chunk=2))],
)
def test_a_training_step_is_the_cpus_and_never_waits(
    folder: Path, optimiser: str, runtime: Runtime
) -> None:
    """Finding faces waits, of necessity; it is left out here, and counted below."""
    settings = SETTINGS.model_copy(update={"optimiser": optimiser})
    with a_fleet(opened(folder), settings=settings, runtime=runtime) as fleet:
        expected = [fleet.step() for _ in range(2)]
        state = fleet.state()
    base = opened(folder)
    with pretended_card() as card:
        base.to("cuda", "fp32")
        faces = faces_on("cuda")
        with a_fleet(base, settings=settings, runtime=runtime, guide=faces) as fleet:
            for losses in expected:
                card.waits.clear()
                torch.testing.assert_close(values(fleet.step()), losses, rtol=1e-5, atol=1e-6)
                assert card.waits == []
            for name, tensor in fleet.state().items():
                assert tensor.device.type == "cpu"
                if name == "weights":
                    assert (tensor - state[name]).norm() < 1e-3 * state[name].norm()


def test_a_step_in_16_bits_follows_full_precision_and_never_waits(folder: Path) -> None:
    with a_fleet(opened(folder)) as fleet:
        expected = fleet.step()
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    base = opened(folder)
    with pretended_card() as card:
        base.to("cuda", "bf16")
        with a_fleet(base, settings=settings, runtime=EAGER, guide=faces_on("cuda")) as fleet:
            assert fleet.bank.weights.dtype == torch.float32
            card.waits.clear()
            losses = fleet.step()
            assert card.waits == []
            assert fleet.bank.weights.grad is not None
            assert fleet.bank.weights.grad.dtype == torch.float32
    torch.testing.assert_close(values(losses), expected, rtol=0.1, atol=0.1)


def test_a_run_on_a_card_plans_its_share_and_chooses_its_step(folder: Path) -> None:
    """The memory probe reads the card's counters, and trials judge images on the card."""
    base = opened(folder)
    with pretended_card() as card:
        base.to("cuda", "fp32")
        faces = faces_on("cuda")

        def open_fleet(identities: Any, runtime: Runtime) -> Any:
            return a_fleet(base, identities, runtime=runtime, guide=faces)

        many = [f"ID_{i}" for i in range(40)]
        card.total = card.held + 20 * (1 << 20)
        assert 2 < plan_size(many, open_fleet, device="cuda") < 40
        choice = ChoiceSettings(steps=(1,), images=2, sampling_steps=1, held_out=1)
        held_out = {name: torch.randn(1, 32) for name in NAMES}
        settings = FinetuneSettings(choice=choice)
        trials = Trials(Recipe("dreambooth", settings, 0), held_out, faces)
        with open_fleet(NAMES, EAGER) as fleet:
            trials(fleet)
            fleet.step()
            trials(fleet)
            trials.apply(fleet)
        assert trials.record(NAMES[0])["chosen"] == 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sampling_on_a_card_gives_the_cpus_images(folder: Path, scheduler: str) -> None:
    requests = [ImageRequest("a", i, "photo", "", seed=i) for i in range(2)]
    base = opened(folder)
    [(_, expected)] = sample(base, requests, Sampling(2, 5.0, scheduler, 2))
    waits = []
    with pretended_card() as card:
        base.to("cuda", "fp32")
        for steps in (4, 2):
            card.waits.clear()
            [(_, images)] = sample(base, requests, Sampling(steps, 5.0, scheduler, 2))
            waits.append(len(card.waits))
    assert not isinstance(images, CardTensor)
    assert (images.int() - expected.int()).abs().max() <= 1
    if scheduler == "unipc":
        return  # diffusers builds and solves its small systems on the device
    # Of each step there is one copy at most, of the noise that was drawn on the CPU.
    noisy = scheduler in ("ddpm", "dpmsolver++_sde", "euler_ancestral")
    assert waits[0] - waits[1] == 2 * noisy


def test_detection_waits_as_often_as_it_says_for_any_number_of_images() -> None:
    images = np.stack([FACE, FACE[:, ::-1], np.zeros_like(FACE)])
    expected = Detector().detect(list(images))
    with pretended_card() as card:
        detector = Detector("cuda")
        stack = send(torch.from_numpy(images).permute(0, 3, 1, 2), "cuda")
        card.waits.clear()
        found = detector.detect_tensor(stack)
        assert len(card.waits) == WAITS_PER_DETECTION
    assert [face is None for face in found] == [False, False, True]
    for face, reference in zip(found[:2], expected[:2], strict=True):
        assert face is not None
        assert reference is not None
        np.testing.assert_allclose(face.box, reference.box, atol=1e-3)


def test_faces_are_the_same_within_16_bit_arithmetic() -> None:
    detector = Detector()
    [expected] = detector.detect([FACE])
    with torch.autocast("cpu", torch.bfloat16):
        [found] = detector.detect([FACE])
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.box, expected.box)


def test_face_regions_and_embeddings_on_a_card() -> None:
    torch.manual_seed(0)
    network = IResNet((1, 1, 1, 1), (8, 8, 8, 8, 8), 16).eval()
    images = FACE[None, :112, :112]
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    box = torch.tensor([[10.0, 10.0, 90.0, 100.0]])
    expected = network(crop_and_resize(x, box))
    with pretended_card() as card:
        recogniser = Recogniser(network, "cuda")
        on_card, place = send(x, "cuda").requires_grad_(), send(box, "cuda")
        card.waits.clear()
        rows = recogniser.embed_tensor(crop_and_resize(on_card, place))
        rows.sum().backward()
        assert card.waits == []
        torch.testing.assert_close(values(rows.detach()), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", MARGINS)
@pytest.mark.parametrize("fits", [True, False], ids=["on the card", "pinned"])
def test_recognition_trains_on_a_card_without_waiting(loss: str, fits: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 112, 112, 3), dtype=np.uint8)
    labels = np.arange(24) % 3

    def trained(device: str, waits: Callable[[], int] = int) -> tuple[Tensor, list[int]]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8))
        head = MarginHead(8, 3, loss=loss)
        counts: list[int] = []

        def noted() -> bool:
            counts.append(waits())
            return False

        train(
            network.to(device),
            head.to(device),
            images,
            labels,
            RecogniseSettings(epochs=1, input_size=16, batch_size=6),
            validate=lambda network: 0.5,
            seed=1,
            stop=noted,
        )
        return network[1].weight.detach(), counts

    expected, _ = trained("cpu")
    with pretended_card(total=1 << 40 if fits else 1000) as card:
        weight, counts = trained("cuda", lambda: len(card.waits))
        torch.testing.assert_close(values(weight), expected, rtol=1e-3, atol=1e-5)
    assert len(set(counts)) == 1  # no step waited


def test_augmentation_on_a_card_is_the_cpus() -> None:
    images = torch.from_numpy(np.stack([FACE[:64, :64], FACE[32:96, 32:96]]))
    expected = randaugment()(images, torch.Generator().manual_seed(0))
    with pretended_card():
        found = randaugment()(send(images, "cuda"), torch.Generator().manual_seed(0))
        torch.testing.assert_close(values(found), expected)


def test_the_lease_of_a_card_leaves_float32_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions would otherwise round to TF32, and only where there is a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("CONSENTED_FACES_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pretended_card(), gpu_lease() as device:
        assert device == "cuda"
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_networks_that_are_compiled_are_one_graph_each(folder: Path) -> None:
    """A graph break would keep CUDA graphs from holding; tracing needs no GPU."""
    base = opened(folder)
    with a_fleet(base, runtime=EAGER) as fleet:
        whole: Any = {"backend": "eager", "fullgraph": True}
        network, decode = torch.compile(base.unet, **whole), torch.compile(base.decode, **whole)
        condition = fleet.loss.condition
        noisy = torch.randn(len(condition), *base.latent_shape)
        times = torch.arange(len(condition))
        found = base.predict(noisy, times, condition, network)
        torch.testing.assert_close(found, base.predict(noisy, times, condition))
        torch.testing.assert_close(decode(noisy[:1]), base.decode(noisy[:1]))


@pytest.mark.parametrize(
    ("name", "method", "weights", "least", "most"),
    [("sd21", "idbooth", 829_952, 8, 16), ("sdxl", "dreambooth", 5_806_080, 24, 60)],
)
def test_published_widths_train_within_a_cards_memory(
    name: str, method: str, weights: int, least: int, most: int
) -> None:
    """One identity in bf16, by the tensors that live at once; GiB."""
    with pretended_card(values=False) as card:
        base = full_width.base_model(name)
        with full_width.fleet(base, method, 1) as fleet:
            assert fleet.bank.weights.numel() == weights
            card.waits.clear()
            card.peak = card.held
            assert fleet.step().shape == (1, 4)
            assert card.waits == []
        assert least < card.peak / 2**30 < most
        if name == "sdxl":  # with its pooled text and sizes, both for guidance
            request = ImageRequest("a", 0, "photo", "", seed=0)
            how = Sampling(steps=1, guidance=5.0, scheduler="ddpm", batch_size=1)
            [(_, latents)] = sample_latents(base, [request], how)
            assert latents.shape == (1, 4, 128, 128)
