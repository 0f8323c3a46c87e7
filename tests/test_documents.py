"""The README files: links, names of files, commands, quotations and lengths are right.

That their tables are those of the result files is tested with the benchmarks.
"""

import ast
import configparser
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minicnn.backends import native
from minicnn.emulator import KernelFault

ROOT = Path(__file__).parent.parent
README, KERNELS = ROOT / "README.md", ROOT / "kernels" / "README.md"
EMULATOR, TESTS = ROOT / "minicnn" / "emulator" / "README.md", ROOT / "tests" / "README.md"
FOLDERS = "benchmarks", "kernels", "minicnn", "tests"
DOCUMENTS = [
    README,
    *(path for name in FOLDERS for path in sorted((ROOT / name).rglob(README.name))),
]
SOURCE = r"[\w./*-]+\.(?:py|cuh|cu|cpp|c|h|md|cfg|toml)"

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


# ---- reading a document --------------------------------------------------------------------------


def without_code(text):
    """The text without its fenced and its indented blocks of code."""
    return re.sub(r"(?m)^ {4}.*$", "", re.sub(r"(?ms)^```.*?^```$", "", text))


def indented(text):
    """The lines of the indented blocks of code."""
    return "\n".join(re.findall(r"(?m)^ {4}(.*)$", re.sub(r"(?ms)^```.*?^```$", "", text)))


def files(name):
    """The files of the repository whose path ends in that name, which may have a "*"."""
    own = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*.*")] + list(ROOT.glob("*.*"))
    return [p for p in own if p.match(re.sub(r"^(\.\./)+", "", name))]


def without_tables(text):
    """The text without rows of tables, and without what is generated from result files."""
    text = re.sub(r"(?s)<!-- (\w+) -->.*?<!-- end of \1 -->", "", text)
    return re.sub(r"(?m)^ *\|.*$", "", text)


