"""The progress board in a real browser: reached by everybody, kept up to date, and leading into Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from ls_propagate.demo.browser import log_in, open_browser
from ls_propagate.demo.server import Server
from plugin.board import render
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.views import task_url
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.events import CampaignStarted, Decided, GoldAnswered, PageAnswered, PageIssued, PagePosted
from propagation.masks import MaskTable
from propagation.progress import History, Terms
from propagation.tree import ClusterTree, tree_from_linkage
from sync.board import Board, Place, described
from sync.daemon import Step
from sync.monitor import Monitor
from sync.server import create_app, serve
from sync.store import Hint

BEGIN = datetime(2026, 11, 2, 8, tzinfo=UTC)
PLACE = Place("http://127.0.0.1:9", 1, "Street <scenes>", 2, {}, {1: "Ada Lovelace", 2: "Grace Hopper"})
TERMS = Terms(hour_cost=28.0, currency="€", masks_wanted=1500)
CONFIG = (
    '<View><Text name="text" value="$text"/><Choices name="c" toName="text"><Choice value="a"/></Choices></View>'
)
VIEWS = [("light", 1280), ("dark", 1280), ("light", 375), ("dark", 375)]


class Nobody:
    """An inbox that nothing comes to."""

    def notice(self, hint: Hint) -> None: ...


class Played:
    """A campaign of two categories that is answered page by page, as scores tell."""

    def __init__(self, masks: int = 3000) -> None:
        rng = np.random.default_rng(1)
        self.right = rng.random(masks) < 0.67
        score = np.clip(np.where(self.right, 0.75, 0.45) + 0.12 * rng.standard_normal(masks), 0.01, 0.99)
        counts = np.full(masks, b"0", dtype=object)
        table = MaskTable(
            ids=np.array([f"{row:020x}" for row in range(masks)]),
            images=np.array([f"{row}.png" for row in range(masks // 10)]),
            image=np.arange(masks, dtype=np.int32) % (masks // 10),
            categories=("car", "traffic sign"),
            category=(np.arange(masks) % 3 == 0).astype(np.int32),
            score=score.astype(np.float32),
            box=np.tile(np.array([10, 10, 30, 30], dtype=np.float32), (masks, 1)),
            area=np.full(masks, 900, dtype=np.int32),
            size=np.full((masks, 2), 600, dtype=np.int32),
            counts=counts,
            best=np.ones(masks, dtype=bool),
            model_version="browser",
        )
        trees = [self._tree(table, place) for place in (0, 1)]
        self.history = History(Campaign(table, trees, CalibratedStrategy(budget=900)))
        self.at = BEGIN
        self.take(CampaignStarted("c0ffee", {}, "", ""))

    @staticmethod
    def _tree(table: MaskTable, place: int) -> ClusterTree:
        import fastcluster

        rows = np.flatnonzero(table.category == place)
        return tree_from_linkage(
            table.categories[place], rows, fastcluster.linkage(table.score[rows, None].astype(float), "ward")
        )

    def take(self, event: Any) -> None:
        self.history.take(event, self.at)
        self.history.campaign.apply(event)

    def answer(self, questions: int) -> None:
        """Go on until so many more are answered, and further pages wait."""
        campaign = self.history.campaign
        goal = int((campaign.verdict >= 0).sum()) + questions
        while True:
            for event in chain(campaign.decisions(), campaign.next_round()):
                self.take(event)
            for page in campaign.unposted_pages:
                self.take(PagePosted(page.issued.page, 100 + len(campaign.page_of)))
            for page in campaign.waiting_pages:
                if (campaign.verdict >= 0).sum() >= goal:
                    return
                self.at += timedelta(minutes=7)
                said = tuple("yes" if right else "no" for right in self.right[page.rows])
                by, seconds = 1 + len(campaign.page_of) % 2, 1.7 * len(said)
                assert page.task is not None
                self.take(PageAnswered(page.issued.page, page.task, self.at.isoformat(), by, seconds, said))


@contextmanager
def served(board: Board) -> Iterator[str]:
    monitor = Monitor()
    monitor.began()
    monitor.passed(Step(), 0.1)
    made = serve(create_app(Nobody(), monitor, lambda: None, None, None, board), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{made.port}"
    finally:
        made.close()


@pytest.fixture(scope="module")
def played() -> Played:
    played = Played()
    played.answer(500)
    played.take(GoldAnswered(40, 2, 80, 3))
    return played


@pytest.fixture
def board(played: Played) -> Board:
    board = Board(TERMS, clock=lambda: 0.0)
    board.look(played.history, lambda: PLACE)
    return board


@pytest.fixture
def page() -> Iterator[Any]:
    """A browser that takes down what went wrong in it."""
    with open_browser() as page:
        errors: list[str] = []
        page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        assert errors == []


def violations(page: Any) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_nobody_is_kept_out(page: Any, board: Board, scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    with served(board) as url:
        page.goto(f"{url}/board")
        page.get_by_text("Up to date.").wait_for()
        for details in page.locator("details").all():
            details.evaluate("one => one.open = true")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = "narrow" if width < 640 else "wide"
        assert all(chart.is_visible() for chart in page.locator(f".chart.{shown}").all())


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_the_file_is_whole_without_script_or_network(
    played: Played, tmp_path: Path, scheme: str, width: int
) -> None:
    file = tmp_path / "board.html"
    file.write_text(render.file(described(played.history, TERMS, PLACE, played.at)), "utf-8")
    with open_browser() as opened:
        browser = opened.context.browser
        assert browser is not None
        context = browser.new_context(java_script_enabled=False, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert page.get_by_role("heading", name="Street <scenes>").is_visible()
        assert page.get_by_text("with 95% confidence at least 85%").is_visible()
        page.get_by_text("Both charts as a table").click()
        assert page.get_by_role("columnheader", name="masks accepted").is_visible()
        assert asked == [file.as_uri()]
        context.close()
        opened.goto(file.as_uri())
        opened.emulate_media(color_scheme=scheme)
        opened.set_viewport_size({"width": width, "height": 900})
        assert violations(opened) == []


def test_it_keeps_itself_up_to_date_and_what_the_reader_opened(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    board, played = Board(TERMS, clock=lambda: clock[0]), Played()
    played.answer(100)
    board.look(played.history, lambda: PLACE)
    page.clock.install()
    with served(board) as url:
        page.goto(f"{url}/board")
        page.get_by_text("Up to date.").wait_for()
        summary = page.get_by_text("Both charts as a table")
        summary.click()
        summary.focus()
        before = page.locator(".card.lead strong").inner_text()
        answered = page.locator(".card").nth(1).locator("strong")
        assert answered.inner_text() == "100"
        played.answer(300)
        clock[0] += 1000
        board.look(played.history, lambda: PLACE)
        page.clock.fast_forward(6000)
        expect(answered).not_to_have_text("100")
        assert answered.inner_text() == f"{int((played.history.campaign.verdict >= 0).sum()):,}"
        assert page.locator("#progress details").first.evaluate("one => one.open")
        assert page.evaluate("document.activeElement.textContent") == "Both charts as a table"
        assert before == "0"
        page.get_by_role("button", name="Pause updates").click()
        assert page.get_by_role("button", pressed=True).is_visible()
        paused = answered.inner_text()
        played.answer(100)
        clock[0] += 1000
        board.look(played.history, lambda: PLACE)
        page.clock.fast_forward(6000)
        assert answered.inner_text() == paused


def test_it_says_when_the_daemon_is_gone(board: Board) -> None:
    with open_browser() as page:
        page.clock.install()
        with served(board) as url:
            page.goto(f"{url}/board")
            page.get_by_text("Up to date.").wait_for()
        page.clock.fast_forward(6000)
        page.get_by_text("No connection to the daemon").wait_for()
        assert page.locator(".card.lead strong").is_visible()


def test_it_is_read_by_keyboard(page: Any, board: Board) -> None:
    with served(board) as url:
        page.goto(f"{url}/board")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the figures"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "figures"
        reached = set()
        for _ in range(150):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.outerHTML"))
        wanted = page.locator("main :is(a, summary, .scroll):visible").evaluate_all(
            "all => all.map(one => one.outerHTML)"
        )
        assert set(wanted) <= reached


#: What a card of the cluster board and a page's task say, both in one.
ALPHA = {"text": "alpha", "cluster": "car/70", "category": "car", "tab": "rejected",
         "state": "rejected by command",
         "question": "Which of these are NOT a correctly outlined “car”?"}  # fmt: skip
OMEGA = {"text": "omega", "cluster": "traffic sign/9", "category": "traffic sign", "tab": "open", "state": "open",
         "question": "Which of these are NOT a correctly outlined “traffic sign”?"}  # fmt: skip


def test_figures_lead_to_views_of_label_studio(label_studio: Server) -> None:
    gateway = LabelStudioGateway(label_studio.url, label_studio.token)
    project = gateway.create_project("board test", CONFIG, "", {}).id
    first, _ = gateway.import_tasks(project, [{"data": data} for data in (ALPHA, OMEGA)])
    result = [{"from_name": "c", "to_name": "text", "type": "choices", "value": {"choices": ["a"]}}]
    assert gateway.answer("POST", f"api/tasks/{first}/annotations/", json={"result": result}).is_success
    me = gateway.user().id
    gateway.close()
    history = Played(60).history
    # one project is all of them
    place = Place(label_studio.url, project, "board test", project, {"car": "a", "traffic sign": "b"}, {}, project)
    history.campaign.apply(PageIssued("p", 1, "car", (str(history.campaign.table.ids[1]),), ("car/70",)))
    history.campaign.apply(PagePosted("p", first))
    history.campaign.apply(PageAnswered("p", 1, "now", me, 2.0, ("yes",)))
    history.campaign.apply(Decided("car/70", "reject", 1, 0))
    document = described(history, TERMS, place, BEGIN)
    links = document["links"]
    car, sign = links["categories"]["car"], links["categories"]["traffic sign"]
    ((cluster,),) = (state["largest"] for state in document["clusters"]["states"])
    with open_browser() as page:
        log_in(page, label_studio.url, label_studio.email, label_studio.password)
        for url, count, text in (
            (links["source"], 2, "alpha"),
            (links["annotated"], 1, "alpha"),
            (links["answered"], 1, "alpha"),
            (links["waiting"], 1, "omega"),
            (links["rejected"], 1, "alpha"),
            (links["open"], 1, "omega"),
            (links["states"]["rejected"], 1, "alpha"),
            (car["accepted"], 1, "alpha"),
            (car["questions"], 1, "alpha"),
            (car["rejected"], 1, "alpha"),
            (car["open"], 0, ""),
            (sign["accepted"], 0, ""),
            (sign["questions"], 1, "omega"),
            (sign["rejected"], 0, ""),
            (sign["open"], 1, "omega"),
            (cluster["links"]["card"], 1, "alpha"),
            (document["annotators"][0]["link"], 1, "alpha"),
        ):
            page.goto("about:blank")
            page.goto(url)
            page.get_by_text(f"Tasks: {count} / 2").wait_for()
            if text:
                page.get_by_text(text, exact=True).first.wait_for()
        page.goto(task_url(label_studio.url, project, first))
        page.get_by_text("alpha", exact=True).first.wait_for()
