"""Compiling CUDA C++ for any GPU on a machine without one, by NVIDIA's runtime compiler from PyPI (``nvidia-cuda-nvrtc-cu12``)."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "nvidia-cuda-nvrtc-cu12"


class CUDACompileError(RuntimeError):
    """The compiler refuses the source."""


@dataclass(frozen=True)
class KernelFigures:
    """What the compiler says of a kernel.

    Attributes
    ----------
    parameters : int
        How many it has.
    registers : int
        Of 32 bits, a thread.
    shared : int
        Bytes of static shared memory, a block.
    spilled : int
        Bytes that a thread stores to and loads from memory for lack of registers.
    stack : int
        Bytes of a thread's stack frame.
    """

    parameters: int
    registers: int
    shared: int
    spilled: int
    stack: int


@functools.cache
def nvrtc_library() -> Path | None:
    """Where the compiler is; None when it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    found = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    return max(found, default=None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = nvrtc_library()
    if path is None:
        msg = f"NVRTC is not installed: pip install {PACKAGE}"
        raise FileNotFoundError(msg)
    return ctypes.CDLL(str(path))


def nvrtc_version() -> str:
    """Version of the compiler, such as ``"12.9"``."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_cuda(code: str, architecture: int, options: Sequence[str] = ()) -> dict[str, KernelFigures]:
    """Compile CUDA C++ to machine code and say what came of its kernels.

    Parameters
    ----------
    code : str
        The source; kernels are ``extern "C"``.
    architecture : int
        The compute capability, 80 for 8.0.
    options : sequence of str
        More options, such as ``"-DREAL=double"``.

    Returns
    -------
    dict
        `KernelFigures` by the names of the kernels.

    Raises
    ------
    CUDACompileError
        When the compiler refuses the source.
    FileNotFoundError
        When it is not installed.
    """
    return _figures(*_compile(code, architecture, options))


def intermediate_code(code: str, architecture: int, options: Sequence[str] = ()) -> str:
    """The PTX of CUDA C++, see `compile_cuda`."""
    return _compile(code, architecture, options)[1]


def _compile(code: str, architecture: int, options: Sequence[str]) -> tuple[str, str]:
    """The compiler's report and the intermediate code."""
    nvrtc, program = _library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    try:
        flags = [f"--gpu-architecture=sm_{architecture}", "-std=c++17", "--ptxas-options=-v", *options]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        failure = nvrtc.nvrtcCompileProgram(program, len(flags), array)
        log = _text(program, "ProgramLog")
        if failure:
            msg = f"sm_{architecture}: {log}"
            raise CUDACompileError(msg)
        return log, _text(program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _library()[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(1, size.value))
    _library()[f"nvrtcGet{what}"](program, buffer)
    return buffer.value.decode()


def _figures(log: str, ptx: str) -> dict[str, KernelFigures]:
    """From the report of the assembler, and the number of parameters from the intermediate code."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.split("'", 1)[0]
        declared = re.search(rf"\.entry {name}\((.*?)\)", ptx, re.DOTALL)
        # Functions that are called have figures of their own, and so may spill, too.
        spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", part))
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        found[name] = KernelFigures(
            parameters=declared[1].count(".param") if declared else 0,
            registers=int(registers[1]) if registers else 0,
            shared=int(shared[1]) if shared else 0,
            spilled=spilled,
            stack=sum(int(size) for size in re.findall(r"(\d+) bytes stack frame", part)),
        )
    return found
