"""Adapters for the habits of others: POT's functions, and an estimator for scikit-learn.

``from otbilevel.compat import pot as ot`` stands in for ``import ot``, and `otbilevel.compat.sklearn` holds the estimator, which
needs scikit-learn.
"""

from otbilevel.compat import pot

__all__ = ["pot"]
