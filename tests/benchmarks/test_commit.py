"""An earlier commit among the contenders: its worktree, its processes, its ratios."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from runs import ROOT

from benchmarks import commit, contenders, equality, frameworks, plots
from benchmarks.crew import Crew, NotRunningError
from minicnn.backends import native

GIT = shutil.which("git")
pytestmark = pytest.mark.skipif(not GIT, reason="needs git")


def git(root, *words):
    """What a git command prints."""
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    words = "-c", "user.name=A", "-c", "user.email=a@b.c", *words
    done = subprocess.run(
        [GIT, "-C", root, *words], env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def worktrees(root):
    return git(root, "worktree", "list", "--porcelain").count("worktree ")


WRONG_NET = """
import numpy as np
from benchmarks import ONLY_HERE
from minicnn.recipe import Recipe

class Training:
    def __init__(self, contender, images, labels, recipe):
        assert type(recipe) is Recipe and recipe.batch_size == 64
    def take_weights(self, weights):
        pass
    def predict(self, x):
        return np.full((1, len(x), 10), ONLY_HERE)
    def train_on(self, x, y):
        return np.ones(1)
    warp = None
"""
FILES = {
    "minicnn/__init__.py": "",
    "minicnn/machine.py": "def use_cores(count): assert count == 1\n",
    "minicnn/recipe.py": "from dataclasses import dataclass\n"
    "@dataclass\nclass Recipe:\n    batch_size: int\n    dropout: float\n",
    "benchmarks/__init__.py": "ONLY_HERE = 7.5\n",
    "benchmarks/contenders/__init__.py": "",
    "benchmarks/contenders/minicnn_net.py": WRONG_NET,
}


@pytest.fixture
def repository(tmp_path):
    """A repository of two commits: the first has all files that are needed, the last has not."""
    root = tmp_path / "repository"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(tmp_path, "init", "--quiet", root)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    git(root, "rm", "--quiet", "minicnn/recipe.py")
    git(root, "commit", "--quiet", "-m", "second")
    return root


# ---- the worktree --------------------------------------------------------------------------------


def test_a_commit_is_checked_out_and_removed(repository):
    expected = git(repository, "rev-parse", "--short", "HEAD~1")
    with commit.checked_out("HEAD~1", repository) as (name, folder):
        assert name == expected and worktrees(repository) == 2
        assert (folder / "benchmarks/contenders/minicnn_net.py").read_text() == WRONG_NET
        (folder / "compiled.pyc").touch()
    assert not folder.parent.exists() and worktrees(repository) == 1


def test_a_commit_is_removed_after_an_error(repository):
    folders = []
    with pytest.raises(KeyError), commit.checked_out("HEAD~1", repository) as (_, folder):
        folders.append(folder)
        raise KeyError
    assert not folders[0].parent.exists() and worktrees(repository) == 1


STOPPED = """
import signal, sys, time
from benchmarks import commit
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as its parent's is
with commit.checked_out("HEAD~1", sys.argv[1]) as (_, folder):
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_commit_is_removed_after_a_signal(repository, number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, repository],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    folder = Path(process.stdout.readline().strip())
    assert folder.exists()
    process.send_signal(number)
    assert process.wait(30) == status
    assert not folder.parent.exists() and worktrees(repository) == 1


def test_why_a_commit_cannot_be_measured(repository, tmp_path, monkeypatch):
    def reason(revision, root):
        with pytest.raises(commit.CommitError) as raised, commit.checked_out(revision, root):
            pass
        assert str(raised.value).isprintable()
        return str(raised.value)

    unknown = "git knows no commit 'none'; a shallow clone has only the newest"
    assert reason("none", repository) == unknown
    assert "no minicnn/recipe.py" in reason("HEAD", repository)
    assert worktrees(repository) == 1
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert "not a git repository" in reason("HEAD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason("HEAD", repository) == "git does not run: No such file or directory"


# ---- its processes -------------------------------------------------------------------------------


def differences(contender):
    crew = Crew(contender, 1, 1, jobs=(), reference=equality.reference(batch=16))
    crew.begin()
    try:
        return crew.differences(120)
    finally:
        crew.close()


def test_a_process_runs_the_files_of_the_commit(repository):
    with commit.checked_out("HEAD~1", repository) as (name, folder):
        contender = contenders.at_commit(name, folder)
        with pytest.raises(equality.DifferentError, match=r"^predictions differ by 7\.\de\+00"):
            differences(contender)


def test_a_commit_that_fails_says_why(tmp_path):
    folder = tmp_path / "commit"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("Recipe:", "Other:"))
    with pytest.raises(NotRunningError, match="import name 'Recipe'"):
        differences(contenders.at_commit("0123abc", folder))


