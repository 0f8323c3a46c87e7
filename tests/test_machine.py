"""The limits of the machine: control groups, in trees of files as Linux shows them, and threads."""

import os
import shlex
import sys
import warnings

import pytest
from runs import in_own_mounts

from minicnn import control_groups, machine
from minicnn.backends import ops_numpy
from minicnn.training import resources

GIB = 1 << 30
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
V2_OF = V2.replace("/ /sys", "%s /sys")  # where another group than the outermost is mounted
OTHERS = "22 27 0:21 / /proc rw - proc proc rw\n\nno mount\n24 27 0:6 / /a\\040b rw - tmpfs\n"


def tree(root, mountinfo, cgroup, **files):
    """A system's files below `root`; the names of `files` are below /sys/fs/cgroup."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files |= {"proc/self/mountinfo": OTHERS + mountinfo, "proc/self/cgroup": cgroup}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def memory(limit, used=0, **stat):
    """The files of a group of version 2 with a limit of memory."""
    about = "".join(f"{name} {value}\n" for name, value in stat.items())
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": about}


def inside(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


# ---- CPU quotas ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "group", "files", "quota"),
    [
        (V2, "0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        (V2, "0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        (V2, "0::/\n", {"cpu.max": "5000 10000"}, 0.5),
        (V2, "0::/\n", {"cpu.max": "max 100000\n"}, None),
        (V2, "0::/\n", {}, None),
        # a nested group: the smallest limit of all groups around it counts
        (V2, "0::/a/b\n", {"cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (V2, "0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2),
        (V2, "0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        (V2, "0::/a/b\n", {"a/c/cpu.max": "100000 100000"}, None),  # of another group
        (V2, "0::/a b/c\n", {"a b/c/cpu.max": "200000 100000"}, 2),
        # a container: the path is the host's, and not below the mount
        (V2, "0::/docker/0123\n", {"cpu.max": "200000 100000"}, 2),
        (V2, "0::/../other\n", {"cpu.max": "200000 100000"}, 2),
        (V2_OF % "/docker/0123", "0::/docker/0123\n", {"cpu.max": "7 2"}, 3.5),
        (
            V2_OF % "/d",
            "0::/d/in\n",
            {"in/cpu.max": "7 2", "d/in/cpu.max": "1 2"},
            3.5,
        ),
        (V2_OF % "/../..", "0::/\n", {"cpu.max": "7 2"}, 3.5),
        # version 1: -1 is no limit
        (
            V1,
            "4:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
        ),
        (
            V1,
            "4:cpu,cpuacct:/a\n3:memory:/b\n0::/c\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "25000\n",
                "cpu,cpuacct/b/cpu.cfs_quota_us": "1000\n",
            },
            2,
        ),
        (V1, "4:cpu,cpuacct:/docker/0\n", {"cpu,cpuacct/cpu.cfs_quota_us": "200000"}, 2),
        # without a mount of its type, as in some sandboxes
        ("", "4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "50000"}, 4),
        ("", "", {"cpu.max": "200000 100000"}, 2),
        # nonsense
        (V2, "0::/\n", {"cpu.max": "many 0\n"}, None),
        (V2, "0::/\n", {"cpu.max": "100000 0\n"}, None),
        (V2, "nonsense\n\n::\n", {"cpu.max": ""}, None),
    ],
)
def test_the_quota_of_the_groups_that_the_process_is_in(tmp_path, mounts, group, files, quota):
    assert control_groups.cpu_quota(tree(tmp_path, mounts, group, **files)) == quota


def test_a_mount_elsewhere_whose_name_has_a_space(tmp_path):
    mount = "31 23 0:28 / /my\\040groups rw - cgroup2 cgroup2 rw\n"
    root = tree(tmp_path, mount, "0::/a\n", **{"../../../my groups/a/cpu.max": "3 2"})
    assert control_groups.cpu_quota(root) == 1.5


def test_a_system_without_control_groups(tmp_path):
    assert control_groups.cpu_quota(tmp_path) is None
    assert control_groups.free_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cores"), [(None, 4), (0.1, 1), (1, 1), (1.5, 1), (1.99, 1), (2, 2), (3.5, 3), (9, 4)]
)
def test_a_quota_counts_in_whole_cpus(monkeypatch, quota, cores):
    monkeypatch.setattr(machine, "_cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.cores() == machine.threads() == cores
    assert resources.processes(ops_numpy) == cores


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "group", "files", "free"),
    [
        (V2, "0::/\n", memory(3 * GIB, GIB), 2 * GIB),
        (V2, "0::/\n", memory("max", GIB), None),
        (V2, "0::/\n", memory(GIB, 2 * GIB), 0),
        (V2, "0::/\n", {"memory.max": f"{GIB}\n"}, GIB),
        (V2, "0::/\n", {**memory("max", GIB), "memory.high": f"{3 * GIB}"}, 2 * GIB),
        (V2, "0::/\n", {**memory(2 * GIB), "memory.high": f"{3 * GIB}"}, 2 * GIB),
        # cached files are freed on demand; shared memory (in `file`, too) is not
        (
            V2,
            "0::/\n",
            memory(4 * GIB, 3 * GIB, anon=GIB, file=2 * GIB, inactive_file=GIB, active_file=GIB),
            3 * GIB,
        ),
        (V2, "0::/\n", memory(GIB, 0, inactive_file=GIB), GIB),
        (V2, "0::/a/b\n", inside("a", memory(GIB)) | inside("a/b", memory(3 * GIB)), GIB),
        (V2, "0::/a/b\n", inside("a", memory(3 * GIB)) | inside("a/b", memory(GIB)), GIB),
        # another group inside a parent uses memory of the parent's limit
        (
            V2,
            "0::/a/b\n",
            inside("a", memory(3 * GIB, 2 * GIB)) | inside("a/b", memory(2 * GIB)),
            GIB,
        ),
        (V2, "0::/a/b\n", inside("a", memory(GIB, GIB)) | inside("a/b", memory(2 * GIB)), 0),
        (V2, "0::/a/b\n", inside("a/c", memory(GIB)), None),
        (V2, "0::/host/0123\n", memory(GIB), GIB),
        (
            V1,
            "3:memory:/a\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/a/memory.limit_in_bytes": f"{3 * GIB}\n",
                "memory/a/memory.usage_in_bytes": f"{2 * GIB}\n",
                "memory/a/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n"
                f"total_active_file 7\nhierarchical_memory_limit {3 * GIB}\n",
            },
            2 * GIB + 7,
        ),
        # a limit of a group that the container does not see
        (
            V1,
            "3:memory:/docker/0\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.stat": f"hierarchical_memory_limit {GIB}\n",
            },
            GIB,
        ),
        (V1, "3:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("", "", {"memory/memory.limit_in_bytes": f"{GIB}"}, GIB),
        (V2, "0::/\n", {"memory.max": "much\n", "memory.stat": "\xe9 \n"}, None),
    ],
)
def test_the_free_memory_of_the_groups_that_the_process_is_in(tmp_path, mounts, group, files, free):
    assert control_groups.free_memory(tree(tmp_path, mounts, group, **files)) == free


def test_free_memory_is_the_least_of_system_and_groups(monkeypatch):
    system = machine._system_free_memory()
    for group, least in [(None, system), (123, 123)]:
        monkeypatch.setattr(control_groups, "free_memory", lambda group=group: group)
        free = machine.free_memory()
        assert free == least if group else abs((free or 0) - (system or 0)) < GIB


# ---- bound over the system's own files -----------------------------------------------------------

SHOW = """
from minicnn import machine
from minicnn.backends import ops_numpy
from minicnn.training import resources
print(machine.cores(), machine.threads(), resources.processes(ops_numpy), machine.free_memory())
"""


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "100000 100000\n", **memory(GIB)},
        {
            "cpu/cpu.cfs_quota_us": "100000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": f"{GIB}\n",
            "memory/memory.usage_in_bytes": "0\n",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_limits_bound_over_the_systems_own(tmp_path, files):
    tree(tmp_path, "", "", **files)
    groups = tmp_path / "sys/fs/cgroup"
    done = in_own_mounts(
        f"mount --bind {shlex.quote(str(groups))} /sys/fs/cgroup", sys.executable, "-c", SHOW
    )
    assert done.returncode == 0, done.stderr
    cores, threads, processes, free = done.stdout.split()
    assert cores == threads == processes == "1"
    assert int(free) <= GIB


def test_limits_of_a_nested_group_bound_over_the_systems_own(tmp_path):
    """The process's own /proc/self/cgroup and mountinfo are replaced, too."""
    tree(tmp_path, V2, "0::/a/b\n", **inside("a", {"cpu.max": "100000 100000", **memory(GIB)}))
    root = shlex.quote(str(tmp_path))
    mounts = f"mount --bind {root}/sys/fs/cgroup /sys/fs/cgroup"
    for name in ("cgroup", "mountinfo"):
        mounts += f" && mount --bind {root}/proc/self/{name} /proc/$$/{name}"
    done = in_own_mounts(mounts, sys.executable, "-c", SHOW)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 1 1 ") and int(done.stdout.split()[-1]) <= GIB


