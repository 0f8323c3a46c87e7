"""The emulator: what it finds wrong, what it counts, and what CUDA's words do on it.

Kernels in tests/kernels have faults planted in them, each with a sound twin: the checker must find
the one and let the other pass. Results are compared with NumPy, counts with those made by hand.
"""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicnn import native
from minicnn.emulator import Emulator, KernelFault

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

KERNELS = Path(__file__).parent / "kernels"
FAULTS, WARPS, TRAFFIC, TENSOR_CORE, TOY = (
    KERNELS / f"{name}.cu" for name in "faults warps traffic tensor_core toy".split()
)
FULL = 0xFFFFFFFF
ORDERS = "forward", "backward", "shuffled"


@pytest.fixture(scope="module")
def checked():
    return Emulator(checked=True)


@pytest.fixture(scope="module", params=["fast", "checked"])
def either(request):
    """An emulator of either kind."""
    return Emulator(checked=request.param == "checked")


def floats(driver, *shape):
    """Distinct numbers on the device."""
    return driver.to_device(np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape))


def line(path, comment):
    """The place of the line of a source that ends in a comment, "file.cu:12"."""
    lines = path.read_text().splitlines()
    [number] = [i for i, text in enumerate(lines, 1) if text.endswith(f"// {comment}")]
    return f"{path.name}:{number}"


def assert_fault(launch, path, message, where=None, block=0, thread=0):
    """A launch fails with just this message; `where` is the comment of the line at fault."""
    with pytest.raises(KernelFault) as caught:
        launch()
    found = str(caught.value)
    kernel, _, rest = found.removeprefix(f"{path.name}: ").partition(": ")
    assert kernel.isidentifier()
    expected = f"block ({block}, 0, 0), thread ({thread}, 0, 0) {message}"
    shown = where and shutil.which("addr2line")
    assert rest == expected + (f" ({line(path, where)})" if shown else "")


# ---------------------------------------------------------------------------------------------
# Outside of an array

OUTSIDE = "outside of every array of the launch"


@pytest.mark.parametrize("i", [-1, 10, 200, -70])
def test_numbers_outside_of_an_array_are_found(checked, i):
    x, y = floats(checked, 10), floats(checked, 1)
    ints = checked.zeros(10, np.int32)
    where = f"4 bytes at x[{i}] (of 10), {OUTSIDE}"
    for kernel, does, arguments in [
        ("read_number", "reads", (x, i, y)),
        ("write_number", "writes", (x, i)),
        ("change_number", "changes", (ints, i)),
    ]:
        launch = partial(checked.launch, FAULTS, kernel, (1,), (1,), *arguments)
        assert_fault(launch, FAULTS, f"{does} {where}", kernel)


@pytest.mark.parametrize("i", [0, 9])
def test_numbers_in_an_array_are_not_outside(checked, i):
    x, y, ints = floats(checked, 10), floats(checked, 1), checked.zeros(10, np.int32)
    checked.launch(FAULTS, "read_number", (1,), (1,), x, i, y)
    assert y[0] == i + 1
    checked.launch(FAULTS, "write_number", (1,), (1,), x, i)
    checked.launch(FAULTS, "change_number", (1,), (1,), ints, i)
    assert x[i] == 1 and ints[i] == 7


def test_memory_of_an_array_that_is_no_argument_is_outside(checked):
    x, other, y = floats(checked, 10), floats(checked, 10), floats(checked, 1)
    i = (checked.address(other) - checked.address(x)) // 4
    for kernel, does, arguments in [
        ("read_number", "reads", (x, i, y)),
        ("write_number", "writes", (x, i)),
    ]:
        with pytest.raises(KernelFault, match=rf"{does} 4 bytes at .*, {OUTSIDE}"):
            checked.launch(FAULTS, kernel, (1,), (1,), *arguments)
    checked.launch(FAULTS, "read_number", (1,), (1,), other, 0, y)


@pytest.mark.parametrize(("i", "at"), [(10, "0][10"), (19, "0][19"), (-1, "0][-1"), (30, "1][10")])
def test_the_memory_between_the_rows_of_nets_is_outside(checked, i, at):
    x, y = floats(checked, 2, 20)[:, 4:14], floats(checked, 2, 1)
    where = f"4 bytes at x[{at}] (2 rows of 10), {OUTSIDE}"
    for kernel, does, arguments in [
        ("read_of_row", "reads", (x, i, y)),
        ("write_of_row", "writes", (x, i)),
    ]:
        launch = partial(checked.launch, FAULTS, kernel, (1,), (1,), *arguments)
        assert_fault(launch, FAULTS, f"{does} {where}", kernel)


def test_rows_of_nets_that_lie_apart_are_inside(checked):
    x, y = floats(checked, 2, 20)[:, 4:14], floats(checked, 2, 1)
    checked.launch(FAULTS, "read_of_row", (1,), (1,), x, 9, y)
    np.testing.assert_array_equal(y[:, 0], x[:, 9])
    checked.launch(FAULTS, "write_of_row", (1,), (1,), x, 9)
    np.testing.assert_array_equal(x[:, 9], 1)


def test_writing_to_a_const_array_is_found(checked):
    x, y = floats(checked, 10), floats(checked, 10)
    launch = partial(checked.launch, FAULTS, "write_const", (1,), (1,), x, y)
    message = "writes 4 bytes at x[2] (of 10), in an array that is const"
    assert_fault(partial(launch, True), FAULTS, message, "write_const")
    launch(False)
    assert y[2] == 1


def test_vectors_must_be_aligned_and_lie_inside(checked):
    x, y = floats(checked, 10), floats(checked, 1)
    launch = partial(checked.launch, FAULTS, "read_four", (1,), (1,), x)
    message = "reads 16 bytes at x[{}] (of 10), "
    for i in (1, 2, 3, 7):
        expected = message.format(i) + "not aligned to its size"
        assert_fault(partial(launch, i, y), FAULTS, expected, "read_four")
    assert_fault(partial(launch, 8, y), FAULTS, message.format(8) + OUTSIDE, "read_four")
    launch(4, y)
    assert y[0] == 5 + 8


