"""Rows of the score tables from features: arrays in, rows out."""
