"""Low-rank adapters: stacked while they train, folded in to sample, files for diffusers."""
