"""Exponentials that LLVM can vectorise: no call, no branch, no table.

exp(x) = 2^k exp(r) with k = round(x / log 2) and |r| <= log(2)/2 (Cody and Waite); k is found by adding and
subtracting a number so large that the sum has no fraction bits, and 2^k is made by writing k + bias into the exponent
field. At the lower clip k + bias is 0: everything below underflows to an exact zero, minus infinity included.
"""

import numpy as np
from numba import njit

# 'reassoc' would fold (t + MAGIC) - MAGIC; 'nnan' and 'ninf' would be lies where a forbidden pair has infinite cost.
EXACT = {"contract", "nsz", "arcp"}
SUMS = EXACT | {"reassoc"}

_MAGIC = 6755399441055744.0  # 1.5 * 2^52
_LOW, _HIGH = -1023 * np.log(2.0), 700.0
_LOG2E, _LN2 = 1.4426950408889634, 0.6931471805599453
# Chebyshev interpolation of degree 10 on |r| <= log(2)/2, relative error 3e-16.
_C2, _C3, _C4 = 0.5000000000000006, 0.16666666666554314, 0.041666666666573066
_C5, _C6, _C7 = 0.008333333385699212, 0.001388888893251478, 0.00019841170230570286
_C8, _C9, _C10 = 2.480150431378554e-05, 2.764019739169484e-06, 2.7626371065696354e-07
_C1 = 1.0000000000000067


@njit(fastmath=EXACT)
def exp64(x):
    """exp(x) in double precision for -708 < x < 700; 0 below, exp(700) above.

    The relative error is 5e-16 + 3.5e-17 |x|, and 5e-16 + 1.2e-16 |x| on a processor without fused multiply-add.
    """
    x = min(max(x, _LOW), _HIGH)
    shifted = x * _LOG2E + _MAGIC
    k = shifted - _MAGIC
    r = x - k * _LN2  # fused, only the rounding of log 2 remains: 2e-17 k
    p = (((_C10 * r + _C9) * r + _C8) * r + _C7) * r + _C6
    p = ((((p * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _C1
    p = p * r + 1.0
    exponent = np.int64((np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52))
    return p * exponent.view(np.float64)


_F = np.float32
_MAGIC32 = _F(12582912.0)  # 1.5 * 2^23
_LOW32, _HIGH32 = _F(-127 * np.log(2.0)), _F(80.0)
_LOG2E32, _LN2_HIGH32, _LN2_LOW32 = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
# The minimax polynomial of the Cephes library.
_P0, _P1, _P2 = _F(1.987569150e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_P3, _P4, _P5 = _F(4.1665795894e-2), _F(0.16666665459), _F(0.5)
_ONE = _F(1)


@njit(fastmath=EXACT)
def exp32(x):
    """exp(x) in single precision, relative error 1e-7 for -87 < x < 80; 0 below, exp(80) above."""
    x = min(max(x, _LOW32), _HIGH32)
    shifted = x * _LOG2E32 + _MAGIC32
    k = shifted - _MAGIC32
    r = (x - k * _LN2_HIGH32) - k * _LN2_LOW32
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    p = p * r * r + r + _ONE
    exponent = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
    return p * exponent.view(np.float32)
