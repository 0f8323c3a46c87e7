"""What a machine does at most: the bytes that a large copy moves, and large products of matrices.

Either is measured on as many cores as the device uses. A copy's bytes are those that it reads and
those that it writes; products are NumPy's, by its BLAS, in float32. On a GPU cuBLAS multiplies, in
float32 and in TF32.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import threadpoolctl

from benchmarks import timing
from minicnn.command import one_line
from minicnn.machine import cores

_ROOT = Path(__file__).parent.parent
_GPU_SIDE = 8192
_GPU_NUMBERS = 1 << 28  # far more than a GPU's second cache holds


@dataclass(frozen=True)
class Work:
    """How much is done to measure a limit."""

    side: int  # of the matrices
    numbers: int  # float32, that are copied
    rounds: int
    seconds: float  # of a round


# 256 MiB to read and as many to write are far more than a processor's caches hold.
FULL = Work(side=2048, numbers=1 << 26, rounds=5, seconds=0.2)
QUICK = Work(side=768, numbers=1 << 24, rounds=3, seconds=0.02)


def measure(device, work):
    """{limit: [measured rates]} of one of minicnn's devices, by its name."""
    if device == "cuda":
        return _measure_gpu(work)
    threads = cores_of(device)
    multiplied = gemm_seconds(threads, work)
    copied = copy_seconds(threads, work)
    return {
        "gemm_flops_per_second": [2 * work.side**3 / seconds for seconds in multiplied],
        "copy_bytes_per_second": [2 * 4 * work.numbers / seconds for seconds in copied],
    }


def medians(*measured):
    """{limit: the median rate} of what `measure` gave, once or more; None where it gave nothing."""
    rates = {name: [rate for found in measured for rate in found[name]] for name in measured[0]}
    return {name: statistics.median(found) if found else None for name, found in rates.items()}


def cores_of(device):
    """How many cores a device computes on; None of a GPU."""
    return {"numpy": 1, "cuda": None}.get(device, cores())


# ---- on the host ---------------------------------------------------------------------------------


def copy_seconds(threads, work):
    """[seconds of a copy, one a round]: each thread copies its slice of float32 numbers."""
    source = np.ones(work.numbers, np.float32)  # zeros would all lie in one page
    target = np.zeros_like(source)
    parts = list(zip(*(np.array_split(array, threads) for array in (target, source)), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            for _ in pool.map(lambda part: np.copyto(*part), parts):  # lets go of Python's lock
                pass

        return timing.measure(copy, work.rounds, work.seconds)


def gemm_seconds(threads, work):
    """[seconds of a product of matrices (side, side), one a round], by BLAS on so many threads."""
    a, b, c = (np.ones((work.side, work.side), np.float32) for _ in range(3))
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        times = timing.measure(lambda: np.matmul(a, b, out=c), work.rounds, work.seconds)
    if threads > 1:
        time.sleep(1)  # BLAS's threads go on asking for work for a while
    return times


# ---- on a GPU ------------------------------------------------------------------------------------


def _measure_gpu(work):
    size, times = gpu_copy_seconds(work.rounds, work.seconds)
    rates = {"copy_bytes_per_second": [size / seconds for seconds in times]}
    for precision, prefix in (("float32", ""), ("tf32", "tf32_")):
        found = gpu_gemm(precision, work.rounds, work.seconds)
        if "problem" in found:
            print(f"products in {precision}: {one_line(found['problem'])}", file=sys.stderr)
            found = {"side": 0, "times": ()}
        flops = [2 * found["side"] ** 3 / seconds for seconds in found["times"]]
        rates[f"{prefix}gemm_flops_per_second"] = flops
    return rates


def gpu_copy_seconds(rounds, seconds):
    """(bytes read and written, [seconds of a copy, one a round]) on CuPy's current stream."""
    cupy = importlib.import_module("cupy")
    source = cupy.zeros(_GPU_NUMBERS, np.float32)
    target = cupy.empty_like(source)
    copy = lambda: cupy.copyto(target, source)  # noqa: E731
    return 2 * source.nbytes, timing.measure(copy, rounds, seconds, timing.EventClock())


def gpu_gemm(precision, rounds, seconds, timeout=120):
    """{"library", "side", "times"} of products of large matrices, or {"problem"}.

    cuBLAS multiplies in a process of its own, since CuPy reads its setting once. precision:
    "float32" or "tf32". It has `timeout` seconds.
    """
    code = (
        "import json; from benchmarks import limits; "
        f"print(json.dumps(limits.time_gpu_gemm({precision!r}, {rounds}, {seconds})))"
    )
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=_ROOT,
            env={**os.environ, "CUPY_TF32": str(int(precision == "tf32"))},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"no answer within {timeout:.0f} s"}
    if result.returncode:
        return {"problem": result.stderr.strip()[-2000:]}
    return json.loads(result.stdout.splitlines()[-1])


def time_gpu_gemm(precision, rounds, seconds):
    """The same in this process: by CuPy, or by PyTorch where CuPy finds no cuBLAS."""
    try:
        library, clock, product = "CuPy", timing.EventClock(), _cupy_product()
        product()
    except Exception as error:  # whatever a missing library makes of it
        print(f"CuPy multiplies no matrices here: {one_line(error)}", file=sys.stderr)
        torch_net = importlib.import_module("benchmarks.contenders.torch_net")
        library, clock = "PyTorch", timing.WallClock()
        product = torch_net.synchronous_product(_GPU_SIDE, precision == "tf32")
    times = timing.measure(product, rounds, seconds, clock)
    return {"library": library, "side": _GPU_SIDE, "times": times}


def _cupy_product():
    cupy = importlib.import_module("cupy")
    random = np.random.default_rng(0)
    a, b = (cupy.array(random.random((_GPU_SIDE, _GPU_SIDE), np.float32)) for _ in range(2))
    c = cupy.empty_like(a)
    return lambda: cupy.dot(a, b, out=c)
