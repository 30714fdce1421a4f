"""Tools that show the figures of a run while it trains: one module each, with the name of its package and its extra."""

from __future__ import annotations

import importlib.util
import pkgutil

NONE = "none"


def checked_tracker(name: str) -> str:
    """The name of a tracker whose package is installed.

    Raises:
        ValueError: there is no such tracker, or its package is missing; without the option's name in front.
    """
    allowed = [NONE, *sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")]
    if name not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}")
    if name != NONE and importlib.util.find_spec(name) is None:
        raise ValueError(f'needs a package that is missing: give `pip install "tigerrec[{name}]"`, or leave it out')
    return name
