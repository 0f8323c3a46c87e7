"""The levels of the suite: what runs quickly, and what needs --full.

A test marked `full(beside=NAME)` needs --full; the test NAME touches the same subject quickly.
A test marked `full(but=REGEX)` needs --full, except with parameters whose id matches REGEX.
test_levels.py checks that the quick level leaves out no subject.
"""

import re

from hypothesis import settings

in_full = False  # conftest.py sets it before it collects tests


def examples(count, **options):
    """How many examples hypothesis tries: `count` in full, a quarter of them quickly."""
    count = count if in_full else -(-count // 4)
    return settings(**{"deadline": None, "derandomize": True, "max_examples": count, **options})


def needs_full(item):
    """Whether a collected test, with its parameters, needs --full."""
    regexes = [mark.kwargs.get("but") for mark in item.iter_markers("full")]
    return any(not regex or not re.search(regex, item.callspec.id) for regex in regexes)