@pytest.mark.parametrize("i", [-1, 16, 25])
def test_what_is_outside_of_shared_arrays_is_found(checked, i):
    y = floats(checked, 1)
    launch = partial(checked.launch, FAULTS, "write_dynamic_shared", (1,), (1,), i, y)
    message = f"writes 4 bytes at staged[{i}] (of 16), outside of every shared array"
    assert_fault(partial(launch, shared_bytes=64), FAULTS, message, "write_dynamic_shared")
    j = 2 * i if i > 0 else i
    launch = partial(checked.launch, FAULTS, "read_static_shared", (1,), (1,), j, y)
    message = f"reads 4 bytes at tile[{j}] (of 32), outside of every shared array"
    assert_fault(launch, FAULTS, message, "read_static_shared")


def test_what_is_inside_of_shared_arrays_passes(checked):
    y = floats(checked, 1)
    checked.launch(FAULTS, "write_dynamic_shared", (1,), (1,), 15, y, shared_bytes=64)
    assert y[0] == 3
    checked.launch(FAULTS, "read_static_shared", (1,), (1,), 31, y)
    assert y[0] == 31


def test_more_shared_memory_than_there_is_is_refused(either):
    launch = partial(either.launch, FAULTS, "write_dynamic_shared", (1,), (1,), 0)
    launch(floats(either, 1), shared_bytes=100_000)
    with pytest.raises(KernelFault, match="write_dynamic_shared: asks for more shared memory"):
        launch(floats(either, 1), shared_bytes=300_000)


# ---------------------------------------------------------------------------------------------
# Waiting for each other


def test_threads_that_wait_at_different_barriers_are_found(either):
    launch = partial(either.launch, FAULTS, "different_barriers", (1,), (64,))
    one, others = (line(FAULTS, f"the barrier of {name}") for name in ("one", "the others"))
    message = f"waits at the barrier of {one}, others at that of {others}"
    assert_fault(partial(launch, True), FAULTS, message, thread=37)
    launch(False)


def test_a_barrier_that_not_all_threads_come_to_is_found(either):
    launch = partial(either.launch, FAULTS, "barrier_after_an_end", (1,), (64,))
    at = line(FAULTS, "the barrier of those that are left")
    message = f"waits at the barrier of {at} for threads that have ended"
    assert_fault(partial(launch, True), FAULTS, message)
    launch(False)


def test_a_lane_that_is_missing_in_an_exchange_is_found(either):
    y = either.zeros(64, np.int32)
    launch = partial(either.launch, FAULTS, "missing_lane", (1,), (64,))
    message = f"waits for lanes of its warp that do not come ({line(FAULTS, 'missing_lane')})"
    assert_fault(partial(launch, True, y), FAULTS, message, thread=32)
    launch(False, y)
    np.testing.assert_array_equal(y, np.repeat([3, 35], 32))


def test_lanes_that_exchange_elsewhere_or_with_others_are_found(either):
    y = either.zeros(64, np.int32)
    launch = partial(either.launch, FAULTS, "other_exchange", (1,), (64,))
    message = f"waits for lanes of its warp that do not come ({line(FAULTS, 'of others')})"
    assert_fault(partial(launch, True, False, y), FAULTS, message, thread=32)
    assert_fault(partial(launch, False, True, y), FAULTS, message, thread=32)
    launch(False, False, y)
    np.testing.assert_array_equal(y, np.repeat([3, 35], 32))


def test_lanes_that_a_mask_leaves_out_are_found(either):
    y = either.zeros(32, np.int32)
    launch = partial(either.launch, FAULTS, "left_out", (1,), (32,))
    at = line(FAULTS, "left_out")
    message = f"takes part in an exchange whose mask leaves it out ({at})"
    assert_fault(partial(launch, True, False, y), FAULTS, message, thread=5)
    message = f"asks for the value of a lane that does not take part ({at})"
    # Lane 31 came last and lets the others go first, of whom lane 0 is the first.
    assert_fault(partial(launch, False, True, y), FAULTS, message)
    launch(False, False, y)
    np.testing.assert_array_equal(y, np.where(np.arange(32) == 5, 5, 6))


def test_lanes_that_a_small_warp_has_not_are_found(either):
    y = either.zeros(40, np.int32)
    launch = partial(either.launch, FAULTS, "lane_behind_the_end", (1,), (40,))
    at = line(FAULTS, "behind the end")
    message = f"asks for the value of a lane that does not take part ({at})"
    assert_fault(partial(launch, True, y), FAULTS, message, thread=32)
    launch(False, y)
    np.testing.assert_array_equal(y, np.arange(40))


# ---------------------------------------------------------------------------------------------
# Races. A script says what each thread does to one word, step by step.

NOTHING, READ, WRITE, ATOMIC, BARRIER, SYNC_WARP, SHUFFLE = range(7)
ALL = "all threads"


def play(driver, steps, shared, threads=64, blocks=1):
    """Run a script: a list of steps, {thread or ALL: action, or (action, mask)}.

    Threads of block 1 are numbered on from those of block 0.
    """
    actions = np.zeros((len(steps), blocks * threads), np.int32)
    masks = np.full(actions.shape, FULL, np.uint32)
    for s, step in enumerate(steps):
        for who, what in step.items():
            at = s, slice(None) if who == ALL else who
            actions[at], masks[at] = what if isinstance(what, tuple) else (what, FULL)
    word, sink = driver.zeros(1, np.int32), driver.zeros(blocks * threads, np.int32)
    script = driver.to_device(actions), driver.to_device(masks)
    driver.launch(FAULTS, "act", (blocks,), (threads,), *script, len(steps), not shared, word, sink)


def some(mask):
    """A step in which the lanes of the mask, of warp 0, wait for each other."""
    return {lane: (SYNC_WARP, mask) for lane in range(32) if mask >> lane & 1}


