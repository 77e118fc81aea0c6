"""A published architecture at its full width, with random weights: does everything fit together?

    python benchmarks/real_architectures.py --model sd21
    python benchmarks/real_architectures.py --model sdxl --precision bf16
    python benchmarks/real_architectures.py --model iresnet100

sd21, sd21_v, sdxl: one step of every objective with an iResNet-100 as judge, one image, the adapter
saved and opened by diffusers. Small images keep time and memory down; layers, widths and names are
the published ones. Prompts are random vectors in place of text states.
--reduced tries the command on narrow networks.
iresnet100: exported to ONNX, read back from there, and compared with onnxruntime's answer.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from random_models import (
    Architecture,
    build,
    parameter_count,
    read_architecture,
    reduced,
)
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.diffusion.base_models.base import PRECISIONS, BaseModel, Conditioning
from pipeline_steps.diffusion.lora import AdapterBank, save_lora
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.diffusion.training.data import LatentSet, Recipe
from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.faces.iresnet import NAMED_LAYERS, IResNet, state_dict_of_onnx
from pipeline_steps.faces.recogniser import Recogniser
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.settings.diffusion import FinetuneSettings

TOKENS = 77


class CentralFace:
    """The middle half of every image is its face; a recogniser with random weights embeds it."""

    def __init__(self, network: IResNet) -> None:
        self.recogniser = Recogniser(network)

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        side = images.shape[-1]
        box = np.array([side // 4, side // 4, 3 * side // 4, 3 * side // 4], dtype=np.float32)
        return [box] * len(images)

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        quarter = images.shape[-1] // 4
        face = images[:, :, quarter:-quarter, quarter:-quarter]
        return self.recogniser.embed_tensor(F.interpolate(face, 112, mode="bilinear"))


def random_network(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A network with random weights that keep activations at their size."""
    # Module.to: diffusers' own warns of layers to keep in float32 where there are none.
    network = nn.Module.to(build(config, "meta"), dtype=dtype).to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
        else:
            nn.init.constant_(parameter, float(name.endswith("weight")))
    return network


def random_recogniser(*, small: bool = False) -> IResNet:
    """An iResNet-100, or a small one, whose normalisations and slopes all do something."""
    network = (
        IResNet((1, 1, 1, 1), (8, 8, 8, 8, 8)) if small else IResNet(NAMED_LAYERS["iresnet100"])
    )
    for name, values in network.state_dict().items():
        if values.ndim > 1:
            values.normal_(0.0, values[0].numel() ** -0.5)
        elif "running_mean" in name or name.endswith("bias"):
            values.normal_()
        elif values.ndim == 1 and values.is_floating_point():
            values.uniform_(0.5, 1.5)
    return network.eval()


def base_model(name: str, architecture: Architecture, side: int, precision: str) -> BaseModel:
    """A base model of full width without its text encoders."""
    from diffusers import DDPMScheduler

    unet = architecture["unet"]
    vae = random_network(architecture["vae"], PRECISIONS[precision])
    added = unet.get("projection_class_embeddings_input_dim", 0)
    pooled = added - 6 * unet.get("addition_time_embed_dim", 0)

    def encode(prompts: Sequence[str | None]) -> Conditioning:
        rows = [
            torch.randn(
                TOKENS * unet["cross_attention_dim"] + pooled,
                generator=torch_generator(0, "prompt", prompt or ""),
            )
            for prompt in prompts
        ]
        text = torch.stack(rows).to(PRECISIONS[precision])
        hidden = text[:, pooled:].unflatten(1, (TOKENS, -1))
        if not pooled:
            return Conditioning(hidden)
        size = text.new_tensor([[side, side, 0, 0, side, side]]).expand(len(text), -1)
        return Conditioning(hidden, {"text_embeds": text[:, :pooled], "time_ids": size})

    schedule = DDPMScheduler.from_config(architecture["scheduler"])
    return BaseModel(
        name=name,
        resolution=side,
        unet=random_network(unet, PRECISIONS[precision]),
        vae=vae,
        text_encoders=[],
        scheduler_config=dict(schedule.config),
        alphas_cumprod=schedule.alphas_cumprod.double(),
        encode=encode,
    ).to("cpu", precision)


