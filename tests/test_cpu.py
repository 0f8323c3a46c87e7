"""The backend in C as a whole: other builds, threads, recordings, checks, and what is without it.

What its operations compute is tested by test_kernel_ops.py and test_kernel_convolution.py.
"""

import copy
import gc
import os
import platform
import re
import signal
import subprocess
import sys
import tracemalloc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import assert_same_bits
from runs import ROOT, TINY, state
from test_kernel_convolution import PASSES, RAGGED, SEED_NETWORK, Sizes, dense_case
from test_kernel_ops import OPERATIONS, SHAPES, make_case

from minicnn import devices, machine, mnist_cnn, rng, train
from minicnn.backends import cpu, native, ops_numpy
from minicnn.backends.cpu import Cpu
from minicnn.backends.kernel import SOURCES, Program
from minicnn.backends.ops_cpu import Operations
from minicnn.data.digits import draw_digits
from minicnn.network.geometry import Window
from minicnn.recipe import Recipe
from minicnn.training import checkpoint, workers
from minicnn.training.trainer import CapturedStep, Data, Job, Trainer

SANITIZED = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
TASKS = Path("/proc/self/task")
on_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the flags are x86-64's"
)
with_kernels = pytest.mark.usefixtures("cpu_ops")  # for tests that run them elsewhere


@pytest.fixture(autouse=True)
def kernels_in_c(request):
    if request.config.getoption("--device") not in (None, "numpy", "cpu"):
        pytest.skip("tests kernels in C")


