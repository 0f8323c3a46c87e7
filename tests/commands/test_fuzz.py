"""The readers of files under a few hundred inputs of `fuzz.py`; and the harness itself."""

import time
from dataclasses import replace
from random import Random

import fuzz
import numpy as np
import pytest
from digit_files import fuzzing
from fuzz_archives import READERS
from fuzz_readers import LABELLED, PIXELS, Csv
from hypothesis import given
from hypothesis import strategies as st

from minicnn.data.labels import Labels
from minicnn.data.sources import Part
from minicnn.files import DataError


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    reader = READERS[request.param](tmp_path)
    fuzz.outcome(reader, reader.seeds()[0])  # the first input also imports modules
    return reader


def mutated(reader, seed, times):
    random = Random(seed)
    content = random.choice(reader.seeds())
    for _ in range(times):
        content = reader.mutate(content, random)
    return content


def test_seeds_are_accepted(reader):
    assert all(fuzz.outcome(reader, content)[0] is None for content in reader.seeds())


@fuzzing(300)  # `outcome` has a deadline
@given(seed=st.integers(0, 1 << 32), times=st.integers(1, 4))
def test_anything_is_accepted_or_refused(reader, seed, times):
    fuzz.outcome(reader, mutated(reader, seed, times))


@pytest.mark.parametrize("content", [b"", b"\0", b"\x81", b"\xff" * 9, bytes(99)])
def test_very_short_inputs_are_refused(reader, content):
    assert fuzz.outcome(reader, content)[0]


def test_mutations_reach_many_outcomes(reader):
    messages = [fuzz.outcome(reader, mutated(reader, seed, 2))[0] for seed in range(300)]
    assert 15 < messages.count(None) < 200
    assert len({message and fuzz.kind_of(message, reader) for message in messages}) > 10


def test_a_mutation_can_be_repeated(reader):
    for seed in range(50):
        assert mutated(reader, seed, 3) == mutated(reader, seed, 3)


# --- The harness fails where a reader does --------------------------------------------------------

IMAGES = np.zeros((2, 28, 28), np.uint8)
LABELS = Labels(np.array([0, 0]), ("0",), ("line 2",))


class Planted(Csv):
    """A reader of labelled CSV with planted faults."""

    def __init__(self, folder, action):
        super().__init__(folder)
        self._read_csv = lambda file, training: action(file)


def part(images=IMAGES, labels=LABELS):
    return Part("any.csv", images, labels)


def outcome(tmp_path, action):
    content = b",".join([b"label", *PIXELS]) + b"\n" + 2 * (b",".join([b"0"] * 785) + b"\n")
    return fuzz.outcome(Planted(tmp_path, action), bytes([LABELLED]) + content)


def raising(error):
    def action(path):
        raise error

    return action


def test_the_planted_reader_works_without_a_fault(tmp_path):
    assert outcome(tmp_path, lambda file: part())[0] is None


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), MemoryError(), RecursionError()])
def test_another_error_is_a_crash(tmp_path, error):
    with pytest.raises(type(error)):
        outcome(tmp_path, raising(error))


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(part(IMAGES.astype(np.int64)), id="type of images"),
        pytest.param(part(IMAGES.reshape(2, 784)), id="shape"),
        pytest.param(part(IMAGES[..., None]), id="one channel"),
        pytest.param(part(IMAGES[:0]), id="no images"),
        pytest.param(part(labels=None), id="no labels"),
        pytest.param(part(labels=replace(LABELS, codes=LABELS.codes[:1])), id="fewer labels"),
        pytest.param(part(labels=replace(LABELS, codes=LABELS.codes + 1)), id="a label too large"),
        pytest.param(part(labels=replace(LABELS, names=("1",))), id="another label"),
        pytest.param(part(IMAGES + np.uint8(1)), id="other pixels"),
        pytest.param(part(IMAGES[:1]), id="an image left out"),
    ],
)
def test_a_wrong_result_is_a_crash(tmp_path, result):
    with pytest.raises(AssertionError):
        outcome(tmp_path, lambda path: result)


def test_a_message_names_its_file(tmp_path):
    def refuse(path):
        raise DataError(f"{path}, line 3: got 'x'")

    message, _ = outcome(tmp_path, refuse)
    assert message == f"{tmp_path / 'any.csv'}, line 3: got 'x'"
    assert fuzz.kind_of(message, Planted(tmp_path, refuse)) == "any.csv, line N: got '...'"
    with pytest.raises(AssertionError, match="names no file"):
        outcome(tmp_path, raising(DataError("line 3: got 'x'")))


def test_a_message_is_one_printable_line(tmp_path):
    def refuse(path):
        error = DataError("")
        error.args = (f"{path}: two\nlines",)
        raise error

    with pytest.raises(AssertionError, match="not one printable line"):
        outcome(tmp_path, refuse)


def test_a_slow_reader_is_a_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.01)

    def wait(path):
        started = time.process_time()
        while time.process_time() - started < 0.02:
            pass
        return part()

    with pytest.raises(AssertionError, match=r"took 0\.\d+ seconds"):
        outcome(tmp_path, wait)
