"""The floors of the house: who may import whom, what an import loads, and what every file and public name owes its reader."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import otbilevel
from otbilevel.ot.methods import METHODS

PACKAGE = Path(otbilevel.__file__).parent
TESTS = Path(__file__).parent

FLOORS = (
    {"_core", "parallel"},
    {"linalg"},
    {"ot", "bilevel", "curvature", "registration", "compression"},
    {"pytorch", "compat", "plotting"},
    {"testing"},
)
NEIGHBOURS = {("registration", "ot")}
"""The one pair of rooms on a floor with a door between them."""
UPWARD = {("_core/differentiate.py", "pytorch")}
"""The one import that goes up, and only inside a function: derivatives of tensors."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a library may be imported: files and folders (with a slash at the end), and whether only inside functions."""

    where: tuple[str, ...]
    lazily: bool


LIBRARIES = {
    "array_api_compat": Place(("_core/array.py",), lazily=False),
    "array_api_extra": Place(("_core/array.py",), lazily=False),
    "torch": Place(("pytorch/",), lazily=False),
    "cupy": Place(("ot/kernels/cuda/device.py",), lazily=True),
    "mpi4py": Place(("parallel/",), lazily=True),
    "ot": Place(("ot/exact.py", "compat/"), lazily=True),
    "matplotlib": Place(("plotting/",), lazily=True),
    "sklearn": Place(("compat/sklearn.py", "testing/ot_problems.py"), lazily=False),
}
NOT_LOADED = ("torch", "cupy", "mpi4py", "ot", "matplotlib", "sklearn", "numba")
"""What ``import otbilevel`` must not bring in: all that is optional, and the compiler, which takes a while."""


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name, as a dotted path from the top."""

    line: int
    target: str
    lazy: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """All imports of a module's source; `package` is the dotted package that its relative imports start from."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}", lazy)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.lineno, node.args[0].value, lazy)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(ast.parse(source), False)


def floor(room: str) -> int | None:
    """The floor of a room, None when no plan shows it."""
    return next((height for height, rooms in enumerate(FLOORS) if room in rooms), None)


def violations(file: str, source: str) -> list[str]:
    """What the imports of `file` (its path inside the package) do that the plan does not allow."""
    path = Path(file)
    room = path.parts[0].removesuffix(".py")
    found = []
    if file != "__init__.py" and floor(room) is None:
        found.append(f"{file}: the room {room} is on no floor")
    for item in imports(source, ".".join(["otbilevel", *path.parts[:-1]])):
        parts = item.target.split(".")
        problem = _of_room(file, room, parts, item) if parts[0] == "otbilevel" else _of_library(file, parts[0], item)
        if problem:
            found.append(f"{file}:{item.line} imports {item.target}: {problem}")
    return found


def _of_room(file: str, room: str, parts: list[str], item: Import) -> str:
    if file == "__init__.py":
        return ""
    other = parts[1] if len(parts) > 1 else ""
    height, other_height = floor(room), floor(other)
    if other == room:
        return ""
    if other_height is None:
        return "the top of the package is above every room"
    if height is None or other_height < height or (room, other) in NEIGHBOURS:
        return ""
    if (file, other) in UPWARD:
        return "" if item.lazy else "only inside a function"
    return "upward" if other_height > height else "a room on the same floor"


def _of_library(file: str, library: str, item: Import) -> str:
    if library not in LIBRARIES:
        return ""
    place = LIBRARIES[library]
    if not any(file == where or (where.endswith("/") and file.startswith(where)) for where in place.where):
        return f"only {', '.join(place.where)} may"
    return "only inside a function" if place.lazily and not item.lazy else ""


def files(pattern: str = "*.py") -> list[Path]:
    return sorted(path for path in PACKAGE.rglob(pattern) if "__pycache__" not in path.parts)


def test_imports_follow_the_floors() -> None:
    found = [line for path in files() for line in violations(path.relative_to(PACKAGE).as_posix(), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        pytest.param("_core/array.py", "from otbilevel.linalg import cg", id="upward"),
        pytest.param("linalg/cg.py", "from otbilevel.ot.result import OTResult", id="upward-deep"),
        pytest.param("linalg/cg.py", "def f():\n    from otbilevel import ot", id="upward-lazy"),
        pytest.param("linalg/cg.py", "from ..ot import geometry", id="upward-relative"),
        pytest.param("linalg/deep/a.py", "from ...ot import geometry", id="upward-relative-deep"),
        pytest.param("bilevel/lv_hba.py", "from otbilevel.ot import solve_ot", id="neighbour"),
        pytest.param("_core/array.py", "import otbilevel.parallel.serial", id="neighbour-on-the-ground"),
        pytest.param("ot/solve.py", "from otbilevel import ConvergenceError", id="the-top"),
        pytest.param("ot/solve.py", "import otbilevel", id="the-top-itself"),
        pytest.param("attic/a.py", "", id="unknown-room"),
        pytest.param("_core/differentiate.py", "import otbilevel.pytorch", id="exception-not-lazy"),
        pytest.param("linalg/cg.py", "import array_api_compat", id="array-api-elsewhere"),
        pytest.param("linalg/cg.py", "import array_api_compat.numpy as np", id="array-api-deep"),
        pytest.param("ot/solve.py", "def f():\n    import torch", id="torch-elsewhere"),
        pytest.param("ot/solve.py", "def f():\n    return importlib.import_module('torch.nn')", id="torch-by-name"),
        pytest.param("ot/kernels/cuda/device.py", "import cupy", id="cupy-not-lazy"),
        pytest.param("ot/kernels/generic.py", "def f():\n    import cupy", id="cupy-elsewhere"),
        pytest.param("ot/kernels/cuda/stored.py", "def f():\n    import cupy", id="cupy-next-door"),
        pytest.param("ot/exact.py", "from ot import emd", id="pot-not-lazy"),
        pytest.param("ot/exact.py", "try:\n    import ot\nexcept ImportError:\n    ot = None", id="pot-in-a-try"),
        pytest.param("ot/exact.py", "class A:\n    import ot", id="pot-in-a-class-body"),
        pytest.param("plotting/plan.py", "import matplotlib.pyplot as plt", id="matplotlib-not-lazy"),
        pytest.param("linalg/cg.py", "def f():\n    from mpi4py import MPI", id="mpi-elsewhere"),
        pytest.param("compat/pot/lp.py", "from sklearn.base import BaseEstimator", id="sklearn-elsewhere"),
    ],
)
def test_the_check_sees_a_violation(file: str, source: str) -> None:
    assert len(violations(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from otbilevel.ot import solve_ot"),
        ("ot/solve.py", "from otbilevel._core import validate\nfrom otbilevel.linalg import cg\nfrom otbilevel.ot import kernels"),
        (
            "ot/kernels/cpu/a.py",
            "from . import b\nfrom .. import generic\nfrom ...geometry import Geometry\nfrom ...._core import array",
        ),
        ("registration/dcreg.py", "from otbilevel.ot import solve_ot"),
        ("_core/differentiate.py", "def f():\n    return importlib.import_module('otbilevel.pytorch')"),
        ("pytorch/operators.py", "import torch\nfrom otbilevel.bilevel import hypergradient"),
        ("testing/laws.py", "from otbilevel.compat import pot"),
        ("ot/exact.py", "def f():\n    import ot"),
        ("linalg/cg.py", "import numpy, scipy, other.torch, otherwise"),
    ],
)
def test_the_check_allows_the_plan(file: str, source: str) -> None:
    assert violations(file, source) == []


