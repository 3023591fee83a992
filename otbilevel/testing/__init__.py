"""Problems with known answers, for our tests and benchmarks and for yours."""

from otbilevel.testing.ot_laws import check_ot_result
from otbilevel.testing.ot_problems import (
    FAMILIES,
    EntropicValue,
    TransportProblem,
    entropic_gaussian,
    gaussian_w2,
    wasserstein_1d,
)

__all__ = ["FAMILIES", "EntropicValue", "TransportProblem", "check_ot_result", "entropic_gaussian", "gaussian_w2", "wasserstein_1d"]
