"""Reading and writing: atomic files, images, manifests, tensors, weights, downloads."""
