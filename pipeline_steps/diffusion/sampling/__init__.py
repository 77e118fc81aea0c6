"""Sampling: the same prompts and noise for every method, and which images are kept."""