ALL_WAIT, WARPS_WAIT, EXCHANGE = {ALL: BARRIER}, {ALL: SYNC_WARP}, {ALL: SHUFFLE}
EVERYBODY_READS, EVERYBODY_ADDS = {ALL: READ}, {ALL: ATOMIC}
SOUND = {
    "barriers": [{0: WRITE}, ALL_WAIT, EVERYBODY_READS, ALL_WAIT, {40: WRITE}, ALL_WAIT, {3: READ}],
    "one's own": [{7: WRITE}, {7: READ}, {7: WRITE}, {7: ATOMIC}, {7: READ}],
    "readers alone": [EVERYBODY_READS, WARPS_WAIT, EVERYBODY_READS],
    "a warp, write and read": [{1: WRITE}, WARPS_WAIT, {2: READ}],
    "a warp, read and write": [{1: READ, 2: READ}, WARPS_WAIT, {3: WRITE}],
    "a warp, read, read, write": [{1: READ}, WARPS_WAIT, {2: READ}, {2: WRITE}],
    "a warp, write and write": [{1: WRITE}, WARPS_WAIT, {2: WRITE}, WARPS_WAIT, {1: WRITE}],
    "atomic operations": [EVERYBODY_ADDS, EVERYBODY_ADDS, ALL_WAIT, EVERYBODY_READS],
    "atomic operations of a warp": [{1: ATOMIC, 2: ATOMIC}, WARPS_WAIT, {2: READ}, {2: WRITE}],
    "a part of a warp": [{0: WRITE}, some(0xFFFF), {3: READ}],
    "one after another": [{0: WRITE}, some(0b11), some(0b110), {2: READ}],
    "two readers, who come at different times": [
        {1: READ},
        some(1 << 1 | 1 << 5),
        some(1 << 2 | 1 << 4),
        {2: READ},
        some(1 << 2 | 1 << 5),
        {5: WRITE},
    ],
    "a barrier forgets": [{1: READ}, ALL_WAIT, {2: READ}, {2: WRITE}],
}
# What the last step does, the thread that it races with, and what that one has done.
RACES = {
    "warps, write and write": ([{0: WRITE}, {40: WRITE}], "writes", 0, "written"),
    "warps, write and read": ([{0: WRITE}, {40: READ}], "reads", 0, "written"),
    "warps, read and write": ([{0: READ}, {40: WRITE}], "writes", 0, "read"),
    "warps that wait each": ([{0: WRITE}, WARPS_WAIT, {40: READ}], "reads", 0, "written"),
    "a warp, write and write": ([{1: WRITE}, {2: WRITE}], "writes", 1, "written"),
    "a warp, write and read": ([{1: WRITE}, {2: READ}], "reads", 1, "written"),
    "a warp, read and write": ([{1: READ}, {2: WRITE}], "writes", 1, "read"),
    "a shuffle orders no memory": ([{1: WRITE}, EXCHANGE, {2: READ}], "reads", 1, "written"),
    "a reader of the writer's warp hides one of another": (
        [{1: READ}, {40: READ}, {40: WRITE}],
        "writes",
        1,
        "read",
    ),
    "a first reader of the writer's warp hides one of another": (
        [{1: READ}, {40: READ}, WARPS_WAIT, {1: WRITE}],
        "writes",
        40,
        "read",
    ),
    "a reader whose own warp waits": ([{1: READ}, WARPS_WAIT, {40: WRITE}], "writes", 1, "read"),
    "two readers of the writer's warp hide one of another": (
        [{1: READ}, {33: READ}, {40: READ}, {40: WRITE}],
        "writes",
        1,
        "read",
    ),
    "the writer's own read hides one": ([{1: READ}, {2: READ}, {2: WRITE}], "writes", 1, "read"),
    "a read before waiting hides one after": (
        [{1: READ, 2: READ}, WARPS_WAIT, {1: READ}, {2: WRITE}],
        "writes",
        1,
        "read",
    ),
    "only one of two readers is waited for": (
        [{1: READ}, {2: READ}, some(0b1100), {3: WRITE}],
        "writes",
        1,
        "read",
    ),
    "only the earlier of two readers is waited for": (
        [{1: READ}, some(0b1010), {2: READ}, {3: WRITE}],
        "writes",
        2,
        "read",
    ),
    "a reader is waited for before it reads": (
        [{1: READ}, some(0b1100), {2: READ}, some(0b1010), {3: WRITE}],
        "writes",
        2,
        "read",
    ),
    "one of three readers is waited for before it reads": (
        [
            {1: READ},
            some(0b1100) | some(0b1110000),
            {2: READ},
            {4: READ},
            some(0b11010),
            {3: WRITE},
        ],
        "writes",
        2,
        "read",
    ),
    "others wait between two readers": (
        [{1: READ}, some(0b1100), {4: READ}, {4: WRITE}],
        "writes",
        1,
        "read",
    ),
    "the other half of a warp waits": (
        [{0: WRITE}, some(0xFFFF0000), {17: READ}],
        "reads",
        0,
        "written",
    ),
    "the writer's half of a warp waits": (
        [{0: WRITE}, some(0xFFFF), {17: READ}],
        "reads",
        0,
        "written",
    ),
    "write and atomic": ([{1: WRITE}, {2: ATOMIC}], "changes", 1, "written"),
    "atomic and write": ([{1: ATOMIC}, {2: WRITE}], "writes", 1, "changed"),
    "read and atomic": ([{1: READ}, {2: ATOMIC}], "changes", 1, "read"),
    "atomic and read": ([{1: ATOMIC}, {2: READ}], "reads", 1, "changed"),
    "an atomic of one's own hides another": (
        [{1: ATOMIC}, {2: ATOMIC}, {2: READ}],
        "reads",
        1,
        "changed",
    ),
    "an atomic hides a write": (
        [{0: WRITE}, some(0b11) | some(0b1100), {1: ATOMIC}, {2: ATOMIC}],
        "changes",
        0,
        "written",
    ),
    "an atomic hides a read": (
        [{0: READ}, some(0b11) | some(0b1100), {1: ATOMIC}, {2: ATOMIC}],
        "changes",
        0,
        "read",
    ),
}
LINES = {"reads": "a read", "writes": "a write", "changes": "an atomic operation"}


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "global"])
@pytest.mark.parametrize("script", SOUND)
def test_accesses_that_something_orders_are_no_race(checked, script, shared):
    play(checked, SOUND[script], shared)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "global"])
