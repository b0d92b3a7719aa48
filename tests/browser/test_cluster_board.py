"""The cluster board in a real browser on a real Label Studio: from each command to what it brings about."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco

from ls_propagate import pipeline
from ls_propagate.demo.browser import close_popups, log_in, open_browser
from ls_propagate.demo.run import labeling_config
from ls_propagate.demo.server import Server, new_user
from ls_propagate.settings import Settings, load_settings
from plugin.label_studio.clusters import COMMANDS
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import masks_of
from plugin.label_studio.regions import META
from plugin.label_studio.views import project_url, task_url
from propagation.campaign import NO, YES
from propagation.summary import statement
from sync.daemon import Daemon

CATEGORY = '<b>disc</b> & "ball" $facts'
MANAGER = ("manager@example.com", "look-closely-7")
IMAGES, SIDE, CELL = 6, 192, 48
# of each kind of disc one is on every image; the tree joins neighbours first: pairs, then fours, then all
PLACES = (0, 1, 4, 5, 20, 21, 24, 25)
RIGHT = (True, True, False, False, True, False, True, False)
GOOD, BAD, OPEN = (0, 1), (2, 3), (4, 5, 6, 7)  # accepted, rejected and not decided when the tests begin
PAPER = {
    "name": "paper", "samples": 5, "least_size": 4, "split_below": 0, "page_size": 8, "search": "dfs+score",
    "clusters_a_round": 1,
}  # fmt: skip


def centre(kind: int) -> tuple[int, int]:
    return CELL // 2 + CELL * (kind % 4), CELL + 2 * CELL * (kind // 4)


def draw(number: int) -> bytes:
    """An image of discs, as a PNG."""
    pixels = np.random.default_rng(number).integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    for kind in range(len(PLACES)):
        cv2.circle(pixels, centre(kind), 14, (200, 30 * kind, 255 - 30 * kind), -1)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def predict(folder: Path) -> dict[str, Any]:
    """The masks of all discs, their kinds as features; the segmenter's settings."""
    images, predictions, features = [], [], []
    for number in range(IMAGES):
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for kind, place in enumerate(PLACES):
            mask = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), centre(kind), 14, 1, -1)
            rle = coco.encode(np.asfortranarray(mask))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            score = 0.95 - 0.01 * kind
            predictions.append(
                {"image_id": number, "category_id": 1, "segmentation": segmentation, "score": score}
            )
            features.append([place + number / 1000, 1.0])
    content = {"images": images, "categories": [{"id": 1, "name": CATEGORY}]}
    (folder / "images.json").write_text(json.dumps(content))
    (folder / "predictions.json").write_text(json.dumps(predictions))
    np.save(folder / "features.npy", np.array(features, dtype=np.float32))
    files = {"predictions": "predictions.json", "images": "images.json", "features": "features.npy"}
    return {"name": "precomputed", **{name: folder / file for name, file in files.items()}}


