"""The counts of the checked emulator, compared with counts by hand."""

import numpy as np
import pytest
from planted import TENSOR_CORE, TRAFFIC, matrices

from minicnn.emulator import Emulator

# ---------------------------------------------------------------------------------------------
# Counters


def counted(kernel, grid, block, *arguments, path=TRAFFIC, **options):
    """The nonzero counts of a launch, a dict; asserts that a second launch has the same."""
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
    """The counts of ideal stores."""
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


def test_what_a_launch_has_written_is_not_read_from_memory():
    assert counted("write_and_add", (1,), (32,), np.ones(32, np.float32)) == {
        "load_requests": 1,
        "load_sectors": 4,
        "ideal_load_sectors": 4,
        "barriers": 2,
        **stores(2, 8, 128),
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


# A quarter of a warp uses the banks at a time.
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
    assert counted("reverse_tiles", (1,), (32,), x, 1, 64, 0, y, path=TENSOR_CORE) == {
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