@pytest.mark.parametrize("script", RACES)
def test_accesses_that_nothing_orders_are_a_race(checked, script, shared):
    steps, does, other, did = RACES[script]
    [thread] = steps[-1]
    between = "__syncwarp()" if thread // 32 == other // 32 else "barrier"
    array = "shared_word" if shared else "word"
    assert_fault(
        lambda: play(checked, steps, shared),
        FAULTS,
        f"{does} {array}[0] (of 1), which thread ({other}, 0, 0) of this block has {did}, "
        f"with no {between} in between",
        LINES[does],
        thread=thread,
    )
    play(checked, [*steps[:-1], ALL_WAIT, steps[-1]], shared)


# Thread 64 is the first of block 1.
RACES_OF_BLOCKS = {
    "write and read": ([{0: WRITE}, ALL_WAIT, {64: READ}], "reads", "written"),
    "read and write": ([{0: READ}, ALL_WAIT, {64: WRITE}], "writes", "read"),
    "write and write": ([{0: WRITE}, ALL_WAIT, {64: WRITE}], "writes", "written"),
    "atomic and read": ([{0: ATOMIC}, ALL_WAIT, {64: READ}], "reads", "changed"),
    "write and atomic": ([{0: WRITE}, ALL_WAIT, {64: ATOMIC}], "changes", "written"),
    "the writer's own read hides one": (
        [EVERYBODY_READS, ALL_WAIT, {64: READ}, {64: WRITE}],
        "writes",
        "read",
    ),
    "an atomic of one's own hides another": (
        [EVERYBODY_ADDS, ALL_WAIT, {64: READ}],
        "reads",
        "changed",
    ),
}


@pytest.mark.parametrize("script", RACES_OF_BLOCKS)
def test_no_barrier_orders_the_accesses_of_two_blocks(checked, script):
    steps, does, did = RACES_OF_BLOCKS[script]
    message = f"{does} word[0] (of 1), which another block has {did}, and nothing orders blocks"
    launch = partial(play, checked, steps, blocks=2)
    assert_fault(partial(launch, shared=False), FAULTS, message, LINES[does], block=1)
    if ATOMIC not in steps[0].values() or READ not in steps[-1].values():
        launch(shared=True)


@pytest.mark.parametrize("action", [READ, ATOMIC])
def test_blocks_may_all_read_or_all_change_a_word(checked, action):
    play(checked, [{ALL: action}, ALL_WAIT, {ALL: action}], shared=False, blocks=3)


ACTIVE = 0, 1, 2, 3, 32, 33  # of a block of 34 threads


@st.composite
def scripts(draw):
    """Steps of ACTIVE threads, [{thread: action or (action, mask)}, ...], and how many blocks."""
    steps, blocks = [], draw(st.sampled_from([1, 1, 2]))
    for _ in range(draw(st.integers(1, 9))):
        step = {}
        kind = draw(st.sampled_from(["access", "access", "wait in parts", "wait"]))
        for block in range(0, 34 * blocks, 34):
            if kind == "wait":
                step |= {block + thread: BARRIER for thread in range(34)}
            elif kind == "wait in parts":
                for warp, lanes in ((0, 4), (32, 2)):
                    parts = [draw(st.integers(0, 2)) for _ in range(lanes)]
                    for i, part in enumerate(parts):
                        if part:  # those of part 0 do not wait
                            mask = sum((part == other) << k for k, other in enumerate(parts))
                            step[block + warp + i] = SYNC_WARP, mask
            else:
                who = draw(st.lists(st.sampled_from(ACTIVE), max_size=2, unique=True))
                for thread in who:
                    step[block + thread] = draw(st.sampled_from([READ, WRITE, ATOMIC]))
        steps.append(step)
    return steps, blocks


def reaches(steps, first, second, begin, end):
    """Whether what thread `first` does at step `begin` comes before what `second` does at `end`.

    News goes from thread to thread where they wait for each other: who hears of it?
    """
    informed = {first}
    for step in steps[begin + 1 : end]:
        for thread in tuple(informed):
            block, number = divmod(thread, 34)
            match step.get(thread):
                case (_, mask):
                    warp = block * 34 + number // 32 * 32
                    informed |= {warp + lane for lane in range(32) if mask >> lane & 1}
                case action if action == BARRIER:
                    informed |= set(range(block * 34, block * 34 + 34))
    return second in informed


def has_race(steps, shared):
    """Whether any two accesses conflict with nothing to order them, by trying all pairs."""
    accesses = [
        (s, thread, action)
        for s, step in enumerate(steps)
        for thread, action in step.items()
        if action in (READ, WRITE, ATOMIC)
    ]
    for begin, first, does in accesses:
        for end, second, did in accesses:
            harmless = does == did != WRITE
            elsewhere = shared and first // 34 != second // 34
            if begin > end or first == second or harmless or elsewhere:
                continue
            if not reaches(steps, first, second, begin, end):
                return True
    return False


@pytest.fixture(scope="module", params=ORDERS)
def in_some_order(request):
    """An emulator that checks, in one of the orders of threads."""
    return Emulator(checked=True, order=request.param)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "global"])
@settings(deadline=None, max_examples=200, derandomize=True)
@given(script=scripts())
def test_the_checker_finds_a_race_where_trying_all_pairs_does(in_some_order, shared, script):
    steps, blocks = script
    found = False
    try:
        play(in_some_order, steps, shared, threads=34, blocks=blocks)
    except KernelFault as fault:
        found = True
        assert "in between" in str(fault) or "orders blocks" in str(fault)
    assert found == has_race(steps, shared)


