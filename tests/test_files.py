"""Atomic writes leave the old file or the new one."""

import os

import pytest

from minicnn.files import atomic_write


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), OSError(28, "Full")])
def test_atomic_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] Full: {str(path)!r}"


def test_atomic_write_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "file", tmp_path / "folder"):
        with pytest.raises(OSError) as caught, atomic_write(path) as file:
            file.write(b"new")
        assert caught.value.filename == str(path) and caught.value.filename2 is None
    assert os.listdir(tmp_path) == ["folder"]
