"""The limits of a machine, measured: bytes a second of a large copy, FLOP/s of a matrix product.

On the host both use as many cores as the device does; NumPy's BLAS multiplies, in float32. The
bytes of a copy are those read and those written. On a GPU cuBLAS multiplies, in float32 and TF32.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import threadpoolctl

from benchmarks import timing
from minicnn.command import one_line
from minicnn.machine import cores

_ROOT = Path(__file__).parent.parent
_GPU_SIDE = 8192
_GPU_ELEMENTS = 1 << 28  # far more than a GPU's second-level cache holds
_GEMM_SECONDS = 120  # that a process may take to load cuBLAS and to measure
_SHOWN = {
    "gemm_flops_per_second": (1e9, "GFLOP/s"),
    "tf32_gemm_flops_per_second": (1e9, "GFLOP/s in TF32"),
    "copy_bytes_per_second": (1e9, "GB/s"),
}


class Work(NamedTuple):
    """How much is done to measure a limit."""

    side: int  # of the matrices
    elements: int  # float32, that are copied
    rounds: int
    seconds: float  # of a round


# 256 MiB to read and 256 MiB to write are far more than a processor's caches hold.
FULL = Work(side=2048, elements=1 << 26, rounds=5, seconds=0.2)
QUICK = Work(side=768, elements=1 << 24, rounds=3, seconds=0.02)


def measure(device, work):
    """{limit: [measured rates]} of one of minicnn's devices, by its name."""
    if device == "cuda":
        return _measure_gpu(work)
    threads = cores_of(device)
    multiplied = gemm_seconds(threads, work)
    copied = copy_seconds(threads, work)
    return {
        "gemm_flops_per_second": [2 * work.side**3 / seconds for seconds in multiplied],
        "copy_bytes_per_second": [2 * 4 * work.elements / seconds for seconds in copied],
    }


def medians(*measured):
    """{limit: median rate} of one or more results of `measure`; None where nothing was measured."""
    rates = {name: [rate for found in measured for rate in found[name]] for name in measured[0]}
    return {name: statistics.median(found) if found else None for name, found in rates.items()}


def cores_of(device):
    """How many cores a device computes on; None for a GPU."""
    return {"numpy": 1, "cuda": None}.get(device, cores())


def in_words(result):
    """["`device` (cores, nets): its limits"] of a result of kernels.py."""
    words = []
    for device, found in result["limits"].items():
        count, nets = found["cores"], result["nets"][device]
        on = [f"{count} core{'s' * (count > 1)}"] if count else []
        on.append(f"{nets} net{'s' * (nets > 1)}")
        rates = [
            f"{found[name] / unit:,.0f} {text}"
            for name, (unit, text) in _SHOWN.items()
            if found.get(name)
        ]
        words.append(f"`{device}` ({', '.join(on)}): {' and '.join(rates)}")
    return words


# ---- on the host ---------------------------------------------------------------------------------


def copy_seconds(threads, work):
    """[seconds of a copy, one a round]: each thread copies its slice of the float32 elements."""
    source = np.ones(work.elements, np.float32)  # untouched zeros would all share one page
    target = np.zeros_like(source)
    parts = list(zip(*(np.array_split(array, threads) for array in (target, source)), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            for _ in pool.map(lambda part: np.copyto(*part), parts):  # releases Python's lock
                pass

        return timing.measure(copy, work.rounds, work.seconds)


def gemm_seconds(threads, work):
    """[seconds of a product of matrices (side, side), one a round], by BLAS on its threads."""
    a, b, c = (np.ones((work.side, work.side), np.float32) for _ in range(3))
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        times = timing.measure(lambda: np.matmul(a, b, out=c), work.rounds, work.seconds)
    if threads > 1:
        time.sleep(1)  # BLAS's threads spin for a while after their work
    return times


# ---- on a GPU ------------------------------------------------------------------------------------


def _measure_gpu(work):
    size, times = gpu_copy_seconds(work)
    rates = {"copy_bytes_per_second": [size / seconds for seconds in times]}
    for precision, prefix in (("float32", ""), ("tf32", "tf32_")):
        rates[f"{prefix}gemm_flops_per_second"] = gpu_gemm(precision, work)
    return rates


def gpu_copy_seconds(work):
    """(bytes read and written, [seconds of a copy, one a round])."""
    cupy = importlib.import_module("cupy")
    source = cupy.zeros(_GPU_ELEMENTS, np.float32)
    copy = partial(cupy.copyto, cupy.empty_like(source), source)
    return 2 * source.nbytes, timing.measure(copy, work.rounds, work.seconds, timing.EventClock())


def gpu_gemm(precision, work):
    """[FLOP/s of a product of large matrices, one a round]; [] and a message where there is none.

    CuPy reads its setting for TF32 once, so each precision has a process of its own.
    """
    code = (
        "import json; from benchmarks import limits; "
        f"print(json.dumps(limits.gpu_gemm_here({precision!r}, {work.rounds}, {work.seconds})))"
    )
    environment = {**os.environ, "CUPY_TF32": str(int(precision == "tf32"))}
    options = {"cwd": _ROOT, "env": environment, "capture_output": True, "text": True}
    try:
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, timeout=_GEMM_SECONDS, check=False, **options)
        problem = result.stderr.strip()[-2000:] if result.returncode else None
    except subprocess.TimeoutExpired:
        problem = f"no answer within {_GEMM_SECONDS} s"
    if problem is not None:
        print(f"products in {precision}: {one_line(problem)}", file=sys.stderr)
        return []
    return json.loads(result.stdout.splitlines()[-1])


def gpu_gemm_here(precision, rounds, seconds):
    """The same in this process: by CuPy, or by PyTorch where CuPy finds no cuBLAS."""
    try:
        clock, product = timing.EventClock(), _cupy_product()
        product()
    except Exception as error:  # a missing library can raise any of several errors
        print(f"CuPy cannot multiply matrices here: {one_line(error)}", file=sys.stderr)
        torch_net = importlib.import_module("benchmarks.contenders.torch_net")
        clock = timing.WallClock()
        product = torch_net.synchronous_product(_GPU_SIDE, precision == "tf32")
    return [2 * _GPU_SIDE**3 / s for s in timing.measure(product, rounds, seconds, clock)]


def _cupy_product():
    cupy = importlib.import_module("cupy")
    random = np.random.default_rng(0)
    a, b = (cupy.array(random.random((_GPU_SIDE, _GPU_SIDE), np.float32)) for _ in range(2))
    c = cupy.empty_like(a)
    return lambda: cupy.dot(a, b, out=c)
