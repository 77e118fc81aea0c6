"""Latent diffusion: base models, stacked LoRA adapters, objectives, fine-tuning and sampling."""
