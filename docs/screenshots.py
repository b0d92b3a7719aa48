"""Makes the screenshots of the docs: a small campaign on generated scenes, looked at as people would.

python -m docs.screenshots [FOLDER]
"""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.campaign import million
from benchmarks.memory import written
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
from plugin.label_studio.pages import KEYS, Ask, config_of, settings_of
from plugin.label_studio.views import project_url, task_url
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign, PageState
from propagation.events import CampaignStarted, Event, PageAnswered, PagePosted
from propagation.gold import Checks, GoldPool
from propagation.paper import PaperStrategy
from propagation.progress import History, Terms
from propagation.quality import RIGHT_IOU, truth_iou
from sync.board import Place, described
from sync.pages import VerifyProjects, post_pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from sync.daemon import Daemon

FINE_IOU = 0.85  # what a careful eye calls right
LARGEST = 250_000  # bytes of a picture, for which colours are given up
ROUNDS = 1  # of questions that are answered when the cluster board is looked at
#: Who answers on the progress board: a name, the share of wrong masks missed, of right ones marked, of the pages.
PEOPLE = {
    2: ("Ada Lovelace", 0.01, 0.01, 0.5),
    3: ("Grace Hopper", 0.02, 0.02, 0.3),
    4: ("Bo Hasty", 0.4, 0.02, 0.2),
}
MASKS, QUESTIONS, BUDGET = 40_000, 1300, 3000  # of the progress board; questions answered of the budget


@dataclass(frozen=True)
class Camera:
    """A browser's page, and the folder of its pictures."""

    page: Page
    out: Path

    def shoot(self, name: str, part: str | None = None) -> None:
        """Write what the page shows, or a part of it, as NAME.png, in as many colours as make it a small file."""
        shot = self.page.locator(part).screenshot() if part else self.page.screenshot()
        picture = Image.open(io.BytesIO(shot)).convert("RGB")
        file = self.out / f"{name}.png"
        for colours in (256, 192, 128, 64):
            picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=3).save(file, optimize=True)
            if file.stat().st_size <= LARGEST:
                return

    def shoot_editor(self, url: str, name: str) -> None:
        """A task of Label Studio, once the image in its editor is drawn."""
        self.page.goto(url)
        self.page.wait_for_selector(".konvajs-content canvas")
        self.page.wait_for_load_state("networkidle")
        close_popups(self.page)
        self.shoot(name)


def shoot_page(camera: Camera, url: str, project: int, asked: PageState, fine: dict[str, bool]) -> None:
    """page.png, a page as it comes, and page-marked.png, with its wrong crops marked and two unsure."""
    page = camera.page
    open_label_stream(page, url, project)
    camera.shoot("page")
    wrong = [key for key, mask in zip(KEYS, asked.shown, strict=False) if not fine[mask]]
    unsure = [key for key in KEYS[: len(asked.shown)] if key not in wrong][1:7:5]
    for key in [*wrong, *(f"Shift+{key.upper()}" for key in unsure)]:
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    camera.shoot("page-marked")
    with page.expect_response(lambda answer: answer.request.method == "POST" and "/annotations" in answer.url):
        page.keyboard.press("Space")


def shoot_one_by_one(
    camera: Camera, gateway: Gateway, daemon: Daemon, known: pipeline.KnownMasks, asked: PageState, ask: Ask
) -> None:
    """single.png or context.png, the second mask of a page that is asked one by one."""
    page = camera.page
    verify = gateway.create_project(f"Demo: {ask}", config_of(ask), "", settings_of(ask)).id
    projects = VerifyProjects(verify, daemon.verify.crops, ask, daemon.verify.examples)
    locations = {**known.locations, **{task.image: task.location for task in daemon.store.source_tasks()}}
    post_pages(gateway, projects, daemon.campaign.table, [asked], locations, lambda posted: None, known.table)
    page.goto(f"{gateway.url}/projects/{verify}/data?labeling=1")
    wait_for_picture(page)
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    page.wait_for_load_state("networkidle")
    wait_for_picture(page)
    page.wait_for_timeout(1000)
    camera.shoot(ask)


def shoot_propagated(camera: Camera, url: str, daemon: Daemon) -> None:
    """propagated.png, the source image with the most propagated masks."""
    tasks = [task.task for task in daemon.store.source_tasks()]
    task = max(tasks, key=lambda number: len(daemon.campaign.standing(number)))
    camera.shoot_editor(task_url(url, daemon.source.project, task), "propagated")


def shoot_source(camera: Camera, url: str, project: int) -> None:
    """source.png, the source project's tabs, and progress.png, the picture in its instructions."""
    page = camera.page
    page.goto(project_url(url, project))
    page.get_by_text("Propagated").first.click()
    page.get_by_text("Tasks: ").first.wait_for()
    page.wait_for_load_state("networkidle")
    camera.shoot("source")
    page.goto(f"{project_url(url, project)}?labeling=1")
    page.get_by_text("Instructions").first.click()
    page.locator("img[src*=propagate-progress]").wait_for()
    page.wait_for_load_state("networkidle")
    camera.shoot("progress")