def anchors(text):
    """What a link can name after "#": the headings, as GitHub writes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", without_code(text))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def broken_links(text, folder):
    """The relative links of a text in a folder that lead to no file, or to no heading."""
    link = r"\]\(([^)\s]+)\)|(?m:^\[[^]]+\]: (\S+))|\b(?:src|href)=\"([^\"]+)\""
    found = re.findall(link, without_code(text))
    broken = []
    for link in map("".join, found):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = folder / name
        known = target.exists() and (
            not anchor or anchor in anchors(target.read_text() if name else text)
        )
        if not known:
            broken.append(link)
    return broken


def blocks(text, language):
    """The fenced blocks of code in a language."""
    return re.findall(rf"(?ms)^```{re.escape(language)}\n(.*?)^```$", text)


def quotations(text):
    """[(file, names, lines), ...]: a block of code, with the file and the names of its paragraph.

    The file is the last one that was linked before the block. Names are what the paragraph of that
    link gives as code right after the link: the function that is quoted.
    """
    found = []
    for block in re.finditer(r"(?ms)^```[\w+]+\n(.*?)^```$", text):
        before = text[: block.start()]
        [*_, link] = re.finditer(rf"\]\(({SOURCE})\)(?:, `([\w:]+)`)?", before)
        names = (link[2] or "").split("::") if link[2] else []
        lines = [line for line in block[1].splitlines() if line.strip()]
        found.append((link[1], names, lines))
    return found


def missing(lines, source):
    """The lines that a source does not have, whatever its indentation, in this order."""
    squeeze = lambda text: " ".join(text.split())  # noqa: E731
    source, at, absent = [squeeze(line) for line in source.splitlines()], 0, []
    for line in map(squeeze, lines):
        if line in source[at:]:
            at = source.index(line, at) + 1
        else:
            absent.append(line)
    return absent


# ---- every document ------------------------------------------------------------------------------


@each_document
def test_every_link_leads_somewhere(path):
    assert broken_links(path.read_text(), path.parent) == []


@each_document
def test_every_source_file_that_is_named_exists(path):
    text = path.read_text()
    examples = "".join(blocks(text, "python"))  # they may write files of their own
    named = re.findall(rf"(?<![\w/.-])({SOURCE})\b", re.sub(r"(?ms)^```.*?^```$", "", text))
    absent = [n for n in named if not files(n) and f'"{n}"' not in examples]
    assert absent == []


def test_the_readmes_call_chain_exists():
    """Lines like `network/layers.py Conv2D.forward`: each file has what is named behind it."""
    chain = re.findall(rf"({SOURCE}) ([A-Za-z_]\w*(?:\.\w+)*)", indented(README.read_text()))
    assert len(chain) >= 8
    for name, function in chain:
        for file in files(name):
            for part in function.split("."):
                assert re.search(rf"\b(def|class) {part}\b", file.read_text()), (
                    f"{file}: {function}"
                )


def test_every_folder_of_tests_is_named():
    others = {"minicnn", "tests", "figures"}
    named = set(re.findall(r"`(\w+)/`", TESTS.read_text())) - others
    assert named == {path.parent.name for path in TESTS.parent.glob("*/*.[pc][yu]")}


@each_document
def test_lines_outside_tables_and_code_are_short(path):
    text = without_tables(without_code(path.read_text()))
    assert [line for line in text.splitlines() if len(line) > 100] == []


def test_the_readme_fits_on_two_screens():
    assert len(README.read_text().splitlines()) <= 150


# ---- commands ------------------------------------------------------------------------------------


@cache
def help_of(module, *subcommand):
    """What a command prints with --help."""
    command = [sys.executable, "-m", module, *subcommand, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(text):
    """[(module, words), ...] of each `python -m module words`, in text or in code."""
    text = re.sub(r"\\\n\s*", " ", text)
    return [
        (module, re.split(r"\s#|[`|;]", rest)[0].split())
        for module, rest in re.findall(r"python -m ([\w.]+)([^\n]*)", text)
    ]


@each_document
def test_every_module_that_is_run_exists(path):
    for module, _ in commands(path.read_text()):
        assert importlib.util.find_spec(module.rstrip(".")), module


@each_document
def test_every_option_of_our_commands_exists(path):
    for module, words in commands(path.read_text()):
        if module.split(".")[0] not in ("minicnn", "benchmarks"):
            continue
        subcommand = [w for w in words[:1] if module == "minicnn.study" and w.islower()]
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(words)):
            known = re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(module, *subcommand))
            assert option in known, f"python -m {module} {' '.join(words)}"


@each_document
def test_every_extra_that_is_installed_exists(path):
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    for extra in re.findall(r'pip install -e "\.\[(\w+)\]"', path.read_text()):
        assert extra in config["options.extras_require"]


def test_ci_runs_the_commands_of_the_documents():
    script = (ROOT / ".ci/run").read_text().splitlines()
    shown = [line.strip() for path in (README, TESTS) for line in path.read_text().splitlines()]
    tests = [line for line in shown if line.startswith("python -m pytest")]
    assert len(set(tests)) >= 2
    for command in ('pip install -e ".[test]"', *tests):
        assert command in shown
        assert command in script
    assert "python -m minicnn.train" in shown


# ---- code ----------------------------------------------------------------------------------------


def of_ours(node):
    """Whether a statement imports, and not from the programs that read exports.

    tests/exports runs the code of the documents that needs these, where they are installed.
    """
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return False
    module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
    return module.partition(".")[0] not in ("keras", "onnxruntime", "safetensors", "torch")


@each_document
def test_everything_that_is_imported_exists(path):
    for block in blocks(path.read_text(), "python"):
        tree = ast.parse(block)
        tree.body = [node for node in tree.body if of_ours(node)]
        exec(compile(tree, path.name, "exec"), {})


def test_quotations_are_in_the_source():
    walk = re.search(r"(?ms)^## Batch normalisation.*?(?=^## )", KERNELS.read_text())[0]
    found = quotations(walk)
    assert len(found) >= 10
    for name, functions, lines in found:
        source = (KERNELS.parent / name).read_text()
        assert missing(lines, source) == [], name
        for function in functions:
            assert re.search(rf"\b{function}\b", source), f"{name}: {function}"


def test_the_readmes_example_prints_what_it_shows(capsys, tmp_path, monkeypatch):
    [example] = blocks(README.read_text(), "python")
    shown = re.search(r"(?m)(?:^ {4}.*\n)+", README.read_text().partition(example)[2])[0]
    monkeypatch.chdir(tmp_path)  # it writes a file
    exec(example, {})
    printed = capsys.readouterr().out
    number = r"\d+(?:\.\d*)?"
    words, expected = (re.sub(rf"{number}|\s", "", text) for text in (printed, shown))
    assert words == expected
    found, expected = ([float(n) for n in re.findall(number, text)] for text in (printed, shown))
    # Devices round differently. After three epochs this makes a single net better or worse. It
    # hardly changes the mean of the four nets.
    losses, accuracies = slice(0, 4), slice(4, 8)
    assert max(found[losses]) < 0.15
    assert min(found[accuracies]) > 0.95
    for part in losses, accuracies:
        assert np.mean(found[part]) == pytest.approx(np.mean(expected[part]), abs=0.02)
    assert found[8:] == pytest.approx(expected[8:], abs=0.02)


def test_the_fault_that_the_emulators_document_shows(tmp_path, monkeypatch):
    if native.problem():
        pytest.skip(native.problem())
    text = EMULATOR.read_text()
    [example] = [block for block in blocks(text, "python") if "reverse.cu" in block]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KernelFault) as caught:
        exec(example, {})
    assert f"    KernelFault: {caught.value}\n" in text
    last, values = "    x[threadIdx.x] = tile", {}
    mended = example.replace(last, f"    __syncthreads();\n{last}")
    exec(mended, values)
    assert values["emulator"].to_host(values["x"])[0] == 63


# ---- the checks themselves -----------------------------------------------------------------------


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading: with `code`\n")
    good = "[a](there.md) [b](there.md#a-heading-with-code) [c](https://example.org/x) [d](#here)"
    bad = "[e](gone.md) ![f](there.md#gone) [g](#gone)"
    text = f"## Here\n\n{good} {bad}\n\n    [h](code.md)\n\n[i]: lost.md\n"
    assert broken_links(text, tmp_path) == ["gone.md", "there.md#gone", "#gone", "lost.md"]


def test_a_line_that_is_not_in_the_source_is_found():
    source = "a = 1\n    b = a +  2\nc = 3\n"
    assert missing(["b = a + 2", "c = 3"], source) == []
    assert missing(["b = a + 3", "c = 3"], source) == ["b = a + 3"]
    assert missing(["c = 3", "a = 1"], source) == ["a = 1"]  # another order
    assert missing(["= 3"], source) == ["= 3"]  # part of a line
