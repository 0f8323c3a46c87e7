"""The checked emulator finds faults in kernels. Races are in test_emulator_races.py."""

import shutil
from functools import partial

import numpy as np
import pytest
from planted import (
    FAULTS,
    ORDERS,
    TENSOR_CORE,
    assert_fault,
    floats,
    line,
)

from minicnn.emulator import Emulator, KernelFault

# ---------------------------------------------------------------------------------------------
# Outside of an array

OUTSIDE = "outside of every array of the launch"


@pytest.mark.parametrize("i", [-1, 10, 200, -70])
def test_numbers_outside_of_an_array_are_found(checked_driver, i):
    x, y = floats(checked_driver, 10), floats(checked_driver, 1)
    ints = checked_driver.zeros(10, np.int32)
    where = f"4 bytes at x[{i}] (of 10), {OUTSIDE}"
    for kernel, does, arguments in [
        ("read_number", "reads", (x, i, y)),
        ("write_number", "writes", (x, i)),
        ("change_number", "changes", (ints, i)),
    ]:
        launch = partial(checked_driver.launch, FAULTS, kernel, (1,), (1,), *arguments)
        assert_fault(launch, FAULTS, f"{does} {where}", kernel)


@pytest.mark.parametrize("i", [0, 9])
def test_numbers_in_an_array_are_not_outside(checked_driver, i):
    x, y, ints = (
        floats(checked_driver, 10),
        floats(checked_driver, 1),
        checked_driver.zeros(10, np.int32),
    )
    checked_driver.launch(FAULTS, "read_number", (1,), (1,), x, i, y)
    assert y[0] == i + 1
    checked_driver.launch(FAULTS, "write_number", (1,), (1,), x, i)
    checked_driver.launch(FAULTS, "change_number", (1,), (1,), ints, i)
    assert x[i] == 1 and ints[i] == 7


def test_memory_of_an_array_that_is_no_argument_is_outside(checked_driver):
    x, other, y = floats(checked_driver, 10), floats(checked_driver, 10), floats(checked_driver, 1)
    i = (checked_driver.address(other) - checked_driver.address(x)) // 4
    for kernel, does, arguments in [
        ("read_number", "reads", (x, i, y)),
        ("write_number", "writes", (x, i)),
    ]:
        with pytest.raises(KernelFault, match=rf"{does} 4 bytes at .*, {OUTSIDE}"):
            checked_driver.launch(FAULTS, kernel, (1,), (1,), *arguments)
    checked_driver.launch(FAULTS, "read_number", (1,), (1,), other, 0, y)


@pytest.mark.parametrize(("i", "at"), [(10, "0][10"), (19, "0][19"), (-1, "0][-1"), (30, "1][10")])
def test_the_memory_between_the_rows_of_nets_is_outside(checked_driver, i, at):
    x, y = floats(checked_driver, 2, 20)[:, 4:14], floats(checked_driver, 2, 1)
    where = f"4 bytes at x[{at}] (2 rows of 10), {OUTSIDE}"
    for kernel, does, arguments in [
        ("read_of_row", "reads", (x, i, y)),
        ("write_of_row", "writes", (x, i)),
    ]:
        launch = partial(checked_driver.launch, FAULTS, kernel, (1,), (1,), *arguments)
        assert_fault(launch, FAULTS, f"{does} {where}", kernel)


def test_rows_of_nets_that_lie_apart_are_inside(checked_driver):
    x, y = floats(checked_driver, 2, 20)[:, 4:14], floats(checked_driver, 2, 1)
    checked_driver.launch(FAULTS, "read_of_row", (1,), (1,), x, 9, y)
    np.testing.assert_array_equal(y[:, 0], x[:, 9])
    checked_driver.launch(FAULTS, "write_of_row", (1,), (1,), x, 9)
    np.testing.assert_array_equal(x[:, 9], 1)


def test_writing_to_a_const_array_is_found(checked_driver):
    x, y = floats(checked_driver, 10), floats(checked_driver, 10)
    launch = partial(checked_driver.launch, FAULTS, "write_const", (1,), (1,), x, y)
    message = "writes 4 bytes at x[2] (of 10), in an array that is const"
    assert_fault(partial(launch, True), FAULTS, message, "write_const")
    launch(False)
    assert y[2] == 1


def test_vectors_must_be_aligned_and_lie_inside(checked_driver):
    x, y = floats(checked_driver, 10), floats(checked_driver, 1)
    launch = partial(checked_driver.launch, FAULTS, "read_four", (1,), (1,), x)
    message = "reads 16 bytes at x[{}] (of 10), "
    for i in (1, 2, 3, 7):
        expected = message.format(i) + "not aligned to its size"
        assert_fault(partial(launch, i, y), FAULTS, expected, "read_four")
    assert_fault(partial(launch, 8, y), FAULTS, message.format(8) + OUTSIDE, "read_four")
    launch(4, y)
    assert y[0] == 5 + 8


