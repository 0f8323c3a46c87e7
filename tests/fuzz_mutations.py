"""Mutations of files for the fuzzer, by kinds of content: bytes, lines and fields, gzip, IDX."""

import gzip
import io
import zlib

LONGEST = 1 << 15  # bytes of an input; gzip makes at most 1,032 times as many of them
LONGEST_TEXT = 3 << 19  # bytes of a file that a mutation decompresses or makes: two blocks of CSV
LABELLED = 1 << 7  # in an input's first byte: CSV with labels

PIXELS = [b"pixel%d" % i for i in range(784)]
FIELDS = [
    *(b"0", b"7", b"255", b"007", b'"1"', b"", b"-1", b"-0", b"+5", b"10", b"256", b"65536"),
    *(b"2147483648", b"9223372036854775808", b"18446744073709551616", b"9" * 40, b"0" * 40),
    *(b"NaN", b"NA", b"inf", b"None", b"True", b"text", b"1e2", b"0x10", b"1_0", b"1.0", b"1;2"),
    *(b'"', b'""', b'"""', b'"1', b'1"', b'"1"2', b'1""', b'"1,2"', b'"1\n"', b"'1'", b"#", b"\\"),
    *(b" ", b"\t1", b"1\r", b"\r1", b"\0", b"1\0", b"\xff", b"\x1b[2J", b"label", b"pixel0"),
    *("\uff11 \u0663 \u2028 \u202e1 \u00b2 1\u00a0 \U0001d7d9 \ufeff".encode().split(b" ")),
]
LINES = [b"", b"\r", b"\r\r", b" ", b",", b'""', b"," * 783, b"," * 784, *FIELDS]
REPLACED = [
    *((b"\n", b"\r\n"), (b"\n", b"\r"), (b"\n", b"\n\n"), (b"\n", b"\r\r\n"), (b"\n", b"\n\r")),
    *((b"\r\n", b"\n"), (b",", b'","'), (b",", b",,"), (b",", b";"), (b'"', b""), (b"0", b"00")),
]
WORDS = 0, 1, 2, 9, 27, 28, 29, 784, 500_000, 500_001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF
JSON = [
    *(b"0", b"1", b"-1", b"1.5", b"1e999", b"9" * 12, b"9" * 30, b"null", b"true", b"NaN"),
    *(b"{}", b"[]", b"[[", b'"', b'"x"', b"[0,0]", b'"\\ud800"', b'"a\\u0000b"', b"[1e3]"),
    *(b'{"net": 1, "epoch": 1, "step": 1}', b"Infinity", b'"nets"', b'"step"', b'"\xff"'),
]
MAGIC = 0, 0x800, 0x801, 0x802, 0x803, 0x804, 0xD03, 0x01080000, 0x1F8B0800


def noise(content, random):
    """The bytes after a mutation that ignores the format."""
    first, last = sorted(random.randrange(len(content) + 1) for _ in range(2))
    last = random.choice((last, min(last, first + random.randrange(9))))
    start, piece, rest = content[:first], content[first:last], content[last:]
    flipped = bytes(byte ^ (1 << random.randrange(8)) for byte in piece[:9]) + piece[9:]
    filled = random.choice((b"\0", b"\xff", b"\n", b",", b'"')) * max(1, len(piece))
    added = piece + random.randbytes(random.randrange(1, 17))
    return start + random.choice((flipped, filled, added, piece * 2, b"")) + rest


def edit_items(items, new, random):
    """Fields or lines after one was removed, replaced or quoted, or others were inserted."""
    place = random.randrange(len(items)) * (random.random() < 0.9)  # often the first: the label
    old, other, token = items[place], random.choice(items), random.choice(new)
    many = token * int(10 ** random.uniform(0, 4.3))
    choices = (), (old, old), (token, old), (other,), (b'"%b"' % old,), (many,), (token,), (token,)
    return [*items[:place], *random.choice(choices), *items[place + 1 :]]


def inflate(content):
    """The content of a gzip stream, or None for a bad or a long one."""
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            plain = stream.read(LONGEST_TEXT + 1)
    except (OSError, EOFError, zlib.error):
        return None
    return plain if len(plain) <= LONGEST_TEXT else None


def deflate(plain):
    """A gzip stream without a time stamp."""
    return gzip.compress(plain, 1, mtime=0)


def damage(stream, random):
    """A gzip stream after a mutation of its headers, its members, its checksum or of any byte."""
    member = deflate(random.choice((b"", b"0", b"\n", random.randbytes(20))))
    place = random.choice([*range(10), *range(len(stream) - 8, len(stream))])
    changed = stream[: max(0, place)] + random.randbytes(1) + stream[max(0, place) + 1 :]
    longer = stream + random.choice((member, bytes(1), bytes(20), b"trailing", stream[:11]))
    shorter = stream[: -random.randrange(1, 10)]
    return random.choice((changed, longer, shorter, noise(stream, random), noise(stream, random)))


def mutate_file(content, zipped, edit, random):
    """(the bytes of a file, whether its name ends in .gz) after one mutation."""
    if random.random() < 0.01:
        return content, not zipped
    plain = inflate(content) if zipped else content
    if plain is None or (zipped and random.random() < 0.25):
        return damage(content, random), True
    plain = edit(plain, random)[:LONGEST_TEXT]
    if zipped and random.random() < 0.1:  # two members
        half = random.randrange(len(plain) + 1)
        return deflate(plain[:half]) + deflate(plain[half:]), True
    if len(plain) > LONGEST - 5 or random.random() < (0.9 if zipped else 0.05):
        return deflate(plain), True
    return plain, False


def idx(*words):
    """Words of 32 bits as in the header of an IDX file."""
    return b"".join(word.to_bytes(4, "big") for word in words)
