"""The doctor before a real Label Studio: it is answered as it expects, and leaves nothing behind there."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from ls_propagate import pipeline
from ls_propagate.demo.browser import close_popups, open_browser
from ls_propagate.demo.browser import log_in as log_in_there
from ls_propagate.demo.server import Server, log_in
from ls_propagate.demo.server import label_studio as started
from ls_propagate.doctor.case import Finding
from ls_propagate.doctor.examine import examine
from ls_propagate.settings import load_settings
from plugin.label_studio.gateway import WEBHOOK_ACTIONS
from plugin.label_studio.inspect import QUICK_IMPORTS
from plugin.label_studio.pages import Question, page_task

CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels></View>"""
SECRET = "hook-5ecret"
TOML = """
data_dir = "data"
strategy = {name = "paper", samples = 4, least_size = 3, split_below = 0.0}
segmenter = {name = "precomputed", predictions = "predictions.json", images = "coco.json"}
"""


@dataclass
class Campaign:
    """A campaign that has begun on a real server, and who may do there what."""

    server: Server
    person: httpx.Client
    project: int
    pages: int

    def findings(self) -> dict[str, Finding]:
        """What the doctor finds, by name; no secret is in it."""
        found = list(examine())
        assert not any(secret in f"{found}" for secret in (SECRET, self.server.token, "eyJ"))
        return {finding.name: finding for finding in found}

    def everything(self) -> Any:
        """What the server holds that a check could change."""
        projects = (
            self.person.get("/api/projects/", params={"page_size": 100}).raise_for_status().json()["results"]
        )
        hooks = self.person.get("/api/webhooks/").raise_for_status().json()
        return [
            [(project["id"], project["title"], project["task_number"]) for project in projects],
            hooks,
            self.person.get("/api/ml/", params={"project": self.project}).raise_for_status().json(),
        ]


def begin(server: Server, person: httpx.Client, patch: pytest.MonkeyPatch, folder: Path, token: str) -> Campaign:
    """Connect, detect and cluster a project of two images, with settings in the environment and a file."""
    patch.chdir(folder)
    patch.setenv("LABEL_STUDIO_URL", server.url)
    patch.setenv("LABEL_STUDIO_API_KEY", token)
    patch.setenv("LS_PROPAGATE_WEBHOOK_SECRET", SECRET)
    (folder / "ls-propagate.toml").write_text(TOML)
    body = {"title": f"doctor {uuid.uuid4().hex[:8]}", "label_config": CONFIG}
    project = int(person.post("/api/projects/", json=body).raise_for_status().json()["id"])
    names = ("a.png", "b.png")
    content = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), "gray").save(content, "PNG")
    for name in names:
        answer = person.post(f"/api/projects/{project}/import", files={name: (name, content.getvalue())})
        answer.raise_for_status()
    painted = np.zeros((32, 32, 4), np.uint8, order="F")
    for place in range(4):
        painted[4:12, place * 8 : place * 8 + 6, place] = 1
    rles = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in coco.encode(painted)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (folder / "coco.json").write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "cell"}]}))
    results = [
        {"image_id": image["id"], "category_id": 1, "score": 0.9 - place / 10, "segmentation": rle}
        for image in images
        for place, rle in enumerate(rles)
    ]
    (folder / "predictions.json").write_text(json.dumps(results))
    settings = load_settings()
    with pipeline.open_store(settings) as store, pipeline.open_gateway(settings) as gateway:
        connection = pipeline.connect(gateway, store, str(project))
        pipeline.detect(gateway, store, settings)
        pipeline.cluster(gateway, store, settings)
    return Campaign(server, person, project, connection.pages)


