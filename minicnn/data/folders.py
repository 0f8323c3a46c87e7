"""Finds the files of data sets by their names, in a folder, its subfolders and its zip archives."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..files import DataError
from .sources import READABLE, File, members

_DEPTH = 2  # levels of subfolders that are searched; torchvision has MNIST/raw/
_MOST_FOLDERS = 200  # of one level; a folder with more of them has something else
_NAME = re.compile(
    r"(?:(?P<set>.+?)[-_. ])?(?P<part>train|training|test|testing|t10k)"
    r"(?:[-_](?P<kind>images|labels)[-.]idx\d-(?:ubyte|int)|\.csv)(?:\.gz)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FileSet:
    """The files of one data set: {("train" or "test", "images", "labels" or "csv"): File}.

    name: what the names of its files begin with, such as emnist-letters; may be empty.
    """

    name: str
    files: dict

    def is_whole(self, need_train):
        """Whether it has what is needed: images go with labels."""
        pairs = [
            ((part, "images") in self.files) == ((part, "labels") in self.files)
            for part in ("train", "test")
        ]
        return all(pairs) and (not need_train or any(part == "train" for part, _ in self.files))

    def names(self):
        """The names of its files, those for training first."""
        roles = sorted(self.files, key=lambda role: (role[0] == "test", role[1]))
        return [self.files[role].name for role in roles]


def find_files(root, need_train, wanted=None, deep=True):
    """The FileSet in a folder or zip archive, on the first level that has a whole one; else None.

    wanted: the name of a set or of one of its files; deep: whether subfolders and archives are
    searched. Raises DataError if there are several, or if the only one lacks files.
    """
    files, sets = [], []
    for level in _levels(Path(root), deep):
        files += level
        sets = [s for s in _sets(files) if wanted is None or wanted in (s.name, *s.names())]
        if whole := [s for s in sets if s.is_whole(need_train)]:
            # The plain names of MNIST and Kaggle come first; their files are never ignored.
            plain = [s for s in sets if not s.name]
            chosen = plain if any(s in whole for s in plain) else whole + plain
            if len(chosen) > 1:
                raise DataError(_several(root, chosen))
            return chosen[0]
    if sets and deep:
        found = [name for s in sets for name in s.names()]
        raise DataError(f"{root}: found {_few(found)}; expected {READABLE}")
    return None


def npz_files(folder):
    """The .npz files directly in a folder. Raises DataError."""
    return [file.path for file in _listed(folder)[0] if file.name.lower().endswith(".npz")]


def contents(folder):
    """What a folder or zip archive has, in a few words. Raises DataError."""
    if Path(folder).is_file():
        return _few([file.member for file in members(folder)])
    files, folders = _listed(folder)
    names = {file.name: file.name for file in files}
    for path in folders:
        names[path.name] = path.name + (" (a folder)" if _is_name_of_file(path.name) else "")
    found = _few([names.get(name, f"{name} (no file)") for name in sorted(os.listdir(folder))])
    return f"a folder with {found}" if _is_name_of_file(Path(folder).name) else found


def _is_name_of_file(name):
    return re.search(r"\.(csv|gz|npz|zip)$|ubyte$", name, re.IGNORECASE)


def _few(names):
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more


def _levels(root, deep):
    """Yield the files of a folder, then those of its subfolders and archives, level by level."""
    if root.is_file():
        yield _visible(members(root))
        return
    folders, archives = [root], []
    for _ in range(1 + _DEPTH * deep):
        listed = [_listed(folder) for folder in folders]
        inside = [file for archive in archives for file in _visible(members(archive))]
        files = [file for found, _ in listed for file in found]
        yield files + inside
        archives = [file.path for file in files if file.name.lower().endswith(".zip")]
        folders = [folder for _, found in listed for folder in found]
        if len(folders) > _MOST_FOLDERS:
            return


def _listed(folder):
    """(files, subfolders) of a folder that are not hidden, both sorted. Raises DataError."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_file():
                    files.append(File(Path(folder) / entry.name))
                elif entry.is_dir():
                    folders.append(Path(folder) / entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror or error}; expected a folder with {READABLE}"
        ) from None
    return sorted(files, key=str), sorted(folders)


def _visible(files):
    return [f for f in files if not f.name.startswith(".") and "__MACOSX" not in f.member]


def _sets(files):
    """The FileSets among some files. Files of one set may be in different folders."""
    groups = {}
    for file in files:
        if found := _NAME.fullmatch(file.name):
            part = "train" if found["part"].lower().startswith("train") else "test"
            role = part, (found["kind"] or "csv").lower()
            key = found["set"] or "", role[1] == "csv"
            groups.setdefault(key, []).append((role, file))
    sets = []
    for (name, _), group in sorted(groups.items()):
        # A plain file comes before a compressed one; some archives write .idx in place of -idx.
        group.sort(key=lambda g: (g[1].name.lower().endswith(".gz"), ".idx" in g[1].name))
        folders = sorted({file.folder for _, file in group})
        together = {role: [f for r, f in group if r == role] for role, _ in group}
        if all(len({file.folder for file in files}) == 1 for files in together.values()):
            sets.append(FileSet(name, {role: files[0] for role, files in together.items()}))
            continue
        for folder in folders:  # several files for one role: each folder has a set of its own
            inside = [(role, file) for role, file in group if file.folder == folder]
            sets.append(FileSet(name, dict(reversed(inside))))
    return sets


def _several(root, sets):
    """The message that lists several sets, each by its name, or else by one of its files."""
    names, shown = [s.name for s in sets], []
    for found in sets:
        if found.name and names.count(found.name) == 1:
            shown.append(found.name)
        else:
            files = {file.name: file for file in found.files.values()}
            shown.append(os.path.relpath(str(files[found.names()[0]]), root))
    return (
        f"{root}: found several data sets, {', '.join(shown)}; expected one, such as"
        f" {os.path.join(root, shown[0])}"
    )
