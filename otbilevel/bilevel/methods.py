"""The registry of `minimize_bilevel`: one row per method."""

from otbilevel._core.registry import Method, Registry
from otbilevel.bilevel import aid, f2sa, lv_hba

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
METHODS.add(
    Method(
        name="aid-cg",
        summary="implicit differentiation, L-BFGS on F(x, y*(x)); lower levels without constraints",
        solve=aid.solve,
        options=aid.AIDOptions,
        backends=("numpy", "torch"),
        reference="Pedregosa, ICML 2016",
        max_iter=500,
    )
)
METHODS.add(
    Method(
        name="f2sa",
        summary="fully first order: a penalty on the lower level's value, steps in turn; lower levels without constraints",
        solve=f2sa.solve,
        options=f2sa.F2SAOptions,
        backends=("numpy", "torch"),
        reference="Kwon et al., ICML 2023, arXiv:2301.10945",
        max_iter=5000,
    )
)
