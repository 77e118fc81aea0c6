"""Loaded by Python at its start when this folder is in PYTHONPATH: Snakemake waits a second only.

Its plugin for SLURM looks for ended jobs 2, 14, 36 and 68 seconds after they were submitted, which
is polite to a scheduler that many share, and leaves a machine idle that runs nothing but tests.
"""

import os
import sys

if "snakemake" in map(os.path.basename, sys.orig_argv[1:2]):
    import asyncio

    _sleep = asyncio.sleep
    asyncio.sleep = lambda seconds, *more: _sleep(min(seconds, 1), *more)
