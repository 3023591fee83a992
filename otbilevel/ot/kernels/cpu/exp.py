"""Exponentials that LLVM can vectorise: no call, no branch, no table.

2^x = 2^k 2^r with k = round(x) and |r| <= 1/2. The base 2 makes the reduction exact; a kernel that wants exp(x / reg) multiplies
by `LOG2E` / reg instead of 1 / reg, which costs nothing. k is found by adding and subtracting a number so large that the sum has no
fraction bits, and 2^k is made by writing k + bias into the exponent field. At the lower clip k + bias is 0: everything below
underflows to an exact zero, minus infinity included.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

# 'reassoc' would fold (t + MAGIC) - MAGIC; 'nnan' and 'ninf' would be lies where a forbidden pair has infinite cost.
EXACT = {"contract", "nsz", "arcp"}
SUMS = EXACT | {"reassoc"}

LOG2E = 1.4426950408889634

_MAGIC = 6755399441055744.0  # 1.5 * 2^52
_LOW, _HIGH = -1023.0, 1010.0
# Chebyshev interpolation of degree 10 on |r| <= 1/2, relative error 3e-16.
_C1, _C2, _C3 = 0.69314718055995, 0.24022650695910097, 0.05550410866444742
_C4, _C5, _C6 = 0.009618129107606871, 0.0013333558230215262, 0.00015403530441765088
_C7, _C8, _C9, _C10 = 1.5252657229551429e-05, 1.321544257022465e-06, 1.0208696429374313e-07, 7.072589488396345e-09


@njit(fastmath=EXACT)
def exp2_64(x):
    """2^x in double precision for -1022 < x < 1010; 0 below, 2^1010 above. The relative error is 5e-16."""
    x = min(max(x, _LOW), _HIGH)
    shifted = x + _MAGIC
    r = x - (shifted - _MAGIC)
    p = ((((_C10 * r + _C9) * r + _C8) * r + _C7) * r + _C6) * r + _C5
    p = ((((p * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + 1.0
    exponent = np.int64((np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52))
    return p * exponent.view(np.float64)


_F = np.float32
_MAGIC32 = _F(12582912.0)  # 1.5 * 2^23
_LOW32, _HIGH32 = _F(-127.0), _F(115.0)
# The same of degree 6, relative error 5e-9.
_P1, _P2, _P3 = _F(0.6931471880262288), _F(0.24022650760568126), _F(0.05550357114219078)
_P4, _P5, _P6 = _F(0.009618082557277852), _F(0.0013390863664371234), _F(0.0001545316294512069)
_ONE = _F(1)


@njit(fastmath=EXACT)
def exp2_32(x):
    """2^x in single precision, relative error 1e-7 for -126 < x < 115; 0 below, 2^115 above."""
    x = min(max(x, _LOW32), _HIGH32)
    shifted = x + _MAGIC32
    r = x - (shifted - _MAGIC32)
    p = (((((_P6 * r + _P5) * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r + _ONE
    exponent = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
    return p * exponent.view(np.float32)


def exp2(x):
    """2^x in the precision of x."""
    raise NotImplementedError  # pragma: no cover -- compiled code calls the overload below


@overload(exp2, jit_options={"fastmath": EXACT})
def _exp2(x):
    return (lambda x: exp2_32(x)) if x == types.float32 else (lambda x: exp2_64(x))
