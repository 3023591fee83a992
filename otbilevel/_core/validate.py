"""Checks of scalar arguments. Every message names the argument, what was found and what to do."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np


def real(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    strict: bool = False,
    below: float = math.inf,
) -> float:
    """Return `value` as a float in [low, high], or in (low, high] when `strict`, that is smaller than `below`.

    Raises
    ------
    TypeError
        When `value` is not a real number.
    ValueError
        When it is NaN, infinite or out of range.
    """
    scalar = _scalar(value, name)
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Real):
        msg = f"{name} must be a real number, got {_describe(value)}"
        raise TypeError(msg)
    try:
        number = float(scalar)
    except OverflowError:
        number = math.inf if scalar > 0 else -math.inf  # type: ignore[operator]
    if not (math.isfinite(number) and low <= number <= high and number < below) or (strict and number == low):
        wanted = f"finite and {'>' if strict else '>='} {low:g}" if low > -math.inf else "finite"
        wanted += f" and <= {high:g}" if high < math.inf else ""
        wanted += f" and < {below:g}" if below < math.inf else ""
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
    scalar = _scalar(value, name)
    if isinstance(scalar, bool) or not isinstance(scalar, numbers.Integral):
        msg = f"{name} must be an integer, got {_describe(value)}"
        raise TypeError(msg)
    if scalar < low:
        msg = f"{name} must be >= {low}, got {scalar}"
        raise ValueError(msg)
    return int(scalar)


def boolean(value: Any, name: str) -> bool:
    """Return `value` if it is a bool, else raise TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        msg = f"{name} must be True or False, got {_describe(value)}"
        raise TypeError(msg)
    return bool(value)


def choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, else raise ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}"
        raise ValueError(msg)
    return value


def _scalar(value: Any, name: str) -> Any:
    """Unwrap a zero-dimensional array of any library."""
    if getattr(value, "shape", None) != ():
        return value
    if getattr(value, "requires_grad", False):
        msg = f"{name} is a tensor that requires gradients, which are not recorded: pass {name}.item()"
        raise TypeError(msg)
    if hasattr(value, "item"):
        return value.item()
    try:
        return operator.index(value)
    except TypeError:
        return float(value)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"{value!r} of type {kind}" if isinstance(value, (str, numbers.Number, type(None))) else kind
