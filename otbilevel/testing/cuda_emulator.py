"""CUDA kernels on the CPU: what `cupy.RawModule` and `cupy.RawKernel` do, by g++ and a header that emulates a block of threads.

The header says what the emulation can show and what it cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("cuda_emulator.hpp")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fcf-protection=none", "-U_FORTIFY_SOURCE", "-w", "-shared", "-fPIC")
TYPES: dict[str, tuple[Any, Any]] = {
    "d": (np.float64, ctypes.c_double),
    "f": (np.float32, ctypes.c_float),
    "i": (np.int32, ctypes.c_int),
    "I": (np.uint32, ctypes.c_uint),
    "q": (np.int64, ctypes.c_longlong),
}
"""What a parameter of a kernel may be, by the letter that the header gives it."""
GUARD = 4096
"""Bytes around every array that must not change."""
FAILURES = {
    1: "threads of a block wait at different barriers, or some never reach the one where the others wait",
    2: "a warp waits for lanes that have returned",
    3: "a block has between 1 and 1024 threads",
}

ENTRY = """
extern "C" const char *signature_NAME() { return emulator::signature(NAME); }
extern "C" int launch_NAME(const unsigned *grid, const unsigned *block, unsigned dynamic, bool descending, void **arguments) {
  return emulator::launch(NAME, grid, block, dynamic, descending, arguments);
}
"""

_order = ["ascending"]
launches: list[tuple[str, int]] = []
"""Every launch so far: the name of the kernel and the number of its threads."""


class EmulatedCUDAError(RuntimeError):
    """A kernel did what would be undefined or an error on a device."""


@contextlib.contextmanager
def thread_order(order: str) -> Iterator[None]:
    """Run the threads of a block in ``"ascending"`` or ``"descending"`` order within.

    Parameters
    ----------
    order : {"ascending", "descending"}
        A barrier that is missing shows in one of them, mostly.
    """
    if order not in ("ascending", "descending"):
        msg = f'order must be "ascending" or "descending", got {order!r}'
        raise ValueError(msg)
    _order.append(order)
    try:
        yield
    finally:
        _order.pop()


def kernel_names(code: str) -> list[str]:
    """The names of the kernels in CUDA C++ source.

    Parameters
    ----------
    code : str
        The source; kernels are ``extern "C"``.
    """
    return re.findall(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)+\s+)?(\w+)\s*\(', code)


class EmulatedModule:
    """Stands in for `cupy.RawModule`: compiles CUDA C++ with g++ and runs its kernels on arrays in host memory.

    Parameters
    ----------
    code : str
        CUDA C++ whose kernels are ``extern "C"``; it may use static and dynamic shared memory, barriers, warp shuffles and votes.
    options : sequence of str
        Compiler options, of which ``-D`` are passed on.
    **settings
        Other arguments of `cupy.RawModule`, which mean nothing here.

    Raises
    ------
    EmulatedCUDAError
        When g++ refuses the source.
    FileNotFoundError
        When there is no g++.
    """

    def __init__(self, code: str = "", *, options: Sequence[str] = (), **settings: Any) -> None:  # noqa: ARG002
        self._names = kernel_names(code)
        self._library = _build(code, tuple(option for option in options if option.startswith("-D")), tuple(self._names))

    def get_function(self, name: str) -> EmulatedKernel:
        """Return the kernel of that name.

        Parameters
        ----------
        name : str
            As in the source.
        """
        if name not in self._names:
            msg = f"no kernel {name!r} in the source, which has {', '.join(self._names)}"
            raise AttributeError(msg)
        return EmulatedKernel(self._library, name)


class EmulatedKernel:
    """Stands in for `cupy.RawKernel`; stricter, as a device would read what it is given as something else without a word.

    Parameters
    ----------
    library : ctypes.CDLL
        The compiled module.
    name : str
        The kernel.

    Attributes
    ----------
    parameters : list of str
        A letter for every parameter, see `TYPES`; with ``"P"`` before it a pointer, with ``"K"`` one to constants.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        signature = library[f"signature_{name}"]
        signature.restype = ctypes.c_char_p
        self.parameters = signature().decode().split()
        self._launch = library[f"launch_{name}"]

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        """Run all blocks.

        Raises
        ------
        TypeError
            When an argument has not exactly the type of the parameter, or an array is not contiguous.
        EmulatedCUDAError
            When threads wait for ever, or memory outside of an array was written to.
        """
        if len(args) != len(self.parameters):
            msg = f"{self.name} has {len(self.parameters)} parameters, got {len(args)} arguments"
            raise TypeError(msg)
        if shared_mem > 48 * 1024:
            msg = f"{self.name}: more than 48 KiB of dynamic shared memory, {shared_mem}, must be asked for"
            raise EmulatedCUDAError(msg)
        launches.append((self.name, int(np.prod(grid)) * int(np.prod(block))))
        memory: dict[int, _Guarded] = {}
        places: list[int] = []
        kept: list[Any] = []
        for k, (value, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            dtype, c_type = TYPES[parameter[-1]]
            if parameter[0] in "PK":
                array = _host(value, dtype, f"{self.name}, argument {k}")
                guarded = memory.setdefault(array.ctypes.data, _Guarded(array))
                guarded.writeable |= parameter[0] == "P"
                kept.append(ctypes.c_void_p(guarded.address))
            elif type(value) is dtype:
                kept.append(c_type(value))
            else:
                msg = f"{self.name}, argument {k}: pass np.{dtype.__name__}, got {type(value).__name__}"
                raise TypeError(msg)
            places.append(ctypes.addressof(kept[-1]))
        sizes = ((ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block))
        order = ctypes.c_bool(_order[-1] == "descending")
        failure = self._launch(*sizes, ctypes.c_uint(shared_mem), order, (ctypes.c_void_p * len(places))(*places))
        if failure:
            msg = f"{self.name}: {FAILURES[failure]}"
            raise EmulatedCUDAError(msg)
        for guarded in memory.values():
            guarded.finish(self.name)


class _Guarded:
    """A copy of an array with room around it that holds NaN and must not change."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.writeable = array, False
        self._bytes = np.full(array.nbytes + 2 * GUARD, 0xFF, np.uint8)
        self._bytes[GUARD : GUARD + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.address = self._bytes.ctypes.data + GUARD

    def finish(self, name: str) -> None:
        """Copy back what the kernel wrote."""
        size = self.array.nbytes
        if not (self._bytes[:GUARD] == 0xFF).all() or not (self._bytes[GUARD + size :] == 0xFF).all():
            msg = f"{name} wrote outside of an array of shape {self.array.shape}"
            raise EmulatedCUDAError(msg)
        if self.writeable:
            self.array.reshape(-1).view(np.uint8)[:] = self._bytes[GUARD : GUARD + size]


def _host(value: Any, dtype: type, where: str) -> np.ndarray:
    array: np.ndarray | None = getattr(value, "_host", None)
    if array is None or array.dtype != dtype or not array.flags.c_contiguous:
        found = type(value).__name__ if array is None else f"{array.dtype}, contiguous: {array.flags.c_contiguous}"
        msg = f"{where}: expected a contiguous device array of {np.dtype(dtype).name}, got {found}"
        raise TypeError(msg)
    return array


@functools.cache
def _build(code: str, defines: tuple[str, ...], names: tuple[str, ...]) -> ctypes.CDLL:
    """Compile, or find what was compiled from the same text before."""
    body = re.sub(
        r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;",
        r"\1 *\2 = reinterpret_cast<\1 *>(emulator::dynamic_shared);",
        code,
    )
    entries = "\n".join(ENTRY.replace("NAME", name) for name in names)
    text = f"{HEADER.read_text()}\nnamespace {{\n{body}\n}}  // what has no linkage may lie in a section of its own\n{entries}\n"
    digest = hashlib.sha256("\0".join((text, *defines, *FLAGS)).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"otbilevel-emulated-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        msg = f"{folder} belongs to somebody else, whose code must not run here: remove it, or set TMPDIR"
        raise PermissionError(msg)
    library = folder / f"{digest}.so"
    if not library.exists():
        compiler = shutil.which("g++")
        if compiler is None:
            msg = "CUDA kernels are emulated by g++, which is not installed"
            raise FileNotFoundError(msg)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            unit, made = Path(place) / "unit.cpp", Path(place) / "unit.so"
            unit.write_text(text)
            run = subprocess.run(
                [compiler, *FLAGS, *defines, str(unit), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if run.returncode:
                msg = f"g++ refuses the source:\n{run.stderr}"
                raise EmulatedCUDAError(msg)
            made.replace(library)
    return ctypes.CDLL(str(library))
