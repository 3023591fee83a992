"""What threads need to share words of memory in compiled code, and numba has only for the GPU: LLVM's own instructions.

`state` is an array of int64, `slot` a position in it. These operations are sequentially consistent: every thread sees them in the
same order, and what was written before one of them is there for whoever sees it.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

ORDER = "seq_cst"
WORD, STATUS = ir.IntType(64), ir.IntType(32)
TASK = ir.FunctionType(STATUS, [WORD, WORD])
"""A part of a job: its number and the address of the arguments. The status is 0 unless there was an exception."""


def _address(context, builder, signature, args):
    kind, array = signature.args[0], make_array(signature.args[0])(context, builder, args[0])
    return cgutils.get_item_pointer(context, builder, kind, array, [args[1]], wraparound=False)


@intrinsic
def load(typing, state, slot):
    def generate(context, builder, signature, args):
        return builder.load_atomic(_address(context, builder, signature, args), ORDER, 8)

    return types.int64(state, types.intp), generate


@intrinsic
def store(typing, state, slot, value):
    def generate(context, builder, signature, args):
        builder.store_atomic(args[2], _address(context, builder, signature, args), ORDER, 8)
        return context.get_dummy_value()

    return types.void(state, types.intp, types.int64), generate


@intrinsic
def add(typing, state, slot, value):
    """Returns the value before."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _address(context, builder, signature, args), args[2], ORDER)

    return types.int64(state, types.intp, types.int64), generate


@intrinsic
def compare_and_swap(typing, state, slot, old, new):
    """Replace `old` by `new`. Returns whether `old` was there."""

    def generate(context, builder, signature, args):
        pair = builder.cmpxchg(_address(context, builder, signature, args), args[2], args[3], ORDER, ORDER)
        return builder.extract_value(pair, 1)

    return types.boolean(state, types.intp, types.int64, types.int64), generate


@intrinsic
def pause(typing):
    """Tell the processor that this is a loop that waits."""

    def generate(context, builder, signature, args):
        if platform.machine() in ("x86_64", "AMD64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=nothing), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def let_run(typing, address):
    """Call the function at `address`, which lets another thread run."""

    def generate(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(STATUS, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def call(typing, function, part, arguments):
    """Run a part: `function` is the address of a `TASK`. Returns its status."""

    def generate(context, builder, signature, args):
        return builder.call(builder.inttoptr(args[0], TASK.as_pointer()), args[1:])

    return types.int32(types.int64, types.int64, types.int64), generate