def shoot_clusters(camera: Camera, gateway: Gateway, daemon: Daemon, board: int) -> None:
    """clusters.png, the cluster board with its tabs, and cluster.png, a card: the largest cluster still open."""
    page = camera.page
    before, cards = None, [task["data"] for task in gateway.tasks(board, ["data"])]
    while cards != before:  # a few are added and changed in each pass
        daemon.step()
        before, cards = cards, [task["data"] for task in gateway.tasks(board, ["data"])]
    page.goto(project_url(gateway.url, board))
    page.get_by_text("Tasks: ").first.wait_for()
    page.wait_for_load_state("networkidle")
    camera.shoot("clusters")
    open_ones = [task for task in gateway.tasks(board, ["data"]) if task["data"]["tab"] == "open"]
    largest = max(open_ones, key=lambda task: task["data"]["size"])
    camera.shoot_editor(task_url(gateway.url, board, largest["id"]), "cluster")


def shoot_drawing(camera: Camera, address: str) -> None:
    """drawing.png, an object that an expert is to outline, to measure the quality."""
    camera.shoot_editor(address, "drawing")


def shoot_board(camera: Camera, document: dict[str, Any], data: Path) -> None:
    """board.png, board-dark.png and board-phone.png: the progress board; annotators.png, its last table."""
    page, file = camera.page, data / "board.html"
    file.write_text(render.file(document), "utf-8")
    for name, scheme, width in (
        ("board", "light", 1280),
        ("board-dark", "dark", 1280),
        ("board-phone", "light", 375),
    ):
        page.set_viewport_size({"width": width, "height": 1100})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(file.as_uri())
        camera.shoot(name)
        if name == "board":
            camera.shoot("annotators", "#annotators")


def answered_board() -> dict[str, Any]:
    """The progress board's document halfway through a campaign, with simulated annotators, one of them hasty."""
    rng = np.random.default_rng(0)
    made, right = million(MASKS)
    table = replace(made, categories=("car", "person", "traffic sign", "bicycle"))
    some = rng.choice(len(table), len(table) // 10, replace=False)
    categories = np.array(table.categories)[table.category]
    gold = GoldPool(np.char.add("gold ", table.ids[some].astype(str)), categories[some], right[some])
    truth = dict(zip([*table.ids.tolist(), *gold.ids.tolist()], [*right, *gold.right], strict=True))
    checks = Checks(gold, overlap=0.1)
    history = History(Campaign(table, trees_of(table), CalibratedStrategy(budget=BUDGET, rates="gold"), checks))
    campaign, at = history.campaign, datetime(2026, 11, 2, 8, tzinfo=UTC)

    def take(event: Event) -> None:
        history.take(event, at)
        campaign.apply(event)

    take(CampaignStarted("3f1c9ab27d40", {}, "", "", "gold"))
    while True:
        for event in chain(campaign.decisions(), campaign.next_round()):
            take(event)
        asked = campaign.unposted_pages
        for page in asked:
            take(PagePosted(page.issued.page, 100 + len(campaign.page_of)))
        if not asked or (campaign.verdict >= 0).sum() >= QUESTIONS:
            break
        for page in asked:
            at += timedelta(minutes=rng.exponential(4))
            take(_answer(page, truth, rng, at))
    for event in written(campaign):
        take(event)
    terms = Terms(hour_cost=28.0, currency="€", masks_wanted=round(0.88 * int(right.sum())))
    people = {number: name for number, (name, *_) in PEOPLE.items()}
    place = Place("http://localhost:8080", 1, "Street scenes", 2, {}, people, 3)
    return described(history, terms, place, at)


def _answer(page: PageState, truth: dict[str, bool], rng: np.random.Generator, at: datetime) -> PageAnswered:
    """The answer of somebody who has not seen its questions."""
    seen = {other.check.by for other in page.asked.pages if other.check}
    free = [number for number in PEOPLE if number not in seen] or list(PEOPLE)
    shares = np.array([PEOPLE[number][3] for number in free])
    by = int(rng.choice(free, p=shares / shares.sum()))
    _, miss, false_alarm, _ = PEOPLE[by]
    right = np.array([truth[mask] for mask in page.shown])
    says = right ^ (rng.random(len(right)) < np.where(right, false_alarm, miss))
    seconds = len(right) * (1.9 - by / 5) * rng.uniform(0.8, 1.3)
    said = tuple("yes" if yes else "no" for yes in says.tolist())
    return PageAnswered(page.issued.page, page.task or 0, at.isoformat(), by, seconds, said)


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
            assert known is not None
            right, fine = ({**judged, **known.truth} for judged in (right, fine))
            with closing(new_user(server, *ANNOTATOR)) as client, open_browser() as page:
                camera = Camera(page, out)
                log_in(page, server.url, *ANNOTATOR)
                asked = min(daemon.campaign.waiting_pages, key=lambda each: each.task or 0)
                shoot_page(camera, server.url, connection.pages, asked, fine)
                for ask in ("single", "context"):
                    shoot_one_by_one(camera, gateway, daemon, known, asked, ask)
                annotator = Annotator(client, connection.pages, right)
                for _ in range(ROUNDS):
                    while annotator.answer_next():
                        pass
                    daemon.step()
                assert connection.board is not None
                shoot_clusters(camera, gateway, daemon, connection.board)
                answered(daemon, annotator)
                shoot_propagated(camera, server.url, daemon)
                pipeline.open_overview(gateway, store, settings).make(daemon.history)
                shoot_source(camera, server.url, connection.project)
                shoot_drawing(camera, pipeline.quality(gateway, store, settings, 5)["address"])
                shoot_board(camera, answered_board(), data)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if sys.argv[1:] else "docs/images"), Path(folder))
