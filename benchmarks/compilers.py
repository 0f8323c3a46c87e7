"""python -m benchmarks.compilers [NVRTC ...]: every kernel in every form, by any version of NVRTC.

setup.cfg allows a range of versions. For each that is named this command compiles all forms of all
kernels for the oldest architecture that it knows, for compute capability 8.0 and 9.0, and for the
newest. It lists the registers of a thread, and the forms that keep values in memory instead: they
spill. Needs no GPU. A version is a path of libnvrtc.so, or a folder that pip has installed one to:

    pip install --no-deps --target DIR 'nvidia-cuda-nvrtc==13.0.*'

Without arguments it takes the version that is installed. CuPy need not be installed.

Exit status: 0; 1 if a form spills or does not compile; 2 for bad arguments.
"""

import ctypes
import re
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from minicnn.backends import cuda, cuda_forms
from minicnn.backends.kernel import SOURCES, Program
from minicnn.command import one_line

TENSOR_CORES = 80  # the oldest compute capability that has those for TF32 and bfloat16


class Nvrtc:
    """An NVRTC loaded from a file, with the functions of CuPy's module that minicnn calls.

    path: of libnvrtc.so. Raises OSError if it cannot be loaded.
    """

    class NVRTCError(RuntimeError):
        """A call failed."""

    def __init__(self, path):
        # NVRTC opens libnvrtc-builtins.so by its name alone. Without this it may be found nowhere,
        # or be that of another version.
        for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(str(path))

    def getVersion(self):  # noqa: N802  the names are CuPy's
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def getSupportedArchs(self):  # noqa: N802
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return tuple(found)

    def createProgram(self, text, name, headers, includes):  # noqa: N802
        program = ctypes.c_void_p()
        arguments = ctypes.byref(program), text.encode(), name.encode(), 0, None, None
        self._call("nvrtcCreateProgram", *arguments)
        return program

    def compileProgram(self, program, options):  # noqa: N802
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        self._call("nvrtcCompileProgram", program, len(options), encoded)

    def getCUBIN(self, program):  # noqa: N802
        return self._text("nvrtcGetCUBIN", program)[:-1]  # as CuPy, without the last byte

    def getProgramLog(self, program):  # noqa: N802
        return self._text("nvrtcGetProgramLog", program).rstrip(b"\0").decode()

    def destroyProgram(self, program):  # noqa: N802
        self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, function, program):
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        self._call(function, program, found)
        return found.raw

    def _call(self, function, *arguments):
        status = getattr(self._library, function)(*arguments)
        if status:
            raise self.NVRTCError(f"{function}: status {status}")


# ---- what is compiled ----------------------------------------------------------------------------


class Compiled(NamedTuple):
    """A kernel in one form, as a compiler reports it."""

    nvrtc: str  # its version
    architecture: str
    form: str  # the file and what it defines
    kernel: str
    registers: int  # of a thread
    spilled: int  # bytes of a thread, and of its stack


def programs():
    """A Program for every form of every kernel."""
    forms = [form for storage in cuda_forms.STORAGES for form in cuda_forms.programs(storage)]
    files = {file for file, _ in forms}  # without defines these compile to one of their forms
    others = [(path.name, ()) for path in sorted(SOURCES.glob("*.cu")) if path.name not in files]
    return [Program(SOURCES / file, defines) for file, defines in forms + others]


def capabilities(known, program):
    """Those for which a program is compiled, of the `known` ones of an NVRTC."""
    tensor_cores = "mma_m16n8k8_tf32" in program.text
    oldest = TENSOR_CORES if tensor_cores else max(cuda.OLDEST, min(known))
    return sorted({oldest, 80, 90, max(known)} & {*known})


