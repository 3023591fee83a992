"""The registry of `solve_ot`: one row per method."""

from otbilevel._core.registry import Method, Registry
from otbilevel.ot import auto, exact, sinkhorn, sns

METHODS = Registry("solve_ot")

EVERYWHERE = ("numpy", "array_api_strict", "torch")

METHODS.add(
    Method(
        name="auto",
        summary="the best known method, today sns",
        solve=auto.solve,
        options=auto.AutoOptions,
        backends=EVERYWHERE,
        reference="this library",
        max_iter=100_000,
    )
)
METHODS.add(
    Method(
        name="sns",
        summary="path in reg, then Newton on the semi-dual, sparse where that pays; for small reg and high accuracy",
        solve=sns.solve,
        options=sns.SNSOptions,
        backends=EVERYWHERE,
        reference="Tang et al., ICLR 2024, arXiv:2401.12253",
        max_iter=100_000,
    )
)
METHODS.add(
    Method(
        name="sinkhorn",
        summary="matrix scaling with absorption, log-domain where it must be; over-relaxation on request",
        solve=sinkhorn.solve,
        options=sinkhorn.SinkhornOptions,
        backends=EVERYWHERE,
        reference="Cuturi, NeurIPS 2013; Schmitzer, SISC 2019, arXiv:1610.06519",
        max_iter=10_000,
    )
)
METHODS.add(
    Method(
        name="exact",
        summary="unregularised: POT's network simplex if installed, else SciPy's HiGHS",
        solve=exact.solve,
        options=exact.ExactOptions,
        backends=EVERYWHERE,
        reference="Bonneel et al., SIGGRAPH Asia 2011",
        max_iter=100_000_000,
    )
)
