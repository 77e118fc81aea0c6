"""Reading and writing: atomic files, images, manifests, features, weights, logs and GPU leases."""
