"""Checks of scalar arguments. Every message names the argument, what was found and what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any


def real(value: Any, name: str, *, low: float = -math.inf, high: float = math.inf, strict: bool = False) -> float:
    """Return `value` as a float in [low, high], or in (low, high] when `strict`.

    Raises
    ------
    TypeError
        When `value` is not a real number.
    ValueError
        When it is NaN, infinite or out of range.
    """
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Real):
        msg = f"{name} must be a real number, got {_describe(value)}"
        raise TypeError(msg)
    number = float(scalar)
    if not math.isfinite(number) or not low <= number <= high or (strict and number == low):
        wanted = f"finite and {'>' if strict else '>='} {low:g}" if low > -math.inf else "finite"
        if high < math.inf:
            wanted += f" and <= {high:g}"
        msg = f"{name} must be {wanted}, got {number!r}"
        raise ValueError(msg)
    return number


def integer(value: Any, name: str, *, low: int = 0) -> int:
    """Return `value` as an int >= low.

    Raises
    ------
    TypeError
        When `value` is not an integer.
    ValueError
        When it is smaller than `low`.
    """
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Integral):
        msg = f"{name} must be an integer, got {_describe(value)}"
        raise TypeError(msg)
    if scalar < low:
        msg = f"{name} must be >= {low}, got {scalar}"
        raise ValueError(msg)
    return int(scalar)


def boolean(value: Any, name: str) -> bool:
    """Return `value` if it is a bool, else raise TypeError."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, got {_describe(value)}"
        raise TypeError(msg)
    return value


def choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, else raise ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}"
        raise ValueError(msg)
    return value


def _scalar(value: Any) -> Any:
    """Unwrap a zero-dimensional array of any library."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _describe(value: Any) -> str:
    return f"{value!r} of type {type(value).__name__}" if isinstance(value, (str, bool, type(None))) else type(value).__name__
