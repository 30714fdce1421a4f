"""Seeds for single purposes, so that no two random choices share a stream."""

import zlib


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed below 2^31 that depends on the seed and the purpose alone, on every machine and in every process."""
    return zlib.crc32(repr((seed, *purpose)).encode()) >> 1
