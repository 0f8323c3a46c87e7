"""The command python -m minicnn.train: run folder, output, refusals, stopping and resuming."""

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from runs import TINY, command, start_script, start_slowly, state

from minicnn import train
from minicnn.data.load import load_data
from minicnn.training import checkpoint, ensemble


def test_the_run_folder_holds_what_is_promised(run):
    folder, _ = run
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "config.json",
        "history.csv",
        "checkpoint.npz",
        "submission.csv",
        "summary.json",
    }
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert list(rows[0]) == (
        "net epoch learning_rate train_loss train_accuracy validation_loss validation_accuracy "
        "seconds".split()
    )
    assert [(row["net"], row["epoch"]) for row in rows] == [
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
        ("2", "2"),
    ]
    assert [float(row["learning_rate"]) for row in rows[:2]] == [1e-3, 1e-3 * 0.95]
    submission = (folder / "submission.csv").read_text().splitlines()
    assert submission[0] == "ImageId,Label"
    assert [line.split(",")[0] for line in submission[1:]] == [str(i) for i in range(1, 41)]


def test_summary_and_printed_lines_follow_from_history_and_submission(run):
    folder, done = run
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {
        "device",
        "images_per_second",
        "seconds",
        "nets",
        "ensemble_test_accuracy",
    }
    rows = list(csv.DictReader((folder / "history.csv").open()))
    for net, told in enumerate(summary["nets"], 1):
        own = [row for row in rows if int(row["net"]) == net]
        train_best = max(float(row["train_accuracy"]) for row in own)
        validation_best = max(float(row["validation_accuracy"]) for row in own)
        assert told["net"] == net
        assert told["best_train_accuracy"] == pytest.approx(train_best, rel=1e-9)
        assert told["best_validation_accuracy"] == pytest.approx(validation_best, rel=1e-9)
        line = (
            f"CNN {net}: Epochs=2, Train accuracy={train_best:.5f}, "
            f"Validation accuracy={validation_best:.5f}"
        )
        assert line in done.stdout.splitlines()
    truth = load_data("digits")[1][1][:40]
    lines = (folder / "submission.csv").read_text().splitlines()[1:]
    labels = np.array([int(line.split(",")[1]) for line in lines])
    assert summary["ensemble_test_accuracy"] == np.mean(labels == truth)
    assert str(folder) in done.stdout
    assert "images" in done.stderr and "%" not in done.stderr  # --quiet: no bar


def test_workers_change_no_bit(run, tmp_path):
    done = command("minicnn.train", *TINY, "--workers=2", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "out") == state(run[0])


def test_net_2_alone_is_net_2_of_the_ensemble(run, tmp_path):
    done = command("minicnn.train", *TINY, "--nets=1", "--first-net=2", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    alone, both = (checkpoint.load(f / "checkpoint.npz")[0] for f in (tmp_path / "out", run[0]))
    np.testing.assert_array_equal(alone["params"][0], both["params"][1])
    assert (alone["params"][0] != both["params"][0]).any()
    assert "CNN 2: " in done.stdout


def test_a_run_folder_is_not_overwritten(run):
    folder, _ = run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = command("minicnn.train", *TINY, "--out", folder)
    assert done.returncode == 2
    assert str(folder) in done.stderr and "--resume" in done.stderr
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seed=1"], "seed 0, got 1"),
        (["--epochs=3"], "epochs 2, got 3"),
        (["--limit=149"], "other data"),
        (["--test-limit=39"], "other test images: 40, got 39"),
    ],
)
def test_resume_refuses_another_run_and_says_what_differs(run, change, named):
    done = command("minicnn.train", *TINY, *change, "--out", run[0], "--resume")
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_resuming_a_finished_run_changes_nothing(run):
    before = state(run[0])
    done = command("minicnn.train", *TINY, "--out", run[0], "--resume")
    assert done.returncode == 0, done.stderr
    assert state(run[0]) == before


