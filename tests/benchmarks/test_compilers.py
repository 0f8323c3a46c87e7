"""benchmarks/compilers.py: an NVRTC from a file is CuPy's; a kernel that spills is named."""

import json
from pathlib import Path

import pytest
from planted import MISTAKEN

from benchmarks import compilers, timing
from benchmarks.compilers import Compiled
from minicnn.backends import cuda, kernel
from minicnn.backends.kernel import Program

# More sums than the 64 registers that 1,024 threads leave each.
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spill(const float* x, float* y) {
    float sums[100];
#pragma unroll
    for (int i = 0; i < 100; i++) sums[i] = x[threadIdx.x * 100 + i];
#pragma unroll 1
    for (int n = 0; n < 1000; n++) {
#pragma unroll
        for (int i = 0; i < 100; i++) sums[i] = sums[i] * x[n] + x[n + 1];
    }
#pragma unroll
    for (int i = 0; i < 100; i++) y[threadIdx.x * 100 + i] = sums[i];
}

extern "C" __global__ void copy(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def installed():
    """The path of the libnvrtc.so that CuPy loads."""
    pytest.importorskip("cupy_backends", reason="needs CuPy: pip install -e '.[cuda13]'")
    try:
        cuda.nvrtc_version()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"needs NVRTC: pip install -e '.[cuda13]' ({error})")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists the libraries of a process")
    found = {line.split()[-1] for line in maps.read_text().splitlines() if "/libnvrtc.so" in line}
    return Path(found.pop())


@pytest.fixture
def spilling(tmp_path, monkeypatch):
    """Only this program is compiled, and no result is written into the repository."""
    path = tmp_path / "spilling.cu"
    path.write_text(SPILLING)
    monkeypatch.setattr(compilers, "programs", lambda: [Program(path)])
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    return path


def test_an_nvrtc_from_a_file_compiles_as_cupys_does(installed):
    nvrtc, program = compilers.Nvrtc(installed), Program(kernel.SOURCES / "adam.cu")
    assert nvrtc.getVersion() == cuda.nvrtc_version()
    assert nvrtc.getSupportedArchs() == tuple(cuda.architectures())
    given = program, "sm_80", "--ptxas-options=-v"
    own, log = cuda.compile_program(*given, nvrtc=nvrtc)
    cupys, other = cuda.compile_program(*given)
    assert own == cupys
    assert cuda.resources(log) == cuda.resources(other) != {}


def test_a_mistake_is_shown_with_its_line_and_compiler(installed):
    with pytest.raises(cuda.CompileError) as caught:
        list(compilers.compile_all(compilers.Nvrtc(installed), [Program(MISTAKEN)]))
    message = str(caught.value)
    assert "mistaken.cu(5)" in message and 'identifier "nowhere" is undefined' in message
    version = ".".join(map(str, cuda.nvrtc_version()))
    assert message.startswith(f"NVRTC {version}, sm_")


def test_every_file_and_every_form_is_compiled():
    found = compilers.programs()
    assert len({(p.path, p.defines) for p in found}) == len(found)
    assert {p.path for p in found} == set(kernel.SOURCES.glob("*.cu"))
    assert all(p.kernels for p in found)
    stored = {p.path.name for p in found if "STORED=bfloat16" in p.defines}
    assert stored >= {"block_forward.cu", "block_first.cu", "head.cu", "pack_weights.cu"}


@pytest.mark.parametrize(
    ("file", "known", "expected"),
    [
        ("adam.cu", (50, 70, 75, 80, 86, 90), [70, 80, 90]),
        ("adam.cu", (75, 80, 90, 100, 121), [75, 80, 90, 121]),
        ("block_forward.cu", (50, 75, 80, 90, 120), [80, 90, 120]),
    ],
)
def test_architectures_are_the_oldest_the_newest_and_two_between(file, known, expected):
    assert compilers.capabilities(known, Program(kernel.SOURCES / file)) == expected


def test_a_kernel_that_spills_is_named_with_its_bytes(installed, spilling, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert compilers.main([str(installed), "--out", str(out)]) == 1
    result, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert len(result["compilers"]) >= 3
    for row in result["compilers"]:
        assert row["kernels"] == 2 and 0 < row["most_registers"] <= 64
        [each] = row["spilling"]
        assert (each["form"], each["kernel"]) == ("spilling.cu", "spill")
        assert each["spilled"] > 4 * 30
        assert f"spill (spilling.cu): {each['spilled']}" in shown
    assert set(result["registers"]) == {"spilling.cu: spill", "spilling.cu: copy"}


def test_nothing_spills(spilling, capsys, tmp_path):
    """By the compiler that is installed, without arguments."""
    pytest.importorskip("cupy_backends", reason="needs CuPy: pip install -e '.[cuda13]'")
    spilling.write_text(SPILLING[SPILLING.index('extern "C" __global__ void copy') :])
    assert compilers.main(["--out", str(tmp_path / "result.json")]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows and all(row.endswith(" none") for row in rows)


def test_versions_and_architectures_are_in_the_order_of_their_numbers():
    names = ("13.0", "sm_90"), ("13.0", "sm_121"), ("12.9", "sm_80"), ("12.10", "sm_80")
    found = [Compiled(*name, "a.cu", "a", 10 + i, 0) for i, name in enumerate(names)]
    rows = compilers.summarize(found)
    assert [(row["nvrtc"], row["architecture"]) for row in rows] == [
        names[2], names[3], names[0], names[1]
    ]  # fmt: skip
    assert [row["most_registers"] for row in rows] == [12, 13, 10, 11]
    assert compilers.registers(found) == {
        "a.cu: a": {" ".join(name): 10 + i for i, name in enumerate(names)}
    }


def test_a_library_is_a_file_or_the_one_in_a_folder(tmp_path, capsys):
    lib = tmp_path / "one" / "nvidia" / "lib"
    lib.mkdir(parents=True)
    for name in ("libnvrtc.so.13", "libnvrtc.alt.so.13", "libnvrtc-builtins.so.13.0"):
        (lib / name).write_text("no library")
    file = lib / "libnvrtc.so.13"
    assert compilers.library(file) == compilers.library(tmp_path / "one") == file
    (tmp_path / "libnvrtc.so.12").write_text("")
    for folder, count in ((tmp_path, 2), (tmp_path / "two", 0)):
        with pytest.raises(SystemExit) as stopped:
            compilers.main([str(folder)])
        assert stopped.value.code == 2
        message = f"argument NVRTC: {folder}: found {count} files libnvrtc.so, expected one"
        assert capsys.readouterr().err == f"benchmarks.compilers: error: {message}\n"
    with pytest.raises(SystemExit) as stopped:
        compilers.main([str(file)])
    assert stopped.value.code == 2