def check_base_model(name: str, side: int, precision: str, *, small: bool = False) -> None:
    """One step of each objective, one image, one adapter through diffusers."""
    architecture = read_architecture(name)
    if small:
        architecture = reduced(architecture, side)
    with timed("networks with random weights"):
        base = base_model(name, architecture, side, precision)
    print(f"parameters: unet {parameter_count(base.unet):,}, vae {parameter_count(base.vae):,}")
    faces = CentralFace(random_recogniser(small=small))
    images = torch.rand(2, 3, side, side) * 2 - 1
    with timed("encode two images"):
        mean, std = base.encode_images(images)
    boxes = torch.as_tensor(np.stack([box for box in faces.boxes(images) if box is not None]))
    with torch.no_grad():
        own = F.normalize(faces.embed(images, boxes))
    image = LatentSet(mean[:1], std[:1], own[:1], "photo of sks person")
    prior = LatentSet(mean[1:], std[1:], own[1:], "photo of a person")
    for method in [name for name, known in METHODS.items() if known.trains]:
        recipe = Recipe(method, FinetuneSettings(steps=1).for_method(method), 0)
        with (
            timed(f"one step of {method}"),
            Fleet(base, {"ID_1": image}, prior, recipe, faces) as fleet,
        ):
            fleet.step()
            result = fleet.results()["ID_1"]
        losses = ", ".join(f"{key} {values[0]:.4f}" for key, values in result.losses.items())
        print(f"  finite {result.finite}; {losses}")
    targets = FinetuneSettings().targets
    bank = AdapterBank(base.unet, count=1, rank=4, alpha=4, targets=targets)
    print(f"weights of an adapter of rank 4: {bank.weights.numel():,}")
    bank.load(0, result.adapter)
    bank.weights.data[bank.weights == 0] = 0.01  # one step leaves B too close to zero to see
    request = ImageRequest("ID_1", 0, "photo of sks person", "cgi", seed=0, adapter=0)
    with timed("one image of 2 steps"):
        [(_, pixels)] = sample(base, [request], Sampling(2, 5.0, "ddpm", 1), bank=bank)
    print(f"  {tuple(pixels.shape)}, standard deviation {pixels.float().std():.1f}")
    latents = torch.randn(1, *base.latent_shape)
    condition = base.encode_prompts(["photo of sks person"])
    with torch.inference_mode():
        bank.activate([0])
        ours = base.predict(latents, torch.tensor([500]), condition)
        adapter = bank.adapter(0)
        bank.remove()
        without = base.predict(latents, torch.tensor([500]), condition)
    with timed("adapter saved and opened by diffusers"):
        theirs = through_diffusers(name, base, adapter, latents, condition, targets)
    print(
        f"  relative difference to diffusers {relative(ours, theirs):.1e}, "
        f"to the network without adapter {relative(ours, without):.1e}"
    )


def through_diffusers(
    name: str,
    base: BaseModel,
    adapter: Any,
    latents: Tensor,
    condition: Conditioning,
    targets: Sequence[str],
) -> Tensor:
    """The network's output after diffusers has opened the saved adapter."""
    import diffusers

    architecture = read_architecture(name)
    pipeline: Any = getattr(diffusers, architecture["pipeline"])
    schedule = diffusers.DDPMScheduler.from_config(architecture["scheduler"])
    own = {"unet": base.unet, "vae": base.vae, "scheduler": schedule}
    absent = [
        part
        for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        if part in pipeline.__init__.__annotations__
    ]
    if name != "sdxl":
        absent += ["safety_checker", "feature_extractor"]
        own["requires_safety_checker"] = False
    pipe = pipeline(**own, **dict.fromkeys(absent))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        save_lora(folder, adapter, rank=4, alpha=4, targets=targets)
        pipe.load_lora_weights(folder)
        return base.predict(latents, torch.tensor([500]), condition)


def check_recogniser() -> None:
    """An iResNet-100 through ONNX and back."""
    import onnxruntime

    network = random_recogniser()
    print(f"parameters: {parameter_count(network):,}")
    x = torch.rand(4, 3, 112, 112) * 2 - 1
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "r100.onnx"
        with timed("export"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                network,
                (x[:1],),
                str(path),
                dynamo=False,
                opset_version=11,
                input_names=["input.1"],
                dynamic_axes={"input.1": {0: "n"}},
            )
        twin = IResNet(NAMED_LAYERS["iresnet100"]).eval()
        with timed("read back"):
            twin.load_state_dict(state_dict_of_onnx(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = torch.from_numpy(session.run(None, {"input.1": x.numpy()})[0])
        cosine = F.cosine_similarity(twin(x), expected)
    print(f"smallest cosine of {len(x)} faces to onnxruntime's answer: {cosine.min():.8f}")


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a block took, and the largest memory so far."""
    start, processor = time.perf_counter(), time.process_time()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{what}: {time.perf_counter() - start:.1f} s, processor "
        f"{time.process_time() - processor:.1f} s, at most {memory:.1f} GiB so far",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("sd21", "sd21_v", "sdxl", "iresnet100"), required=True)
    parser.add_argument("--side", type=int, default=64, help="image side, px; a multiple of 64")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument("--reduced", action="store_true", help="the same layers, but narrow")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    if arguments.model == "iresnet100":
        check_recogniser()
    else:
        check_base_model(
            arguments.model, arguments.side, arguments.precision, small=arguments.reduced
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
