"""A stand-in for CuPy on a machine without a GPU: arrays of a class of their own, backed by NumPy, and kernels emulated by g++.

What fails on a device fails here: mixing with NumPy arrays, ``np.asarray(x)``, NumPy functions of device arrays, a kernel that gets
the wrong dtype. What the host would wait for is counted, see `waits`. Speed, memory and streams are not those of a device.
"""

from __future__ import annotations

import contextlib
import importlib.util
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from otbilevel.testing.cuda_emulator import EmulatedModule

HOST_DOORS = ("array", "asarray", "ascontiguousarray")
"""The functions that take NumPy arrays."""
WAITING = ("nonzero", "flatnonzero", "argwhere", "unique", "unique_all", "unique_counts", "unique_inverse", "unique_values")
"""Functions whose result has a shape that the host has to wait for."""
ABSENT = (
    "block",
    "einsum_path",
    "errstate",
    "frompyfunc",
    "geomspace",
    "insert",
    "matvec",
    "ndenumerate",
    "nditer",
    "spacing",
    "unstack",
    "vecdot",
    "vecmat",
)
"""Of NumPy's names those that CuPy 14 does not have."""
MULTIPROCESSORS = 3
"""Of the device that there is not: few, so that small arrays make strips of several rows."""

_waits = [0]


class ndarray:  # noqa: N801 -- the name that it has in CuPy
    """An array that is not in host memory, as far as anybody can tell."""

    __slots__ = ("_host",)
    __module__ = "cupy"
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray

    def __new__(cls, shape: Any = (), dtype: Any = float, **settings: Any) -> Any:
        return _wrapped(np.empty(shape, dtype, **settings))

    def __array__(self, *_: Any, **__: Any) -> Any:
        msg = "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        raise TypeError(msg)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        # np.float64(2) * x comes by here, and is fine on a device, too
        mixed = any(isinstance(x, (np.generic, int, float)) for x in inputs)
        if method != "__call__" or settings or not mixed or any(isinstance(x, np.ndarray) for x in inputs):
            msg = f"NumPy's {ufunc.__name__} was called on a device array"
            raise TypeError(msg)
        return _wrapped(ufunc(*map(_plain, inputs)))

    def __array_function__(self, function: Any, *_: Any) -> Any:
        msg = f"NumPy's {function.__name__} was called on a device array"
        raise TypeError(msg)

    def get(self, **_: Any) -> np.ndarray:
        """The numbers in host memory; the host waits for them."""
        _waits[0] += 1
        return self._host.copy()

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        return (_wrapped(x) for x in self._host)

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        _waits[0] += any(isinstance(part, ndarray) and part._host.dtype == bool for part in parts)
        return _wrapped(self._host[_plain(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_plain(key)] = _plain(value)

    def __repr__(self) -> str:
        return f"stand_in({self._host!r})"

    @property
    def device(self) -> Any:
        """Where it says that it is."""
        return Device(0)


class Device:
    """The one device that there is not."""

    attributes = {"MultiProcessorCount": MULTIPROCESSORS, "WarpSize": 32}  # noqa: RUF012 -- CuPy has it like this

    def __init__(self, index: Any = 0) -> None:
        self.id = 0 if index is None else int(getattr(index, "id", index))

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def synchronize(self) -> None:
        """Count as a wait."""
        _waits[0] += 1


class Stream:
    """A stream on which everything is done at once."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def synchronize(self) -> None:
        """Count as a wait."""
        _waits[0] += 1


def _wrapped(x: Any) -> Any:
    """NumPy's answer as device arrays: numbers become arrays of no dimension; tuples, named ones too, hold arrays."""
    if isinstance(x, (np.ndarray, np.generic)):
        out = object.__new__(ndarray)
        out._host = np.asarray(x)
        return out
    if isinstance(x, (tuple, list)):
        parts = [_wrapped(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def _plain(x: Any) -> Any:
    """Device arrays as NumPy arrays; a NumPy array is refused, as CuPy does."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray) and x.ndim:
        msg = f"Unsupported type {type(x)}"
        raise TypeError(msg)
    if isinstance(x, (tuple, list)):
        return type(x)(map(_plain, x))
    return x


def _opened(x: Any) -> Any:
    """As `_plain`, for functions that take NumPy arrays."""
    return x._host if isinstance(x, ndarray) else [_opened(part) for part in x] if isinstance(x, (tuple, list)) else x


def _lifted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy for device arrays."""
    plain = _opened if name in HOST_DOORS else _plain

    def call(*args: Any, **settings: Any) -> Any:
        if name == "repeat" and any(isinstance(x, ndarray) for x in (*args[1:], *settings.values())):
            msg = "CuPy's repeat takes numbers of repetitions from the host only"
            raise TypeError(msg)
        _waits[0] += name in WAITING
        return _wrapped(function(*map(plain, args), **{key: plain(value) for key, value in settings.items()}))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"As ``numpy.{name}``."
    return call


def _binary(name: str) -> Callable[[ndarray, Any], Any]:
    def method(self: ndarray, other: Any) -> Any:
        answer = getattr(self._host, name)(_plain(other))
        return answer if answer is NotImplemented else _wrapped(answer)

    return method


def _in_place(name: str) -> Callable[[ndarray, Any], ndarray]:
    def method(self: ndarray, other: Any) -> ndarray:
        getattr(self._host, name)(_plain(other))
        return self

    return method


def _unary(name: str) -> Callable[[ndarray], Any]:
    return lambda self: _wrapped(getattr(self._host, name)())


def _scalar(convert: Callable[[Any], Any]) -> Callable[[ndarray], Any]:
    def method(self: ndarray) -> Any:
        _waits[0] += 1
        return convert(self._host)

    return method


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **settings: Any) -> Any:
        return _wrapped(getattr(self._host, name)(*map(_plain, args), **{key: _plain(value) for key, value in settings.items()}))

    return method


def _transposed(name: str) -> Callable[[ndarray], Any]:
    return lambda self: _wrapped(getattr(self._host, name))


def _complete() -> None:
    """Give the class its operators, attributes and methods."""
    for op in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]:
        setattr(ndarray, f"__{op}__", _binary(f"__{op}__"))
        setattr(ndarray, f"__r{op}__", _binary(f"__r{op}__"))
        setattr(ndarray, f"__i{op}__", _in_place(f"__i{op}__"))
    for op in ["lt", "le", "gt", "ge", "eq", "ne"]:
        setattr(ndarray, f"__{op}__", _binary(f"__{op}__"))
    for op in ["neg", "pos", "abs", "invert"]:
        setattr(ndarray, f"__{op}__", _unary(f"__{op}__"))
    converters: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "int": int,
        "bool": bool,
        "complex": complex,
        "index": operator.index,
    }
    for name, convert in converters.items():
        setattr(ndarray, f"__{name}__", _scalar(convert))
    for name in ("item", "tolist"):
        setattr(ndarray, name, _scalar(operator.methodcaller(name)))
    for name in ["shape", "dtype", "ndim", "size", "flags", "strides", "nbytes", "itemsize"]:
        setattr(ndarray, name, property(operator.attrgetter(f"_host.{name}")))
    for name in ("T", "mT"):
        setattr(ndarray, name, property(_transposed(name)))
    methods = (
        "sum max min mean prod any all argmax argmin reshape ravel copy astype squeeze transpose dot fill sort argsort clip cumsum"
    )
    for name in methods.split():
        setattr(ndarray, name, _method(name))


_complete()


def _module(name: str, source: types.ModuleType) -> types.ModuleType:
    module = types.ModuleType(name)
    for key in dir(source):
        value = getattr(source, key)
        if key.startswith("_") or isinstance(value, types.ModuleType) or (name == "cupy" and key in ABSENT):
            continue
        setattr(module, key, _lifted(key, value) if callable(value) and not isinstance(value, type) else value)
    sys.modules[name] = module
    return module


def _cuda() -> types.ModuleType:
    cuda = types.ModuleType("cupy.cuda")
    cuda.Device, cuda.Stream = Device, Stream  # type: ignore[attr-defined]
    cuda.is_available = lambda: True  # type: ignore[attr-defined]
    cuda.runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0)  # type: ignore[attr-defined]
    for name, member in (("device", Device), ("stream", Stream)):
        part = types.ModuleType(f"cupy.cuda.{name}")
        setattr(part, member.__name__, member)
        setattr(cuda, name, part)
        sys.modules[part.__name__] = part
    sys.modules["cupy.cuda"] = cuda
    return cuda


