"""Training objectives of personalised latent diffusion, per sample, as pure functions.

Source: ID-Booth, Eq. 2-9, with the published slips corrected (the root and the plus in Eq. 2, the
order of the two similarities in Eq. 8); DreamBooth (prior preservation) and PortraitBooth (Eq. 7).

What all methods share; a method is one module of ``diffusion/methods``. The functions use tensor
methods only, so that methods can be listed without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = "epsilon"
V_PREDICTION = "v_prediction"


def add_noise(clean: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noised latents z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps (Eq. 2, corrected).

    Args:
        clean: z_0, float [n, c, h, w].
        noise: eps ~ N(0, 1), like ``clean``.
        alphas_cumprod: abar of each sample's timestep, float [n], in (0, 1).
    """
    signal, scale = _signal_and_noise(alphas_cumprod, clean)
    return signal * clean + scale * noise


def prediction_target(
    clean: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """What the denoising network has to predict: eps, or v = sqrt(abar) eps - sqrt(1 - abar) z_0.

    Raises:
        ValueError: ``prediction_type`` is neither "epsilon" nor "v_prediction".
    """
    _check_type(prediction_type)
    if prediction_type == EPSILON:
        return noise
    signal, scale = _signal_and_noise(alphas_cumprod, clean)
    return signal * noise - scale * clean


def predict_x0(
    noisy: Tensor, model_output: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """Estimated clean latents in closed form (Eq. 6).

    Args:
        noisy: z_t, float [n, c, h, w].
        model_output: The network's prediction, like ``noisy``.
        alphas_cumprod: abar of each sample's timestep, float [n], in (0, 1).
        prediction_type: "epsilon" or "v_prediction".

    Returns:
        float [n, c, h, w], in the scale of ``noisy``.

    Raises:
        ValueError: ``prediction_type`` is something else.
    """
    _check_type(prediction_type)
    signal, scale = _signal_and_noise(alphas_cumprod, noisy)
    if prediction_type == EPSILON:
        return (noisy - scale * model_output) / signal
    return signal * noisy - scale * model_output


def noise_prediction_loss(model_output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, float [n] (Eq. 4; Eq. 5 on prior images)."""
    return (model_output - target).square().flatten(1).mean(dim=1)


def min_snr_weight(alphas_cumprod: Tensor, cap: float, prediction_type: str) -> Tensor:
    """Weights [n] of errors: min(SNR, cap) / SNR of epsilon, min(SNR, cap) / (SNR + 1) of v.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023.
    """
    _check_type(prediction_type)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=cap) / (snr + (1 if prediction_type == V_PREDICTION else 0))


def timestep_weight(timesteps: Tensor, train_timesteps: int = 1000) -> Tensor:
    """w(t) = (1 - t/T)^2 in (0, 1], float [n]: how much an estimate of x_0 at t can be trusted."""
    return (1.0 - timesteps.double() / train_timesteps).square()


def id_weight(timesteps: Tensor, train_timesteps: int = 1000) -> Tensor:
    """ID3's factor of the likeness, (1 - 1 / (1 + exp(-t/T))) / 2, float [n]: 0.25 ... 0.134."""
    return 0.5 * (-timesteps.double() / train_timesteps).sigmoid()


def reconstruction_loss(clean: Tensor, estimate: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """ID3's one-step reconstruction, abar mean (z_0 - x0)^2 of each sample, float [n].

    The factor abar is inferred: of a noise prediction the term is (1 - abar) times its error, so
    that estimates from pure noise, which nobody can expect to be right, do not count for all.
    """
    return alphas_cumprod.to(clean.dtype) * noise_prediction_loss(estimate, clean)


def likeness_loss(embedding: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """ID3's inner product term, -weights <y, phi(x0)> of unit vectors, float [n].

    A von Mises-Fisher log-likelihood of y without its constant, with the concentration `weights`.

    Args:
        embedding: phi of the decoded estimates, float [n, d] of any length.
        wanted: y, float [n, d] of any length.
        weights: float [n], e.g. :func:`id_weight`.
    """
    return -weights.to(embedding.dtype) * cosine_similarity(wanted, embedding)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between rows of [n, d], float [n] in [-1, 1]; rows of any length."""
    return (_unit(a) * _unit(b)).sum(dim=-1)


def identity_loss(anchor: Tensor, positive: Tensor) -> Tensor:
    """PortraitBooth's L_ID = 1 - cos(positive, anchor), float [n] in [0, 2] (Eq. 7).

    Args:
        anchor: Face embeddings of the decoded estimate, float [n, d].
        positive: Face embeddings of the training images, float [n, d].
    """
    return 1.0 - cosine_similarity(positive, anchor)


def triplet_identity_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0
) -> Tensor:
    """ID-Booth's L_TID = max(cos(negative, anchor) - cos(positive, anchor) + margin, 0).

    Eq. 8 prints the two similarities swapped, which would push the identity away; the text and the
    published results mean this one.

    Args:
        anchor: Face embeddings of the decoded estimate, float [n, d].
        positive: Face embeddings of the same training images, float [n, d].
        negative: Face embeddings of the prior images of the same step, float [n, d].
        margin: Least wanted difference of the two similarities, >= 0.

    Returns:
        float [n], in [0, 2 + margin].
    """
    gap = cosine_similarity(negative, anchor) - cosine_similarity(positive, anchor)
    return (gap + margin).clamp(min=0.0)


def _check_type(prediction_type: str) -> None:
    if prediction_type not in (EPSILON, V_PREDICTION):
        raise ValueError(f"prediction type {prediction_type!r}: epsilon or v_prediction expected")


def _signal_and_noise(alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shaped = alphas_cumprod.reshape(-1, *([1] * (like.ndim - 1)))
    return shaped.sqrt().to(like.dtype), (1.0 - shaped).sqrt().to(like.dtype)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-8)
