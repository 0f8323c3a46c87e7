"""Kill trainings at random moments, resume them, and count the bits that differ in the end.

    python tests/kills.py --device cpu --kills 30

Half of the kills come from outside, at a random time. The others come from inside the process while
it writes a checkpoint: after a random share of the bytes, before the flush to disk, before or after
the rename. Some runs are killed a second time. Each run is then resumed until it ends, and compared
with a run that was left alone. The last line is the result as JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from runs import ROOT, state

from minicnn.training import checkpoint

ARGUMENTS = (
    "--limit=300 --test-limit=40 --nets=2 --epochs=4 --batch-size=32 --quiet --no-figures"
).split()
MOMENTS = "write", "fsync", "replace", "replaced"

# minicnn.train that kills itself at one moment of its n-th checkpoint: $KILL is "moment n share".
# On the emulator it trains a small network.
VICTIM = """
import os, signal, sys
import minicnn.recipe
from minicnn import files, model, train
from runs import small_layers

moment, number, share = (os.environ.get("KILL") or "never 0 0").split()
left = int(number)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Deadly:
    def __init__(self, file):
        self.file, self.rest = file, int(float(share) * size)
    def __getattr__(self, name):
        return getattr(self.file, name)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def write(self, data):
        if moment == "write" and left == 0 and len(data) >= self.rest:
            self.file.write(memoryview(data).cast("B")[: self.rest])
            self.file.flush()
            die()
        self.rest -= len(data)
        return self.file.write(data)

def opened(path, mode):
    global left
    file = open(path, mode)
    if ".npz" not in str(path):
        return file
    left -= 1
    return Deadly(file)

def dying(name, function, before):
    def call(*arguments):
        if moment == before and left == 0:
            die()
        function(*arguments)
        if moment == before + "d" and left == 0:
            die()
    setattr(os, name, call)

size = 4_000_000
if "--device=emulated" in sys.argv:
    model.mnist_layers = minicnn.recipe.mnist_layers = small_layers
    size = 50_000
if moment != "never":
    files.open = opened
    dying("fsync", os.fsync, "fsync")
    dying("replace", os.replace, "replace")
if __name__ == "__main__":
    sys.exit(train.main())
"""


class Killer:
    """Kills and resumes trainings of one device, and compares them with one left alone.

    seconds: of the shortest run that ended by itself; kills from outside come within that time.
    """

    def __init__(self, device, folder, dice):
        self.device, self.folder, self.dice = device, Path(folder), dice
        (self.folder / "victim.py").write_text(VICTIM)
        started = time.monotonic()
        self._finish(self.folder / "alone", 1)
        self.seconds = time.monotonic() - started
        self.expected = state(self.folder / "alone")

    def trial(self, number):
        """Kill a run, resume it to its end: (kills, of these in a write, differing bits)."""
        run, workers = self.folder / f"run-{number}", 1
        if self.device != "emulated":
            workers = self.dice.choice([1, 2])
        kills = inside = 0
        for _ in range(self.dice.choice([1, 1, 2])):
            from_inside = (number + kills) % 2 == 0
            died = self._kill(run, workers, from_inside)
            kills, inside = kills + died, inside + (died and from_inside)
            for path in run.glob("*.npz"):
                checkpoint.load(path)  # whole, whenever the process died
        self._finish(run, workers)
        assert not list(run.glob(".*")), "a temporary file was left"
        return kills, inside, self._differing_bits(run)

    def _start(self, run, workers, kill=""):
        given = f"--device={self.device}", f"--workers={workers}", f"--out={run}", "--resume"
        return subprocess.Popen(
            [sys.executable, self.folder / "victim.py", *ARGUMENTS, *given],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "KILL": kill},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _kill(self, run, workers, from_inside):
        """Start a training and kill it. Returns False if it ended before the kill."""
        if from_inside:
            moment, which = self.dice.choice(MOMENTS), self.dice.randrange(1, 8)
            process = self._start(run, workers, f"{moment} {which} {self.dice.random()}")
        else:
            process, started = self._start(run, workers), time.monotonic()
            try:
                process.wait(self.dice.uniform(0, self.seconds))
                self.seconds = min(self.seconds, time.monotonic() - started)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        stderr = process.communicate(timeout=300)[1]
        told_of_a_worker = "died" in stderr or "in use by another process" in stderr
        assert process.returncode in (0, 2, -signal.SIGKILL), stderr
        assert process.returncode != 2 or told_of_a_worker, stderr
        return process.returncode == -signal.SIGKILL or "died" in stderr

    def _finish(self, run, workers):
        """Resume until it ends. Workers of a killed run use its folder until they have saved."""
        for _ in range(100):
            process = self._start(run, workers)
            stderr = process.communicate(timeout=300)[1]
            if process.returncode == 0:
                return
            assert "in use by another process" in stderr, stderr
            time.sleep(0.2)
        raise AssertionError(f"{run} stays in use")

    def _differing_bits(self, run):
        arrays, *texts = state(run)
        expected, *expected_texts = self.expected
        assert set(arrays) == set(expected) and texts == expected_texts
        return sum(
            int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())
            for a, b in ((arrays[name], expected[name]) for name in expected)
        )


def kill(device, kills, seed=0, told=print):
    """Kill runs of a device at least `kills` times, and at least once in each of the two ways.

    Returns {"device", "kills", "inside_a_write", "runs", "differing_bits"}; calls `told` with it
    after each run.
    """
    result = {"device": device, "kills": 0, "inside_a_write": 0, "runs": 0, "differing_bits": 0}
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(device, folder, random.Random(seed))
        while result["kills"] < kills or result["inside_a_write"] in (0, result["kills"]):
            killed, inside, bits = killer.trial(result["runs"])
            result["kills"] += killed
            result["inside_a_write"] += inside
            result["runs"] += 1
            result["differing_bits"] += bits
            told(result)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["numpy", "cpu", "emulated"], required=True)
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="default: 30")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    arguments = parser.parse_args()
    result = kill(
        arguments.device, arguments.kills, arguments.seed, lambda r: print(r, file=sys.stderr)
    )
    print(json.dumps(result))
    return result["differing_bits"] > 0


if __name__ == "__main__":
    sys.exit(main())
