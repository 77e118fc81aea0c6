"""The embedded base model's networks: Stable Diffusion's own classes, small."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

RESOLUTION = 64  # pixels
DOWNSAMPLING = 4  # pixels per latent and axis
TEXT_WIDTH = 128


def autoencoder() -> AutoencoderKL:
    """Untrained AutoencoderKL: images [n, 3, 64, 64] in [-1, 1] to latents [n, 4, 16, 16]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 80),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


def denoiser() -> UNet2DConditionModel:
    """Untrained UNet2DConditionModel for latents [n, 4, 16, 16] and context [n, tokens, 128].

    It attends to itself and to the text at every level, so that adapters on attention alone reach
    coarse shape and fine detail.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=RESOLUTION // DOWNSAMPLING,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 112, 144),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def text_encoder(vocabulary: int, start: int, end: int, max_tokens: int) -> CLIPTextModel:
    """Untrained CLIPTextModel of three layers: token ids [n, t <= max_tokens] to [n, t, 128].

    Args:
        vocabulary: number of tokens.
        start, end: ids of the start and the end token; the latter also pads.
        max_tokens: longest text, in tokens.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=max_tokens,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
            projection_dim=TEXT_WIDTH,
        )
    )
