"""The cluster board in a real browser on a real Label Studio: each command, from the click to what it brings about."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ls_propagate import pipeline
from ls_propagate.demo.browser import close_popups, log_in, open_browser
from ls_propagate.demo.run import labeling_config
from ls_propagate.demo.server import Server, new_user
from ls_propagate.settings import Settings, load_settings
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import masks_of
from plugin.label_studio.regions import META
from plugin.label_studio.views import project_url, task_url
from propagation.summary import statement
from sync.daemon import Daemon

CATEGORY = '<b>disc</b> & "ball" $facts'
MANAGER = ("manager@example.com", "look-closely-7")
IMAGES, SIDE, CELL = 8, 192, 48
# of each kind of disc one is on every image; the tree joins neighbours first: pairs, then fours, then all
PLACES = (0, 1, 4, 5, 20, 21, 24, 25)
RIGHT = (True, True, False, False, True, False, True, False)
GOOD, BAD, OPEN = (0, 1), (2, 3), (4, 5, 6, 7)  # accepted, rejected and not decided when the tests begin
PAPER = {
    "name": "paper", "samples": 8, "least_size": 4, "split_below": 0, "page_size": 8, "search": "dfs+score",
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

    def source(self) -> list[dict[str, Any]]:
        """The source project's annotations, as the API tells them."""
        fields = ["annotations", "result", "completed_by", "predictions", "model_version", "total_predictions"]
        return [
            {name: value for name, value in task.items() if name != "updated_at"}
            for task in self.gateway.tasks(self.connection.project, fields)
        ]

    def written(self) -> dict[str, dict[str, Any]]:
        """What each region says of itself, by mask."""
        metas = [
            region["meta"][META]
            for task in self.source()
            for annotation in task["annotations"]
            for region in annotation["result"]
        ]
        return {meta["mask"]: meta for meta in metas}

    # what the manager does

    def open(self, cluster: str) -> None:
        """Open a cluster's card, and wait until its picture is seen."""
        self.page.goto("about:blank")
        self.page.goto(task_url(self.server.url, self.board, self.cards()[cluster]["id"]))
        self.page.wait_for_function(
            "(() => { const all = [...document.querySelectorAll('.sheet img')];"
            " return all.length > 0 && all.every(one => one.complete && one.naturalWidth > 0); })()"
        )
        close_popups(self.page)

    def choose(self, command: str, button: str = "Submit", key: str = "") -> None:
        """Choose a command by click or by key, and press the button."""
        if key:
            self.page.keyboard.press(key)
        else:
            self.page.locator(".say").get_by_text(command, exact=True).click()
        chosen = self.page.locator(".say input:checked")
        chosen.wait_for(state="attached")
        assert chosen.count() == 1
        with self.page.expect_response(
            lambda told: "/annotations/" in told.url and told.request.method in ("POST", "PATCH")
        ) as told:
            self.page.get_by_role("button", name=button, exact=True).click()
        assert told.value.ok

    def tell(self, cluster: str, command: str, button: str = "Submit", key: str = "") -> None:
        """A command, from opening the card to the daemon's next pass."""
        self.open(cluster)
        self.choose(command, button, key)
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


def test_each_tab_lists_its_clusters(site: Site) -> None:
    site.page.goto(project_url(site.server.url, site.board))
    listed = {
        "Open clusters": [site.cluster(OPEN)],
        "Accepted": [site.cluster(GOOD)],
        "Rejected": [site.cluster(BAD)],
        "Stuck": [],
        "Split": [],
    }
    for tab, clusters in listed.items():
        site.page.get_by_text(tab, exact=True).first.click()
        site.page.get_by_text(f"Tasks: {len(clusters)} / {len(site.cards())}").wait_for()
        for cluster in clusters:
            site.page.get_by_text(cluster, exact=True).first.wait_for()


def test_a_card_shows_its_picture_and_its_figures_whatever_the_category_is_called(site: Site) -> None:
    cluster = site.cluster(GOOD)
    site.open(cluster)
    title = f"“{CATEGORY}”, cluster {cluster.rpartition('/')[2]}"
    assert site.page.get_by_text(title, exact=True).is_visible()
    rows = site.daemon.campaign.rows(*site.daemon.campaign.find(cluster))
    asked = int((site.daemon.campaign.verdict[rows] >= 0).sum())
    facts = f"16 masks; {asked} asked, 100 % of them right; 16 accepted. State: accepted."
    assert site.page.get_by_text(facts, exact=True).is_visible()
    picture = site.page.locator(".sheet img").first
    assert picture.evaluate("one => [one.naturalWidth, one.naturalHeight]") == [4 * 192, 3 * 192]
    assert site.page.locator(".say input:checked").count() == 0


