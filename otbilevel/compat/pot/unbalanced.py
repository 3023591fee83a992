"""POT's `ot.unbalanced`: transport with relaxed marginals. Not there yet; calls are refused in one place."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from otbilevel._core import validate


def sinkhorn_unbalanced(a: Any, b: Any, M: Any, reg: float, reg_m: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Refuse, until `solve_ot` knows unbalanced transport.

    Parameters
    ----------
    a, b, M, reg, reg_m, *args, **kwargs
        As in POT.

    Raises
    ------
    NotImplementedError
        Always.
    """
    del a, b, M, reg, args, kwargs
    not_yet(f"reg_m={reg_m!r}")


def sinkhorn_unbalanced2(a: Any, b: Any, M: Any, reg: float, reg_m: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Refuse, until `solve_ot` knows unbalanced transport.

    Parameters
    ----------
    a, b, M, reg, reg_m, *args, **kwargs
        As in POT.

    Raises
    ------
    NotImplementedError
        Always.
    """
    del a, b, M, reg, args, kwargs
    not_yet(f"reg_m={reg_m!r}")


def require_balanced(unbalanced: Any) -> None:
    """Let None and infinity pass, which keep both marginals exact; refuse what relaxes one.

    Raises
    ------
    NotImplementedError
        When a marginal is relaxed.
    """
    if unbalanced is None:
        return
    if getattr(unbalanced, "shape", None) == () or not hasattr(unbalanced, "__len__"):
        sides = [unbalanced]
    else:
        sides = [unbalanced[k] for k in range(len(unbalanced))]
    if not 1 <= len(sides) <= 2:
        msg = f"unbalanced must be a number or a pair of numbers, got {len(sides)} of them"
        raise ValueError(msg)
    if not all(_is_infinite(side) for side in sides):
        not_yet(f"unbalanced={unbalanced!r}")


def _is_infinite(value: Any) -> bool:
    if isinstance(value, float) or getattr(value, "shape", None) == ():
        return float(value) == math.inf
    validate.real(value, "unbalanced")  # for its message, where `value` is no number
    return False


# TO BE REMOVED once `solve_ot` has `unbalanced=`: the one place that refuses it. `require_balanced` then hands the penalties on.
def not_yet(argument: str) -> NoReturn:
    """Say what is missing."""
    msg = (
        f"{argument} asks for unbalanced transport, which this version does not have yet: use POT's own function, or "
        "leave it out (or give infinity) for exact marginals"
    )
    raise NotImplementedError(msg)


__all__ = ["sinkhorn_unbalanced", "sinkhorn_unbalanced2"]
