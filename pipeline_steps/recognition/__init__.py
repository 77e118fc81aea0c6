"""Face recognition: margin losses, backbones, training, verification benchmarks."""