# ---- threads -------------------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(resources, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    machine.use_threads(None)


class Threaded:
    """A backend whose threads share the work for a net."""

    threaded = True


def test_processes_and_threads_share_the_cores(eight_cores):
    assert [machine.threads(n) for n in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    assert [machine.shares(n) for n in (1, 2, 3)] == [[8], [4, 4], [2, 3, 3]]
    assert machine.shares(9) == [1] * 9
    assert resources.processes(Threaded) == 8
    for asked in (1, 2, 3, 8, 100):
        machine.use_threads(asked)
        workers = resources.processes(Threaded)
        assert machine.threads(workers) == min(asked, 8)
        assert workers * machine.threads(workers) <= 8
        assert machine.threads(4) == min(asked, 2)
        assert machine.shares(3) == [min(asked, 2), min(asked, 3), min(asked, 3)]
        assert resources.processes(Threaded, 5) == 5


def test_where_threads_share_no_work_each_core_has_a_process(eight_cores):
    machine.use_threads(4)
    assert resources.processes(ops_numpy) == 8


@pytest.mark.parametrize(
    ("value", "threads"), [("1", 1), ("3", 3), ("4,2", 4), (" 2 , 1 ", 2), ("100", 8), ("", 8)]
)
def test_the_variable_of_openmp_limits_threads_of_a_process(
    eight_cores, monkeypatch, value, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert machine.threads() == threads
        assert resources.processes(Threaded) == 8
    machine.use_threads(5)  # wins
    assert machine.threads() == 5


@pytest.mark.parametrize("value", ["0", "-1", "x", "4,", "4,x", "1.5", "²", "0x2"])
def test_a_bad_variable_of_openmp_is_reported_and_ignored(eight_cores, monkeypatch, value):
    machine._openmp_limit.cache_clear()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.warns(UserWarning) as told:
        assert machine.threads() == machine.threads() == 8
    [message] = [str(warning.message) for warning in told]
    expected = f"OMP_NUM_THREADS: got {value!r}, expected a positive integer; it is ignored"
    assert message == expected