@pytest.mark.full(beside="test_a_process_runs_the_files_of_the_commit")
def test_the_default_commit_is_measured(tmp_path, capsys):
    if native.problem("c"):
        pytest.skip(native.problem("c"))
    try:
        commit._git(ROOT, "rev-parse", "--verify", f"{frameworks.COMMIT}^{{commit}}")
    except commit.CommitError as error:
        pytest.skip(f"needs the history of the repository: {error}")
    out, name = tmp_path / "result.json", f"minicnn at {frameworks.COMMIT}, float32"
    before, only = worktrees(ROOT), ["--only", "minicnn cpu"]
    arguments = ["--quick", "--seconds=0.1", *only, "--commit", "--out", str(out)]
    assert frameworks.main(arguments) == 0
    result = json.loads(out.read_text())
    found = {(row["contender"], row["job"]) for row in result["rates"]}
    assert found == {(c, job) for c in ("minicnn cpu", name) for job in ("train", "infer")}
    assert max(result["differences"][name].values()) < 1e-4
    shown = capsys.readouterr().out
    assert f"Times as fast as commit {frameworks.COMMIT}: " in shown
    assert worktrees(ROOT) == before


# ---- what the rates say --------------------------------------------------------------------------


def row(contender, rate, job="train", **others):
    shape = {"nets": 1, "processes": 1, "threads": 2, "precision": "float32"}
    spread = {"lowest": rate, "highest": rate, "rounds": 7}
    return {
        "contender": contender,
        "job": job,
        "images_per_second": rate,
        **shape,
        **spread,
    } | others


EARLIER = {"contender": "minicnn at 06ed209, float32", "commit": "06ed209"}
RATES = [
    row("minicnn cpu", 300),
    row("minicnn cpu", 900, "infer"),
    row("PyTorch", 150),
    row("PyTorch", 300, "infer"),
    row(rate=600, **EARLIER),  # faster than this minicnn, which must not hide it
    row(rate=450, job="infer", **EARLIER),
]


def test_an_earlier_commit_is_neither_ours_nor_a_framework():
    words = frameworks.ratios_in_words(RATES)
    assert words.count("2.00 in training one net, 2.00 in training an ensemble, 3.00 in") == 2
    assert words.endswith(
        "Times as fast as commit 06ed209: 0.50 in training one net, 0.50 in training an ensemble, "
        "2.00 in inference."
    )
    assert frameworks.ratio(RATES[:1] + RATES[4:]) is None
    assert "| minicnn at 06ed209, float32 | 600 (600 to 600) |" in frameworks.table(RATES)
    gain = frameworks.ratios_in_words(RATES[:2] + RATES[4:])
    assert gain.startswith("Times as fast as commit 06ed209: 0.50 in")
    assert frameworks.ratios_in_words(RATES[4:]) == ""


def test_an_earlier_commit_has_a_color_of_its_own():
    figure = plots.rates({"rates": RATES})
    colors = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert len(colors) == 3
    shown = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert "minicnn at an earlier commit" in shown
    figure = plots.rates({"rates": RATES[:4]})
    shown = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert shown == list(plots.COLORS)


# ---- the command ---------------------------------------------------------------------------------


def test_an_earlier_commit_takes_part_in_all_splits_and_jobs(repository, monkeypatch):
    monkeypatch.setattr(commit, "checked_out", partial(commit.checked_out, root=repository))
    plan = frameworks.plan_of("cpu", 15, 4)
    with commit.added("HEAD~1", plan) as (found, left_out):
        assert [rest for _, *rest in found] == [rest for _, *rest in plan] and left_out == {}
        for (given, *_), (before, *_) in zip(found, plan, strict=True):
            assert given[:-1] == before
            assert given[-1].commit == git(repository, "rev-parse", "--short", "HEAD~1")
            assert Path(given[-1].folder, "minicnn/recipe.py").exists()


def test_a_commit_that_git_does_not_know_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(
        frameworks,
        "measure",
        lambda *given: iter([{"rates": [], "refused": {}, "left_out": given[-1]}]),
    )
    monkeypatch.setattr(frameworks, "show", lambda result: print(json.dumps(result)))
    assert frameworks.main(["--quick", "--commit", "no-such-commit"]) == 0
    shown = capsys.readouterr()
    name = "minicnn at no-such-commit, float32"
    [(left_out, why)] = json.loads(shown.out)["left_out"].items()
    assert left_out == name and why
    assert f"{name}: left out: {why}" in shown.err


def test_a_commit_on_a_gpu_is_refused(capsys):
    with pytest.raises(SystemExit):
        frameworks.main(["--device=cuda", "--commit"])
    shown = capsys.readouterr().err
    assert shown == (
        "benchmarks.frameworks: error: argument --commit: got --device cuda, expected cpu\n"
    )
