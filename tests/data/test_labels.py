"""Classes of labels: as many as there are, in order, by their names."""

import numpy as np
import pytest

from minicnn.data.labels import (
    DIGITS,
    Labels,
    class_numbers,
    classes_of,
    classes_text,
    integer_labels,
    label_name,
    short_names,
)
from minicnn.files import DataError


def classes(*labels, times=20):
    return classes_of(integer_labels(np.repeat(labels, times), "file"), "file")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (range(10), DIGITS),
        (range(1, 27), tuple(map(str, range(1, 27)))),
        ((0, 1), ("0", "1")),
        ((-1, 1), ("-1", "1")),
        ((3, 7), ("3", "7")),
        ((2, 10, 100), ("2", "10", "100")),
        (range(5), tuple("01234")),
        (range(1, 10), tuple("123456789")),
    ],
)
def test_as_many_classes_as_there_are(labels, expected):
    assert classes(*labels, times=50) == expected


@pytest.mark.parametrize("labels", [(7,), (3, 7), (1, 2), (0, 1, 2, 5, 6, 7, 8, 9)])
def test_a_small_file_lacks_some_digits(labels):
    assert classes(*labels, times=1) == DIGITS


def test_texts_come_after_numbers():
    names = ("b", "10", "a", "9")
    assert classes_of(Labels(np.arange(4), names, ("",) * 4), "file") == ("9", "10", "a", "b")


def test_one_class_is_refused():
    with pytest.raises(DataError, match="file: got the label '12' only, expected 2 to 1,000 class"):
        classes(12)


def test_numbers_of_classes():
    labels = integer_labels(np.array([5, 300, 5, 7]), "file")
    numbers = class_numbers(labels, ("5", "6", "7", "300"))
    assert numbers.tolist() == [0, 3, 0, 2] and numbers.dtype == np.uint8
    many = class_numbers(labels, tuple(map(str, range(301))))
    assert many.tolist() == [5, 300, 5, 7] and many.dtype == np.uint16
    with pytest.raises(DataError, match="file: label 2 of 4: got '300', expected one of 3 classes"):
        class_numbers(labels, ("5", "6", "7"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *(("7", "7"), ("007", "7"), ("7.0", "7"), ("+7", "7"), ("-0", "0"), ("-07.00", "-7")),
        *((" 7 ", "7"), ("7.5", "7.5"), ("a b", "a b"), ("T-shirt/top", "T-shirt/top")),
        *((bad, None) for bad in ("", " ", "nan", "NaN", "a\nb", "\0", "x" * 41)),
    ],
)
def test_names(text, name):
    assert label_name(text) == name


def test_text_of_classes():
    assert classes_text(DIGITS) == "10 classes 0..9"
    assert classes_text(("cat", "dog")) == "2 classes cat, dog"
    assert classes_text(("x" * 40, *"abc")) == f"4 classes {'x' * 20}... to c"


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (("cat", "a dog in the rain"), ("cat", "a dog in...")),
        (("light, red", "light, green"), ("light, r...", "light, g...")),
        (("the light, red", "the light, green"), ("the ... red", "the ...reen")),
        (("the light 1 is on", "the light 2 is on"), ("the ...1", "the ...2")),
    ],
)
def test_short_names_differ_as_the_names_do(names, short):
    assert short_names(names, 8) == short
