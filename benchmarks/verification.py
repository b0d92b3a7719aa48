"""What the tool itself costs an annotator, in a real browser on a real Label Studio.

``python -m benchmarks.verification [--json OUT] [--pages 100]``. A scripted annotator answers pages of 20 crops,
one in ten wrong, without looking; beside that, the same crops one a task. Turnaround: from the key that submits
until the next page's crops are seen. The tool's time: that, and until each mark is seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pycocotools import mask as coco
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ls_propagate.demo.browser import log_in, open_browser, open_label_stream
from ls_propagate.demo.server import Server, label_studio
from plugin.crops import Crop, draw_crop, render_crops
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import HOTKEYS, KEYS, Question, config_of, page_task, read_answer, settings_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

WRONG = 0.1  # share of the masks
MOST_ALONE = 200  # crops that are asked one a task
WANTED = {"tool_ms_a_question": 50.0, "turnaround_s_median": 0.6, "keys_a_question": 0.2}
_MARKED = "count => document.querySelectorAll('.crops input:checked').length === count"
_SHOWN = """name => {
    const page = document.querySelector('.meta'), crops = [...document.querySelectorAll('.crops img')];
    return page !== null && page.textContent.includes(name) && crops.length > 0
        && crops.every(crop => crop.complete && crop.naturalWidth > 0);
}"""


@dataclass(frozen=True)
class Measured:
    """One run: what was answered, and what the tool cost."""

    crops_a_task: int
    tasks: int
    questions: int
    keys_a_question: float
    tool_ms_a_question: float
    turnaround_s_median: float
    turnaround_s_95: float
    answers_as_meant: bool


def draw(rng: np.random.Generator) -> Crop:
    """A disc on noise, outlined."""
    noise = rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)
    pixels = np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), dtype=np.uint8)
    radius = int(rng.integers(8, 14))
    cv2.circle(pixels, (32, 32), radius, (220, 220, 220), -1)
    mask = cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), radius, 1, -1)
    return draw_crop(pixels, coco.encode(np.asfortranarray(mask)))


def answer_all(page: Page, names: list[str], wrong: list[list[int]]) -> tuple[list[float], float]:
    """Mark what is wrong on page after page and submit; seconds of each turnaround, and of all marks together."""
    turns: list[float] = []
    marking = 0.0
    for place, marks in enumerate(wrong):
        begin = time.perf_counter()
        for count, mark in enumerate(marks, 1):
            page.keyboard.press(KEYS[mark])
            page.wait_for_function(_MARKED, arg=count, polling=5)
        marked = time.perf_counter()
        marking += marked - begin
        page.keyboard.press("Space")
        if place + 1 < len(names):
            page.wait_for_function(_SHOWN, arg=names[place + 1], polling=5)
        else:
            page.get_by_text("No More Tasks Left").wait_for()
        turns.append(time.perf_counter() - marked)
    return turns, marking


def measure(server: Server, gateway: LabelStudioGateway, a_task: int, tasks: int) -> Measured:
    """Have tasks of so many crops answered."""
    rng = np.random.default_rng(0)
    holder = files("plugin.label_studio").joinpath("configs/crops.xml").read_text(encoding="utf-8")
    crops = gateway.create_project("benchmark: crops", holder, "", {}).id
    verify = gateway.create_project("benchmark: pages", config_of("page"), "", settings_of("page")).id
    drawn = [draw(rng) for _ in range(a_task * tasks)]
    ids = [f"{number:020x}" for number in range(len(drawn))]
    right = rng.permutation(len(ids)) >= round(WRONG * len(ids))
    names = [f"page-{place:05}" for place in range(tasks)]
    spans = [slice(place * a_task, (place + 1) * a_task) for place in range(tasks)]
    sheets = [(f"{name}.jpg", render_crops(drawn[span])) for name, span in zip(names, spans, strict=True)]
    pages = zip(names, spans, gateway.upload(crops, sheets), strict=True)
    gateway.import_tasks(
        verify,
        [page_task(name, "disc", [Question(mask, url) for mask in ids[span]]) for name, span, url in pages],
    )
    with open_browser() as page:
        log_in(page, server.url, server.email, server.password)
        open_label_stream(page, server.url, verify)
        page.wait_for_function(_SHOWN, arg=names[0])
        turns, marking = answer_all(page, names, [np.flatnonzero(~right[span]).tolist() for span in spans])
    said: dict[str, str] = {}
    for task, span in zip(gateway.tasks(verify, ["data", "annotations", "result"]), spans, strict=True):
        said.update(read_answer(task["data"]["page"], ids[span], task["annotations"][0]))
    return Measured(
        a_task,
        tasks,
        len(ids),
        (int((~right).sum()) + tasks) / len(ids),
        round(1000 * (sum(turns) + marking) / len(ids), 1),
        round(float(np.median(turns)), 3),
        round(float(np.quantile(turns, 0.95)), 3),
        [said[mask] == "yes" for mask in ids] == right.tolist(),
    )


def main() -> None:
    """Measure both, print them, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--pages", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, label_studio(Path(folder)) as server:
        gateway = LabelStudioGateway(server.url, server.token)
        gateway.set_hotkeys(HOTKEYS)
        runs = [
            measure(server, gateway, len(KEYS), given.pages),
            measure(server, gateway, 1, min(len(KEYS) * given.pages, MOST_ALONE)),
        ]
        gateway.close()
    table = Table(title="What the tool costs, on top of the looking", box=SIMPLE)
    for name in ("crops a task", "questions", "keys a question", "ms a question", "turnaround, s", "95 of 100, s"):
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(
            str(run.crops_a_task),
            str(run.questions),
            f"{run.keys_a_question:.3f}",
            f"{run.tool_ms_a_question:.1f}",
            f"{run.turnaround_s_median:.3f}",
            f"{run.turnaround_s_95:.3f}",
        )
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({"wanted": WANTED, "runs": [asdict(run) for run in runs]}, indent=1))
    missed = [name for name, most in WANTED.items() if asdict(runs[0])[name] >= most]
    if missed or not all(run.answers_as_meant for run in runs):
        raise SystemExit(f"not as wanted: {', '.join(missed) or 'answers differ from what was pressed'}")


if __name__ == "__main__":
    main()
