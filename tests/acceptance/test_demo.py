"""The demo as a newcomer runs it, on fewer scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).parent / "ls-propagate")


def run_demo(folder: Path) -> dict[str, Any]:
    report = folder / "report.json"
    words = ["demo", "--data", str(folder / "demo"), "--images", "100", "--budget", "300", "--report", str(report)]
    run = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "What came of it" in run.stdout
    made: dict[str, Any] = json.loads(report.read_text())
    return made


def test_the_demo_does_the_whole_job_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    first = run_demo(tmp_path)
    *categories, total = first["rows"]
    assert len(categories) == 10
    assert total["masks"] == total["outdone"] + total["accepted"] + total["rejected"] + total["open"]
    assert total["masks"] > 1000
    assert 0 < total["questions"] <= 300
    assert total["accepted"] > total["questions"]
    assert total["precision"] >= 0.85
    assert first["claim"] == "promise"
    assert first["label_studio"]["propagated_masks"] == total["accepted"]
    assert first["regions_equal_accepted"]
    assert first["least_region_iou"] >= 0.98
    assert first["second_run_changed_nothing"]
    assert first["label_studio"]["tasks"] == 100

    second = run_demo(tmp_path)
    for name in ("rows", "label_studio", "questions_asked"):
        assert second[name] == first[name]
