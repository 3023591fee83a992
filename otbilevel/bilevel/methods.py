"""The registry of `minimize_bilevel`: one row per method."""

from otbilevel._core.registry import Method, Registry
from otbilevel.bilevel import lv_hba

METHODS = Registry("minimize_bilevel")

METHODS.add(
    Method(
        name="lv-hba",
        summary="proximal Lagrangian value function, exact saddle points, several starts; coupled constraints",
        solve=lv_hba.solve,
        options=lv_hba.LVHBAOptions,
        backends=("numpy", "torch"),
        reference="Yao et al., ICLR 2024, arXiv:2401.16164",
        max_iter=100_000,
    )
)
