"""Faces: detection, alignment, cropping, recognition embeddings, face quality and head pose."""
