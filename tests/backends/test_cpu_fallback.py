"""The device that replaces cpu without a compiler, or in float64."""

import contextlib
import re
import shlex
import warnings

import numpy as np
import pytest
from cases import with_kernels
from runs import TINY, python

from minicnn import devices, machine, mnist_cnn
from minicnn.backends import cpu, native, ops_numpy
from minicnn.training import resources

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


@pytest.fixture
def compiler(nothing_known, monkeypatch, tmp_path):
    """compiler(script): from here on $CC is this script in sh, in which $cc is the real one."""

    def write(script):
        path = tmp_path / "compiler"
        path.write_bytes(f"#!/bin/sh\ncc={real}\n".encode() + script)
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        native._compiler.cache_clear()
        return path

    real = shlex.join(native._compiler("c")[0]) if not native.problem("c") else "false"
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(native._INHERITED, "")
    return write


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


def test_commands_that_show_no_reason_warn_that_auto_is_numpy(without_kernels, monkeypatch):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    with pytest.warns(UserWarning) as told:
        assert devices.choose_openly("auto")[:2] == ("numpy", ops_numpy)
    [message] = [str(warning.message) for warning in told]
    assert re.fullmatch(f"device 'auto' is 'numpy', which is slow: {without_kernels}", message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.choose_openly("numpy")[:2] == ("numpy", ops_numpy)


@with_kernels
def test_auto_is_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    model = mnist_cnn(nets=1)
    assert model.device == "cpu" and model.device_reason == "auto: no CUDA, there is no GPU"


@pytest.mark.full(beside="test_a_training_without_a_compiler_says_so_in_one_line")
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


# ---- compilers as they are elsewhere -------------------------------------------------------------

LATIN_1 = b"printf 'd\\351conseill\\351\\n' >&2; "


@pytest.fixture(scope="module")
def expected():
    """(loss, gradients) of a training step on the device cpu, compiled with this machine's cc."""
    return step(mnist_cnn(nets=1, device="cpu"))


def step(model):
    random = np.random.default_rng(0)
    x = random.random((1, 4, 28, 28, 1), np.float32)
    return model.loss_and_gradients(x, np.array([[3, 1, 4, 1]]))


def assert_cpu(expected, warnings=()):
    """The device cpu computes the same bits, with these warnings, in a message each."""
    with pytest.warns(UserWarning) if warnings else contextlib.nullcontext([]) as told:
        model = mnist_cnn(nets=1, device="cpu")
        assert mnist_cnn(nets=2, device="auto").device in ("cpu", "cuda")
    assert model.device == "cpu" and model.device_reason == "as asked"
    assert [str(warning.message) for warning in told] == list(warnings)
    loss, gradients = step(model)
    assert loss.tobytes() == expected[0].tobytes()
    assert [g.tobytes() for g in gradients] == [g.tobytes() for g in expected[1]]
    return model.ops


@with_kernels
@pytest.mark.full(beside="test_a_compiler_that_fails_gives_numpy_and_one_line")
def test_a_warning_in_another_encoding_is_no_failure(cpu_ops, expected, compiler, recwarn):
    compiler(LATIN_1 + b'exec $cc "$@"')
    assert assert_cpu(expected).threaded == cpu_ops.threaded
    assert not recwarn.list


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (LATIN_1 + b"exit 1", r".* failed: d\\xe9conseill\\xe9"),
        (b'exec $cc -nostdinc "$@"', r".* failed: .*string\.h.*"),  # no headers
    ],
    ids=["another encoding", "no headers"],
)
@with_kernels
def test_a_compiler_that_fails_gives_numpy_and_one_line(compiler, script, reason):
    compiler(b'[ "$1" = --version ] && exit\n' + script)
    with pytest.warns(UserWarning) as told:
        assert mnist_cnn(nets=1, device="cpu").device == "numpy"
    [message] = [str(warning.message) for warning in told]
    assert "\n" not in message
    assert re.fullmatch(f"device 'cpu' cannot be used, 'numpy' replaces it: {reason}", message)


# A compiler that knows -fopenmp only after -Xpreprocessor, as Apple's clang, and libomp.
AS_APPLES = b"""
previous=
for a; do
    if [ "$a" = -fopenmp ] && [ "$previous" != -Xpreprocessor ]; then
        echo "clang: error: unsupported option '-fopenmp'" >&2
        exit 1
    fi
    previous=$a
done
for a; do
    shift
    case $a in
        -Xpreprocessor) ;;
        -lomp) touch "$0 used libomp" ;;
        *) set -- "$@" "$a" ;;
    esac
done
exec $cc "$@"
"""
NO_OPENMP = b"""
for a; do
    case $a in -fopenmp) echo "error: unknown option '-fopenmp'" >&2; exit 1 ;; esac
done
exec $cc "$@"
"""
# It knows the option, but includes another omp.h: clang without libomp-dev.
NO_HEADER = b"""
echo '#error there is none' > "$0.omp.h"
mkdir -p "$0 includes" && mv "$0.omp.h" "$0 includes/omp.h"
exec $cc "-I$0 includes" "$@"
"""
ONE_CORE = "the C compiler has no OpenMP: one core works in each process"


@with_kernels
@pytest.mark.full(beside="test_without_openmp_one_line_says_so")
def test_apples_clang_uses_libomp(cpu_ops, expected, compiler, recwarn):
    if not cpu_ops.threaded:
        pytest.skip("the compiler has no OpenMP")
    path = compiler(AS_APPLES)
    assert assert_cpu(expected).threaded
    assert not recwarn.list
    assert path.with_name("compiler used libomp").exists()


@pytest.mark.full(but="no header")
@pytest.mark.parametrize("script", [NO_OPENMP, NO_HEADER], ids=["no option", "no header"])
@with_kernels
def test_without_openmp_one_line_says_so(expected, compiler, monkeypatch, script):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(resources, "cores", lambda: 4)
    compiler(script)
    ops = assert_cpu(expected, [ONE_CORE])
    assert not ops.threaded
    monkeypatch.setattr(machine, "_most_threads", 4)
    assert resources.processes(ops) == 4


@with_kernels
@pytest.mark.full(beside="test_without_openmp_one_line_says_so")
def test_without_openmp_and_with_one_core_there_is_nothing_to_say(
    expected, compiler, monkeypatch, recwarn
):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    compiler(NO_OPENMP)
    assert not assert_cpu(expected).threaded
    assert not recwarn.list


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


@pytest.mark.full(but="predict")
@pytest.mark.parametrize("module", ["predict", "report", "study"])
def test_a_command_on_numpy_says_so_in_one_line(run, tmp_path, module):
    arguments = {
        "predict": ["--checkpoint", run[0] / "checkpoint.npz", "--data=digits"],
        "report": [run[0]],
        "study": "trials --quick --trials=1 --nets=1 --epochs=1 --limit=64 --test-limit=9".split(),
    }
    out = tmp_path / ("out" if module == "study" else "file")
    done = python(
        *("-m", f"minicnn.{module}", *arguments[module], "--quiet", "--out", out),
        **{"CC": "false", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    [warning] = [line for line in done.stderr.splitlines() if "warning" in line]
    assert warning == (
        f"minicnn.{module}: warning: device 'auto' is 'numpy', which is slow: "
        "$CC names no compiler that runs: 'false'"
    )