def test_neighbouring_bytes_are_no_race(checked):
    y = checked.zeros(64, np.uint8)
    launch = partial(checked.launch, FAULTS, "neighbouring_bytes", (1,), (64,))
    launch(False, y)
    np.testing.assert_array_equal(y, np.arange(64))
    message = "writes bytes[0] (of 64), which thread (0, 0, 0) of this block has written, "
    message += "with no __syncwarp() in between"
    assert_fault(partial(launch, True, y), FAULTS, message, "neighbouring_bytes", thread=1)


# ---------------------------------------------------------------------------------------------
# Shared memory that nothing has written


@pytest.mark.parametrize(("dynamic", "array"), [(False, "tile"), (True, "staged")])
def test_shared_memory_that_nothing_has_written_is_found(checked, dynamic, array):
    y = checked.zeros(64, np.float32)
    launch = partial(checked.launch, FAULTS, "read_unwritten", (1,), (64,), shared_bytes=256)
    launch(True, dynamic, y)
    np.testing.assert_array_equal(y, np.arange(64))
    message = f"reads 4 bytes at {array}[37] (of 64), which nothing in this block has written"
    assert_fault(partial(launch, False, dynamic, y), FAULTS, message, "read_unwritten", thread=37)


def test_what_another_block_has_left_in_shared_memory_is_not_written(checked):
    y = checked.zeros(64, np.float32)
    launch = partial(checked.launch, FAULTS, "left_by_another_block", (2,), (32,))
    launch(False, y)
    np.testing.assert_array_equal(y, 5)
    message = "reads 4 bytes at tile[0] (of 32), which nothing in this block has written"
    assert_fault(partial(launch, True, y), FAULTS, message, "left_by_another_block", block=1)


def test_an_atomic_operation_on_what_nothing_has_written_is_found(checked):
    y = checked.zeros(1, np.int32)
    launch = partial(checked.launch, FAULTS, "unwritten_counter", (1,), (64,))
    launch(True, y)
    assert y[0] == 64
    message = "changes 4 bytes at counter[0] (of 1), which nothing in this block has written"
    assert_fault(partial(launch, False, y), FAULTS, message, "unwritten_counter")


def test_without_the_checker_unwritten_shared_memory_is_not_a_number():
    driver = Emulator()
    y = driver.zeros(64, np.float32)
    driver.launch(FAULTS, "read_unwritten", (1,), (64,), False, False, y, shared_bytes=256)
    np.testing.assert_array_equal(np.isnan(y), np.arange(64) == 37)


# ---------------------------------------------------------------------------------------------
# Asynchronous copies

(
    NONE,
    NO_WAIT,
    WAIT_FOR_TOO_FEW,
    NO_COMMIT,
    NO_BARRIER_BEHIND,
    NO_BARRIER_BEFORE,
    CHANGED_SOURCE,
) = range(7)


def reverse_tiles(driver, mistake, tiles=4, last=128):
    """What the kernel makes of distinct numbers, and what it should."""
    x, y = floats(driver, tiles, 128), driver.zeros((tiles, 128), np.float32)
    expected = np.where(np.arange(128) < last, x, 0)[:, ::-1]
    arguments = x.reshape(-1), tiles, last, mistake, y.reshape(-1)
    driver.launch(TENSOR_CORE, "reverse_tiles", (1,), (32,), *arguments)
    return y, expected


@pytest.mark.parametrize("last", [128, 64, 4])
def test_asynchronous_copies_that_are_waited_for_pass(checked, last):
    y, expected = reverse_tiles(checked, NONE, last=last)
    np.testing.assert_array_equal(y, expected)


NOT_REACHED = "which an asynchronous copy has not reached"


@pytest.mark.parametrize(
    ("mistake", "message", "where"),
    [
        (NO_WAIT, f"reads 4 bytes at staged\\[127\\] .*, {NOT_REACHED}", "read of a tile"),
        (WAIT_FOR_TOO_FEW, f"reads 4 bytes at staged\\[127\\] .*, {NOT_REACHED}", "read of a tile"),
        (NO_COMMIT, f"reads 4 bytes at staged\\[127\\] .*, {NOT_REACHED}", "read of a tile"),
        (NO_BARRIER_BEHIND, "which nothing in this block has written", "read of a tile"),
        (
            NO_BARRIER_BEFORE,
            r"writes staged\[24\] .* which thread \(5, 0, 0\) of this block has read",
            "copy ahead",
        ),
        (
            CHANGED_SOURCE,
            r"writes 4 bytes at x\[128\] .*, which an asynchronous copy has yet to read",
            "changed source",
        ),
    ],
)
def test_asynchronous_copies_that_are_not_waited_for_are_found(checked, mistake, message, where):
    with pytest.raises(KernelFault, match=message) as caught:
        reverse_tiles(checked, mistake)
    if shutil.which("addr2line"):
        assert str(caught.value).endswith(f" ({line(TENSOR_CORE, where)})")


@pytest.mark.parametrize("order", ORDERS)
def test_early_and_late_copies_differ_only_where_something_is_wrong(order):
    early, late = (Emulator(order=order, copies=copies) for copies in ("early", "late"))
    for last in (128, 64):
        for driver in (early, late):
            y, expected = reverse_tiles(driver, NONE, last=last)
            np.testing.assert_array_equal(y, expected)
    for mistake in (NO_WAIT, WAIT_FOR_TOO_FEW, NO_COMMIT, CHANGED_SOURCE):
        results = [reverse_tiles(driver, mistake)[0] for driver in (early, late)]
        assert not np.array_equal(*results, equal_nan=True), mistake


def test_asynchronous_copies_must_be_aligned(checked):
    x, y = floats(checked, 132), checked.zeros(16, np.float32)
    launch = partial(checked.launch, TENSOR_CORE, "copy_both_sizes", (1,), (16,), x)
    launch(0, 0, True, y)
    np.testing.assert_array_equal(y, x[:16])
    launch(0, 0, False, y)
    np.testing.assert_array_equal(y, 0)
    for inside in (True, False):
        message = "reads 16 bytes at x[65] (of 132), not aligned to its size"
        assert_fault(partial(launch, 1, 0, inside, y), TENSOR_CORE, message, "copy of four")
        message = "writes 16 bytes at staged[66] (of 132), not aligned to its size"
        assert_fault(partial(launch, 0, 2, inside, y), TENSOR_CORE, message, "copy of four")


