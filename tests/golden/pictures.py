"""Patches of the golden images, which are a formula instead of a file."""

import numpy as np

PIXELS = 588  # of a patch: 3 colours, 14 rows, 14 columns


def patches(grid: tuple[int, int], seed: int) -> np.ndarray:
    """uint8 [rows · columns, 588] that look random, the same on every machine."""
    height, width = grid
    number = np.arange(height * width * PIXELS, dtype=np.uint64) + np.uint64(1_000_003 * seed)
    # Steps of MurmurHash3's finaliser.
    number = (number ^ (number >> np.uint64(16))) * np.uint64(0x85EBCA6B) & np.uint64(0xFFFFFFFF)
    number = (number ^ (number >> np.uint64(13))) * np.uint64(0xC2B2AE35) & np.uint64(0xFFFFFFFF)
    return (number >> np.uint64(24)).astype(np.uint8).reshape(-1, PIXELS)
