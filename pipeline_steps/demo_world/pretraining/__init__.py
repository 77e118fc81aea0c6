"""Training of the embedded weights."""