@pytest.mark.parametrize("i", [-1, 16, 25])
def test_what_is_outside_of_shared_arrays_is_found(checked_driver, i):
    y = floats(checked_driver, 1)
    launch = partial(checked_driver.launch, FAULTS, "write_dynamic_shared", (1,), (1,), i, y)
    message = f"writes 4 bytes at staged[{i}] (of 16), outside of every shared array"
    assert_fault(partial(launch, shared_bytes=64), FAULTS, message, "write_dynamic_shared")
    j = 2 * i if i > 0 else i
    launch = partial(checked_driver.launch, FAULTS, "read_static_shared", (1,), (1,), j, y)
    message = f"reads 4 bytes at tile[{j}] (of 32), outside of every shared array"
    assert_fault(launch, FAULTS, message, "read_static_shared")


def test_what_is_inside_of_shared_arrays_passes(checked_driver):
    y = floats(checked_driver, 1)
    checked_driver.launch(FAULTS, "write_dynamic_shared", (1,), (1,), 15, y, shared_bytes=64)
    assert y[0] == 3
    checked_driver.launch(FAULTS, "read_static_shared", (1,), (1,), 31, y)
    assert y[0] == 31


def test_more_shared_memory_than_there_is_is_refused(emulator):
    launch = partial(emulator.launch, FAULTS, "write_dynamic_shared", (1,), (1,), 0)
    launch(floats(emulator, 1), shared_bytes=100_000)
    with pytest.raises(KernelFault, match="write_dynamic_shared: asks for more shared memory"):
        launch(floats(emulator, 1), shared_bytes=300_000)


# ---------------------------------------------------------------------------------------------
# Waiting for each other


def test_threads_that_wait_at_different_barriers_are_found(emulator):
    launch = partial(emulator.launch, FAULTS, "different_barriers", (1,), (64,))
    one, others = (line(FAULTS, f"the barrier of {name}") for name in ("one", "the others"))
    message = f"waits at the barrier of {one}, others at that of {others}"
    assert_fault(partial(launch, True), FAULTS, message, thread=37)
    launch(False)


def test_a_barrier_that_not_all_threads_come_to_is_found(emulator):
    launch = partial(emulator.launch, FAULTS, "barrier_after_an_end", (1,), (64,))
    at = line(FAULTS, "the barrier of those that are left")
    message = f"waits at the barrier of {at} for threads that have ended"
    assert_fault(partial(launch, True), FAULTS, message)
    launch(False)


def test_a_lane_that_is_missing_in_an_exchange_is_found(emulator):
    y = emulator.zeros(64, np.int32)
    launch = partial(emulator.launch, FAULTS, "missing_lane", (1,), (64,))
    message = f"waits for lanes of its warp that do not come ({line(FAULTS, 'missing_lane')})"
    assert_fault(partial(launch, True, y), FAULTS, message, thread=32)
    launch(False, y)
    np.testing.assert_array_equal(y, np.repeat([3, 35], 32))


def test_lanes_that_exchange_elsewhere_or_with_others_are_found(emulator):
    y = emulator.zeros(64, np.int32)
    launch = partial(emulator.launch, FAULTS, "other_exchange", (1,), (64,))
    message = f"waits for lanes of its warp that do not come ({line(FAULTS, 'of others')})"
    assert_fault(partial(launch, True, False, y), FAULTS, message, thread=32)
    assert_fault(partial(launch, False, True, y), FAULTS, message, thread=32)
    launch(False, False, y)
    np.testing.assert_array_equal(y, np.repeat([3, 35], 32))


def test_lanes_that_a_mask_leaves_out_are_found(emulator):
    y = emulator.zeros(32, np.int32)
    launch = partial(emulator.launch, FAULTS, "left_out", (1,), (32,))
    at = line(FAULTS, "left_out")
    message = f"takes part in an exchange whose mask leaves it out ({at})"
    assert_fault(partial(launch, True, False, y), FAULTS, message, thread=5)
    message = f"asks for the value of a lane that does not take part ({at})"
    # Lane 31 comes last and lets the others continue, lane 0 first.
    assert_fault(partial(launch, False, True, y), FAULTS, message)
    launch(False, False, y)
    np.testing.assert_array_equal(y, np.where(np.arange(32) == 5, 5, 6))


def test_lanes_that_a_small_warp_has_not_are_found(emulator):
    y = emulator.zeros(40, np.int32)
    launch = partial(emulator.launch, FAULTS, "lane_behind_the_end", (1,), (40,))
    at = line(FAULTS, "behind the end")
    message = f"asks for the value of a lane that does not take part ({at})"
    assert_fault(partial(launch, True, y), FAULTS, message, thread=32)
    launch(False, y)
    np.testing.assert_array_equal(y, np.arange(40))


