"""Generative recommendation with Semantic IDs, from raw logs to honest metrics and recommendations."""

import importlib
from typing import Any

__version__ = "0.1.0"


class TigerrecError(Exception):
    """A fault the user can repair: one sentence that says what is wrong, where, and which command mends it."""


_OFFERED = {"fit": "tigerrec.api", "load": "tigerrec.api", "Model": "tigerrec.api", "Rules": "tigerrec.serving.rules"}


def __getattr__(name: str) -> Any:
    """What the package offers to Python, loaded when it is asked for."""
    if name not in _OFFERED:
        raise AttributeError(f"module 'tigerrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
