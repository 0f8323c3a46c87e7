"""The backend in C: other builds, threads, and checks of arguments.

test_kernel_ops.py and test_kernel_convolution.py test the results of its operations.
"""

import copy
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import assert_same_bits, with_kernels
from runs import python
from test_kernel_convolution import PASSES, RAGGED, SEED_NETWORK, Sizes, dense_case
from test_kernel_ops import OPERATIONS, SHAPES, make_case

from minicnn import machine
from minicnn.backends import cpu, native
from minicnn.backends.cpu import Cpu
from minicnn.backends.kernel import SOURCES, Program
from minicnn.training import workers

pytestmark = pytest.mark.usefixtures("kernels_in_c")


# -O1: with -O3 the compiler takes minutes
SANITIZED = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"
TASKS = Path("/proc/self/task")
on_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the flags are x86-64's"
)


# ---------------------------------------------------------------------------------------------
# Other builds


def suite(flags, *options, **environment):
    """Run the tests of kernels in C, compiled with more flags."""
    names = "kernel_ops", "kernel_convolution", "winograd", "cpu_block_kernels", "cpu_blocks"
    files = (Path(__file__).with_name(f"test_{name}.py") for name in names)
    about = "-q", "-p", "no:cacheprovider", "--device=cpu", f"--cpu-flags= {flags}"
    return python("-m", "pytest", *about, *options, *files, **environment)


@pytest.fixture
def sanitizer(cpu_ops):
    """The environment in which Python can load libraries built with AddressSanitizer."""
    command, version = native._compiler("c")
    asked = subprocess.run(
        [*command, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    )
    library = asked.stdout.strip()
    if "clang" in version or not Path(library).is_absolute():
        pytest.skip(f"{command[0]} has no libasan.so as GCC has")
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.mark.full(beside="test_a_wrong_build_fails_the_tests_of_kernels")
def test_sanitizers_find_nothing_in_the_kernels(sanitizer):
    done = suite(SANITIZED, **sanitizer)
    assert done.returncode == 0, done.stdout + done.stderr


BEYOND = """
import sys
import numpy as np
from minicnn.backends.cpu import Cpu
kernels, y = Cpu(sys.argv[1].split()), np.ones((1, 500), np.float32)
for count in (500, 501):
    kernels.call("relu_forward", count, y)
    print(count, flush=True)
"""


@pytest.mark.full(beside="test_a_wrong_build_fails_the_tests_of_kernels")
def test_the_sanitizer_finds_an_access_out_of_bounds(sanitizer):
    """The test above can fail."""
    done = python("-c", BEYOND, SANITIZED, **sanitizer)
    assert done.returncode != 0 and done.stdout == "500\n"
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "relu_forward" in done.stderr


@pytest.mark.full(beside="test_a_wrong_build_fails_the_tests_of_kernels")
@with_kernels
@pytest.mark.parametrize(
    "flags",
    [
        "-fno-openmp",
        pytest.param("-mno-avx512f", marks=on_x86),
        pytest.param("-mno-avx", marks=on_x86),
    ],
)
def test_kernels_pass_their_tests_in_another_build(flags):
    done = suite(flags)
    assert done.returncode == 0, done.stdout + done.stderr


@with_kernels
def test_a_wrong_build_fails_the_tests_of_kernels():
    """The tests above can fail: the flags arrive."""
    done = suite("-O0 -Dexpf=cosf", "-k", "softmax_cross_entropy and float64 and not smoothed")
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr


@with_kernels
@on_x86
def test_vectors_are_as_wide_as_the_flags_allow():
    kernels = [Cpu(["-O0", *flags]) for flags in (["-mno-avx"], ["-mno-avx512f"], [])]
    panels = [of_a_width.constant("panel_channels") for of_a_width in kernels]
    assert panels[0] == 8 and panels == sorted(panels)
    if cpu._known(cpu._OWN_CPU) and "avx512f" in native._cpu().split():
        assert panels == [8, 16, 32]


@with_kernels
def test_there_are_threads_where_the_compiler_has_openmp():
    assert Cpu().constant("has_threads") == bool(cpu._known(cpu._THREADS))
    assert not Cpu(["-O0", "-fno-openmp"]).constant("has_threads")


# ---------------------------------------------------------------------------------------------
# Threads


def assert_threads_change_no_bit(ops, case, monkeypatch):
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(machine, "cores", lambda count=count: count)
        results.append(case.run(ops))
    for found in results[1:]:
        assert_same_bits(found, results[0])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4], (2, 7, 28, 28, 5)])
def test_threads_change_no_bit_of_an_operation(shared_ops, monkeypatch, operation, shape):
    case = make_case(operation, np.random.default_rng(1), *shape)
    assert_threads_change_no_bit(shared_ops, case, monkeypatch)


def of_seven_images(sizes):
    sizes = copy.copy(sizes)
    sizes.B = 7
    return sizes


