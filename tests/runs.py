"""Small runs of commands: start them, slow them down, and compare their results to the bit."""

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicnn import BatchNormalization, Conv2D, Dense, Dropout, Flatten
from minicnn.training import checkpoint

ROOT = Path(__file__).parent.parent
TINY = (
    "--limit=150 --test-limit=40 --nets=2 --epochs=2 --batch-size=32 --quiet --no-figures "
    "--device=numpy"
).split()


def small_layers(dropout, momentum, classes=10):
    """A network that the emulator trains in under a second, and can fuse."""
    return [
        Conv2D(4, 5, strides=3, activation="relu"),
        BatchNormalization(momentum),
        Dropout(dropout),
        Conv2D(8, 3, strides=2, padding="same", activation="relu"),
        BatchNormalization(momentum),
        Flatten(),
        Dense(classes, activation="softmax"),
    ]


def command(module, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # what a user has not set
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def python(*arguments, **environment):
    """Run Python with changes to the environment; None removes a variable."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )


def state(folder):
    """Everything that must be equal to the bit: arrays, submission, history without seconds."""
    arrays, _ = checkpoint.load(folder / "checkpoint.npz")
    arrays["history"] = arrays["history"][:, :-1]
    rows = list(csv.DictReader((folder / "history.csv").open()))
    for row in rows:
        del row["seconds"]
    return (
        {k: v.tobytes() for k, v in arrays.items()},
        (folder / "submission.csv").read_text(),
        rows,
    )


# minicnn.train whose steps, in worker processes too, take `seconds` longer and wait while a file
# "hold" exists; the first step leaves a file "stepped".
SLOW = """
import sys, time
from pathlib import Path
from minicnn import train
from minicnn.training.trainer import Trainer
quick = Trainer.step
def slow(self):
    quick(self)
    Path(__file__).with_name("stepped").touch()
    time.sleep({seconds})
    while Path(__file__).with_name("hold").exists():
        time.sleep(0.01)
Trainer.step = slow
if __name__ == "__main__":
    sys.exit(train.main())
"""


def start_slowly(folder, *arguments, seconds=0.4, **options):
    """Start a training with slow steps; returns its process after the first step."""
    return start_script(folder, SLOW.format(seconds=seconds), "stepped", *arguments, **options)


def start_script(folder, text, sign, *arguments, **options):
    """Start a script in a process group of its own; returns its process once it has left a file."""
    (folder / "script.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, folder / "script.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    while not (folder / sign).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


def in_own_mounts(mounts, *command, **environment):
    """Run a command where a line of shell has mounted something that no other process sees.

    Skips the test where the system does not allow that.
    """
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    shell = ["unshare", "--mount", "sh", "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    environment = {name: str(value) for name, value in environment.items() if value is not None}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 300}
    # A system may refuse the mounts, but not the command after them.
    tried = subprocess.run([*shell, mounts], check=False, **options)
    if tried.returncode:
        pytest.skip(f"may not mount: {tried.stderr.strip()}")
    command = [*shell, f'{mounts} && exec "$@"', "sh", *map(str, command)]
    return subprocess.run(command, check=False, **options)