def test_import_loads_nothing_optional() -> None:
    code = f"import sys, otbilevel; print(*[name for name in {NOT_LOADED!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stdout + run.stderr


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(source)), "no module docstring"


def test_other_sources_are_short_too() -> None:
    long = [path.name for path in files("*.cu*") if len(path.read_text().splitlines()) > 400]
    assert not long


def test_the_top_holds_the_public_names_and_nothing_else() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body[1:]:
        lazily = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
        dunder = isinstance(node, ast.Assign) and re.fullmatch(r"__(version|all)__", ast.unparse(node.targets[0]))
        assert isinstance(node, (ast.Import, ast.ImportFrom)) or lazily or dunder, ast.unparse(node)
    assert sorted(set(otbilevel.__all__)) == sorted(otbilevel.__all__)


ADAPTERS = ("otbilevel.compat.pot", "otbilevel.compat.sklearn")
"""Modules below a room that users import from, too."""


def public_modules() -> list[str]:
    """The rooms that a user may import from."""
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()} - {"__init__"}
    return ["otbilevel", *(f"otbilevel.{room}" for room in sorted(rooms) if not room.startswith("_")), *ADAPTERS]


def public_objects() -> list[tuple[str, object]]:
    pairs = []
    for name in public_modules():
        library = {"otbilevel.pytorch": "torch", "otbilevel.compat.sklearn": "sklearn"}.get(name)
        if library:
            pytest.importorskip(library)
        module = importlib.import_module(name)
        pairs += [(f"{name}.{item}", getattr(module, item)) for item in module.__all__]
    return pairs


def has_docstring(value: object) -> bool:
    """Whether somebody wrote one; a dataclass without gets its signature."""
    text = inspect.getdoc(value) or ""
    return bool(text.strip()) and not (inspect.isclass(value) and text.startswith(f"{value.__name__}("))


def members(cls: type) -> Iterator[str]:
    """Names of the public methods and properties, cached ones included."""
    for name, value in inspect.getmembers_static(cls):
        kinds = (staticmethod, classmethod, property, functools.cached_property)
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds)):
            yield name


def describes(cls: type, member: str) -> bool:
    """Whether the class or one that it overrides documents the member."""
    return any(has_docstring(vars(base)[member]) for base in cls.__mro__ if member in vars(base))


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for name, value in public_objects():
        missing += [] if has_docstring(value) else [name]
        if inspect.isclass(value) and not issubclass(value, enum.Enum):
            missing += [f"{name}.{member}" for member in members(value) if not describes(value, member)]
    assert not missing


def test_docstrings_describe_every_parameter() -> None:
    missing = []
    for name, value in public_objects():
        if not callable(value) or (
            inspect.isclass(value) and (issubclass(value, (Exception, enum.Enum)) or getattr(value, "_is_protocol", False))
        ):
            continue
        text = inspect.getdoc(value) or ""
        public = [parameter for parameter in inspect.signature(value).parameters if not parameter.startswith("_")]
        missing += [f"{name}: {parameter}" for parameter in public if not re.search(rf"\b{parameter}\b", text)]
    assert not missing


@dataclasses.dataclass
class _Undocumented:
    x: int


def test_the_docstring_check_sees_a_dataclass_without() -> None:
    assert not has_docstring(_Undocumented)
    assert has_docstring(otbilevel.OTResult)


def test_methods_claim_only_libraries_that_are_tested(tested_libraries: set[str]) -> None:
    for row in METHODS:
        assert set(row.backends) <= tested_libraries, row.name
        assert row.summary, row.name
        assert row.reference, row.name
        assert row.options() == row.make_options(None), row.name


def test_every_option_is_described() -> None:
    for row in METHODS:
        for field in dataclasses.fields(row.options):
            assert re.search(rf"\b{field.name} : ", row.options.__doc__ or ""), (row.name, field.name)


def test_tests_are_no_packages() -> None:
    assert not list(TESTS.rglob("__init__.py"))


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
