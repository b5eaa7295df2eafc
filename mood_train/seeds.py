"""Every random draw from (seed, purpose, number): no draw depends on which worker makes it, or when."""

import zlib
from typing import Any

import numpy as np


def generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """An independent generator for this purpose and number; numbers may be negative."""
    sign = 0 if number >= 0 else 1
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), sign, abs(number)])


def seed_transform(transform: Any, rng: np.random.Generator) -> None:
    """Seed a MONAI transform from a generator."""
    transform.set_random_state(seed=int(rng.integers(2**31)))