def test_a_run_of_an_earlier_version_resumes(run, tmp_path):
    """Its files lack the fields that recipes have got since."""
    folder = tmp_path / "out"
    shutil.copytree(run[0], folder)
    known = (
        "nets first_net epochs batch_size validation_fraction rotation zoom width_shift "
        "height_shift learning_rate decay dropout momentum seed".split()
    )
    config = json.loads((folder / "config.json").read_text())
    config["recipe"] = {name: config["recipe"][name] for name in known}
    (folder / "config.json").write_text(json.dumps(config))
    arrays, about = checkpoint.load(folder / "checkpoint.npz")
    about["recipe"] = dict(config["recipe"])
    checkpoint.save(folder / "checkpoint.npz", arrays, about)
    done = command("minicnn.train", *TINY, "--out", folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert state(folder) == state(run[0])
    done = command("minicnn.train", *TINY, "--schedule=linear", "--out", folder, "--resume")
    assert done.returncode == 2 and "has schedule exponential, got linear" in done.stderr


def test_resume_without_a_first_checkpoint_starts_anew(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes((run[0] / "config.json").read_bytes())
    done = command("minicnn.train", *TINY, "--out", tmp_path / "out", "--resume")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "out") == state(run[0])


@pytest.mark.full(but="2-130-2|15-143-1")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_resumes_to_the_bit(run, tmp_path, workers, number, status):
    """A signal to all processes stops it within an epoch; resumed, it equals an undisturbed run."""
    folder = tmp_path / "out"
    arguments = [*TINY, f"--workers={workers}", "--out", str(folder)]
    (tmp_path / "hold").touch()
    process = start_slowly(tmp_path, *arguments)
    os.killpg(process.pid, number)
    (tmp_path / "hold").unlink()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert not (folder / "checkpoint.npz").exists()
    assert re.search(r"python -m minicnn\.train .*--resume", stderr), stderr
    saved = [checkpoint.load(path)[1]["step"] for path in folder.glob("checkpoint-net-*.npz")]
    assert 1 <= max(saved) < 4  # an epoch has four steps
    done = command("minicnn.train", *TINY, "--workers=2", "--out", folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert state(folder) == state(run[0])


# minicnn.train whose worker processes, while they start, leave a file "starting" and wait while a
# file "hold" exists.
STARTING = """
import sys, time
from pathlib import Path
here = Path(__file__)
if __name__ != "__main__":
    here.with_name("starting").touch()
    while here.with_name("hold").exists():
        time.sleep(0.01)
from minicnn import train
if __name__ == "__main__":
    sys.exit(train.main())
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_a_signal_does_not_kill_workers_that_start(tmp_path):
    (tmp_path / "hold").touch()
    arguments = [*TINY, "--workers=2", "--out", str(tmp_path / "out")]
    process = start_script(tmp_path, STARTING, "starting", *arguments)
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "hold").unlink()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "died" not in stderr


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="needs POSIX processes")
def test_workers_do_not_outlive_their_parent(tmp_path):
    process = start_slowly(tmp_path, *TINY, "--workers=2", "--out", str(tmp_path / "out"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children")
    pids = children.read_text().split()
    assert len(pids) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--nets=0"], "--nets: got 0"),
        (["--nets=100000000"], "--nets"),
        (["--nets=two"], "--nets: got 'two', expected an integer"),
        (["--epochs=-1"], "--epochs"),
        (["--batch-size=0"], "--batch-size"),
        (["--first-net=0"], "--first-net"),
        (
            ["--validation-fraction=1"],
            "--validation-fraction: got 1.0, expected a number in [0, 1)",
        ),
        (["--rotation=nan"], "--rotation"),
        (["--zoom=1"], "--zoom"),
        (["--width-shift=-0.1"], "--width-shift"),
        (["--height-shift=inf"], "--height-shift"),
        (["--learning-rate=0"], "--learning-rate"),
        (["--decay=1.1"], "--decay"),
        (["--decay=x"], "--decay: got 'x', expected a number"),
        (["--seed=-1"], "--seed"),
        (["--limit=0"], "--limit"),
        (["--limit=60"], "54 training images"),
        (["--workers=0"], "--workers"),
        (["--memory=1000"], "memory"),
        (["--device=cuda"], "'cuda' cannot be used: there is no GPU"),
        (["--device=emulated"], "'emulated' cannot be used: there is no compiler"),
        (["--device=numpy", "--memory=1000000"], "expected at most the 1,000,000 of memory"),
        (["--device=tpu"], "--device"),
        (["--precision=tf32"], "tf32"),
        (["--recipe=none"], "--recipe"),
        (["--resume"], "--out"),
        (["--data=/nowhere"], "/nowhere: No such file"),
        (["--epoch=3"], "--epoch=3"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(
    arguments, named, no_compiler, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    try:
        status = train.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    stdout, stderr = capsys.readouterr()
    assert status == 2
    assert named in stderr
    assert stderr.count("\n") == 1 and stdout == ""
    assert list(tmp_path.iterdir()) == []  # no temporary file


def test_kaggles_files_give_a_submission_without_a_score(tmp_path, monkeypatch, capsys):
    (images, labels), (test_images, _) = load_data("digits")
    names = ",".join(f"pixel{i}" for i in range(784))
    rows = [f"{y},{','.join(map(str, x.ravel()))}" for x, y in zip(images[:100], labels)]  # noqa: B905
    (tmp_path / "train.csv").write_text("\n".join([f"label,{names}", *rows, ""]))
    rows = [",".join(map(str, x.ravel())) for x in test_images[:20]]
    (tmp_path / "test.csv").write_text("\n".join([names, *rows, ""]))
    monkeypatch.chdir(tmp_path)
    arguments = ["--data=.", "--nets=1", "--epochs=1", "--out=run", "--quiet", "--no-figures"]
    arguments += ["--device=numpy"]
    assert train.main([*arguments, "--workers=1"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["ensemble_test_accuracy"] is None
    assert summary["nets"][0]["test_accuracy"] is None
    assert len((tmp_path / "run/submission.csv").read_text().splitlines()) == 21
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["recipe"]["momentum"] == 0.99  # the recipe "seed"
    assert "Test accuracy" not in capsys.readouterr().out
    # Without a test file there is nothing to submit.
    (tmp_path / "test.csv").unlink()
    arguments[3] = "--out=other"
    assert train.main([*arguments, "--workers=1", "--validation-fraction=0"]) == 0
    assert not (tmp_path / "other/submission.csv").exists()
    rows = list(csv.DictReader((tmp_path / "other/history.csv").open()))
    assert rows[0]["validation_accuracy"] == ""
    assert "Validation" not in capsys.readouterr().out


def test_figures_are_drawn_unless_told_otherwise(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = [a for a in TINY if a != "--no-figures"]
    assert train.main([*arguments, "--nets=1", "--epochs=1", "--out", str(tmp_path / "run")]) == 0
    drawn = {path.name for path in (tmp_path / "run/figures").iterdir()}
    assert drawn == {
        "training_images.png",
        "augmented_images.png",
        "learning_curves.png",
        "predictions.png",
    }


def test_help_names_every_option_of_the_command():
    text = command("minicnn.train", "--help").stdout
    for option in (
        "data recipe nets first-net epochs batch-size limit test-limit validation-fraction rotation"
        " zoom width-shift height-shift learning-rate decay views seed device precision memory"
        " workers no-graph out resume no-figures quiet"
    ).split():
        assert f"--{option}" in text


def test_predict_repeats_the_submission(run, tmp_path):
    folder, _ = run
    out = tmp_path / "again.csv"
    done = command(
        "minicnn.predict",
        *["--checkpoint", folder / "checkpoint.npz", "--data", "digits", "--out", out, "--quiet"],
        "--device=numpy",
    )
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert len(lines) == 2001
    assert lines[:41] == (folder / "submission.csv").read_text().splitlines()


def test_predict_needs_only_the_test_file(run, tmp_path):
    _, (test_images, _) = load_data("digits")
    names = ",".join(f"pixel{i}" for i in range(784))
    rows = [",".join(map(str, x.ravel())) for x in test_images[:40]]
    (tmp_path / "test.csv").write_text("\n".join([names, *rows, ""]))
    out = tmp_path / "out.csv"
    done = command(
        "minicnn.predict",
        *["--checkpoint", run[0] / "checkpoint.npz", "--data", tmp_path, "--out", out, "--quiet"],
        "--device=numpy",
    )
    assert done.returncode == 0, done.stderr
    assert out.read_text() == (run[0] / "submission.csv").read_text()


@pytest.mark.parametrize(
    ("checkpoint_bytes", "data", "named"),
    [
        (b"", "digits", "bad.npz"),
        (b"PK not a zip", "digits", "bad.npz"),
        (None, "/nowhere", "/nowhere"),
        ("missing", "digits", "no such file"),
        ("flipped", "digits", "bad.npz"),
    ],
)
def test_predict_refuses_in_one_line(run, tmp_path, checkpoint_bytes, data, named):
    good = (run[0] / "checkpoint.npz").read_bytes()
    path = tmp_path / "bad.npz"
    if checkpoint_bytes == "flipped":
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    elif checkpoint_bytes != "missing":
        path.write_bytes(good if checkpoint_bytes is None else checkpoint_bytes)
    done = command(
        "minicnn.predict", "--checkpoint", path, "--data", data, "--out", tmp_path / "s.csv"
    )
    assert done.returncode == 2
    assert named in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


def test_the_vote_is_the_sum_of_the_nets_probabilities():
    probabilities = np.array([[[0.6, 0.4, 0.0]], [[0.1, 0.45, 0.45]], [[0.3, 0.3, 0.4]]])
    assert ensemble.vote(probabilities).tolist() == [1]
