"""Scores every voxel and every scan for "not normal"; runs in the submission container."""

import os

__version__ = "0.1.0"

# What a pass of a network frees goes back to the system, and the next pass waits for it page by page again.
# In pages of 2 MiB, where Linux has them, that takes hardly any time. Read by torch before its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
