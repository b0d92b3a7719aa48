"""Makes the screenshots of the docs: a small campaign on generated scenes, looked at as people would.

python docs/screenshots.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ls_propagate import pipeline
from ls_propagate.demo.annotator import Annotator
from ls_propagate.demo.browser import close_popups, log_in, open_browser, open_label_stream
from ls_propagate.demo.dataset import read_dataset
from ls_propagate.demo.run import ANNOTATOR, Demo, answered, demo_settings, source_project
from ls_propagate.demo.scenes import make_scenes
from ls_propagate.demo.server import label_studio, new_user
from propagation.paper import PaperStrategy
from propagation.quality import RIGHT_IOU, truth_iou

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from sync.daemon import Daemon

FINE_IOU = 0.85  # what a careful eye calls right


def shoot_page(page: Page, url: str, project: int, fine: dict[str, bool], out: Path) -> None:
    """page.png, a page as it comes, and page-marked.png, with its wrong crops marked."""
    open_label_stream(page, url, project)
    page.screenshot(path=out / "page.png")
    choices = page.locator(".grid input")
    masks = choices.evaluate_all("inputs => inputs.map(input => input.name || input.value)")
    wrong = [place for place, mask in enumerate(masks) if not fine[mask]]
    for place in wrong:
        page.locator(".grid img").nth(place).click()
    page.mouse.move(5, 5)
    page.wait_for_function(f"document.querySelectorAll('.grid input:checked').length === {len(wrong)}")
    page.screenshot(path=out / "page-marked.png")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('.grid input:checked').length === 0")


def shoot_propagated(page: Page, url: str, daemon: Daemon, out: Path) -> None:
    """propagated.png, the source image with the most propagated masks."""
    task = max(daemon.campaign.written, key=lambda number: len(daemon.campaign.written[number]))
    page.goto(f"{url}/projects/{daemon.source.project}/data?task={task}")
    page.wait_for_selector(".konvajs-content canvas")
    page.wait_for_load_state("networkidle")
    close_popups(page)
    page.screenshot(path=out / "propagated.png")


def main(out: Path, data: Path) -> None:
    """Run the campaign and shoot."""
    out.mkdir(parents=True, exist_ok=True)
    make_scenes(data / "scenes", images=160)
    dataset = read_dataset(data / "scenes")
    with label_studio(data / "label-studio") as server:
        settings = demo_settings(Demo(data), dataset, server)
        # a full page, with wrong masks on it
        chosen = PaperStrategy(samples=20, split_below=0.5)
        settings = settings.model_copy(update={"strategy": chosen})
        with pipeline.open_store(settings) as store, pipeline.open_gateway(settings) as gateway:
            project = source_project(gateway, dataset, data)
            connection = pipeline.connect(gateway, store, str(project.number))
            table, _ = pipeline.detect(gateway, store, settings)
            pipeline.cluster(gateway, store, settings)
            daemon = pipeline.open_daemon(gateway, store, settings)
            daemon.step()
            iou = truth_iou(table, project.truth)
            right = dict(zip(table.ids.tolist(), (iou > RIGHT_IOU).tolist(), strict=True))
            fine = dict(zip(table.ids.tolist(), (iou > FINE_IOU).tolist(), strict=True))
            known = pipeline.load_gold(store, settings)
            right, fine = ({**judged, **(known.truth if known else {})} for judged in (right, fine))
            with closing(new_user(server, *ANNOTATOR)) as client, open_browser() as page:
                log_in(page, server.url, *ANNOTATOR)
                shoot_page(page, server.url, connection.pages, fine, out)
                answered(daemon, Annotator(client, connection.pages, right))
                shoot_propagated(page, server.url, daemon, out)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if sys.argv[1:] else "docs/images"), Path(folder))