def compile_all(nvrtc, asked=None):
    """A generator of a Compiled for each kernel of the programs `asked` (default: of all).

    Raises CompileError, with the compiler's version.
    """
    version, known = ".".join(map(str, nvrtc.getVersion())), nvrtc.getSupportedArchs()
    for program in asked or programs():
        for capability in capabilities(known, program):
            architecture = f"sm_{capability}"
            try:
                _, log = cuda.compile_program(
                    program, architecture, "--ptxas-options=-v", nvrtc=nvrtc
                )
                found = cuda.resources(log)
                if set(found) != set(program.kernels):
                    raise cuda.CompileError(f"{program.path}: not reported: {log}")
            except cuda.CompileError as error:
                raise cuda.CompileError(f"NVRTC {version}, {architecture}: {error}") from None
            form = " ".join([program.path.name, *program.defines])
            for kernel, (stack, spilled, registers) in found.items():
                yield Compiled(version, architecture, form, kernel, registers, stack + spilled)


def summarize(found):
    """A dict for each version and architecture: kernels, most registers, those that spill."""
    of_both = {}
    for each in found:
        of_both.setdefault((each.nvrtc, each.architecture), []).append(each)
    return [
        {
            "nvrtc": version,
            "architecture": architecture,
            "kernels": len(of),
            "most_registers": max(each.registers for each in of),
            "spilling": [each._asdict() for each in of if each.spilled],
        }
        for (version, architecture), of in sorted(
            of_both.items(), key=lambda item: (_number(item[0][0]), _number(item[0][1]))
        )
    ]


def registers(found):
    """{form and kernel: {version and architecture: registers of a thread}}."""
    table = {}
    for each in found:
        of_form = table.setdefault(f"{each.form}: {each.kernel}", {})
        of_form[f"{each.nvrtc} {each.architecture}"] = each.registers
    return table


def _number(text):
    """What is sorted: the numbers in "12.9" or "sm_121"."""
    return [int(digits) for digits in re.findall("[0-9]+", text)]


# ---- the command ---------------------------------------------------------------------------------


def library(given):
    """The path of libnvrtc.so: what is given, or what pip has installed into that folder.

    Raises ValueError where there is none, or several.
    """
    if given.is_file():
        return given
    found = [path for path in given.rglob("libnvrtc.so*") if path.is_file()]
    if len(found) != 1:
        raise ValueError(f"{given}: found {len(found)} files libnvrtc.so, expected one")
    return found[0]


def table(result):
    """A result in Markdown: a row for each version and architecture."""
    rows = []
    for row in result["compilers"]:
        spilling = [
            f"{each['kernel']} ({each['form']}): {each['spilled']}" for each in row["spilling"]
        ]
        cells = row["nvrtc"], row["architecture"], row["kernels"], row["most_registers"]
        rows.append([*cells, "; ".join(spilling) or "none"])
    heads = "NVRTC", "architecture", "kernels in all forms", "most registers", "spilled, bytes"
    return timing.table(heads, rows)


def main(argv=None):
    """Run the command; returns its exit status."""
    parser = timing.parser("compilers", __doc__)
    parser.add_argument("libraries", nargs="*", type=Path, metavar="NVRTC")
    arguments = parser.parse_args(argv)
    try:
        compilers = [Nvrtc(library(given)) for given in arguments.libraries]
        if not compilers:
            compilers = [cuda.installed_nvrtc()]
            cuda.nvrtc_version()  # fails here where it cannot be loaded
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(f"argument NVRTC: {one_line(error)}")
    try:
        found = [each for nvrtc in compilers for each in compile_all(nvrtc)]
    except cuda.CompileError as error:
        print(f"benchmarks.compilers: {error}", file=sys.stderr)
        return 1
    result = {
        "what": "every kernel in every form, as versions of NVRTC compile it",
        "compilers": summarize(found),
        "registers": registers(found),
        "machine": timing.machine(),
        "versions": timing.versions(),
    }
    print(timing.aligned(table(result)))
    timing.write("compilers", result, arguments.out)
    return int(any(each.spilled for each in found))


if __name__ == "__main__":
    sys.exit(main())
