"""Prints the largest difference between two maps: ``difference.py MAP MAP``."""

import sys

import nibabel as nib
import numpy as np


def main() -> None:
    """Read both, and print it."""
    one, other = (nib.load(path).get_fdata(dtype=np.float32) for path in sys.argv[1:3])
    print(np.abs(one - other).max())


if __name__ == "__main__":
    main()