@pytest.fixture
def campaign(
    label_studio: Server, person: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Campaign:
    return begin(label_studio, person, monkeypatch, tmp_path, label_studio.token)


def test_a_campaign_that_is_well_is_found_well_and_nothing_changes(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LS_PROPAGATE_WEBHOOK_URL", "http://127.0.0.1:9091")
    before = campaign.everything()
    found = campaign.findings()
    assert {name for name, finding in found.items() if finding.state != "good"} == {"webhooks", "daemon"}
    assert found["server"].said.startswith("Label Studio 1.23")
    assert "a legacy token" in found["token"].said
    assert "1 categories" in found["labeling"].said
    assert "one was read, 32 × 32" in found["images"].said
    assert "webhooks to http://127.0.0.1:9091 are allowed" in found["network"].said
    assert found["webhooks"].remedy == "run: ls-propagate sync, which sets them up"
    assert campaign.everything() == before


def test_webhooks_are_known_by_address_and_secret(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LS_PROPAGATE_WEBHOOK_URL", "http://127.0.0.1:9091")
    for project, secret in ((campaign.project, SECRET), (campaign.pages, "another")):
        hook = {
            "project": project,
            "url": "http://127.0.0.1:9091/webhook",
            "headers": {"X-Propagate-Secret": secret},
            "is_active": True,
            "actions": list(WEBHOOK_ACTIONS),
        }
        campaign.person.post("/api/webhooks/", json=hook).raise_for_status()
    finding = campaign.findings()["webhooks"]
    assert finding.state == "bad"
    assert f"project {campaign.pages} bears another secret" in finding.said
    assert f"project {campaign.project} " not in finding.said
    for hook in campaign.person.get("/api/webhooks/", params={"project": campaign.pages}).json():
        headers = {"X-Propagate-Secret": SECRET}
        changed = {"url": hook["url"], "headers": headers, "actions": list(WEBHOOK_ACTIONS)}
        campaign.person.patch(f"/api/webhooks/{hook['id']}/", json=changed).raise_for_status()
    assert campaign.findings()["webhooks"].state == "good"


def test_settings_that_somebody_changed_are_named(campaign: Campaign) -> None:
    changed = {"enable_empty_annotation": False, "maximum_annotations": 2, "show_skip_button": False}
    campaign.person.patch(f"/api/projects/{campaign.pages}/", json=changed).raise_for_status()
    finding = campaign.findings()["pages"]
    assert finding.state == "bad"
    for name in changed:
        assert name in finding.said
    assert "skip_queue" not in finding.said


def test_work_by_hand_of_the_daemons_account_is_told_from_that_of_others(campaign: Campaign) -> None:
    settings = load_settings()
    with pipeline.open_gateway(settings) as gateway:
        tasks = [task["id"] for task in gateway.tasks(campaign.project, [])]
    daemon = httpx.Client(
        base_url=campaign.server.url, headers={"Authorization": f"Token {campaign.server.token}"}
    )
    region = {"result": [], "lead_time": 2.0}
    campaign.person.post(f"/api/tasks/{tasks[0]}/annotations/", json=region).raise_for_status()
    written = daemon.post(f"/api/tasks/{tasks[1]}/annotations/", json={"result": []}).raise_for_status().json()
    assert campaign.findings()["account"].state == "good"
    campaign.person.patch(f"/api/annotations/{written['id']}/", json=region).raise_for_status()
    assert campaign.findings()["account"].state == "good"
    daemon.post(f"/api/tasks/{tasks[1]}/annotations/", json=region).raise_for_status()
    finding = campaign.findings()["account"]
    daemon.close()
    assert finding.state == "doubtful"
    assert "annotated 1 task of the project by hand as daemon@example.com" in finding.said


def test_a_project_that_was_deleted_and_an_image_that_is_gone_are_found(campaign: Campaign) -> None:
    settings = load_settings()
    with pipeline.open_store(settings) as store:
        store.set_source_tasks([type(t)(t.image, t.task, f"{t.location}.png") for t in store.source_tasks()])
    found = campaign.findings()
    assert found["images"].state == "bad"
    assert "a.png.png" in found["images"].said
    campaign.person.delete(f"/api/projects/{campaign.pages}/").raise_for_status()
    found = campaign.findings()
    assert found["project"].state == "bad"
    assert found["pages"].said == "not checked; it needs: project"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, httpx.Client, str]]:
    """A Label Studio as it is by default: no legacy tokens, no private addresses, no keys of ours; and a token."""
    own = {
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "false",
        "USE_DEFAULT_BANNED_SUBNETS": "true",
        "EDITOR_KEYMAP": "{}",
        QUICK_IMPORTS: "false",
    }
    with started(tmp_path_factory.mktemp("strict"), own) as server:
        session = log_in(server.url, server.email, server.password)
        token = str(session.post("/api/token/").raise_for_status().json()["token"])
        yield server, session, token
        session.close()


def test_what_a_server_refuses_by_default_is_found_with_what_allows_it(
    strict: tuple[Server, httpx.Client, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, session, token = strict
    campaign = begin(server, session, monkeypatch, tmp_path, token)
    monkeypatch.setenv("LS_PROPAGATE_WEBHOOK_URL", "http://127.0.0.1:9091")
    before = campaign.everything()
    found = campaign.findings()
    assert "a personal access token" in found["token"].said
    assert found["network"].state == "bad"
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in found["network"].remedy
    assert "EDITOR_KEYMAP=" in found["hotkey"].remedy
    assert found["imports"].remedy == f"start Label Studio with {QUICK_IMPORTS}=true"
    assert campaign.everything() == before
    monkeypatch.delenv("LS_PROPAGATE_WEBHOOK_URL")
    assert "an ML backend at http://127.0.0.1:9090 would be refused" in campaign.findings()["network"].said
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.token)
    finding = campaign.findings()["token"]
    assert finding.state == "bad"
    assert "legacy tokens switched off" in finding.said
    assert "personal access token" in finding.remedy


def test_connect_gives_its_own_account_our_keys_on_a_server_without_them(
    strict: tuple[Server, httpx.Client, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, session, token = strict
    campaign = begin(server, session, monkeypatch, tmp_path, token)
    tasks = [page_task(name, name, [Question("a", "/a.jpg")]) for name in ("first", "second")]
    session.post(f"/api/projects/{campaign.pages}/import", json=tasks).raise_for_status()
    with open_browser() as page:
        log_in_there(page, server.url, server.email, server.password)
        page.goto(f"{server.url}/projects/{campaign.pages}/data?labeling=1")
        for name in ("first", "second"):
            page.get_by_text(f"“{name}”").wait_for()
            close_popups(page)
            page.keyboard.press("Space")
        page.get_by_text("No More Tasks Left").wait_for()