def python(*arguments, **environment):
    """Run Python with more in its environment; a variable that is None is taken out of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


# ---------------------------------------------------------------------------------------------
# Other builds


def suite(flags, *options, **environment):
    """Run the tests of kernels with those that the compiler makes with more flags."""
    files = (ROOT / "tests" / f"test_kernel_{name}.py" for name in ("ops", "convolution"))
    about = "-q", "-p", "no:cacheprovider", "--device=cpu", f"--cpu-flags= {flags}"
    return python("-m", "pytest", *about, *options, *files, **environment)


@pytest.fixture
def sanitizer(cpu_ops):
    """The environment in which Python can load what is made with AddressSanitizer."""
    command, version = native._compiler("c")
    asked = subprocess.run(
        [*command, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    )
    library = asked.stdout.strip()
    if "clang" in version or not Path(library).is_absolute():
        pytest.skip(f"{command[0]} has no libasan.so as GCC has")
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}


def test_no_kernel_reaches_beyond_its_arrays_or_does_what_is_undefined(sanitizer):
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


def test_a_kernel_that_reaches_beyond_its_array_is_found(sanitizer):
    """The test above can fail."""
    done = python("-c", BEYOND, SANITIZED, **sanitizer)
    assert done.returncode != 0 and done.stdout == "500\n"
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "relu_forward" in done.stderr


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
def test_a_build_that_computes_something_else_fails_its_tests():
    """The tests above can fail: the flags arrive."""
    done = suite("-Dexpf=cosf", "-k", "softmax_cross_entropy and float64")
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr


@with_kernels
@on_x86
def test_vectors_are_as_wide_as_the_flags_allow():
    kernels = [Cpu(flags) for flags in (["-mno-avx"], ["-mno-avx512f"], [])]
    panels = [of_a_width.constant("panel_channels") for of_a_width in kernels]
    assert panels[0] == 8 and panels == sorted(panels)
    if cpu._known(cpu._OWN_CPU) and "avx512f" in native._cpu().split():
        assert panels == [8, 16, 32]


@with_kernels
def test_there_are_threads_where_the_compiler_has_openmp():
    assert Cpu().constant("has_threads") == bool(cpu._known(cpu._THREADS))
    assert not Cpu(["-fno-openmp"]).constant("has_threads")


# ---------------------------------------------------------------------------------------------
# Threads


@pytest.fixture(scope="module")
def shared_ops(cpu_ops, tmp_path_factory):
    """The operations of kernels that share out even the least work."""
    folder = tmp_path_factory.mktemp("kernels")
    for path in SOURCES.glob("*.[ch]"):
        text = re.sub(r"\bWORTH_SHARING = [^}]+", "WORTH_SHARING = 0 ", path.read_text())
        (folder / path.name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SOURCES", folder)
        return Operations(Cpu())


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
# Each image is a group of its own in the gradient by the weights, and has little to share out.
MORE_SIZES.append(Sizes(1, 7, (90, 90), 1, 5, (1, 1), (1, 1)))


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
    """The tests above can fail: their threads are there."""
    if not shared_ops.cpu.constant("has_threads"):
        pytest.skip("the compiler has no OpenMP")
    monkeypatch.setattr(machine, "cores", lambda: cores)

    def count():
        before = set(os.listdir(TASKS))
        with shared_ops.session():
            shared_ops.activate("relu", np.ones((1, 500), np.float32))
        return len(set(os.listdir(TASKS)) - before)

    with ThreadPoolExecutor(1) as pool:  # a new thread, for which there are no others yet
        assert pool.submit(count).result() == cores - 1


def cores_of_a_worker(shared, task, report, should_stop):
    return machine.cores()


def test_each_process_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)  # the workers have those that there are
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
# Recordings


class Step:
    """Kernels and NumPy in turn: each works on what the one before has left."""

    def __init__(self, ops):
        self.ops, self.calls = ops, 0
        random = np.random.default_rng(0)
        self.window = Window.fit((2, 2), (2, 2), "valid", (8, 6))
        self.x = random.normal(size=(2, 3, 8, 6, 5)).astype(np.float32)
        self.winner = np.zeros((2, 3, 4, 3, 5), np.uint16)
        self.pooled, self.dropped = np.zeros((2, 2, 3, 4, 3, 5), np.float32)
        self.mask = np.zeros(self.dropped.shape, bool)
        self.params, self.m, self.v = np.ones((3, *self.dropped.shape), np.float32)
        self.nets, self.step, self.learning_rate = np.arange(2), np.array([0]), np.array([0.1])

    def __call__(self):
        self.calls += 1
        ops, step = self.ops, self.step
        ops.activate("relu", self.x)
        ops.activate("tanh", self.x)
        ops.max_pool(self.x, self.window, self.winner, self.pooled)
        drawn = 7, self.nets, rng.DROPOUT, step
        ops.dropout(self.pooled, 0.4, *drawn, self.mask, self.dropped)
        ops.copy(self.dropped, self.pooled)
        moments = self.m, self.v
        ops.adam(self.params, self.pooled, *moments, step, self.learning_rate, 0.9, 0.999, 1e-7)
        ops.max_pool_backward(self.dropped, self.window, self.winner, self.x)

    def arrays(self):
        """Copies of them, by their names."""
        return {name: a.copy() for name, a in vars(self).items() if isinstance(a, np.ndarray)}


def test_a_recording_does_nothing_at_first_and_then_the_same_to_the_bit(cpu_ops):
    recorded, eager = Step(cpu_ops), Step(cpu_ops)
    with cpu_ops.session():
        replay = cpu_ops.capture(recorded)
        assert_same_bits(recorded.arrays(), eager.arrays())
        for rate in (0.1, 0.02, 0.3):
            for step in (recorded, eager):
                step.learning_rate[...] = rate
            replay()
            eager()
            assert_same_bits(recorded.arrays(), eager.arrays())
    assert recorded.calls == 1 and recorded.step == 3


def test_a_recording_reads_step_and_learning_rate_when_it_is_replayed(cpu_ops):
    results = []
    for start, rate in ((0, 0.1), (0, 0.2), (5, 0.1)):
        step = Step(cpu_ops)
        with cpu_ops.session():
            replay = cpu_ops.capture(step)
            step.step[...], step.learning_rate[...] = start, rate
            replay()
        results.append(step)
    plain, faster, later = results
    np.testing.assert_array_equal(faster.mask, plain.mask)
    assert (faster.params != plain.params).any()
    assert (later.mask != plain.mask).any()


def test_a_recording_keeps_its_arrays_as_long_as_it_lives(cpu_ops):
    random = np.random.default_rng(0)
    shapes = {"x": (2, 64, 300), "kernel": (2, 300, 50), "bias": (2, 50)}
    given = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    given["workspace"] = np.zeros(cpu_ops.dense_workspace(2, 64, 300, 50), np.uint8)
    expected, found = np.zeros((2, 2, 64, 50), np.float32)
    with cpu_ops.session():
        cpu_ops.dense(activation="tanh", y=expected, **given)
        replay = cpu_ops.capture(lambda: cpu_ops.dense(activation="tanh", y=found, **given))
        arrays = [weakref.ref(array) for array in given.values()]
        given.clear()
        gc.collect()
        assert all(array() is not None for array in arrays)
        replay()
    np.testing.assert_array_equal(found, expected)
    del replay
    gc.collect()
    assert all(array() is None for array in arrays)


def test_what_another_thread_calls_is_in_no_recording(cpu_ops):
    y = np.full((1, 3), -1, np.float32)

    def elsewhere():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(cpu_ops.activate, "relu", y).result()

    replay = cpu_ops.capture(elsewhere)
    assert (y == 0).all()
    y[...] = -1
    replay()
    assert (y == -1).all()


def test_after_an_error_in_a_recording_calls_are_done_at_once(cpu_ops):
    y = np.full((1, 3), -1, np.float32)

    def fail():
        cpu_ops.activate("relu", y)
        cpu_ops.activate("relu", y.astype(np.float64))

    with pytest.raises(TypeError, match="got an array of float64"):
        cpu_ops.capture(fail)
    assert (y == -1).all()
    cpu_ops.activate("relu", y)
    assert (y == 0).all()


def test_a_repeated_step_of_the_seed_network_makes_no_arrays(cpu_ops, tmp_path):
    recipe = Recipe(nets=2, epochs=1, batch_size=16)
    data = Data(*draw_digits(100))
    trainer = Trainer(Job(recipe, data, "cpu", "float32", tmp_path), range(1, 3))
    repeat = CapturedStep(trainer.ops, graph=True)
    trainer.begin_epoch(0)
    with trainer.ops.session():
        for _ in range(3):
            repeat(trainer.step)
        tracemalloc.start()
        try:
            repeat(trainer.step)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(20):
                repeat(trainer.step)
            after, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert trainer.steps_done == 24
    assert most - before < 65_536  # one activation of the first layer is 1.4 MB
    assert after - before < 1_024


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
        ({"y": FLOATS[:1]}, ValueError, "y: got 1 nets, beside 2 in others"),
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


def test_every_kernel_has_parameters_that_are_understood():
    kernels = [Program(path).kernels for path in SOURCES.glob("*.c")]
    names = [name for found in kernels for name in found]
    assert len(names) == len(set(names)) > 15


# ---------------------------------------------------------------------------------------------
# Without a compiler, and in float64


CANNOT_COMPILE = """\
#!/bin/sh
if [ "$1" = --version ]; then echo a compiler; exit 0; fi
echo out of order >&2
echo for ever >&2
exit 1
"""


@pytest.fixture
def nothing_known():
    """What was found out about compilers and devices is forgotten before and after a test."""
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
    """No kernel in C can be compiled; why, in a regular expression."""
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


def test_numpy_takes_the_place_of_cpu_where_nothing_compiles(without_kernels):
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
def test_what_is_damaged_in_the_cache_is_made_anew(tmp_path):
    cache = {"MINICNN_CACHE": str(tmp_path), native._INHERITED: None}
    make = "-c", "from minicnn.backends.cpu import Cpu; Cpu()"
    assert python(*make, **cache).returncode == 0
    [library] = (tmp_path / "native").glob("cpu-*.so")
    library.write_bytes(b"")
    done = python(*make, **cache)
    assert done.returncode == 0, done.stderr
    assert library.stat().st_size > 0


@with_kernels
def test_a_library_that_cannot_be_loaded_is_no_cpu(nothing_known, monkeypatch, tmp_path):
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


# ---------------------------------------------------------------------------------------------
# The command


def trained(folder, *options):
    """The state that a run of three small nets leaves."""
    arguments = [*TINY, "--nets=3", "--device=cpu", *options, "--out", str(folder)]
    assert train.main(arguments) == 0
    return state(folder)


@pytest.fixture(scope="module")
def run(cpu_ops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, trained(folder, "--workers=1")


@pytest.mark.parametrize("options", [["--workers=2"], ["--workers=3"], ["--no-graph"]])
def test_processes_and_recordings_change_no_bit(run, tmp_path, options):
    assert trained(tmp_path / "out", *options) == run[1]


def test_net_2_alone_is_net_2_of_three(run, tmp_path):
    trained(tmp_path / "out", "--nets=1", "--first-net=2")
    alone, three = (checkpoint.load(f / "checkpoint.npz")[0] for f in (tmp_path / "out", run[0]))
    for name in ("params", "moving", "moment_1", "moment_2"):
        np.testing.assert_array_equal(alone[name][0], three[name][1])
        assert (alone[name][0] != three[name][0]).any()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stopped_run_resumes_to_the_bit(run, tmp_path, monkeypatch, capsys, steps):
    """Stopped after a step that was called, recorded, or replayed."""
    repeat, calls = CapturedStep.__call__, []

    def stopping(self, function):
        repeat(self, function)
        calls.append(function)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "__call__", stopping)
        arguments = [*TINY, "--nets=3", "--device=cpu", "--workers=1", "--out", str(folder)]
        assert train.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    [path] = folder.glob("checkpoint*")
    assert path.name == "checkpoint-net-001.npz"
    assert checkpoint.load(path)[1]["step"] == steps
    assert trained(folder, "--workers=2", "--resume") == run[1]
