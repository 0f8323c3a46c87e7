"""Files of digits for tests of the readers: write them, damage them, check the refusals."""

import io
import os
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck
from levels import examples

from minicnn import load_data
from minicnn.data.digits import draw_digits
from minicnn.files import DataError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

MNIST = os.environ.get("MINICNN_TEST_MNIST")
needs_mnist = pytest.mark.skipif(
    not MNIST, reason="real MNIST: set MINICNN_TEST_MNIST to a folder with its four IDX files"
)


def fuzzing(count=60):
    """Random examples for tests that overwrite a file in the same folder each time."""
    checks = [HealthCheck.function_scoped_fixture]
    return examples(count, derandomize=False, suppress_health_check=checks)


def digits(count, seed=0):
    """Random images (N, 28, 28) and labels (N,), uint8."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 28, 28), np.uint8)
    return images, random.integers(0, 10, count, np.uint8)


def csv_rows(images, labels=None):
    """The header and the rows, as lists of strings."""
    table = images.reshape(len(images), -1)
    header = [f"pixel{i}" for i in range(table.shape[1])]
    if labels is not None:
        table, header = np.column_stack([labels, table]), ["label", *header]
    return [header, *([str(value) for value in row] for row in table)]


def csv_bytes(rows, end="\n"):
    return "".join(",".join(row) + end for row in rows).encode()


def idx_bytes(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def zip_bytes(files):
    """A zip archive of {name: content}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npz_bytes(save, **arrays):
    """An .npz file, by numpy.savez or numpy.savez_compressed."""
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def write_digits(path, train, test):
    """Write the first images of "digits" to an .npz file; drawing all of them takes seconds."""
    (x_train, y_train), (x_test, y_test) = draw_digits(train), draw_digits(test, first=6_000)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def fault(folder, reader=load_data):
    """The message of the DataError; asserts that it is one line."""
    with pytest.raises(DataError) as caught:
        reader(folder)
    message = str(caught.value)
    assert message.isprintable()
    return message


def quoted(data):
    return data.replace(b"\n", b'"\n"').replace(b",", b'","').join([b'"', b""])[:-1]


def with_field(row, column, text):
    """An edit that puts `text` into a field; row 0 is the header, line 1."""

    def edit(rows):
        rows[row][column] = text

    return edit


def append(row, text):
    return lambda rows: rows[row].append(text)


def drop(row, column=-1):
    return lambda rows: rows[row].pop(column)


def drop_everywhere(column):
    return lambda rows: [row.pop(column) for row in rows]


def measure(folder):
    """(the fault's message, seconds of CPU time, peak of memory in bytes)."""
    tracemalloc.start()
    start = time.process_time()
    try:
        return fault(folder), time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_survival(folder):
    """Assert that loading gives valid arrays or a refusal of one line."""
    try:
        (x, y), _ = load_data(folder)
    except DataError as error:
        assert str(error).isprintable() and str(folder) in str(error)
    else:
        assert x.shape == (len(y), 28, 28) and len(y) and y.max() < max(10, len(y))


HUGE = 4_294_967_295


def header(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)
