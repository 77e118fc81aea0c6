"""Rendered people and the photographs taken of them."""
