"""Checks of the numbers in a configuration; each raises ValueError for the first field that is out of range."""

from __future__ import annotations

from collections.abc import Callable


def _check(config: object, names: tuple[str, ...], allowed: Callable[[float], bool], words: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not allowed(value):
            raise ValueError(f"{name} must be {words}, got {value}")


def at_least_one(config: object, *names: str) -> None:
    """Refuse fields below 1."""
    _check(config, names, lambda value: value >= 1, "at least 1")


def at_most(config: object, largest: int, *names: str) -> None:
    """Refuse fields above a number."""
    _check(config, names, lambda value: value <= largest, f"at most {largest:,}")


def positive(config: object, *names: str) -> None:
    """Refuse fields that are 0 or below."""
    _check(config, names, lambda value: value > 0, "positive")


def not_negative(config: object, *names: str) -> None:
    """Refuse fields below 0."""
    _check(config, names, lambda value: value >= 0, "0 or more")


def below_one(config: object, *names: str) -> None:
    """Refuse fields outside of [0, 1)."""
    _check(config, names, lambda value: 0 <= value < 1, "in [0, 1)")
