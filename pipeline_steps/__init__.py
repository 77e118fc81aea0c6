"""From photographs of consenting people to a synthetic face-recognition dataset.

One module here is one step of the workflow; the sub-packages are the libraries the steps stand on.
"""

from __future__ import annotations

__version__ = "0.1.0"
