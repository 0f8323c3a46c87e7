"""Fuzz the readers of files: `python tests/fuzz.py csv`.

Within a second and a gigabyte a reader must either return correct values or raise a DataError whose
message is one printable line that names the file. `test_fuzz.py` tries a few hundred inputs. This
command tries as many as asked for, guided by branch coverage; it needs atheris (`pip install
atheris`, Linux). Its last line is JSON. After a crash, a slow input or too much memory its exit
status is not 0, and the input stays in the current folder as `crash-...`, `timeout-...` or
`oom-...`; `--input FILE` reads it again.

fuzz_readers.py and fuzz_archives.py define the inputs and the checks, fuzz_mutations.py helps them.
"""

import argparse
import collections
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random

from fuzz_archives import READERS
from fuzz_mutations import LONGEST

SECONDS = 1  # an input may take less than this
MEMORY = 1 << 30  # bytes that the process may hold


# --- Reading --------------------------------------------------------------------------------------


def outcome(reader, content):
    """(the message that refuses an input, or None if it is accepted; the seconds it took).

    Raises AssertionError for a wrong result, a slow reader, or a message that is not one printable
    line that begins with the file's name. Errors of the reader but DataError pass through.
    """
    started, message = time.process_time(), None  # CPU time, whatever else the machine does
    try:
        reader.read(content)
    except importlib.import_module("minicnn.files").DataError as error:
        message = str(error)
        assert message.isprintable(), f"not one printable line: {message!r}"
        names = tuple(f"{path}{end}" for path in reader.paths for end in f":,{os.sep}")
        assert message.startswith(names), f"names no file: {message}"
    seconds = time.process_time() - started
    assert seconds < SECONDS, f"took {seconds:.2f} seconds"
    return message, seconds


def kind_of(message, reader):
    """A message without its folder, quoted texts and numbers."""
    message = message.replace(f"{reader.paths[0].parent}{os.sep}", "").replace(".gz", "")
    message = re.sub(r"line 1\b", "header", message)
    message = re.sub(r"""(?<!\w)b?(['"]).*\1""", "'...'", message)
    return re.sub(r"0x[0-9a-f]+|[0-9]+", "N", message)


def main():
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="from 1; the same inputs for the same")
    parser.add_argument("--verbose", action="store_true", help="print the kinds of refusals, too")
    parser.add_argument("--input", type=Path, metavar="FILE", help="read this input only")
    options = parser.parse_args()
    shared = Path("/dev/shm")  # memory, where there is such a folder
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    try:
        if options.input:
            message, seconds = outcome(READERS[options.reader](folder), options.input.read_bytes())
            print(f"{message or 'accepted'} ({seconds:.3f} s)")
        else:
            fuzz(options, folder)
    finally:
        shutil.rmtree(folder)


def fuzz(options, folder):
    """Give a reader as many inputs as asked for, and print the result."""
    import resource  # noqa: PLC0415  there is none on Windows

    import atheris  # noqa: PLC0415  only this needs it

    with atheris.instrument_imports(include=READERS[options.reader].modules):
        reader = READERS[options.reader](folder)
    seeds, corpus = reader.seeds(), folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds):
        (corpus / f"{number}").write_bytes(content)
        outcome(reader, content)  # the first input also imports modules
    kinds, longest, started = collections.Counter(), 0, time.perf_counter()

    def give(content):
        nonlocal longest
        message, seconds = outcome(reader, content)
        kinds[message and kind_of(message, reader)] += 1
        longest = max(longest, seconds)
        if (inputs := kinds.total()) == options.inputs:
            if options.verbose:
                print(*(f"{n:9,} {k or 'accepted'}" for k, n in kinds.most_common()), sep="\n")
            result = {
                "reader": options.reader,
                "inputs": inputs,
                "accepted": kinds[None],
                "refused": inputs - kinds[None],
                "longest_seconds": round(longest, 3),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "seconds": round(time.perf_counter() - started, 1),
                "atheris": version("atheris"),
                "python": platform.python_version(),
            }
            print(json.dumps(result), flush=True)
            shutil.rmtree(folder)
            os._exit(0)  # atheris.Fuzz() would not return either, and would miss the folder

    def mutate(content, size, seed):
        random = Random(seed)
        if random.random() < 0.1:
            return atheris.Mutate(content, size)
        # After many mutations few inputs would be accepted.
        content = random.choice(seeds) if random.random() < 0.3 else content
        return reader.mutate(content, random)[:size]

    limits = (
        f"-timeout={10 * SECONDS} -rss_limit_mb={MEMORY >> 20} -max_len={LONGEST} -len_control=0"
    )
    # Reloading depends on the clock, so inputs would differ from run to run.
    flags = f"-runs={options.inputs} -seed={options.seed} -reload=0 {limits}"
    arguments = [sys.argv[0], *flags.split(), str(corpus)]
    atheris.Setup(arguments, give, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
