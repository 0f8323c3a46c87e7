"""The scripts of the page to draw on, run by node. Tests are skipped where it is not installed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import minicnn.drawpage

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")

_FOLDER = Path(minicnn.drawpage.__file__).parent
_RUNNER = """
const fs = require("fs"), vm = require("vm");
const words = process.argv.slice(1);
const expression = words.pop();
for (const path of words) vm.runInThisContext(fs.readFileSync(path, "utf8"), path);
globalThis.given = JSON.parse(fs.readFileSync(0, "utf8"));
console.log(JSON.stringify(vm.runInThisContext(expression)));
"""


def evaluate(scripts, expression, given=None):
    """The value of an expression after scripts of the page; in it `given` is that value."""
    done = subprocess.run(
        [NODE, "-e", _RUNNER, *(str(_FOLDER / script) for script in scripts), expression],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
