"""What every test may ask for: array libraries, dtypes, and a header that says what runs."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest

IN_CI = bool(os.environ.get("CI"))
"""In continuous integration an array library that is missing is a failure, and hypothesis draws the same examples every time."""

STAND_IN = os.environ.get("OTBILEVEL_FAKE_CUPY") == "1"
"""Whether a stand-in takes the place of CuPy: for a process of its own, as `test_cuda.py` starts it."""

if STAND_IN:
    importlib.import_module("otbilevel.testing").install_cupy_stand_in()

hypothesis.settings.register_profile(
    "otbilevel",
    deadline=None,
    derandomize=IN_CI,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a matter of how busy the machine is
)
hypothesis.settings.load_profile("otbilevel")


@dataclasses.dataclass(frozen=True)
class Backend:
    """An array library as the tests see it.

    Attributes
    ----------
    name : str
        The name of the parametrised test.
    library : str
        The name of the library, as the rows of a registry spell it.
    device : str or None
        Name of the device, where the library has several.
    writeable : bool
        Whether `asarray` gives arrays that may be written to.
    """

    name: str
    library: str
    device: str | None = None
    writeable: bool = True

    @property
    def xp(self) -> ModuleType:
        """The namespace that creates arrays."""
        return importlib.import_module(self.library)

    @property
    def version(self) -> str | None:
        """Version of the library, None when it is not installed."""
        found = importlib.util.find_spec(self.library) is not None
        return importlib.metadata.version(self.library) if found else None

    def dtype(self, name: str) -> Any:
        """The library's dtype of that name."""
        return getattr(self.xp, "bool_" if name == "bool" and self.library == "numpy" else name)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        """A new array with the numbers of `x`; `dtype` is a name, by default float64 for floats, else that of ``np.asarray(x)``."""
        values = np.array(x)
        if dtype is None and values.dtype.kind == "f":
            dtype = "float64"
        values = values if dtype is None else values.astype(dtype)
        if self.library == "numpy":
            values.flags.writeable = self.writeable
            return values
        if self.library == "torch":
            return self.xp.tensor(values)
        where = None if self.device is None else self.xp.Device(self.device)
        return self.xp.asarray(values, dtype=self.dtype(values.dtype.name), device=where)

    def owns(self, x: Any) -> bool:
        """Whether `x` is an array of this library on this device."""
        if self.library == "numpy":
            return type(x) is np.ndarray
        if self.library == "torch":
            return isinstance(x, self.xp.Tensor) and x.device.type == "cpu"
        return type(x) is type(self.xp.zeros(0)) and x.device == self.xp.Device(self.device or "CPU_DEVICE")

    def to_numpy(self, x: Any) -> np.ndarray:
        """The numbers of an array of this library, which is checked to be one."""
        assert self.owns(x), f"{type(x)} is not an array of {self.name}"
        return np.asarray(x.to_device(self.xp.Device("CPU_DEVICE")) if self.device else x).copy()

    def dtype_name(self, x: Any) -> str:
        """The name of an array's dtype, such as ``"float32"``."""
        return str(x.dtype).rsplit(".", 1)[-1]


HOST = (
    Backend("numpy", "numpy"),
    Backend("numpy-readonly", "numpy", writeable=False),
    Backend("array_api_strict", "array_api_strict"),
    Backend("torch", "torch"),
)
"""Arrays in host memory, which NumPy can read."""

EVERYWHERE = (*HOST, Backend("array_api_strict-device1", "array_api_strict", device="device1"))
"""The last one stands for a GPU: NumPy cannot read its arrays, and a copy that nobody asked for is an error."""


def _backend(name: str) -> Backend:
    found = next(backend for backend in EVERYWHERE if backend.name == name)
    if found.version is None and not IN_CI:
        pytest.skip(f"{found.library} is not installed")
    return found


@pytest.fixture(scope="session", params=[backend.name for backend in HOST])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every array library in host memory."""
    return _backend(request.param)


@pytest.fixture(scope="session", params=[backend.name for backend in EVERYWHERE])
def device_backend(request: pytest.FixtureRequest) -> Backend:
    """Every array library, and a device whose arrays NumPy cannot read."""
    return _backend(request.param)


@pytest.fixture(params=["small", "large"])
def small_or_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as `sns` solves small problems, once as if they were large."""
    if request.param == "large":
        monkeypatch.setattr("otbilevel.ot.sns.SMALL", 0)


@pytest.fixture(autouse=True)
def _small_like_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside read-only arrays problems are solved as if they were large, so that both ways see the tests of every library."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "numpy-readonly" in (callspec.params.get(name) for name in ("backend", "device_backend")):
        monkeypatch.setattr("otbilevel.ot.sns.SMALL", 0)


@pytest.fixture(scope="session")
def make_backend() -> Any:
    """A function from the name of a backend to the backend, for tests that mix them."""
    return _backend


@pytest.fixture(scope="session", params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Both real floating dtypes, by name."""
    return request.param


@pytest.fixture(scope="session")
def tested_libraries() -> set[str]:
    """The array libraries that `backend` stands for."""
    return {backend.library for backend in EVERYWHERE}


def find_cupy() -> tuple[ModuleType | None, str]:
    """CuPy where it can run, or its stand-in, or None; and what that is, for people."""
    if STAND_IN:
        return importlib.import_module("cupy"), "a stand-in for CuPy, kernels emulated by g++: no GPU has run them"
    if importlib.util.find_spec("cupy") is None:
        return None, "CuPy is not installed: stand-ins run its kernels, in processes of their own"
    module = importlib.import_module("cupy")
    if not module.is_available():
        return None, "CuPy finds no GPU: stand-ins run its kernels, in processes of their own"
    name = module.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return module, f"CuPy {module.__version__} on {name}"


@pytest.fixture(scope="session")
def cupy() -> ModuleType:
    """CuPy on a GPU, or its stand-in."""
    module, what = find_cupy()
    if module is None:
        pytest.skip(what)
    return module


def pytest_report_header() -> list[str]:
    """Say which array libraries and kernels run, and on what."""
    runs = ", ".join(f"{backend.name} {backend.version or '(MISSING, skipped)'}" for backend in EVERYWHERE)
    kernels = os.environ.get("OTBILEVEL_KERNELS") or "compiled for numpy, generic elsewhere"
    return [f"array libraries: {runs}", f"kernels: {kernels}", f"CUDA: {find_cupy()[1]}"]


@pytest.fixture
def force_threads(monkeypatch):
    """A function that makes the compiled kernels use so many threads, however small the work."""
    threads = importlib.import_module("otbilevel.ot.kernels.cpu.threads")

    def force(count: int) -> int:
        monkeypatch.setattr(threads, "ENTRIES_PER_THREAD", 1)
        monkeypatch.setattr(threads, "ENTRIES_PER_FOLLOWER", 1)
        monkeypatch.setattr(threads, "available_threads", lambda: count)
        threads._pool.cache_clear()
        return count

    yield force
    threads._pool.cache_clear()