def test_a_barrier_before_the_wait_orders_only_the_beginnings_of_copies(checked):
    x, y = floats(checked, 64), checked.zeros(64, np.float32)
    launch = partial(checked.launch, TENSOR_CORE, "use_copies", (1,), (64,))
    which, between = "which thread (0, 0, 0) of this block has", "with no __syncwarp() in between"
    for changes, message, where in [
        (False, f"reads staged[0] (of 64), {which} written, {between}", "taken too early"),
        (True, f"writes x[0] (of 64), {which} read, {between}", "changed too early"),
    ]:
        assert_fault(partial(launch, x, True, changes, y), TENSOR_CORE, message, where, thread=1)
    launch(x, False, False, y)
    np.testing.assert_array_equal(y[1:], x[:-1])
    launch(x, False, True, y)
    np.testing.assert_array_equal(x, [0] * 63 + [64])


# ---------------------------------------------------------------------------------------------
# Tensor cores


def matrices(random):
    """a (16, 8), b (8, 8), c (16, 8) of distinct whole numbers that TF32 has."""
    numbers = random.permutation(2000)[: 128 + 64 + 128].astype(np.float32) - 1000
    a, b, c = np.split(numbers, [128, 192])
    return a.reshape(16, 8), b.reshape(8, 8), c.reshape(16, 8)


def tensor_step(driver, a, b, c, rounded, threads=32):
    on_device = [driver.to_device(np.float32(m)).reshape(-1) for m in (a, b, c)]
    d = driver.zeros((16, 8), np.float32)
    arguments = *on_device, rounded, d.reshape(-1)
    driver.launch(TENSOR_CORE, "tensor_step", (1,), (threads,), *arguments)
    return d


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_the_tensor_cores_is_a_matrix_product(either, seed):
    random = np.random.default_rng(seed)
    a, b, c = matrices(random)
    np.testing.assert_array_equal(tensor_step(either, a, b, c, False), c + a @ b)
    a, b, c = (random.normal(size=m.shape) for m in (a, b, c))
    expected = c + as_tf32(np.float32(a)) @ as_tf32(np.float32(b))
    np.testing.assert_allclose(tensor_step(either, a, b, c, True), expected, rtol=1e-5, atol=1e-6)


def as_tf32(x):
    """The nearest numbers with 11 significant bits, the larger of two, in float64."""
    x = np.float64(x)
    with np.errstate(invalid="ignore"):
        exponent = np.maximum(np.frexp(x)[1], -125)  # subnormal numbers have all one spacing
        spacing = np.ldexp(1.0, exponent - 11)
        rounded = np.copysign(np.floor(np.abs(x) / spacing + 0.5) * spacing, x)
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, x), rounded)


