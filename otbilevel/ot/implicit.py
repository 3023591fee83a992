"""The entry functions of implicit differentiation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from otbilevel.ot.gradients import OTGradient
from otbilevel.ot.linearization import Linearization, OTTangent
from otbilevel.ot.point_plan import MEMORY, check_memory
from otbilevel.ot.result import OTResult


def linearize(result: OTResult, *, memory: float = MEMORY) -> Linearization:
    """Prepare a solution for derivatives.

    Parameters
    ----------
    result : OTResult
        A solution for reg > 0.
    memory : float
        Bytes that a stored plan of a `PointCloud` may take, as in `solve_ot`.

    Returns
    -------
    Linearization
        With the methods `vjp`, `jvp` and `hvp`, which share a stored plan. It lives as long as this object.

    Raises
    ------
    ValueError
        For a result of ``method="exact"``, of `PartialMass`, or under constraints.

    Notes
    -----
    The potentials solve f_i = -reg log sum_j b_j exp((g_j - C_ij)/reg) and the same for g. Differentiated, that is a linear system
    with the plan in it; without f it is one with the Laplacian of Newton's method. It is solved by conjugate gradients with
    a plan in single precision and refined with one in double precision, to a residual of 1e-13 where rounding allows. They
    are the derivatives at the returned potentials: with a marginal error of e they are off by some e times a second derivative.
    Where marginals have a price, f = aprox(S) for soft minima S, which adds a diagonal: with Kullback-Leibler's price the system is
    never singular. `TotalVariation` and `AtMost` have kinks, and derivatives are those of the present piece: potentials at their
    bound stay there, marginals that are met stay met. If no potential is at its bound, changes of the weights are taken to keep
    the masses equal, as for fixed marginals. Points whose mass underflows on both sides are taken not to depend on one another.
    Beside the solve each product takes one to three passes over the plan, in blocks of rows: O(n m d) operations and, between
    points, O((n + m) d) memory beside the stored plan. For a `SparseCost`, whose changes and derivatives are sparse arrays with the
    pairs that it stores, the solve takes O(pairs), but these passes go over blocks of all n m pairs.

    References
    ----------
    G. Luise et al., Differential properties of Sinkhorn approximation for learning with Wasserstein distance, NeurIPS 2018.
    M. Eisenberger et al., A unified framework for implicit Sinkhorn differentiation, CVPR 2022.
    T. Séjourné et al., Sinkhorn divergences for unbalanced optimal transport, arXiv:1910.12958 (aprox).

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import linearize
    >>> C = np.random.default_rng(0).random((4, 5))
    >>> linear = linearize(solve_ot(None, None, C, reg=0.1))
    >>> e = np.eye(4)
    >>> jacobian = np.stack([linear.vjp(f=e[i], wrt="a").a for i in range(4)])
    >>> jacobian.shape, linear.residual < 1e-12
    ((4, 4), True)
    """
    if not isinstance(result, OTResult):
        msg = f"result must be an OTResult, got {type(result).__name__}"
        raise TypeError(msg)
    check_memory(memory)
    return Linearization(result, memory)


def vjp(
    result: OTResult,
    *,
    f: Any = None,
    g: Any = None,
    plan: Any = None,
    value_linear: float | None = None,
    barycentric_map: Any = None,
    points: Any = None,
    wrt: Iterable[str] | None = None,
) -> OTGradient:
    """Differentiate a scalar in the data of a problem, given its derivatives in the outputs: reverse mode.

    Parameters
    ----------
    result : OTResult
        A solution for reg > 0.
    f, g : (n,), (m,) array_like, optional
        Derivatives in the potentials, in the gauge <a, f> = <b, g> that results have where no marginal has a price.
    plan : (n, m) array_like, optional
        Derivatives in the plan.
    value_linear : float, optional
        Derivative in <P, C>.
    barycentric_map : (n,) or (n, k) array_like, optional
        Derivatives in ``result.barycentric_map(points)``.
    points : (m,) or (m, k) array_like, optional
        The points of that map. The derivatives in them are the field `points`; where they are also those of the cloud, add them up.
    wrt : names among "a", "b", "C", "x", "y", "reg", optional
        As in `OTResult.gradient`.

    Returns
    -------
    OTGradient
        Derivatives in the data.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the linear system could not be solved to a relative residual of 1e-7.

    Notes
    -----
    One linear solve, see `linearize`, which also is the way to several products at one solution. For the optimal value itself
    `OTResult.gradient` needs none.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import PointCloud, solve_ot
    >>> from otbilevel.ot import vjp
    >>> x, y = np.array([[0.0], [1.0]]), np.array([[0.5], [2.5]])
    >>> result = solve_ot(None, None, PointCloud(x, y), reg=1.0)
    >>> vjp(result, value_linear=1.0).x.round(3)
    array([[-0.318],
           [-1.682]])
    """
    return linearize(result).vjp(
        f=f, g=g, plan=plan, value_linear=value_linear, barycentric_map=barycentric_map, points=points, wrt=wrt
    )


def jvp(
    result: OTResult,
    *,
    a: Any = None,
    b: Any = None,
    C: Any = None,  # noqa: N803
    x: Any = None,
    y: Any = None,
    reg: float | None = None,
    plan: bool = False,
    value_linear: bool = False,
    points: Any = None,
    points_change: Any = None,
) -> OTTangent:
    """Differentiate the outputs along a change of the data: forward mode.

    Parameters
    ----------
    result : OTResult
        A solution for reg > 0.
    a, b : (n,), (m,) array_like, optional
        Changes of the weights. Where they change the two masses differently and no marginal has a price, both weights are taken to
        be scaled to the mean mass.
    C : (n, m) array_like, optional
        Change of the cost matrix.
    x, y : (n, d), (m, d) array_like, optional
        Changes of the points of a `PointCloud`.
    reg : float, optional
        Change of the regularisation.
    plan, value_linear : bool
        Whether to give the change of the plan, an (n, m) array, and of <P, C>.
    points : (m,) or (m, k) array_like, optional
        Give the change of ``result.barycentric_map(points)``.
    points_change : array_like, optional
        How these points change themselves; by default not at all.

    Returns
    -------
    OTTangent
        Changes of the outputs.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the linear system could not be solved to a relative residual of 1e-7.

    Notes
    -----
    One linear solve, see `linearize`.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import jvp
    >>> C = np.random.default_rng(0).random((4, 5))
    >>> tangent = jvp(solve_ot(None, None, C, reg=0.1), C=np.ones((4, 5)))
    >>> tangent.f.round(6), round(tangent.value, 6)
    (array([0.5, 0.5, 0.5, 0.5]), 1.0)
    """
    return linearize(result).jvp(
        a=a, b=b, C=C, x=x, y=y, reg=reg, plan=plan, value_linear=value_linear, points=points, points_change=points_change
    )


def hvp(
    result: OTResult,
    *,
    a: Any = None,
    b: Any = None,
    C: Any = None,  # noqa: N803
    x: Any = None,
    y: Any = None,
    reg: float | None = None,
    wrt: Iterable[str] | None = None,
) -> OTGradient:
    """Multiply the Hessian of the optimal value by a change of the data.

    Parameters
    ----------
    result : OTResult
        A solution for reg > 0.
    a, b, C, x, y, reg
        The change, as in `jvp`.
    wrt : names among "a", "b", "C", "x", "y", "reg", optional
        As in `OTResult.gradient`.

    Returns
    -------
    OTGradient
        How the gradient of `OTResult.gradient` changes.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the linear system could not be solved to a relative residual of 1e-7.

    Notes
    -----
    One linear solve and two passes, see `linearize`; the Hessian is never formed.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import PointCloud, solve_ot
    >>> from otbilevel.ot import hvp
    >>> x, y = np.array([[0.0], [1.0]]), np.array([[0.5], [2.5]])
    >>> result = solve_ot(None, None, PointCloud(x, y), reg=1.0)
    >>> hvp(result, x=np.ones((2, 1)), wrt="x").x.round(6)
    array([[1.],
           [1.]])
    """
    return linearize(result).hvp(a=a, b=b, C=C, x=x, y=y, reg=reg, wrt=wrt)
