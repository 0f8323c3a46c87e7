"""The device that replaces cpu without a compiler, or in float64."""

import re
import warnings

import numpy as np
import pytest
from cases import with_kernels
from runs import TINY, python

from minicnn import devices, mnist_cnn
from minicnn.backends import cpu, native, ops_numpy

pytestmark = pytest.mark.usefixtures("kernels_in_c")


CANNOT_COMPILE = """\
#!/bin/sh
if [ "$1" = --version ]; then echo a compiler; exit 0; fi
echo out of order >&2
echo for ever >&2
exit 1
"""


@pytest.fixture
def nothing_known():
    """Clears what is cached about compilers and devices, before and after the test."""
    caches = (
        *(devices._operations, devices.cpu_problem),
        *(native._compiler, native._folder, cpu._known),
    )
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.fixture(params=["there is none", "does not run", "cannot compile"])
def without_kernels(request, nothing_known, monkeypatch, tmp_path):
    """No kernel in C can be compiled. The value: a regular expression of the reason."""
    if request.param == "there is none":
        request.getfixturevalue("no_compiler")
        return "there is no compiler"
    if request.param == "does not run":
        monkeypatch.setenv("CC", "false")
        return r"\$CC names no compiler that runs: 'false'"
    script = tmp_path / "compiler"
    script.write_text(CANNOT_COMPILE)
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return rf"{script} .*activation\.c .* failed: out of order for ever"


def test_numpy_replaces_cpu_where_nothing_compiles(without_kernels):
    with pytest.warns(UserWarning) as told:
        model = mnist_cnn(nets=1, device="cpu")
    [message] = [str(warning.message) for warning in told]
    reason = f"device 'cpu' cannot be used, 'numpy' replaces it: {without_kernels}"
    assert re.fullmatch(reason, message)
    assert model.device == "numpy" and model.ops is ops_numpy
    assert model.device_reason == "in place of cpu"
    loss, _ = model.train_on_batch(np.zeros((1, 2, 28, 28, 1)), np.zeros((1, 2), int))
    assert np.isfinite(loss).all()


def test_auto_says_why_it_is_numpy(without_kernels, monkeypatch):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mnist_cnn(nets=1)
    assert model.device == "numpy"
    reason = rf"auto: no CUDA, there is no GPU; no C, {without_kernels}"
    assert re.fullmatch(reason, model.device_reason)


@with_kernels
def test_auto_is_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    model = mnist_cnn(nets=1)
    assert model.device == "cpu" and model.device_reason == "auto: no CUDA, there is no GPU"


@with_kernels
def test_a_damaged_library_in_the_cache_is_compiled_again(tmp_path):
    cache = {"MINICNN_CACHE": str(tmp_path), native._INHERITED: None}
    make = "-c", "from minicnn.backends.cpu import Cpu; Cpu()"
    assert python(*make, **cache).returncode == 0
    [library] = (tmp_path / "native").glob("cpu-*.so")
    library.write_bytes(b"")
    done = python(*make, **cache)
    assert done.returncode == 0, done.stderr
    assert library.stat().st_size > 0


@with_kernels
def test_numpy_replaces_cpu_where_the_library_cannot_be_loaded(
    nothing_known, monkeypatch, tmp_path
):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\nfor last; do :; done\n: > "$last"\n'
    )  # an empty file
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(native._INHERITED, "")
    model = mnist_cnn(nets=1)
    assert model.device == "numpy"
    assert "no C, the kernels cannot be loaded: " in model.device_reason


@with_kernels
def test_float64_is_numpys(monkeypatch):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    model = mnist_cnn(nets=1, dtype="float64")
    assert model.device == "numpy" and model.device_reason == "auto: float64"
    with pytest.raises(ValueError, match="dtype: got 'float64', the device 'cpu' computes in floa"):
        mnist_cnn(nets=1, device="cpu", dtype="float64")


def test_a_training_without_a_compiler_says_so_in_one_line(tmp_path):
    arguments = [*TINY, "--nets=2", "--workers=2", "--device=cpu", "--out", tmp_path / "out"]
    done = python("-m", "minicnn.train", *arguments, CC="false")
    assert done.returncode == 0, done.stderr
    warning, about = done.stderr.splitlines()
    assert warning == (
        "minicnn.train: warning: device 'cpu' cannot be used, 'numpy' replaces it: "
        "$CC names no compiler that runs: 'false'"
    )
    assert "Device: numpy (in place of cpu). Processes: 2." in about


@pytest.mark.full(beside="test_a_training_without_a_compiler_says_so_in_one_line")
@with_kernels
def test_a_training_without_a_cache_folder_says_so_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    arguments = [*TINY, "--nets=2", "--workers=2", "--device=cpu", "--out", tmp_path / "out"]
    cache = {"MINICNN_CACHE": str(tmp_path / "file"), native._INHERITED: None}
    done = python("-m", "minicnn.train", *arguments, **cache)
    assert done.returncode == 0, done.stderr
    warning, about = done.stderr.splitlines()
    assert warning == (
        "minicnn.train: warning: the cache folder cannot be written: each run compiles its "
        "kernels anew"
    )
    assert "Device: cpu (as asked). Processes: 2." in about
