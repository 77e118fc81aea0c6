"""The tables of a study computed once more, apart from the pipeline: see `recompute.py`."""
