"""python -m minicnn.drawpage.wasm: compiles the C kernels that the page uses to WebAssembly.

It writes kernels.wasm, which is in the package: only those who change these kernels need clang and
lld. The same versions of them write the same bytes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from ..backends.kernel import SOURCES

_FILES = "conv_direct.c", "conv_few.c"
_EXPORTS = "correlate", "pack_kernel", "panel_channels", "__heap_base"
_FLAGS = [
    *("--target=wasm32", "-msimd128", "-mbulk-memory", "-ftls-model=local-exec"),
    *("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math"),  # as in backends/cpu.py
    *("-nostdlib", "-Wl,--no-entry", "-Wl,--strip-debug", "-Wl,--stack-first"),
    *(f"-Wl,--export={name}" for name in _EXPORTS),
]
# There is no C library. Both functions are instructions of WebAssembly (bulk-memory).
_STRING_H = """\
#include <stddef.h>
void* memcpy(void* to, const void* from, size_t count);
void* memset(void* to, int byte, size_t count);
"""


def build(compiler="clang"):
    """The compiled kernels, bytes. Raises OSError and subprocess.CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "string.h").write_text(_STRING_H)
        out = Path(folder) / "kernels.wasm"
        subprocess.run(
            [compiler, *_FLAGS, f"-I{folder}", "-o", out, *_FILES], cwd=SOURCES, check=True
        )
        return out.read_bytes()


if __name__ == "__main__":
    try:
        Path(__file__).with_name("kernels.wasm").write_bytes(build())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"minicnn.drawpage.wasm: error: {error}")
