"""Threads that share out one short product after another without leaving compiled code.

There it costs a microsecond, by way of the interpreter some 100. A job is a kernel in so many parts. The leader
publishes it and claims one part after the other. Followers who are there do the same: with them the job is done sooner, without
them it is done, too. Which thread runs a part makes no difference to its result.

What the threads share is `state`, a few words that are read and written atomically:

`NEXT`       the number of the job, its parts and the first part not yet claimed, all in one word
`FINISHED`   how many parts of it are finished
`FAILED`     how many parts of any job raised an exception
`LEADING`    1 as long as jobs may follow
`FUNCTION`   address of a function of (part, address of its arguments)
`ARGUMENTS`  address of the arguments
`YIELD`      address of the system's function that lets another thread run
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from otbilevel.ot.kernels.cpu.atomic import STATUS, TASK, WORD, add, call, compare_and_swap, let_run, load, pause, store
from otbilevel.ot.kernels.cpu.compile import kernel

NEXT, FINISHED, LEADING, FAILED, FUNCTION, ARGUMENTS, YIELD, WORDS = 16, 32, 48, 49, 64, 65, 66, 80
"""Positions: words that change at different times are on cache lines of their own, and nothing else is on these."""
MOST_PARTS = 2**16 - 1
PATIENCE = 10_000
"""Looks, of some 30 nanoseconds each, before a thread that must wait lets others run at every look."""
FORGOTTEN = 100_000
"""Looks after which a follower leaves all the same: some 50 milliseconds, more when the cores are busy. Its leader does without."""
PADDING = 16
"""Numbers between the sums of two threads, which would wait for each other if they wrote to the same lines of memory."""

_SYSTEM_YIELD = ctypes.windll.kernel32.SwitchToThread if os.name == "nt" else ctypes.CDLL(None).sched_yield  # type: ignore[attr-defined]
_NEW = np.zeros(WORDS, np.int64)
_NEW[LEADING] = 1
_NEW[YIELD] = ctypes.cast(_SYSTEM_YIELD, ctypes.c_void_p).value or 0


def new_state() -> np.ndarray:
    """Of a leader without a job and without followers."""
    return _NEW.copy()


@kernel
def _claim_and_run(state):
    """Work on the present job until nothing of it is left to claim. Returns the number of parts."""
    count = 0
    while True:
        word = load(state, NEXT)
        part, parts = word & MOST_PARTS, (word >> 16) & MOST_PARTS
        if part >= parts:
            return count
        function, arguments = load(state, FUNCTION), load(state, ARGUMENTS)
        if compare_and_swap(state, NEXT, word, word + 1):
            if call(function, part, arguments) != 0:
                add(state, FAILED, 1)
            add(state, FINISHED, 1)
            count += 1


@kernel
def _rest(state, looks):
    """After so many looks in vain."""
    if looks < PATIENCE:
        pause()
    else:
        let_run(state[YIELD])


@kernel
def _have_done(state, function, arguments, parts):
    """Publish a job, work on it, and wait until all of it is finished."""
    store(state, FINISHED, 0)
    store(state, FUNCTION, function)
    store(state, ARGUMENTS, arguments)
    number = (load(state, NEXT) >> 32) + 1
    store(state, NEXT, ((number & 0x3FFFFFFF) << 32) | (parts << 16))
    _claim_and_run(state)
    looks = 0
    while load(state, FINISHED) < parts:
        looks += 1
        _rest(state, looks)


@intrinsic
def lead(typing, state, kernel, bounds, sums, totals, args):
    """Have a kernel done in as many parts as there are `totals`.

    Part number t is totals[t] = kernel(bounds[t], bounds[t + 1], sums, *args), where `sums` is (1, m) and starts as zeros: it is
    row t of the `sums` here, less `PADDING` numbers at its end.
    """
    signature = types.void(state, kernel, bounds, sums, totals, args)
    rows = kernel.dispatcher

    def run(part, bounds, sums, totals, args):
        own = sums[part, : sums.shape[1] - PADDING].reshape((1, sums.shape[1] - PADDING))
        for j in range(own.shape[1]):
            own[0, j] = 0.0
        totals[part] = rows(bounds[part], bounds[part + 1], own, *args)

    def wait(state, function, arguments, totals):
        _have_done(state, function, arguments, len(totals))

    def generate(context, builder, signature, values):
        kinds = types.Tuple(signature.args[2:])  # a copy of these arguments stays on the stack until the job is done
        copy = cgutils.alloca_once_value(builder, context.make_tuple(builder, kinds, values[2:]))
        inner = types.void(types.int64, *kinds)
        compiled = context.compile_subroutine(builder, run, inner)
        name = builder.module.get_unique_name(context.mangler(f"part.{rows.__name__}", inner.args))
        outlined = ir.Function(builder.module, TASK, name=name)
        outlined.linkage = "internal"
        body = ir.IRBuilder(outlined.append_basic_block())
        part, address = outlined.args
        arguments = body.load(body.inttoptr(address, context.get_value_type(kinds).as_pointer()))
        unpacked = [body.extract_value(arguments, k) for k in range(len(kinds))]
        status, _ = context.call_internal_no_propagate(body, compiled.fndesc, inner, [part, *unpacked])
        body.ret(body.zext(status.is_error, STATUS))
        waiting = types.void(signature.args[0], types.int64, types.int64, signature.args[4])
        addresses = [builder.ptrtoint(x, WORD) for x in (outlined, copy)]
        return context.compile_internal(builder, wait, waiting, [values[0], *addresses, values[4]])

    return signature, generate


@kernel
def follow(state):
    """Work on job after job while there is a leader."""
    looks = 0
    while load(state, LEADING) != 0 and looks < FORGOTTEN:
        looks = 0 if _claim_and_run(state) > 0 else looks + 1
        _rest(state, looks)