def test_rounding_to_tf32(either):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 20_000, np.uint32)
    ties = bits & 0xFFFFE000 | 0x1000
    edges = [ties - 1, ties, ties + 1, bits & 0x807FFFFF, bits & 0x80001FFF]
    special = [0, 1, 0xFFF, 0x1000, 0x7FFFFF, 0x800000, 0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF]
    special = np.array([*special, 0x7F800000, 0x7FC00000, 0x7FFFFFFF], np.uint32)
    x = np.concatenate([bits, *edges, special, special | 0x80000000]).view(np.float32)
    x = x[~np.isnan(x) | (x.view(np.uint32) & 0x400000 != 0)]  # no signalling NaN
    y = either.zeros(x.shape, np.float32)
    grid = (-(-len(x) // 64),)
    either.launch(TENSOR_CORE, "round_to_tf32", grid, (64,), either.to_device(x), len(x), y)
    expected = as_tf32(x).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("operand", [0, 1])
def test_an_operand_that_is_not_tf32_is_found(either, operand):
    operands = matrices(np.random.default_rng(0))
    operands[operand][3, 3] = 1 + 2.0**-11
    tensor_step(either, *operands, rounded=True)
    # Thread 15 has (3, 3) of a as well as of b.
    message = f"gives a tensor core a number that is not TF32 ({line(TENSOR_CORE, 'tensor_step')})"
    launch = partial(tensor_step, either, *operands, rounded=False)
    assert_fault(launch, TENSOR_CORE, message, thread=15)


def test_a_step_of_the_tensor_cores_takes_a_whole_warp(either):
    operands = matrices(np.random.default_rng(0))
    with pytest.raises(KernelFault, match="in a warp that is not whole"):
        tensor_step(either, *operands, rounded=True, threads=16)


# ---------------------------------------------------------------------------------------------
# Votes, shuffles, atomic operations


@pytest.mark.parametrize("block", [(1,), (31,), (32,), (40,), (101,), (8, 5), (33, 3)])
def test_votes_of_a_block(either, block):
    n, random = int(np.prod(block)), np.random.default_rng(0)
    bits = random.integers(0, 2, (4, n), np.int32) * random.integers(-3, 9, (4, n), np.int32)
    bits[1], bits[2] = 0, 6
    found = either.zeros((4, 3, n), np.int32)
    arguments = either.to_device(bits), found
    either.launch(WARPS, "block_votes", (4,), block, *arguments)
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
def test_votes_of_a_warp(either, threads, masks):
    masks = np.array(MASKS[masks] * 4, np.uint32)[:threads]
    random = np.random.default_rng(threads)
    for share in (0.0, 0.1, 0.5, 1.0):
        bits = np.int32(random.random(threads) < share) * 4
        found = either.zeros((3, threads), np.uint32)
        arguments = either.to_device(bits), either.to_device(masks), found
        either.launch(WARPS, "warp_votes", (1,), (threads,), *arguments)
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
def test_shuffles(either, threads, masks, width, distance, lane):
    values = np.random.default_rng(0).normal(size=threads).astype(np.float32)
    masks = np.array(MASKS[masks] * 4, np.uint32)[:threads]
    if masks[0] == 0x55555555:  # the lane that is asked for must be one of those that take part
        masks, lane = np.where(np.arange(threads) % 2, 0, masks), lane // 2 * 2
    found = either.zeros((4, threads), np.float32)
    on_device = either.to_device(values), either.to_device(masks)
    arguments = *on_device, lane, distance, width, found
    either.launch(WARPS, "shuffles", (1,), (threads,), *arguments)
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
# Kinds of numbers and of memory, and the order of threads


def test_vectors_of_two_and_four(either):
    random, shape = np.random.default_rng(0), (5, 4)
    arrays = [
        random.normal(size=shape).astype(np.float32),
        random.integers(-(2**31), 2**31, shape, np.int32),
        random.integers(0, 2**32, shape, np.uint32),
        random.integers(0, 256, shape, np.uint8),
    ]
    found = [either.zeros(shape, a.dtype) for a in arrays]
    arguments = *(either.to_device(a) for a in arrays), *found
    either.launch(WARPS, "vectors", (1,), (5,), *arguments)
    for array, reversed_array in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(reversed_array, array[:, ::-1])


def test_shared_arrays_of_two_dimensions_and_of_templates(either):
    x, found = floats(either, 32, 33), either.zeros((3, 33, 32), np.float32)
    either.launch(WARPS, "shared_arrays", (1,), (32,), x.reshape(-1), found.reshape(-1))
    np.testing.assert_array_equal(found[0], x[::-1].T)
    np.testing.assert_array_equal(found[1], x.T)
    np.testing.assert_array_equal(found[2], x.T)


@pytest.mark.parametrize("threads", [1, 37, 1024])
def test_dynamic_shared_memory(either, threads):
    x, y = either.to_device(np.arange(3.0 * threads)), either.zeros(3 * threads, np.float64)
    size = 8 * threads
    either.launch(WARPS, "dynamic_shared_array", (3,), (threads,), x, y, shared_bytes=size)
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


def test_what_gives_other_results_in_other_orders_is_a_race(checked):
    y = checked.zeros(64, np.int32)
    message = "reads arrived[0] (of 1), which thread (0, 0, 0) of this block has written, "
    message += "with no __syncwarp() in between"
    launch = partial(checked.launch, FAULTS, "arrivals", (1,), (64,), y)
    assert_fault(launch, FAULTS, message, "arrivals", thread=1)


# ---------------------------------------------------------------------------------------------
# Counters, beside those counted by hand


def counted(kernel, grid, block, *arguments, path=TRAFFIC, **options):
    """What a launch counts that is not zero, as a dictionary; twice, and it must be the same."""
    driver = Emulator(checked=True)
    for _ in range(2):
        given = [driver.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
        driver.launch(path, kernel, grid, block, *given, **options)
    first, second = driver.counted
    assert first == second
    assert (first.file, first.kernel) == (path.name, kernel)
    assert (first.grid[0], first.block[0]) == (grid[0], block[0])
    return {name: count for name, count in first.counts._asdict().items() if count}


def stores(requests, sectors, count):
    """Counts of stores that are the fewest."""
    return {
        "store_requests": requests,
        "store_sectors": sectors,
        "ideal_store_sectors": sectors,
        "bytes_written": count,
    }


@pytest.mark.parametrize(
    ("stride", "sectors", "ideal", "bytes_read"),
    [(1, 4, 4, 512), (2, 8, 4, 512), (8, 32, 4, 512), (32, 32, 4, 512), (0, 1, 1, 4)],
)
def test_loads_of_floats_that_lie_apart(stride, sectors, ideal, bytes_read):
    x, y = np.ones(127 * stride + 1, np.float32), np.zeros(128, np.float32)
    assert counted("load_floats", (2,), (64,), x, stride, y) == {
        "load_requests": 4,
        "load_sectors": 4 * sectors,
        "ideal_load_sectors": 4 * ideal,
        "bytes_read": bytes_read,
        **stores(4, 16, 512),
    }


def test_loads_of_vectors_and_of_bytes():
    x, y = np.ones(256, np.float32), np.zeros(256, np.float32)
    assert counted("load_float4s", (1,), (64,), x, y) == {
        "load_requests": 2,
        "load_sectors": 32,
        "ideal_load_sectors": 32,
        "bytes_read": 1024,
        **stores(2, 32, 1024),
    }
    x, y = np.ones(64, np.uint8), np.zeros(64, np.uint8)
    assert counted("load_bytes", (1,), (64,), x, y) == {
        "load_requests": 2,
        "load_sectors": 2,
        "ideal_load_sectors": 2,
        "bytes_read": 64,
        **stores(2, 2, 64),
    }


def test_structs_are_seen_whole():
    x, y = np.arange(96, dtype=np.float32), np.zeros(96, np.float32)
    found = counted("load_structs", (1,), (32,), x, y)
    assert found["bytes_read"] == found["bytes_written"] == 384
    assert found["shared_requests"] == found["load_requests"] + found["store_requests"] == 6
    driver = Emulator(checked=True)
    driver.launch(TRAFFIC, "load_structs", (1,), (32,), x, y)
    np.testing.assert_array_equal(y.reshape(32, 3), x.reshape(32, 3)[::-1])


def test_adding_to_a_number_is_a_load_and_a_store():
    assert counted("add_one", (1,), (32,), np.ones(32, np.float32)) == {
        "load_requests": 1,
        "load_sectors": 4,
        "ideal_load_sectors": 4,
        "bytes_read": 128,
        **stores(1, 4, 128),
    }


def test_what_all_blocks_read_again_and_again_is_as_many_bytes_as_once():
    x, y = np.ones(64, np.float32), np.zeros(128, np.float32)
    assert counted("load_again", (2,), (64,), x, 3, y) == {
        "load_requests": 12,
        "load_sectors": 48,
        "ideal_load_sectors": 48,
        "bytes_read": 256,
        "barriers": 6,
        **stores(4, 16, 512),
    }


def test_loads_of_some_lanes():
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    assert counted("load_some", (1,), (32,), x, y) == {
        "load_requests": 1,
        "load_sectors": 4,
        "ideal_load_sectors": 2,
        "bytes_read": 64,
        "store_requests": 1,
        "store_sectors": 4,
        "ideal_store_sectors": 2,
        "bytes_written": 64,
    }


def test_a_barrier_ends_requests():
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    assert counted("load_in_turns", (1,), (32,), x, y) == {
        "load_requests": 2,
        "load_sectors": 1 + 4,
        "ideal_load_sectors": 1 + 4,
        "bytes_read": 128,
        "barriers": 2,
        **stores(1, 4, 128),
    }


@pytest.mark.parametrize(
    ("stride", "wavefronts"), [(0, 1), (1, 1), (2, 2), (3, 1), (8, 8), (32, 32), (33, 1)]
)
def test_conflicts_of_the_banks_of_shared_memory(stride, wavefronts):
    size = 31 * stride + 1
    options = {"shared_bytes": 4 * size}
    y = np.zeros(32, np.float32)
    assert counted("load_shared", (1,), (32,), stride, size, y, **options) == {
        "shared_requests": size + 1,
        "shared_wavefronts": size + wavefronts,
        "ideal_shared_wavefronts": size + 1,
        "barriers": 1,
        **stores(1, 4, 128),
    }


# A quarter of a warp has the banks at a time.
@pytest.mark.parametrize(("stride", "wavefronts"), [(0, 4), (1, 4), (2, 8), (3, 4), (8, 32)])
def test_conflicts_of_vectors_in_shared_memory(stride, wavefronts):
    size = 4 * (31 * stride + 1)
    options = {"shared_bytes": 4 * size}
    y = np.zeros(128, np.float32)
    assert counted("load_shared_float4", (1,), (32,), stride, size, y, **options) == {
        "shared_requests": size + 1,
        "shared_wavefronts": size + wavefronts,
        "ideal_shared_wavefronts": size + 4,
        "barriers": 1,
        **stores(1, 16, 512),
    }


def test_barriers_exchanges_and_operations():
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    assert counted("together", (1,), (64,), x, y) == {
        "load_requests": 2,
        "load_sectors": 8,
        "ideal_load_sectors": 8,
        "bytes_read": 256,
        "barriers": 2,
        "exchanges": 2 * (5 + 1 + 1),
        "flops": 64 * 3 * 2,
        **stores(2, 8, 256),
    }


def test_an_atomic_operation_is_a_store():
    assert counted("add_to_one", (1,), (64,), np.zeros(2, np.int32)) == {
        "shared_requests": 3,
        "shared_wavefronts": 3,
        "ideal_shared_wavefronts": 3,
        "barriers": 1,
        **stores(2, 2, 8),
    }


def test_steps_of_the_tensor_cores_are_counted():
    a, b, c = (m.reshape(-1) for m in matrices(np.random.default_rng(0)))
    found = counted(
        "tensor_step", (1,), (32,), a, b, c, True, np.zeros(128, np.float32), path=TENSOR_CORE
    )
    assert found["tensor_steps"] == 1 and found["tensor_flops"] == 2 * 16 * 8 * 8
    assert "flops" not in found and "exchanges" not in found


def test_asynchronous_copies_are_loads_and_stores_to_shared_memory():
    x, y = np.ones(128, np.float32), np.zeros(128, np.float32)
    assert counted("reverse_tiles", (1,), (32,), x, 1, 64, NONE, y, path=TENSOR_CORE) == {
        "load_requests": 1,
        "load_sectors": 8,
        "ideal_load_sectors": 8,
        "bytes_read": 256,
        "shared_requests": 1 + 4,
        "shared_wavefronts": 4 + 4,
        "ideal_shared_wavefronts": 4 + 4,
        "barriers": 2,
        **stores(4, 16, 512),
    }


# ---------------------------------------------------------------------------------------------
# Sources, launches, captures


def test_a_mistake_in_a_kernel_is_shown_with_its_line(either, tmp_path):
    path = tmp_path / "mistaken.cu"
    path.write_text(
        '#include "common.cuh"\n'
        'extern "C" __global__ void wrong(PerNet<float> x) {\n'
        "    x.row()[0] = nowhere;\n"
        "}\n"
    )
    with pytest.raises(native.CompileError) as caught:
        either.launch(path, "wrong", (1,), (1,), floats(either, 1, 1))
    assert f"{path}:3:" in str(caught.value) and "nowhere" in str(caught.value)


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


def toy(driver, x, y, factor, offset):
    shape = {"rows": 3, "columns": 4}
    arguments = x, None, factor, shape, offset, False, y
    driver.launch(TOY, "scale", (1,), (64,), *arguments)


def test_a_capture_is_repeated_with_the_numbers_it_was_made_with(either):
    x, y, kept = (floats(either, 2, 12) for _ in range(3))
    factor, numbers = either.to_device(np.ones(1)), iter([7, 8])

    def step():
        toy(either, x, y, factor, offset=next(numbers))
        either.copy(y, kept)

    before = np.array(y)
    replay = either.capture(step)
    np.testing.assert_array_equal(y, before)  # a capture runs nothing
    for scale in (2.0, 3.0):
        factor[0] = scale
        replay()
        np.testing.assert_array_equal(y, scale * x + 7)
        np.testing.assert_array_equal(kept, y)
    step()
    np.testing.assert_array_equal(kept, 3 * x + 8)


def test_a_capture_refuses_what_goes_to_the_device_or_comes_from_there(either):
    x = floats(either, 2, 12)
    for refused in (partial(either.to_device, np.ones(3)), partial(either.to_host, x)):
        with pytest.raises(RuntimeError, match="a capture cannot hold"):
            either.capture(refused)
    np.testing.assert_array_equal(either.to_host(either.to_device(np.ones(3))), 1)
    toy(either, x, x, either.to_device(np.ones(1)), 1)  # nor is a capture under way
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