MORE_SIZES = [of_seven_images(SEED_NETWORK[layer]) for layer in (0, 1, 2, 4, 5, 6)]
# In the weight gradient each image is one group, with little work to split.
MORE_SIZES.append(Sizes(1, 7, (90, 90), 1, 5, (1, 1), (1, 1)))
MORE_SIZES.append(Sizes(1, 9, (90, 80), 3, 40, (5, 3), (2, 1), "same"))  # bands of images


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("sizes", [*RAGGED, *MORE_SIZES])
def test_threads_change_no_bit_of_a_convolution(shared_ops, monkeypatch, what, sizes):
    case = sizes.case(what, np.random.default_rng(2))
    assert_threads_change_no_bit(shared_ops, case, monkeypatch)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("axes", [(3, 5, 7, 11), (2, 65, 33, 66), (1, 64, 130, 10)])
def test_threads_change_no_bit_of_a_dense_layer(shared_ops, monkeypatch, what, axes):
    case = dense_case(what, np.random.default_rng(3), *axes)
    assert_threads_change_no_bit(shared_ops, case, monkeypatch)


@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.skipif(not TASKS.exists(), reason="needs Linux's list of threads")
def test_as_many_threads_share_the_work_as_there_are_cores(shared_ops, monkeypatch, cores):
    """The tests above can fail: there are several threads."""
    if not shared_ops.cpu.constant("has_threads"):
        pytest.skip("the compiler has no OpenMP")
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def count():
        before = set(os.listdir(TASKS))
        with shared_ops.session():
            shared_ops.activate("relu", np.ones((1, 500), np.float32))
        return len(set(os.listdir(TASKS)) - before)

    with ThreadPoolExecutor(1) as pool:  # a new thread, whose OpenMP threads do not exist yet
        assert pool.submit(count).result() == cores - 1


def cores_of_a_worker(shared, task, report, should_stop):
    return machine.cores()


def test_each_process_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(
        machine, "cores", lambda: 2
    )  # for this process; a worker finds the real number
    found = workers.run_jobs(cores_of_a_worker, None, [1, 2], 2, print, print, lambda: False)
    assert found == [1, 1]


FORKED = """
import multiprocessing
import numpy as np
from minicnn import mnist_cnn
model = mnist_cnn(nets=1, device="cpu")
x = np.zeros((64, 28, 28, 1), np.float32)
def predict(_):
    return model.predict(x)
if __name__ == "__main__":
    here = predict(0)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert (pool.map_async(predict, [0]).get(60)[0] == here).all()
"""


@with_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_too(tmp_path):
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    done = python(script)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------
# Calls are checked


FLOATS = np.zeros((2, 12), np.float32)
READ_ONLY = np.broadcast_to(np.float32(0), (2, 12))
SIZES = dict.fromkeys("B H W Cin Ho Wo Cout kh kw sh sw".split(), 1)
SIZES |= dict.fromkeys(("top", "left", "y_first", "y_image", "y_row", "y_pixel"), 0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": FLOATS.astype(float)}, TypeError, "x: got an array of float64, expected float32"),
        ({"x": FLOATS[:, ::2]}, ValueError, r"x: got strides \(48, 8\), expected contiguous"),
        ({"x": None}, TypeError, "x: got None, expected an array of float32"),
        ({"x": 1.0}, TypeError, "x: got 1.0, expected an array of float32"),
        ({"s": {"B": 1}}, TypeError, r"s: got \['B'\], expected \['B', 'Cin', "),
        ({"s": {**SIZES, "B": 2**31}}, ValueError, "s: .*expected integers of 32 bits"),
        ({"relu": 1}, TypeError, "relu: got 1, expected a number of bool"),
        ({"y": FLOATS[:1]}, ValueError, "y: got 1 nets, expected 2 as before"),
        ({"y": READ_ONLY}, ValueError, "y: got a read-only array, which the kernel writes to"),
        ({"y": None}, TypeError, "y: got None, expected an array of float32"),
    ],
)
def test_wrong_arguments_are_refused(cpu_ops, changed, error, message):
    given = {"x": FLOATS, "s": SIZES, "w": FLOATS, "bias": None, "relu": True, "y": FLOATS}
    with pytest.raises(error, match=rf"^conv_direct\.c: correlate: {message}"):
        cpu_ops.cpu.call("correlate", *(given | changed).values())


@pytest.mark.parametrize("arguments", [(3,), (3, FLOATS, FLOATS)])
def test_a_wrong_number_of_arguments_is_refused(cpu_ops, arguments):
    count = len(arguments)
    message = rf"^activation\.c: relu_forward: got {count} arguments, takes 2"
    with pytest.raises(TypeError, match=message):
        cpu_ops.cpu.call("relu_forward", *arguments)


def test_the_parameters_of_every_kernel_can_be_read():
    kernels = [Program(path).kernels for path in SOURCES.glob("*.c")]
    names = [name for found in kernels for name in found]
    assert len(names) == len(set(names)) > 15