# ---------------------------------------------------------------------------------------------
# Shared memory that nothing has written


@pytest.mark.parametrize(("dynamic", "array"), [(False, "tile"), (True, "staged")])
def test_shared_memory_that_nothing_has_written_is_found(checked_driver, dynamic, array):
    y = checked_driver.zeros(64, np.float32)
    launch = partial(checked_driver.launch, FAULTS, "read_unwritten", (1,), (64,), shared_bytes=256)
    launch(True, dynamic, y)
    np.testing.assert_array_equal(y, np.arange(64))
    message = f"reads 4 bytes at {array}[37] (of 64), which nothing in this block has written"
    assert_fault(partial(launch, False, dynamic, y), FAULTS, message, "read_unwritten", thread=37)


def test_what_another_block_has_left_in_shared_memory_is_not_written(checked_driver):
    y = checked_driver.zeros(64, np.float32)
    launch = partial(checked_driver.launch, FAULTS, "left_by_another_block", (2,), (32,))
    launch(False, y)
    np.testing.assert_array_equal(y, 5)
    message = "reads 4 bytes at tile[0] (of 32), which nothing in this block has written"
    assert_fault(partial(launch, True, y), FAULTS, message, "left_by_another_block", block=1)


def test_an_atomic_operation_on_what_nothing_has_written_is_found(checked_driver):
    y = checked_driver.zeros(1, np.int32)
    launch = partial(checked_driver.launch, FAULTS, "unwritten_counter", (1,), (64,))
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
    NO_MISTAKE,
    NO_WAIT,
    WAIT_FOR_TOO_FEW,
    NO_COMMIT,
    NO_BARRIER_BEHIND,
    NO_BARRIER_BEFORE,
    CHANGED_SOURCE,
) = range(7)


def reverse_tiles(driver, mistake, tiles=4, last=128):
    """(the kernel's result from distinct values, the expected one)."""
    x, y = floats(driver, tiles, 128), driver.zeros((tiles, 128), np.float32)
    expected = np.where(np.arange(128) < last, x, 0)[:, ::-1]
    arguments = x.reshape(-1), tiles, last, mistake, y.reshape(-1)
    driver.launch(TENSOR_CORE, "reverse_tiles", (1,), (32,), *arguments)
    return y, expected


@pytest.mark.parametrize("last", [128, 64, 4])
def test_asynchronous_copies_that_are_waited_for_pass(checked_driver, last):
    y, expected = reverse_tiles(checked_driver, NO_MISTAKE, last=last)
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
def test_asynchronous_copies_that_are_not_waited_for_are_found(
    checked_driver, mistake, message, where
):
    with pytest.raises(KernelFault, match=message) as caught:
        reverse_tiles(checked_driver, mistake)
    if shutil.which("addr2line"):
        assert str(caught.value).endswith(f" ({line(TENSOR_CORE, where)})")


@pytest.mark.parametrize("order", ORDERS)
def test_early_and_late_copies_differ_only_where_something_is_wrong(order):
    early, late = (Emulator(order=order, copies=copies) for copies in ("early", "late"))
    for last in (128, 64):
        for driver in (early, late):
            y, expected = reverse_tiles(driver, NO_MISTAKE, last=last)
            np.testing.assert_array_equal(y, expected)
    for mistake in (NO_WAIT, WAIT_FOR_TOO_FEW, NO_COMMIT, CHANGED_SOURCE):
        results = [reverse_tiles(driver, mistake)[0] for driver in (early, late)]
        assert not np.array_equal(*results, equal_nan=True), mistake


def test_asynchronous_copies_must_be_aligned(checked_driver):
    x, y = floats(checked_driver, 132), checked_driver.zeros(16, np.float32)
    launch = partial(checked_driver.launch, TENSOR_CORE, "copy_both_sizes", (1,), (16,), x)
    launch(0, 0, True, y)
    np.testing.assert_array_equal(y, x[:16])
    launch(0, 0, False, y)
    np.testing.assert_array_equal(y, 0)
    for inside in (True, False):
        message = "reads 16 bytes at x[65] (of 132), not aligned to its size"
        assert_fault(partial(launch, 1, 0, inside, y), TENSOR_CORE, message, "copy of four")
        message = "writes 16 bytes at staged[66] (of 132), not aligned to its size"
        assert_fault(partial(launch, 0, 2, inside, y), TENSOR_CORE, message, "copy of four")


def test_a_barrier_before_the_wait_orders_only_the_beginnings_of_copies(checked_driver):
    x, y = floats(checked_driver, 64), checked_driver.zeros(64, np.float32)
    launch = partial(checked_driver.launch, TENSOR_CORE, "use_copies", (1,), (64,))
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
