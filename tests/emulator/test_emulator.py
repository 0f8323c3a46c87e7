"""The emulator: CUDA's functions against NumPy; sources, launches, captures, a debugger."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from planted import (
    FAULTS,
    FULL,
    MISTAKEN,
    ORDERS,
    TENSOR_CORE,
    TOY,
    WARPS,
    assert_fault,
    floats,
    line,
    matrices,
)
from runs import python

from minicnn.backends import native
from minicnn.emulator import Emulator, KernelFault

# ---------------------------------------------------------------------------------------------
# Tensor cores


def tensor_step(driver, a, b, c, rounded, threads=32):
    on_device = [driver.to_device(np.float32(m)).reshape(-1) for m in (a, b, c)]
    d = driver.zeros((16, 8), np.float32)
    arguments = *on_device, rounded, d.reshape(-1)
    driver.launch(TENSOR_CORE, "tensor_step", (1,), (threads,), *arguments)
    return d


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_the_tensor_cores_is_a_matrix_product(emulator, seed):
    random = np.random.default_rng(seed)
    a, b, c = matrices(random)
    np.testing.assert_array_equal(tensor_step(emulator, a, b, c, False), c + a @ b)
    a, b, c = (random.normal(size=m.shape) for m in (a, b, c))
    expected = c + as_tf32(np.float32(a)) @ as_tf32(np.float32(b))
    np.testing.assert_allclose(tensor_step(emulator, a, b, c, True), expected, rtol=1e-5, atol=1e-6)


def as_tf32(x):
    """x rounded to 11 significant bits, ties away from zero, in float64."""
    x = np.float64(x)
    with np.errstate(invalid="ignore"):
        exponent = np.maximum(np.frexp(x)[1], -125)  # subnormal numbers have all one spacing
        spacing = np.ldexp(1.0, exponent - 11)
        rounded = np.copysign(np.floor(np.abs(x) / spacing + 0.5) * spacing, x)
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, x), rounded)


def test_rounding_to_tf32(emulator):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 20_000, np.uint32)
    ties = bits & 0xFFFFE000 | 0x1000
    edges = [ties - 1, ties, ties + 1, bits & 0x807FFFFF, bits & 0x80001FFF]
    special = [0, 1, 0xFFF, 0x1000, 0x7FFFFF, 0x800000, 0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF]
    special = np.array([*special, 0x7F800000, 0x7FC00000, 0x7FFFFFFF], np.uint32)
    x = np.concatenate([bits, *edges, special, special | 0x80000000]).view(np.float32)
    x = x[~np.isnan(x) | (x.view(np.uint32) & 0x400000 != 0)]  # no signalling NaN
    y = emulator.zeros(x.shape, np.float32)
    grid = (-(-len(x) // 64),)
    emulator.launch(TENSOR_CORE, "round_to_tf32", grid, (64,), emulator.to_device(x), len(x), y)
    expected = as_tf32(x).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def as_bfloat16(x):
    """x rounded to 8 significant bits, ties to even, in float64."""
    x = np.float64(x)
    exponent = np.maximum(np.frexp(x)[1], -125)
    spacing = np.ldexp(1.0, exponent - 8)
    rounded = np.rint(x / spacing) * spacing  # rint rounds ties to even
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, x), rounded)


@pytest.mark.parametrize("checked", [False, True])
def test_a_step_in_bfloat16_is_a_matrix_product(emulator, checked_driver, checked):
    driver, random = checked_driver if checked else emulator, np.random.default_rng(5)
    a, b, c = (np.float32(random.normal(size=s)) for s in ((16, 16), (16, 8), (16, 8)))
    on_device = [driver.to_device(m.reshape(-1)) for m in (a, b, c)]
    d = driver.zeros((16, 8), np.float32)
    driver.launch(TENSOR_CORE, "tensor_step_bfloat16", (1,), (32,), *on_device, d.reshape(-1))
    expected = c + as_bfloat16(a) @ as_bfloat16(b)
    np.testing.assert_allclose(d, expected, rtol=1e-5, atol=1e-6)
    if checked:
        assert driver.counted[-1].counts.tensor_flops == 2 * 16 * 8 * 16


def test_rounding_to_bfloat16(emulator):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 20_000, np.uint32)
    ties = bits & 0xFFFF0000 | 0x8000
    edges = [ties - 1, ties, ties + 1, bits & 0x807FFFFF]
    special = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x7F7F7FFF, 0x7F7F8000, 0x7F800000]
    special = np.array([*special, 0x7FC00000], np.uint32)
    x = np.concatenate([special, special | 0x80000000, *edges, bits]).view(np.float32)
    x = x[~np.isnan(x) | (x.view(np.uint32) & 0x400000 != 0)]  # no signalling NaN
    x = x[: len(x) // 2 * 2]
    y = emulator.zeros((len(x) // 2,), np.uint32)
    grid = (-(-len(y) // 64),)
    x_there = emulator.to_device(x)
    emulator.launch(TENSOR_CORE, "round_to_bfloat16", grid, (64,), x_there, len(y), y)
    found = (y.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # low halves come first
    with np.errstate(invalid="ignore"):
        expected = as_bfloat16(x).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("checked", [False, True])
def test_matrices_are_loaded_transposed(emulator, checked_driver, checked):
    driver = checked_driver if checked else emulator
    x = np.random.default_rng(0).integers(0, 2**16, (4, 8, 8), np.uint16)
    y = driver.zeros(x.shape, np.uint16)
    driver.launch(
        TENSOR_CORE, "transpose", (1,), (32,), driver.to_device(x.reshape(-1)), y.reshape(-1)
    )
    np.testing.assert_array_equal(y, x.swapaxes(1, 2))


def test_matrices_are_loaded_by_a_whole_warp(emulator):
    x = emulator.zeros((256,), np.uint16)
    with pytest.raises(KernelFault, match="loads matrices in a warp that is not whole"):
        emulator.launch(TENSOR_CORE, "transpose", (1,), (16,), x, emulator.zeros((256,), np.uint16))


@pytest.mark.parametrize("operand", [0, 1])
def test_an_operand_that_is_not_tf32_is_found(emulator, operand):
    operands = matrices(np.random.default_rng(0))
    operands[operand][3, 3] = 1 + 2.0**-11
    tensor_step(emulator, *operands, rounded=True)
    # Thread 15 holds element (3, 3) of a and of b.
    message = f"gives a tensor core a number that is not TF32 ({line(TENSOR_CORE, 'tensor_step')})"
    launch = partial(tensor_step, emulator, *operands, rounded=False)
    assert_fault(launch, TENSOR_CORE, message, thread=15)


def test_a_step_of_the_tensor_cores_takes_a_whole_warp(emulator):
    operands = matrices(np.random.default_rng(0))
    with pytest.raises(KernelFault, match="in a warp that is not whole"):
        tensor_step(emulator, *operands, rounded=True, threads=16)


# ---------------------------------------------------------------------------------------------
# Votes, shuffles, atomic operations


@pytest.mark.parametrize("block", [(1,), (31,), (32,), (40,), (101,), (8, 5), (33, 3)])
def test_votes_of_a_block(emulator, block):
    n, random = int(np.prod(block)), np.random.default_rng(0)
    bits = random.integers(0, 2, (4, n), np.int32) * random.integers(-3, 9, (4, n), np.int32)
    bits[1], bits[2] = 0, 6
    found = emulator.zeros((4, 3, n), np.int32)
    arguments = emulator.to_device(bits), found
    emulator.launch(WARPS, "block_votes", (4,), block, *arguments)
    true = (bits != 0)[:, None].repeat(n, 1)
    np.testing.assert_array_equal(found[:, 0], true.sum(axis=2))
    np.testing.assert_array_equal(found[:, 1] != 0, true.all(axis=2))
    np.testing.assert_array_equal(found[:, 2] != 0, true.any(axis=2))


MASKS = {
    "full": [FULL] * 32,
    "halves": [0xFFFF] * 16 + [0xFFFF0000] * 16,
    "odd and even": [0x55555555, 0xAAAAAAAA] * 16,
    "some of them": [0b1110110] * 32,
}


@pytest.mark.parametrize("threads", [1, 31, 32, 40, 101])
@pytest.mark.parametrize("masks", MASKS)
def test_votes_of_a_warp(emulator, threads, masks):
    masks = np.array(MASKS[masks] * 4, np.uint32)[:threads]
    random = np.random.default_rng(threads)
    for share in (0.0, 0.1, 0.5, 1.0):
        bits = np.int32(random.random(threads) < share) * 4
        found = emulator.zeros((3, threads), np.uint32)
        arguments = emulator.to_device(bits), emulator.to_device(masks), found
        emulator.launch(WARPS, "warp_votes", (1,), (threads,), *arguments)
        for thread, mask in enumerate(masks):
            warp, lane = thread // 32 * 32, thread % 32
            if not mask >> lane & 1:
                continue
            lanes = [i for i in range(32) if mask >> i & 1 and warp + i < threads]
            true = [bool(bits[warp + i]) for i in lanes]
            ballot = sum(1 << i for i, t in zip(lanes, true, strict=True) if t)
            assert found[:, thread].tolist() == [ballot, any(true), all(true)]


@pytest.mark.parametrize(
    ("threads", "masks", "width", "distance", "lane"),
    [
        (64, "full", 32, 1, 0),
        (64, "full", 32, 16, 31),
        (64, "full", 32, 31, 77),
        (96, "full", 16, 5, 3),
        (96, "full", 16, 16, 12),
        (96, "full", 8, 9, 2),  # a shuffle by xor goes to parts before, not to those behind
        (64, "full", 2, 1, 1),
        (64, "full", 1, 1, 0),
        (32, "halves", 16, 7, 9),
        (64, "halves", 8, 3, 13),
        (64, "odd and even", 32, 2, 6),
        (40, "full", 8, 3, 5),  # the last warp has eight lanes
        (40, "full", 4, 0, 2),
    ],
)
def test_shuffles(emulator, threads, masks, width, distance, lane):
    values = np.random.default_rng(0).normal(size=threads).astype(np.float32)
    masks = np.array(MASKS[masks] * 4, np.uint32)[:threads]
    if masks[0] == 0x55555555:  # the lane that is asked for must be one of those that take part
        masks, lane = np.where(np.arange(threads) % 2, 0, masks), lane // 2 * 2
    found = emulator.zeros((4, threads), np.float32)
    on_device = emulator.to_device(values), emulator.to_device(masks)
    arguments = *on_device, lane, distance, width, found
    emulator.launch(WARPS, "shuffles", (1,), (threads,), *arguments)
    for thread, mask in enumerate(masks):
        warp, mine = thread // 32 * 32, thread % 32
        if not mask >> mine & 1:
            continue
        part = mine - mine % width
        up, down, xor = mine - distance, mine + distance, mine ^ distance
        sources = [
            part + lane % width,
            up if up >= part else mine,
            down if down < part + width else mine,
            xor if xor < part + width else mine,
        ]
        np.testing.assert_array_equal(found[:, thread], values[[warp + s for s in sources]])


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_of_different_parts_of_a_warp_do_not_mix(order):
    driver = Emulator(order=order)
    found = driver.zeros(64, np.float64)
    driver.launch(WARPS, "shuffles_of_parts", (1,), (64,), found)
    expected = np.arange(64.0)
    for lanes in (np.arange(32), np.arange(32, 64)):
        a, b, c = lanes[:3]
        expected[[a, b]] += 100 * expected[[b, a]]
        expected[[a, c]] += 1000 * expected[[c, a]]
        expected[lanes] += 10000 * expected[lanes ^ 1]
        expected[lanes] += 1e6 * expected[lanes ^ 31]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "options", [{"cores": 2}, {"cores": 2, "order": "shuffled"}, {"checked": True}], ids=str
)
def test_atomic_operations_of_many_blocks(options):
    driver, count = Emulator(**options), 5000
    numbers = np.random.default_rng(0).integers(-1000, 1000, count, np.int32)
    counters, bits = np.zeros(9, np.int32), np.array([FULL, 0, 0, 0], np.uint32)
    counters[[2, 3]] = -5000, 5000
    on_device = [driver.to_device(a) for a in (numbers, counters, bits)]
    wide, tickets = driver.zeros(2, np.int64), driver.zeros(count, np.int32)
    arguments = on_device[0], count, *on_device[1:], wide, tickets
    driver.launch(WARPS, "atomics", (-(-count // 96),), (96,), *arguments)
    counters, bits = on_device[1:]
    total = numbers.sum()
    assert counters[:6].tolist() == [total, -total, numbers.max(), numbers.min(), total, count]
    assert counters[6] + counters[7] == total and counters[7] in numbers
    np.testing.assert_array_equal(np.sort(tickets), np.arange(count))
    assert bits[0] == FULL & ~0xFF and bits[1] == 0xFFFF
    assert bits[2] == numbers.view(np.uint32).max() and bits[3] == count
    assert wide.tolist() == [int(total) << 20, int(numbers.max()) << 20]


# ---------------------------------------------------------------------------------------------
# Types, memory, and the order of threads


def test_vectors_of_two_and_four(emulator):
    random, shape = np.random.default_rng(0), (5, 4)
    arrays = [
        random.normal(size=shape).astype(np.float32),
        random.integers(-(2**31), 2**31, shape, np.int32),
        random.integers(0, 2**32, shape, np.uint32),
        random.integers(0, 256, shape, np.uint8),
    ]
    found = [emulator.zeros(shape, a.dtype) for a in arrays]
    arguments = *(emulator.to_device(a) for a in arrays), *found
    emulator.launch(WARPS, "vectors", (1,), (5,), *arguments)
    for array, reversed_array in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(reversed_array, array[:, ::-1])


def test_shared_arrays_of_two_dimensions_and_of_templates(emulator):
    x, found = floats(emulator, 32, 33), emulator.zeros((3, 33, 32), np.float32)
    emulator.launch(WARPS, "shared_arrays", (1,), (32,), x.reshape(-1), found.reshape(-1))
    np.testing.assert_array_equal(found[0], x[::-1].T)
    np.testing.assert_array_equal(found[1], x.T)
    np.testing.assert_array_equal(found[2], x.T)


@pytest.mark.parametrize("threads", [1, 37, 1024])
def test_dynamic_shared_memory(emulator, threads):
    x, y = emulator.to_device(np.arange(3.0 * threads)), emulator.zeros(3 * threads, np.float64)
    size = 8 * threads
    emulator.launch(WARPS, "dynamic_shared_array", (3,), (threads,), x, y, shared_bytes=size)
    np.testing.assert_array_equal(y.reshape(3, -1), x.reshape(3, -1)[:, ::-1])


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("grid", "block"), [((1,), (1,)), ((5, 3), (7, 3, 2)), ((2,), (1000,)), ((1, 4), (48,))]
)
def test_every_thread_is_visited_once(order, checked, grid, block):
    driver = Emulator(order=order, checked=checked, cores=2)
    visits = driver.zeros(np.prod(grid) * np.prod(block), np.int32)
    driver.launch(WARPS, "visit", grid, block, visits)
    np.testing.assert_array_equal(visits, 1)


def test_orders_are_different_ones():
    found = {}
    for order in ORDERS:
        driver = Emulator(order=order)
        y = driver.zeros(64, np.int32)
        driver.launch(FAULTS, "arrivals", (1,), (64,), y)
        np.testing.assert_array_equal(np.sort(y), np.arange(64))
        found[order] = y
    np.testing.assert_array_equal(found["forward"], np.arange(64))
    np.testing.assert_array_equal(found["backward"], np.arange(64)[::-1])
    assert (np.abs(np.diff(found["shuffled"])) != 1).mean() > 0.9


def test_kernels_whose_result_depends_on_the_order_have_a_race(checked_driver):
    y = checked_driver.zeros(64, np.int32)
    message = "reads arrived[0] (of 1), which thread (0, 0, 0) of this block has written, "
    message += "with no __syncwarp() in between"
    launch = partial(checked_driver.launch, FAULTS, "arrivals", (1,), (64,), y)
    assert_fault(launch, FAULTS, message, "arrivals", thread=1)


# ---------------------------------------------------------------------------------------------
# Sources, launches, captures


def test_a_mistake_in_a_kernel_is_shown_with_its_line(emulator):
    with pytest.raises(native.CompileError) as caught:
        emulator.launch(MISTAKEN, "wrong", (1,), (1,), floats(emulator, 1, 1))
    assert f"{MISTAKEN}:5:" in str(caught.value) and "nowhere" in str(caught.value)


THREADS = """
import os, sys
import numpy as np
from minicnn import machine
from minicnn.backends.ops_cuda import Operations
from minicnn.emulator import Emulator
machine.cores = lambda: 3
before = len(os.listdir("/proc/self/task"))
ops = Operations(Emulator())
for threads in map(int, sys.argv[1:]):
    machine.use_threads(threads)
    ops.activate("relu", np.ones((1, 10_000), np.float32))
    print(1 + len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
def test_the_emulator_has_as_many_threads_as_are_allowed_now(cuda_device):
    if cuda_device != "emulated":
        pytest.skip("needs the emulator")
    done = python("-c", THREADS, 1, 2, 3, 4, OMP_NUM_THREADS=None)
    assert done.stdout.split() == ["1", "2", "3", "3"], done.stderr


@pytest.mark.parametrize("options", [{}, {"cores": 2}, {"checked": True}], ids=str)
def test_a_launch_that_fails_leaves_the_emulator_usable(options):
    driver = Emulator(**options)
    x = floats(driver, 1000)
    for _ in range(3):
        before = np.array(x)
        with pytest.raises(KernelFault, match="for threads that have ended"):
            driver.launch(WARPS, "leave_waiting", (5,), (1000,), True, x)
        np.testing.assert_array_equal(x, before)
        driver.launch(WARPS, "leave_waiting", (1,), (1000,), False, x)
        np.testing.assert_array_equal(x, before + 1)
    assert len(driver.counted) == (3 if driver.checked else 0)


def test_launches_of_several_threads_take_turns():
    driver = Emulator(cores=2)
    visits = [driver.zeros(4 * 64, np.int32) for _ in range(2)]

    def launch_often(array):
        for _ in range(200):
            driver.launch(WARPS, "visit", (4,), (64,), array)

    threads = [threading.Thread(target=launch_often, args=(array,)) for array in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    np.testing.assert_array_equal(visits, 200)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_a_child_process_launches_too():
    driver = Emulator(cores=2)
    visits = driver.zeros(4 * 64, np.int32)
    driver.launch(WARPS, "visit", (4,), (64,), visits)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a launch that hangs ends the child, and the test fails
        driver.launch(WARPS, "visit", (4,), (64,), visits)
        os._exit(int((visits != 2).any()))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cores": 0}, "cores: got 0, expected a positive integer"),
        ({"order": "random"}, "order: got 'random', expected one of 'forward'"),
        ({"copies": "never"}, "copies: got 'never', expected one of 'early', 'late'"),
    ],
)
def test_an_emulator_of_an_unknown_kind_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Emulator(**options)