def test_accept_writes_the_masks_marked_and_out_of_the_estimate_until_it_is_undone(site: Site) -> None:
    cluster, campaign = site.cluster(OPEN), site.daemon.campaign
    before, state, estimate = site.source(), site.card(cluster)["state"], campaign.search.estimate()
    site.tell(cluster, "Accept")
    wrong = set(campaign.table.ids[campaign.verdict == 0].tolist())
    written = site.written()
    assert set(written) & site.masks(OPEN) == site.masks(OPEN) - wrong
    by_command = {mask for mask, meta in written.items() if meta["decision"] == f"command/{cluster}"}
    assert by_command == set(campaign.table.ids[campaign.by_command()].tolist())
    assert len(by_command) > 16
    assert all(meta["estimate"] is None for mask, meta in written.items() if mask in by_command)
    assert campaign.search.estimate() == estimate
    assert f"{len(by_command)} more are accepted by command" in statement(campaign)
    card = site.card(cluster)
    assert (card["state"], card["tab"]) == ("accepted by command", "accepted")
    assert card["said"].startswith(f"Accept, by {MANAGER[0]}, 20")

    site.tell(cluster, "Undo")
    assert site.source() == before
    card = site.card(cluster)
    assert (card["state"], card["tab"]) == (state, "open")
    assert card["said"].startswith(f"Undo, by {MANAGER[0]}, 20")
    assert (
        site.page.locator(".say").get_by_text("accepted by command").count() == 1
    )  # as it was when it was opened
    site.open(cluster)
    assert site.page.get_by_text(f"Undo, by {MANAGER[0]}").is_visible()


def test_reject_takes_out_what_was_written_until_it_is_undone(site: Site) -> None:
    cluster, before = site.cluster(GOOD), site.source()
    assert site.masks(GOOD) <= set(site.written())
    site.tell(cluster, "Reject")
    assert not site.masks(GOOD) & set(site.written())
    card = site.card(cluster)
    assert (card["state"], card["tab"], card["accepted"]) == ("rejected by command", "rejected", 0)
    site.tell(cluster, "Undo")
    assert site.held() == held_of(before)
    assert site.card(cluster)["state"] == "accepted"


def test_split_shows_the_halves_until_it_is_undone(site: Site) -> None:
    cluster, halves = site.cluster(OPEN), {site.cluster((4, 5)), site.cluster((6, 7))}
    assert not halves & set(site.cards())
    site.tell(cluster, "Split")
    cards = site.cards()
    assert halves <= set(cards)
    assert {cards[half]["data"]["tab"] for half in halves} == {"open"}
    assert (cards[cluster]["data"]["state"], cards[cluster]["data"]["tab"]) == ("split by command", "split")
    site.page.goto(project_url(site.server.url, site.board))
    site.page.get_by_text("Split", exact=True).first.click()
    site.page.get_by_text(f"Tasks: 1 / {len(cards)}").wait_for()
    site.tell(cluster, "Undo")
    assert not halves & set(site.cards())
    assert site.card(cluster)["tab"] == "open"


@pytest.mark.parametrize(
    ("command", "key"), [("Accept", "a"), ("Reject", "r"), ("Split", "s"), ("Ask more", "m"), ("Undo", "u")]
)
def test_each_key_chooses_its_command(site: Site, command: str, key: str) -> None:
    site.open(site.cluster(BAD))
    for _ in range(1):
        site.page.keyboard.press(key)
        assert site.chosen() == [command]


def test_a_command_whose_annotation_is_deleted_is_undone(site: Site) -> None:
    cluster, before = site.cluster(BAD), site.source()
    site.tell(cluster, "Accept", key="a")
    assert site.source() != before
    (annotation,) = site.cards()[cluster]["annotations"]
    site.gateway.delete_annotation(annotation["id"])
    site.step()
    assert site.source() == before
    assert site.card(cluster)["state"] == "rejected"


def test_what_cannot_be_obeyed_is_told_on_the_card(site: Site) -> None:
    cluster, before = site.cluster((0,)), site.source()


def test_ask_more_puts_a_page_of_its_masks_before_the_annotators(site: Site) -> None:
    cluster, campaign = site.cluster(GOOD), site.daemon.campaign
    known = {task["data"]["page"] for task in site.gateway.tasks(site.connection.pages, ["data"])}
    site.tell(cluster, "Ask more", key="m")
    assert site.card(cluster)["said"].startswith(f"Ask more, by {MANAGER[0]}")
    site.answer()
    site.step()
    pages = [task["data"] for task in site.gateway.tasks(site.connection.pages, ["data"])]
    asked = {mask for page in pages if page["page"] not in known for mask in masks_of(page)}
    assert asked
    assert asked <= site.masks(GOOD)


def test_undo_takes_back_what_was_decided(site: Site) -> None:
    pass
