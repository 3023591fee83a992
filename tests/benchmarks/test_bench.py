"""The asv benchmarks: that they are not broken by what they measure."""

import importlib
import inspect
import itertools
from pathlib import Path

import pytest

FILES = sorted(path.stem for path in Path(__file__).parents[2].glob("benchmarks/bench_*.py"))


MEASURES = ("time_", "track_", "peakmem_")


def classes(module):
    """Those that asv would run."""
    found = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    return [c for c in found if any(name.startswith(MEASURES) for name in dir(c))]


@pytest.mark.parametrize("name", FILES)
def test_modules_can_be_imported(name):
    assert classes(importlib.import_module(f"benchmarks.{name}"))


@pytest.mark.parametrize("name", ["bench_curvature", "bench_linalg"])
def test_small_ones_run(name):
    pytest.importorskip("torch")
    for found in classes(importlib.import_module(f"benchmarks.{name}")):
        for parameters in itertools.islice(itertools.product(*getattr(found, "params", ())), 2):
            benchmark = found()
            if hasattr(benchmark, "setup"):
                benchmark.setup(*parameters)
            for method in dir(benchmark):
                if method.startswith(MEASURES):
                    getattr(benchmark, method)(*parameters)
