"""Generative recommendation with Semantic IDs, from raw Amazon files to honest metrics."""

__version__ = "0.1.0"


class TigerrecError(Exception):
    """A fault the user can repair: one sentence that says what is wrong, where, and which command mends it."""
