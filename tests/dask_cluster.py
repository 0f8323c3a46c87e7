"""A real Dask cluster for tests: a scheduler and workers, each a process of its own."""

import os
import subprocess
import sys
import time

from runs import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
DEADLINE = 120  # seconds


def start(*arguments, environment=ENVIRONMENT, **options):
    """Start a module of Python with arguments; its stderr is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until(condition):
    """Wait until condition() is true, and return it."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def line_with(text, process):
    """The next line of a process's stderr that contains a text."""
    return next(line for line in process.stderr if text in line)


def refusal(done):
    """The only error line of a command that refuses to continue."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def other_version(folder):
    """The environment of a process with another version of minicnn, copied into a folder."""
    folder.mkdir()
    subprocess.run(["cp", "-r", ROOT / "minicnn", ROOT / "kernels", folder], check=True)
    init = folder / "minicnn" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "99.'))
    return {**os.environ, "PYTHONPATH": str(folder)}


class Cluster:
    """A scheduler and some workers, in a folder. preload: a script that each worker runs first."""

    def __init__(self, folder, workers=2, preload=None):
        self.folder, self.workers, self._preload = folder, {}, preload
        file = folder / "scheduler.json"
        self.scheduler = start(
            *("distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0"),
            *("--no-dashboard", "--scheduler-file", file),
            cwd=folder,
        )
        until(file.exists)
        from distributed import Client  # noqa: PLC0415

        self.client = Client(scheduler_file=file, set_as_default=False)
        self.address = self.client.scheduler.address
        for _ in range(workers):
            self.add_worker()
        if workers:
            self.client.wait_for_workers(workers, timeout=DEADLINE)

    def add_worker(self, environment=ENVIRONMENT, **options):
        """Start a worker process; its name counts the workers from 0."""
        name = f"worker-{len(self.workers)}"
        self.workers[name] = start(
            *("distributed.cli.dask_worker", self.address, "--no-nanny", "--nthreads=1"),
            *("--no-dashboard", "--name", name, "--local-directory", self.folder),
            *(("--preload", self._preload) if self._preload else ()),
            environment=environment,
            **{"cwd": self.folder, **options},
        )

    def replace_workers(self, **options):
        """Kill all workers, and start one with other options of add_worker."""
        for process in self.workers.values():
            process.kill()
            process.wait()
        self.add_worker(**options)
        until(lambda: self._names() == [list(self.workers)[-1]])

    def _names(self):
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        return [worker["id"] for worker in known.values()]

    def busy(self, function):
        """The name of a worker that runs a function of this name, or None."""
        at_work = self.client.processing()
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        for address, tasks in at_work.items():
            if any(function in str(task) for task in tasks):
                return known[address]["id"]
        return None

    def close(self):
        """End all processes."""
        self.client.close()
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()