def install_cupy_stand_in() -> types.ModuleType:
    """Make ``import cupy`` find the stand-in, in this process, for good.

    Do it before anything has imported CuPy, or array_api_compat's wrapper of it, which then wraps the stand-in.

    Returns
    -------
    module
        The stand-in for ``cupy``.

    Raises
    ------
    RuntimeError
        When another CuPy has been imported already.

    Examples
    --------
    >>> from otbilevel.testing import install_cupy_stand_in
    >>> cupy = install_cupy_stand_in()                           # doctest: +SKIP
    >>> solve_ot(None, None, cupy.random.random((50, 40)))       # doctest: +SKIP
    """
    there = sys.modules.get("cupy")
    if there is not None:
        if getattr(there, "ndarray", None) is ndarray:
            return there
        msg = "CuPy, or array_api_compat's wrapper of it, has been imported: install the stand-in before that"
        raise RuntimeError(msg)
    cupy = _module("cupy", np)
    cupy.__path__ = []
    cupy.__spec__ = importlib.util.spec_from_loader("cupy", loader=None)
    cupy.__version__ = "0+stand.in"  # type: ignore[attr-defined]
    for name in ("linalg", "fft", "random"):
        setattr(cupy, name, _module(f"cupy.{name}", getattr(np, name)))
    cupy.cuda = _cuda()  # type: ignore[attr-defined]
    cupy.ndarray = ndarray  # type: ignore[attr-defined]
    cupy.RawModule = EmulatedModule  # type: ignore[attr-defined]
    cupy.RawKernel = lambda code, name, options=(), **_: EmulatedModule(code, options=options).get_function(name)  # type: ignore[attr-defined]
    cupy.asnumpy = lambda x, **_: x.get() if isinstance(x, ndarray) else np.asarray(x)  # type: ignore[attr-defined]
    cupy.get_array_module = lambda *arrays: cupy if any(isinstance(x, ndarray) for x in arrays) else np  # type: ignore[attr-defined]
    cupy.is_available = lambda: True  # type: ignore[attr-defined]
    return cupy


@contextlib.contextmanager
def count_waits() -> Iterator[Callable[[], int]]:
    """Count how often the host would wait for the device: a number or an array is read, or a shape depends on numbers.

    Yields
    ------
    callable
        The count since the beginning.
    """
    start = _waits[0]
    yield lambda: _waits[0] - start
