"""What can be said of the CUDA kernels without a GPU: they compile for all of them, and do right when they are emulated."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from otbilevel.ot.kernels.cuda import device, stored
from otbilevel.testing import CUDACompileError, compile_cuda
from otbilevel.testing.cuda_emulator import kernel_names
from otbilevel.testing.nvrtc import nvrtc_library

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
TESTS = Path(__file__).parents[1]
STAND_INS = ("ot/test_cuda_kernels.py", "ot/test_cuda_solvers.py", "testing/test_cuda_stand_ins.py")
PRECISIONS = (("float", "float"), ("double", "float"), ("double", "double"))


def variants():
    """Every .cu file with sets of macros, for architectures in turn: every file for each, and every set for one."""
    points = [
        {"SOURCE": source, "X": x, "Y": y, "EXP": exp, "PLAN": plan}
        for source, x, y in ((0, "double", "double"), (0, "float", "float"), *((k, "double", "double") for k in (1, 2, 3, 4)))
        for exp, plan in PRECISIONS[::2]
    ]
    points.append({"SOURCE": 1, "X": "float", "Y": "double", "EXP": "float", "PLAN": "float"})
    strips = [
        {"THREADS": threads, "ITEMS": items, "X": x, "EXP": exp, "PLAN": plan}
        for (threads, items), (exp, plan), x in zip(
            (*stored.STRIPS, (512, 20), (512, 20)), (*PRECISIONS * 3,), ("float", "double") * 5, strict=False
        )
    ]
    plain = {"PLAN": "float"}, {"PLAN": "double"}
    sets = {"sweeps": points, "strips": strips, "products": plain, "active": points[::2], "sparse": [{}], "vectors": [{}]}
    for file in device.FILES:
        for k in range(max(len(ARCHITECTURES), len(sets[file]))):
            yield file, ARCHITECTURES[k % len(ARCHITECTURES)], sets[file][k % len(sets[file])]


def require(found, what):
    """Skip what needs something that is not there; in continuous integration that is a failure."""
    if not found:
        message = f"{what} is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


def parameters(code, name):
    """How many parameters a kernel has in the source."""
    costs = re.search(r"#define COST_PARAMETERS (.*)", code)
    text = re.search(rf"\b{name}\(([^)]*)\)", code)[1]
    return text.count(",") + 1 + (costs[1].count(",") if costs and "COST_PARAMETERS" in text else 0)


@pytest.mark.parametrize("file", device.FILES)
def test_kernels_compile_without_spilling_registers(file, record_property):
    require(nvrtc_library(), "NVRTC (nvidia-cuda-nvrtc-cu12)")
    code = device.source(file)
    names = kernel_names(code)
    assert len(names) == code.count("__global__")
    for name, architecture, macros in variants():
        if name != file:
            continue
        figures = compile_cuda(code, architecture, [f"-D{key}={value}" for key, value in macros.items()])
        assert sorted(figures) == sorted(names)
        for kernel, found in figures.items():
            where = f"{kernel} for sm_{architecture} with {macros}: {found}"
            record_property(f"{kernel} sm_{architecture}", f"{found.registers} registers, {found.shared} bytes shared")
            assert found.spilled == 0, where
            assert found.stack == 0, where
            assert found.parameters == parameters(code, kernel), where
            assert 0 < found.registers <= 128, where
            assert found.shared <= 48 * 1024, where


def test_the_compiler_says_what_is_wrong():
    require(nvrtc_library(), "NVRTC (nvidia-cuda-nvrtc-cu12)")
    with pytest.raises(CUDACompileError, match="undeclared"):
        compile_cuda('extern "C" __global__ void f(int *x) { *x = undeclared; }', 80)
    hungry = """extern "C" __global__ void __launch_bounds__(1024) f(double *x) {
      double v[64];
      for (int k = 0; k < 64; ++k) v[k] = x[k * 1024 + threadIdx.x];
      for (int r = 0; r < 64; ++r) for (int k = 0; k < 64; ++k) v[k] = v[k] * v[(k + 7) % 64] + v[(k + r) % 64];
      for (int k = 0; k < 64; ++k) x[k * 1024 + threadIdx.x] = v[k];
    }"""
    found = compile_cuda(hungry, 80)["f"]
    assert found.spilled > 0 or found.stack > 0
    assert found.parameters == 1


def test_python_asks_for_kernels_that_there_are():
    names = {file: kernel_names(device.source(file)) for file in device.FILES}
    everyone = {name for some in names.values() for name in some}
    asked = set()
    for path in device.FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch":
                file, kernel = node.args[:2]
                assert file.value in names
                if isinstance(kernel, ast.Constant):
                    assert kernel.value in names[file.value]
            if isinstance(node, ast.Constant) and node.value in everyone:
                asked.add(node.value)
    assert asked == everyone


def test_sources_are_whole_and_short():
    for path in (*device.FOLDER.glob("*.cu"), *device.FOLDER.glob("*.cuh")):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        assert max(map(len, text.splitlines())) <= 132, path
        assert "atomic" not in text.replace("no atomics", ""), path
    assert {path.stem for path in device.FOLDER.glob("*.cu")} == set(device.FILES)
    assert "#include" not in "".join(map(device.source, device.FILES))


@pytest.mark.parametrize("file", STAND_INS)
def test_on_stand_ins(file):
    """In a process of its own, in which ``import cupy`` finds the stand-in."""
    if os.environ.get("OTBILEVEL_FAKE_CUPY") == "1":
        pytest.skip("this is the process in which they run")
    require(shutil.which("g++"), "g++")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", str(TESTS / file)]
    run = subprocess.run(
        command, env=environment | {"OTBILEVEL_FAKE_CUPY": "1"}, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert re.search(r"^\d+ passed in", run.stdout, re.MULTILINE), run.stdout[-2000:]  # and none skipped
