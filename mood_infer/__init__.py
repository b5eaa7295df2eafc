"""Scores every voxel and every scan for "not normal"; runs in the submission container."""

__version__ = "0.1.0"
