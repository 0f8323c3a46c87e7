"""benchmarks/faults.py: the commands that it runs, its result, and how it fails."""

import json

import pytest

from benchmarks import faults, readme, timing


def test_the_result_has_the_commands_reports_and_is_shown(tmp_path, monkeypatch):
    asked = []

    def report_of(job):
        asked.append(job)
        if job[0] == "kills.py":
            device, kills = job[2], job[4]
            return {
                "device": device,
                "kills": kills,
                "inside_a_write": 1,
                "runs": 2,
                "differing_bits": 0,
            }
        found = {"reader": job[1], "inputs": job[3], "accepted": 10, "refused": job[3] - 10}
        slow = job[5] == 2  # the seed
        return found | {"longest_seconds": 0.1 + 0.15 * slow, "peak_memory_bytes": 123_000_000}

    monkeypatch.setattr(faults, "_run", report_of)
    result = faults.measure({"cpu": 3}, 2002)
    assert sorted(job[0] for job in asked) == ["fuzz.py"] * 24 + ["kills.py"]
    assert len({job[5] for job in asked if job[1] == "csv"}) == 4
    assert [row["device"] for row in result["kills"]] == ["cpu"]
    assert [row["reader"] for row in result["fuzzing"]] == list(faults.READERS)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    path = timing.write("faults", result)
    assert json.loads(path.read_text()) == result
    shown = readme.faults()
    assert "| `cpu` | 3 | 1 | 2 | 0 |" in shown
    assert "| csv | 2,002 | 40 | 1,962 | 0.25 s | 123 MB |" in shown


def test_a_command_that_fails_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match=r"kills\.py --device tpu: .*(?s:.*)invalid choice"):
        faults._run(["kills.py", "--device", "tpu"])
