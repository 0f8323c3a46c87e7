"""Two parts of benchmarks/gpu_report.py: memcheck, with a stand-in for compute-sanitizer; check."""

import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import equality, gpu_report
from minicnn import devices

# It writes down its options and says what it found. It does not run the program.
SANITIZER = """#!{python}
import sys
print("options:", *sys.argv[1:5])
print("program:", *sys.argv[6:8])
{found}
"""
CLEAN = "print('========= ERROR SUMMARY: 0 errors')"
WRONG = """print('========= Invalid __global__ read of size 4 bytes')
print('========= ERROR SUMMARY: 1 error')
sys.exit(int(sys.argv[4]))"""


@pytest.fixture
def sanitizer(tmp_path, monkeypatch):
    """A function that puts a compute-sanitizer with these last lines on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def install(found):
        path = folder / "compute-sanitizer"
        path.write_text(SANITIZER.format(python=sys.executable, found=found))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return install


def memcheck_of(folder, precision="tf32"):
    parts = gpu_report.parts_of(folder, "cuda", precisions=(precision,))
    return parts[f"memcheck_{precision}"]


def test_a_small_training_runs_under_the_sanitizer(sanitizer, tmp_path):
    path = sanitizer(CLEAN)
    part = memcheck_of(tmp_path)
    assert part.command[0] == str(path)
    entry = gpu_report.run_part("memcheck", part, tmp_path, 60)
    assert (entry["status"], entry["shown"]) == ("done", ["ERROR SUMMARY: 0 errors"])
    assert (tmp_path / "memcheck.txt").read_text().splitlines()[:2] == [
        "options: --tool memcheck --error-exitcode 9",
        "program: -m minicnn.train",
    ]


def test_a_wrong_access_fails_the_part_and_is_shown(sanitizer, tmp_path):
    sanitizer(WRONG)
    entry = gpu_report.run_part("memcheck", memcheck_of(tmp_path), tmp_path, 60)
    assert (entry["status"], entry["why"]) == ("failed", "ended with status 9")
    assert entry["shown"] == [
        "Invalid __global__ read of size 4 bytes",
        "ERROR SUMMARY: 1 error",
    ]


def test_without_the_sanitizer_memcheck_is_left_out(sanitizer, tmp_path, monkeypatch):
    """It is searched for in the CUDA toolkit's folder, too."""
    if not gpu_report.compute_sanitizer():  # in /usr/local/cuda
        assert memcheck_of(tmp_path).left_out.startswith("compute-sanitizer is not found")
    path = sanitizer(CLEAN)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_report.compute_sanitizer() == str(path)
    assert memcheck_of(tmp_path).left_out is None


def test_the_training_of_memcheck_is_one_that_runs(sanitizer, tmp_path):
    """Here on NumPy: other devices differ only in the kernels."""
    sanitizer(CLEAN)
    command = memcheck_of(tmp_path, "float32").command
    program = command[command.index(sys.executable) :]
    program[program.index("cuda")] = "numpy"
    done = subprocess.run(program, cwd=gpu_report.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run-memcheck-float32" / "summary.json").exists()
    train = gpu_report.parts_of(tmp_path, "cuda")["train"]
    assert train.result == "run/summary.json"  # its folder is another one


# ---- check ---------------------------------------------------------------------------------------


def test_a_device_that_computes_the_same_function_passes(capsys):
    if devices.cpu_problem():
        pytest.skip(devices.cpu_problem())
    assert equality.main(["--device", "cpu", "--batch", "16"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("cpu in float32: predictions differ by ")
    assert line.endswith("; at most 0.001")


def test_each_precision_is_checked_and_a_different_one_named(monkeypatch, capsys):
    found = {"float32": 1e-4, "tf32": 0.5, "bfloat16": 0.05}
    monkeypatch.setattr(
        equality, "differences", lambda training, given: {"losses": found[training]}
    )
    monkeypatch.setattr(
        equality.Contender, "training", lambda contender, *given: contender.precision
    )
    monkeypatch.setattr(equality, "reference", lambda batch: None)
    backend = SimpleNamespace(precisions=tuple(found))
    monkeypatch.setattr(equality.devices, "choose", lambda name: (name, backend, "as asked"))
    assert equality.main(["--device", "emulated", "--batch", "4"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "emulated in float32: losses differ by 1.0e-04; at most 0.001",
        "emulated in tf32: DIFFERENT: losses, tf32 differ by 5.0e-01, expected 0.02",
        "emulated in bfloat16: losses differ by 5.0e-02; at most 0.1",
    ]