@dataclass
class Site:
    """A campaign over a project of its own, its daemon, and a manager's browser."""

    server: Server
    settings: Settings
    gateway: LabelStudioGateway
    daemon: Daemon
    connection: pipeline.Connection
    page: Any

    @property
    def board(self) -> int:
        assert self.connection.board is not None
        return self.connection.board

    def kinds(self) -> np.ndarray[Any, Any]:
        """(n,) the kind of disc that each mask is of."""
        x, y = self.daemon.campaign.table.box[:, :2].T
        return (x // CELL + 4 * (y // (2 * CELL))).astype(int)

    def cluster(self, kinds: tuple[int, ...]) -> str:
        """The cluster of all discs of some kinds."""
        campaign, wanted = self.daemon.campaign, set(np.flatnonzero(np.isin(self.kinds(), kinds)))
        tree = campaign.trees[0]
        node = next(n for n in range(tree.root + 1) if set(campaign.rows(0, n)) == wanted)
        return campaign.cluster(0, node)

    def masks(self, kinds: tuple[int, ...]) -> set[str]:
        return set(self.daemon.campaign.table.ids[np.isin(self.kinds(), kinds)].tolist())

    def answer(self) -> None:
        """Somebody who knows the truth answers the pages that wait."""
        right = dict(zip(self.daemon.campaign.table.ids.tolist(), np.array(RIGHT)[self.kinds()], strict=True))
        for task in self.gateway.tasks(self.connection.pages, ["data", "annotations"]):
            if not task["annotations"]:
                wrong = [mask for mask in masks_of(task["data"]) if not right[mask]]
                item = {"from_name": "wrong", "to_name": "page", "type": "choices", "value": {"choices": wrong}}
                body = {"result": [item] if wrong else [], "lead_time": 9.0}
                made = self.gateway.answer("POST", f"api/tasks/{task['id']}/annotations/", json=body)
                assert made.is_success

    def step(self) -> None:
        """Two passes: a command that is obeyed in the first is on the cards after it."""
        for _ in range(2):
            self.daemon.step()

    # what Label Studio holds

    def cards(self) -> dict[str, dict[str, Any]]:
        """The board's tasks by cluster."""
        fields = ["data", "annotations", "result", "was_cancelled"]
        return {task["data"]["cluster"]: task for task in self.gateway.tasks(self.board, fields)}

    def card(self, cluster: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cards()[cluster]["data"]
        return found

    def regions(self) -> dict[int, list[dict[str, Any]]]:
        """The regions of each task of the source project; each annotation has the prediction it was made of."""
        fields = ["annotations", "result", "total_predictions"]
        tasks = list(self.gateway.tasks(self.connection.project, fields))
        for task in tasks:
            assert task["total_predictions"] == 1 + len(task["annotations"])
        return {task["id"]: [r for made in task["annotations"] for r in made["result"]] for task in tasks}

    def source(self) -> dict[int, list[str]]:
        """The masks that each task of the source project holds."""
        return {task: [region["meta"][META]["mask"] for region in held] for task, held in self.regions().items()}

    def written(self) -> dict[str, dict[str, Any]]:
        """What each region of the source project says of itself, by mask."""
        regions = [region for held in self.regions().values() for region in held]
        return {region["meta"][META]["mask"]: region["meta"][META] for region in regions}

    # what the manager does

    def open(self, cluster: str) -> None:
        """Open a cluster's card, and wait until its picture is seen, and what was chosen there."""
        card = self.cards()[cluster]
        self.page.goto("about:blank")
        self.page.goto(task_url(self.server.url, self.board, card["id"]))
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function(
            "(() => { const all = [...document.querySelectorAll('.sheet img')];"
            " return all.length > 0 && all.every(one => one.complete && one.naturalWidth > 0); })()"
        )
        close_popups(self.page)
        expect(self.page.locator(".say input:checked")).to_have_count(len(card["annotations"]))

    def chosen(self) -> list[str]:
        """The commands that are chosen on the card."""
        return [title for title in COMMANDS if self.choice(title).is_checked()]

    def choice(self, command: str) -> Any:
        return self.page.get_by_role("checkbox", name=re.compile(f"^{command}"))

    def tell(self, cluster: str, command: str, key: str = "") -> None:
        """A command, from opening the card to what the daemon makes of it."""
        button = "Update" if self.cards()[cluster]["annotations"] else "Submit"
        self.open(cluster)
        for _ in range(1 + (command in self.chosen())):  # the same once more: untick it, and tick it again
            self.page.keyboard.press(key) if key else self.choice(command).click()
        expect(self.choice(command)).to_be_checked()
        assert self.chosen() == [command]
        with self.page.expect_response(
            lambda told: "/annotations" in told.url and told.request.method in ("POST", "PATCH")
        ) as told:
            self.page.get_by_role("button").filter(has_text=re.compile(f"^{button}$")).click()
        assert told.value.ok
        self.step()


def make_site(server: Server, folder: Path, strategy: dict[str, Any], stack: ExitStack, page: Any) -> Site:
    """A campaign over a source project of its own, as the command line makes one."""
    gateway = stack.enter_context(closing(LabelStudioGateway(server.url, server.token)))
    project = gateway.create_project(f"board: {strategy['name']}", labeling_config(["disc"]), "", {}).id
    urls = gateway.upload(project, [(f"{number}.png", draw(number)) for number in range(IMAGES)])
    gateway.import_tasks(project, [{"data": {"image": url}} for url in urls])
    settings = load_settings(
        data_dir=folder / "campaign",
        segmenter=predict(folder),
        strategy=strategy,
        labels={CATEGORY: "disc"},
        tree={"weights": {"deep": 1.0}},
        gold_share=0,
        overlap=0,
        least_seconds=0,
        write_every=1,
        label_studio_url=server.url,
        LABEL_STUDIO_API_KEY=server.token,
    )
    store = stack.enter_context(pipeline.open_store(settings))
    connection = pipeline.connect(gateway, store, str(project))
    pipeline.detect(gateway, store, settings)
    pipeline.cluster(gateway, store, settings)
    return Site(server, settings, gateway, pipeline.open_daemon(gateway, store, settings), connection, page)


@pytest.fixture(scope="module")
def page(label_studio: Server) -> Iterator[Any]:
    """The browser of a manager, who is no administrator."""
    with closing(new_user(label_studio, *MANAGER)), open_browser() as page:
        log_in(page, label_studio.url, *MANAGER)
        yield page


@pytest.fixture(scope="module")
def site(label_studio: Server, page: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A campaign by the paper's rule: one cluster accepted, one rejected, one open."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sync.daemon.BOARD_SECONDS", 0.0)
        made = make_site(label_studio, tmp_path_factory.mktemp("paper"), PAPER, stack, page)
        campaign = made.daemon.campaign
        good, bad, undecided = (campaign.find(made.cluster(kinds)) for kinds in (GOOD, BAD, OPEN))
        made.daemon.step()
        while not (campaign.state.get(good) == "accepted" and campaign.state.get(bad) == "rejected"):
            made.answer()
            made.daemon.step()
        made.step()
        assert campaign.state[undecided] in ("open", "asking")
        yield made


def listed(site: Site, tab: str, count: int) -> None:
    """Open a tab and wait until it lists so many cards."""
    site.page.get_by_text(tab, exact=True).first.click()
    site.page.get_by_text(f"Tasks: {count} / {len(site.cards())}").wait_for()


def test_each_tab_lists_its_clusters(site: Site) -> None:
    site.page.goto(project_url(site.server.url, site.board))
    tabs = {"Open clusters": OPEN, "Accepted": GOOD, "Rejected": BAD, "Stuck": None, "Split": None}
    for tab, kinds in tabs.items():
        listed(site, tab, 1 if kinds else 0)
        if kinds:
            site.page.get_by_text(site.cluster(kinds), exact=True).wait_for()


def test_a_card_shows_its_picture_and_its_figures_whatever_the_category_is_called(site: Site) -> None:
    cluster, campaign = site.cluster(GOOD), site.daemon.campaign
    site.open(cluster)
    asked, _ = campaign.known(*campaign.find(cluster))
    title = f"“{CATEGORY}”, cluster {cluster.rpartition('/')[2]}"
    facts = f"{2 * IMAGES} masks; {asked} asked, 100 % of them right; {2 * IMAGES} accepted. State: accepted."
    for words in (title, facts):
        assert site.page.get_by_role("heading", name=words, exact=True).is_visible()
    size = site.page.locator(".sheet img").first.evaluate("one => [one.naturalWidth, one.naturalHeight]")
    assert size == [4 * 192, 3 * 192]
    assert site.chosen() == []


def test_each_key_chooses_its_command(site: Site) -> None:
    site.open(site.cluster(BAD))
    url = site.page.url
    for command, key in (("Accept", "a"), ("Reject", "r"), ("Split", "s"), ("Ask more", "m"), ("Undo", "u")):
        site.page.keyboard.press(key)
        expect(site.choice(command)).to_be_checked()
        assert site.chosen() == [command]
    assert site.page.url == url


def test_accept_writes_the_masks_marked_and_out_of_the_figures_until_it_is_undone(site: Site) -> None:
    cluster, campaign = site.cluster(OPEN), site.daemon.campaign
    before, state, estimate = site.source(), site.card(cluster)["state"], campaign.search.estimate()
    site.tell(cluster, "Accept")
    written, wrong = site.written(), set(campaign.table.ids[campaign.verdict == NO].tolist())
    assert wrong & site.masks(OPEN)
    assert set(written) & site.masks(OPEN) == site.masks(OPEN) - wrong
    by_command = {mask for mask, meta in written.items() if meta["decision"] == f"command/{cluster}"}
    assert by_command == set(campaign.table.ids[campaign.by_command()].tolist())
    assert len(by_command) > 2 * IMAGES
    assert {written[mask]["estimate"] for mask in by_command} == {None}
    assert campaign.search.estimate() == estimate
    assert f"{len(by_command)} more are accepted by command" in statement(campaign)
    card = site.card(cluster)
    assert (card["state"], card["tab"]) == ("accepted by command", "accepted")
    assert card["said"].startswith(f"Accept, by {MANAGER[0]}, 20")

    site.tell(cluster, "Undo", "u")
    assert site.source() == before
    card = site.card(cluster)
    assert (card["state"], card["tab"]) == (state, "open")
    site.open(cluster)
    assert site.page.get_by_role("heading", name=f"Undo, by {MANAGER[0]}").is_visible()


def test_reject_takes_out_what_was_written_until_it_is_undone(site: Site) -> None:
    cluster, before = site.cluster(GOOD), site.source()
    assert site.masks(GOOD) <= set(site.written())
    site.tell(cluster, "Reject", "r")
    assert not site.masks(GOOD) & set(site.written())
    card = site.card(cluster)
    assert (card["state"], card["tab"], card["accepted"]) == ("rejected by command", "rejected", 0)
    site.tell(cluster, "Undo")
    assert site.source() == before
    assert site.card(cluster)["state"] == "accepted"


def test_split_brings_the_halves_until_it_is_undone(site: Site) -> None:
    cluster, halves = site.cluster(OPEN), {site.cluster((4, 5)), site.cluster((6, 7))}
    assert not halves & set(site.cards())
    site.tell(cluster, "Split")
    cards = site.cards()
    assert {cards[half]["data"]["tab"] for half in halves} == {"open"}
    assert (cards[cluster]["data"]["state"], cards[cluster]["data"]["tab"]) == ("split by command", "split")
    site.page.goto(project_url(site.server.url, site.board))
    listed(site, "Open clusters", 2)
    listed(site, "Split", 1)
    site.tell(cluster, "Undo")
    assert not halves & set(site.cards())
    assert site.card(cluster)["tab"] == "open"


def test_a_command_whose_annotation_is_deleted_is_taken_back(site: Site) -> None:
    cluster, before = site.cluster(BAD), site.source()
    site.tell(cluster, "Accept", "a")
    assert site.masks(BAD) & set(site.written())
    (annotation,) = site.cards()[cluster]["annotations"]
    site.gateway.delete_annotation(annotation["id"])
    site.step()
    assert site.source() == before
    assert site.card(cluster)["state"] == "rejected"


def test_ask_more_puts_its_masks_before_the_annotators(site: Site) -> None:
    cluster = site.cluster(GOOD)
    known = {task["data"]["page"] for task in site.gateway.tasks(site.connection.pages, ["data"])}
    site.tell(cluster, "Ask more", "m")
    assert site.card(cluster)["said"].startswith(f"Ask more, by {MANAGER[0]}")
    site.answer()  # what waits comes first
    site.step()
    pages = [task["data"] for task in site.gateway.tasks(site.connection.pages, ["data"])]
    asked = {mask for page in pages if page["page"] not in known for mask in masks_of(page)}
    assert asked & site.masks(GOOD)

    site.tell(cluster, "Undo")
    site.open(cluster)
    refusal = f"Not obeyed: Undo, by {MANAGER[0]}"
    assert site.page.get_by_role("heading", name=refusal).filter(has_text="wait for the answers").is_visible()
    assert site.card(cluster)["state"] == "accepted"


def test_undo_takes_back_what_was_decided(site: Site) -> None:
    cluster, campaign = site.cluster(GOOD), site.daemon.campaign
    site.answer()
    site.step()
    right = set(campaign.table.ids[campaign.verdict == YES].tolist())  # these stand by their pages
    assert site.masks(GOOD) - right
    assert site.masks(GOOD) <= set(site.written())
    site.tell(cluster, "Undo")
    assert set(site.written()) & site.masks(GOOD) == right & site.masks(GOOD)
    card = site.card(cluster)
    assert (card["state"], card["tab"]) == ("undone", "stuck")
    site.page.goto(project_url(site.server.url, site.board))
    listed(site, "Stuck", 1)


def test_what_cannot_be_obeyed_is_told_on_the_card(label_studio: Server, page: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        site = make_site(label_studio, tmp_path, {"name": "calibrated", "page_size": 8}, stack, page)
        site.step()
        (cluster,) = site.cards()
        site.tell(cluster, "Split", "s")
        site.open(cluster)
        refusal = site.page.get_by_role("heading", name=f"Not obeyed: Split, by {MANAGER[0]}")
        assert refusal.filter(has_text="proves sets of masks, not clusters").is_visible()
        assert site.card(cluster)["state"] == "open"
        site.tell(cluster, "Accept", "a")
        assert set(site.written()) == site.masks(tuple(range(len(PLACES))))
        told = f"{len(PLACES) * IMAGES} more are accepted by command; nothing is said of them"
        assert told in statement(site.daemon.campaign)
