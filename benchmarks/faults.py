"""python -m benchmarks.faults: kill trainings and fuzz the readers of files, many times.

It runs tests/kills.py on each device and tests/fuzz.py on each reader, one process a core, and
writes a result file, which tests/README.md shows. It needs atheris: pip install -e ".[fuzz]".
"""

import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import timing
from minicnn.machine import cores

_TESTS = Path(__file__).parent.parent / "tests"
KILLS = {"cpu": 30, "numpy": 30, "emulated": 10}  # killed trainings on each device
READERS = "csv", "idx", "npz", "zip", "image", "checkpoint"
PARTS = 4  # processes among which a reader's inputs are split, each with its own seed


def measure(kills=KILLS, inputs=1_000_000):
    """The result, from what kills.py and fuzz.py report. kills: {device: how many}."""
    jobs = {}
    for reader in READERS:
        for part in range(PARTS):
            given = inputs * (part + 1) // PARTS - inputs * part // PARTS
            jobs[reader, part] = ["fuzz.py", reader, "--inputs", given, "--seed", part + 1]
    for device, count in kills.items():
        jobs[device] = ["kills.py", "--device", device, "--kills", count]
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        reported = dict(zip(jobs, pool.map(_run, jobs.values()), strict=True))
    return {
        "kills": [reported[device] for device in kills],
        "fuzzing": [
            joined([reported[reader, part] for part in range(PARTS)]) for reader in READERS
        ],
        "machine": timing.machine(),
        "versions": timing.versions("atheris"),
    }


def joined(parts):
    """The reports of several processes on one reader, joined into one."""
    sums = {name: sum(part[name] for part in parts) for name in ("inputs", "accepted", "refused")}
    most = {
        name: max(part[name] for part in parts) for name in ("longest_seconds", "peak_memory_bytes")
    }
    return {"reader": parts[0]["reader"], **sums, **most, "processes": len(parts)}


def _run(job):
    """The report that a command prints last. Raises RuntimeError with its output if it fails."""
    script, *arguments = map(str, job)
    done = subprocess.run(
        [sys.executable, _TESTS / script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, job))}: {done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = timing.parser("faults", __doc__, "few kills and inputs: two minutes")
    arguments = parser.parse_args()
    result = measure(dict.fromkeys(KILLS, 2), 2000) if arguments.quick else measure()
    for row in result["kills"] + result["fuzzing"]:
        print(row)
    if arguments.out or not arguments.quick:
        timing.write("faults", result, arguments.out)


if __name__ == "__main__":
    main()
