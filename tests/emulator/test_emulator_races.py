"""The checked emulator finds races in scripts, exactly where an exhaustive check finds them."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from levels import examples
from planted import FAULTS, FULL, ORDERS, TOY, assert_fault

from minicnn.emulator import Emulator, KernelFault

# ---------------------------------------------------------------------------------------------
# A script says what each thread does to one word, step by step.

NOTHING, READ, WRITE, ATOMIC, BARRIER, SYNC_WARP, SHUFFLE = range(7)
ALL = "all threads"


def play(driver, steps, shared, threads=64, blocks=1):
    """Run a script: a list of steps, {thread or ALL: action, or (action, mask)}.

    The numbers of block 1's threads follow those of block 0.
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
    """A step in which the lanes of warp 0 in the mask wait for each other."""
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
# (steps, action of the last step, the thread that it races with, that thread's action)
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
def test_accesses_that_something_orders_are_no_race(checked_driver, script, shared):
    play(checked_driver, SOUND[script], shared)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "global"])
@pytest.mark.parametrize("script", RACES)
def test_accesses_that_nothing_orders_are_a_race(checked_driver, script, shared):
    steps, does, other, did = RACES[script]
    [thread] = steps[-1]
    between = "__syncwarp()" if thread // 32 == other // 32 else "barrier"
    array = "shared_word" if shared else "word"
    assert_fault(
        lambda: play(checked_driver, steps, shared),
        FAULTS,
        f"{does} {array}[0] (of 1), which thread ({other}, 0, 0) of this block has {did}, "
        f"with no {between} in between",
        LINES[does],
        thread=thread,
    )
    play(checked_driver, [*steps[:-1], ALL_WAIT, steps[-1]], shared)


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
def test_no_barrier_orders_the_accesses_of_two_blocks(checked_driver, script):
    steps, does, did = RACES_OF_BLOCKS[script]
    message = f"{does} word[0] (of 1), which another block has {did}, and nothing orders blocks"
    launch = partial(play, checked_driver, steps, blocks=2)
    assert_fault(partial(launch, shared=False), FAULTS, message, LINES[does], block=1)
    if ATOMIC not in steps[0].values() or READ not in steps[-1].values():
        launch(shared=True)


@pytest.mark.parametrize("action", [READ, ATOMIC])
def test_blocks_may_all_read_or_all_change_a_word(checked_driver, action):
    play(checked_driver, [{ALL: action}, ALL_WAIT, {ALL: action}], shared=False, blocks=3)


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
    """Whether thread `first`'s action at step `begin` is ordered before `second`'s at `end`.

    It is if a chain of threads that wait for each other leads from one action to the other.
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
    """Whether any two unordered accesses conflict, by trying all pairs."""
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
    """The checked emulator, with one of the orders of threads."""
    return Emulator(checked=True, order=request.param)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "global"])
@examples(200)
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


def test_neighbouring_bytes_are_no_race(checked_driver):
    y = checked_driver.zeros(64, np.uint8)
    launch = partial(checked_driver.launch, FAULTS, "neighbouring_bytes", (1,), (64,))
    launch(False, y)
    np.testing.assert_array_equal(y, np.arange(64))
    message = "writes bytes[0] (of 64), which thread (0, 0, 0) of this block has written, "
    message += "with no __syncwarp() in between"
    assert_fault(partial(launch, True, y), FAULTS, message, "neighbouring_bytes", thread=1)


# ---------------------------------------------------------------------------------------------
# Launches that may overlap


def scale(driver, x, y):
    """A function that launches y = 2 x."""
    factor, sizes = driver.to_device(np.full(1, 2.0)), {"rows": 3, "columns": 4}
    return partial(driver.launch, TOY, "scale", (1,), (64,), x, None, factor, sizes, 0, False, y)


def rows(driver):
    """An array (2, 3, 4) of ones for a kernel that takes rows of each net."""
    return driver.to_device(np.ones((2, 3, 4), np.float32))


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_what_runs_together_runs_in_either_order(order, captured):
    driver, executed = Emulator(order=order), []
    execute = driver._execute
    driver._execute = lambda launch: executed.append(launch.arrays[0][1]) or execute(launch)
    w, x, y, z = (rows(driver) for _ in range(4))
    first, second, last = scale(driver, w, y), scale(driver, x, z), scale(driver, y, z)

    def work():
        driver.together(first, second)
        last()

    if captured:
        replay = driver.capture(work)
        assert not executed
        replay()
    else:
        work()
    assert (y == 2).all() and (z == 4).all()
    expected = [w, x, y] if order == "forward" else [x, w, y]
    assert [id(array) for array in executed] == [id(array) for array in expected]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("other", ["reads", "writes"])
def test_a_launch_that_writes_what_another_uses_at_the_same_time_is_found(other, swapped):
    driver = Emulator()
    x, y, z = (rows(driver) for _ in range(3))
    half = y.reshape(-1)[:12].reshape(1, 3, 4)
    with_half = scale(driver, half, z[:1]) if other == "reads" else scale(driver, x[:1], half)
    both = scale(driver, x, y), with_half
    told = r"toy\.cu: scale writes y while toy\.cu: scale uses it as "
    with pytest.raises(KernelFault, match=told + ("x" if other == "reads" else "y")):
        driver.together(*both[:: -1 if swapped else 1])
    assert (y == 1).all() and (z == 1).all()  # nothing has run
    with_half()  # nor does anything run together any more
    assert (z[0] == 2).all() or (half == 2).all()


def test_a_function_that_fails_beside_another_leaves_the_emulator_usable():
    driver = Emulator()
    x, y = rows(driver), rows(driver)
    with pytest.raises(ZeroDivisionError):
        driver.together(scale(driver, x, y), lambda: 1 / 0)
    assert (y == 1).all()
    scale(driver, x, y)()
    assert (y == 2).all()