@pytest.mark.full(beside="test_numbers_outside_of_an_array_are_found")
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_both_compilers_work(compiler):
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    files = [f"test_emulator_{what}.py" for what in ("faults", "counts")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=Path(__file__).parent,
        env={**os.environ, "CXX": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and " skipped" not in done.stdout


def toy(driver, x, y, factor, offset):
    shape = {"rows": 3, "columns": 4}
    arguments = x, None, factor, shape, offset, False, y
    driver.launch(TOY, "scale", (1,), (64,), *arguments)


def test_a_capture_repeats_with_the_values_of_its_launches(emulator):
    x, y, kept = (floats(emulator, 2, 12) for _ in range(3))
    factor, numbers = emulator.to_device(np.ones(1)), iter([7, 8])

    def step():
        toy(emulator, x, y, factor, offset=next(numbers))
        emulator.copy(y, kept)

    before = np.array(y)
    replay = emulator.capture(step)
    np.testing.assert_array_equal(y, before)  # a capture runs nothing
    for scale in (2.0, 3.0):
        factor[0] = scale
        replay()
        np.testing.assert_array_equal(y, scale * x + 7)
        np.testing.assert_array_equal(kept, y)
    step()
    np.testing.assert_array_equal(kept, 3 * x + 8)


def test_a_capture_refuses_copies_to_and_from_the_device(emulator):
    x = floats(emulator, 2, 12)
    for refused in (partial(emulator.to_device, np.ones(3)), partial(emulator.to_host, x)):
        with pytest.raises(RuntimeError, match="a capture cannot hold"):
            emulator.capture(refused)
    np.testing.assert_array_equal(emulator.to_host(emulator.to_device(np.ones(3))), 1)
    toy(emulator, x, x, emulator.to_device(np.ones(1)), 1)  # nor is a capture under way
    np.testing.assert_array_equal(x.reshape(-1), np.arange(24) + 2)


# ---------------------------------------------------------------------------------------------
# A debugger


@pytest.mark.skipif(not shutil.which("gdb"), reason="needs gdb")
def test_a_debugger_stops_in_a_kernel(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import test_emulator as t\n"
        "driver = t.Emulator()\n"
        "x, y = t.floats(driver, 2, 12), driver.zeros((2, 12), 'f4')\n"
        "t.toy(driver, x, y, driver.to_device(t.np.ones(1)), offset=7)\n"
        "print('ended well:', y[1, 11])\n"
    )
    [number] = [i for i, s in enumerate(TOY.read_text().splitlines(), 1) if "y.row()[i] =" in s]
    commands = [
        "set breakpoint pending on",
        f"break toy.cu:{number} if emulator::here->thread.x == 11 && emulator::here->block.z == 1",
        "run",
        "backtrace",
        "print value",
        "print offset",
        "delete",
        "continue",
    ]
    arguments = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *arguments, "--args", sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "ptrace" in done.stderr or "not being run" in done.stderr:
        pytest.skip(f"gdb cannot run a program here: {done.stderr.splitlines()[-1]}")
    assert f"toy.cu:{number}\n" in done.stdout
    frames = [text for text in done.stdout.splitlines() if text.startswith("#")]
    assert "scale (" in frames[0] and any("thread_body" in frame for frame in frames)
    assert "$1 = 31\n$2 = 7\n" in done.stdout
    assert "ended well: 31.0" in done.stdout
