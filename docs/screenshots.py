"""Makes the screenshots of the docs: a small campaign on generated scenes, looked at as people would.

python docs/screenshots.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ls_propagate import pipeline
from ls_propagate.demo.annotator import Annotator
from ls_propagate.demo.browser import close_popups, log_in, open_browser, open_label_stream, wait_for_picture
from ls_propagate.demo.dataset import read_dataset
from ls_propagate.demo.run import ANNOTATOR, Demo, answered, demo_settings, source_project
from ls_propagate.demo.scenes import make_scenes
from ls_propagate.demo.server import label_studio, new_user
from ls_propagate.simulation import trees_of
from plugin.board import render
from plugin.label_studio.gateway import Gateway
from plugin.label_studio.pages import Ask, config_of, settings_of
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign, PageState
from propagation.events import CampaignStarted, Event, PageAnswered, PageIssued, PagePosted
from propagation.masks import MaskTable
from propagation.paper import PaperStrategy
from propagation.progress import History, Terms
from propagation.quality import RIGHT_IOU, truth_iou
from sync.board import Place, described
from sync.pages import VerifyProjects, post_pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from sync.daemon import Daemon

FINE_IOU = 0.85  # what a careful eye calls right


def shoot_page(page: Page, url: str, project: int, fine: dict[str, bool], out: Path) -> None:
    """page.png, a page as it comes, and page-marked.png, with its wrong crops marked and two unsure."""
    open_label_stream(page, url, project)
    page.screenshot(path=out / "page.png")
    choices = page.locator(".crops input")
    masks = choices.evaluate_all("inputs => inputs.map(input => input.name || input.value)")
    wrong = [place for place, mask in enumerate(masks) if not fine[mask]]
    for place in wrong:
        page.locator(".crops img").nth(place).click()
    for place in [place for place in range(len(masks)) if place not in wrong][1:7:5]:
        page.locator(".unsure kbd").nth(place).click()
    page.mouse.move(5, 5)
    page.wait_for_function(f"document.querySelectorAll('.crops input:checked').length === {len(wrong)}")
    page.screenshot(path=out / "page-marked.png")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('.crops input:checked').length === 0")


def shoot_one_by_one(
    page: Page, gateway: Gateway, daemon: Daemon, locations: dict[str, str], asked: PageState, ask: Ask, out: Path
) -> None:
    """single.png or context.png, the second mask of a page that is asked one by one."""
    verify = gateway.create_project(f"Demo: {ask}", config_of(ask), "", settings_of(ask)).id
    projects = VerifyProjects(verify, daemon.verify.crops, ask, daemon.verify.examples)
    post_pages(gateway, projects, daemon.campaign.table, [asked], locations, lambda posted: None)
    page.goto(f"{gateway.url}/projects/{verify}/data?labeling=1")
    wait_for_picture(page)
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    page.wait_for_load_state("networkidle")
    wait_for_picture(page)
    page.wait_for_timeout(1000)
    page.screenshot(path=out / f"{ask}.png")


def shoot_propagated(page: Page, url: str, daemon: Daemon, out: Path) -> None:
    """propagated.png, the source image with the most propagated masks."""
    tasks = [task.task for task in daemon.store.source_tasks()]
    task = max(tasks, key=lambda number: len(daemon.campaign.standing(number)))
    page.goto(f"{url}/projects/{daemon.source.project}/data?task={task}")
    page.wait_for_selector(".konvajs-content canvas")
    page.wait_for_load_state("networkidle")
    close_popups(page)
    page.screenshot(path=out / "propagated.png")


def answered_board(table: MaskTable, right: NDArray[np.bool_]) -> dict[str, Any]:
    """The progress board's document, halfway through a campaign with three simulated annotators."""
    history = History(Campaign(table, trees_of(table), CalibratedStrategy(budget=900, pages_a_round=2)))
    campaign, at = history.campaign, datetime(2026, 11, 2, 8, tzinfo=UTC)
    rng = np.random.default_rng(0)
    people = {2: "Ada Lovelace", 3: "Grace Hopper", 4: "Katherine Johnson"}

    def take(event: Event) -> None:
        history.take(event, at)
        campaign.apply(event)

    take(CampaignStarted("3f1c9ab27d40", {}, "", ""))
    while True:
        for choice in campaign.decisions():
            take(choice)
        pages = []
        for event in campaign.next_round():
            if isinstance(event, PageIssued):
                pages.append(event)
            else:
                take(event)
        for page in pages:
            take(page)
            take(PagePosted(page.page, 100 + len(campaign.page_of)))
        if not pages or (campaign.verdict >= 0).sum() >= 430:
            break
        for state in campaign.waiting_pages:
            at += timedelta(minutes=rng.exponential(9))
            by = int(rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2]))
            seconds = len(state.rows) * (0.9 + by / 5) * rng.uniform(0.8, 1.3)
            said = tuple("yes" if yes else "no" for yes in right[state.rows].tolist())
            take(PageAnswered(state.issued.page, state.task or 0, at.isoformat(), by, seconds, said))
    terms = Terms(hour_cost=28.0, currency="€", masks_wanted=round(0.9 * int((right & table.best).sum())))
    return described(history, terms, Place("http://localhost:8080", 1, "Handwritten digits", 2, {}, people), at)


def shoot_board(page: Page, document: dict[str, Any], data: Path, out: Path) -> None:
    """board.png, board-dark.png and board-phone.png: the progress board."""
    file = data / "board.html"
    file.write_text(render.file(document), "utf-8")
    shots = (("board", "light", 1280, 1320), ("board-dark", "dark", 1280, 0), ("board-phone", "light", 375, 0))
    for name, scheme, width, height in shots:  # without a height, all of it
        page.set_viewport_size({"width": width, "height": height or 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(file.as_uri())
        page.screenshot(path=out / f"{name}.png", full_page=not height)


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
                asked = min(daemon.campaign.waiting_pages, key=lambda each: each.task or 0)
                shoot_page(page, server.url, connection.pages, fine, out)
                locations = {task.image: task.location for task in store.source_tasks()}
                for ask in ("single", "context"):
                    shoot_one_by_one(page, gateway, daemon, locations, asked, ask, out)
                answered(daemon, Annotator(client, connection.pages, right))
                shoot_propagated(page, server.url, daemon, out)
                shoot_board(page, answered_board(table, iou > RIGHT_IOU), data, out)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if sys.argv[1:] else "docs/images"), Path(folder))
