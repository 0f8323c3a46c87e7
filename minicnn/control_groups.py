"""The limits that Linux's control groups set for this process: CPU time and memory.

Containers (`docker run --cpus 1 --memory 1g`), batch systems and systemd set them. Version 2 has
one tree of groups, version 1 a tree for each controller. A process is in one group of each tree;
the limits of the groups around it hold for it, too. Source: cgroups(7).

`root` is the folder that holds the files of the system, for tests.
"""

import os
import re
from pathlib import Path

_UNLIMITED = 1 << 62  # version 1 writes a number of about 2^63 where there is no limit
_PERIOD = "100000"  # microseconds, the kernel's default
# Where groups usually are. Some sandboxes put them there without a mount of their type.
_USUAL = [
    ({""}, "/", "/sys/fs/cgroup"),
    ({"cpu"}, "/", "/sys/fs/cgroup/cpu"),
    ({"cpu"}, "/", "/sys/fs/cgroup/cpu,cpuacct"),
    ({"memory"}, "/", "/sys/fs/cgroup/memory"),
]


def cpu_quota(root="/"):
    """How many CPUs this process may use on average, such as 1.5; None without a limit."""
    return min((q for group in _groups(Path(root)) for q in _quotas(group)), default=None)


def free_memory(root="/"):
    """How many bytes this process may still allocate; None without a limit.

    Pages of files that are cached count as free, because the system frees them on demand.
    """
    return min((f for group in _groups(Path(root)) for f in _free(group)), default=None)


def _quotas(group):
    """The quota of one group, if it has one."""
    period = _text(group / "cpu.cfs_period_us") or _PERIOD
    for text in _text(group / "cpu.max"), f"{_text(group / 'cpu.cfs_quota_us')} {period}":
        words = text.split()  # "max" and "-1" mean no limit
        if len(words) == 2 and all(map(_is_number, words)) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _free(group):
    """The free memory of one group, if it has a limit."""
    lines = (line.split() for line in _text(group / "memory.stat").splitlines())
    stat = {words[0]: words[1] for words in lines if len(words) == 2}
    limits = [_text(group / f"memory.{name}") for name in ("max", "high", "limit_in_bytes")]
    limits.append(stat.get("hierarchical_memory_limit", ""))  # also of groups that are not visible
    limits = [int(limit) for limit in limits if _is_number(limit)]
    limit = min(limits, default=_UNLIMITED)
    if limit >= _UNLIMITED:
        return
    used = _text(group / "memory.current") or _text(group / "memory.usage_in_bytes")
    # In version 1 the totals include the groups inside, as the usage does.
    total = "total_" if "total_inactive_file" in stat else ""
    cached = [stat.get(f"{total}{kind}_file", "") for kind in ("inactive", "active")]
    used = sum(int(n) for n in [used] if _is_number(n))
    cached = sum(int(n) for n in cached if _is_number(n))
    yield max(0, limit - max(0, used - cached))


def _is_number(text):
    return text.isascii() and text.isdecimal()


def _text(path):
    try:
        return os.fsdecode(path.read_bytes()).strip()
    except OSError:
        return ""


def _groups(root):
    """The folders of the groups that this process is in, and of all groups around them.

    Some may not exist: in a container, the paths in /proc/self/cgroup may be those of the host.
    """
    paths = _paths(root)
    mounts = list(_mounts(root))
    points = {point for _, _, point in mounts}
    mounts += [usual for usual in _USUAL if usual[2] not in points]
    for controllers, mounted, point in mounts:
        top = root / point.lstrip("/")
        for path in {paths.get(controller, "/") for controller in controllers}:
            below = _below(path, mounted)
            yield from (top.joinpath(*below[:depth]) for depth in range(len(below), -1, -1))


def _paths(root):
    """{controller: path of this process's group in its tree}; the controller of version 2 is ""."""
    found = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, group = line.partition(":")
        controllers, _, path = group.partition(":")
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _mounts(root):
    """(its controllers, the group that is mounted, where) of each mounted tree of groups."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, about = line.partition(" - ")
        mount, about = mount.split(" "), about.split(" ")
        if len(mount) < 5 or len(about) < 3 or about[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = {"cpu", "memory"} & {*about[2].split(",")} if about[0] == "cgroup" else {""}
        yield controllers, _unescaped(mount[3]), _unescaped(mount[4])


def _unescaped(text):
    r"""A path of /proc/self/mountinfo: it writes a space as \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _below(path, mounted):
    """The names that lead from a mounted group down to the group `path`; none if it is not below.

    In a container the mounted group is often the process's own.
    """
    path, mounted = ([name for name in p.split("/") if name] for p in (path, mounted))
    inside = path[: len(mounted)] == mounted and ".." not in path
    return path[len(mounted) :] if inside else []
