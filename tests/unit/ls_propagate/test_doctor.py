"""The doctor: what is wrong is found, named and has a remedy, and one fault hides no other."""

import json
import re
import shutil
import socket
import threading
import time
from collections import namedtuple
from pathlib import Path

import jwt
import pytest
from flask import Flask, Response, jsonify, request
from werkzeug.serving import WSGIRequestHandler, make_server

from ls_propagate import pipeline
from ls_propagate.doctor import examine as examining
from ls_propagate.doctor.examine import CHECKS, examine
from plugin.label_studio import inspect
from plugin.label_studio.gateway import WEBHOOK_ACTIONS
from plugin.label_studio.pages import PROJECT_SETTINGS, SUBMIT_ON_SPACE, config_of
from propagation.artefacts import write_artefact
from propagation.events import PageAnswered
from sync.store import Store

LEGACY = "0123456789abcdef0123456789abcdef01234567"
SECRET, PASSWORD = "hook-5ecret", "daemon-pa55"
WEBHOOK = "http://10.0.0.7:9091"
NAMES = [name for name, _, _ in CHECKS]


def personal(seconds=10**9, kind="refresh"):
    """A token as Label Studio makes them."""
    return jwt.encode({"token_type": kind, "exp": int(time.time()) + seconds, "jti": "0" * 32}, "k" * 32)


class Served:
    """An app that answers until it is closed."""

    def __init__(self, app, port, handler=WSGIRequestHandler):
        self.server = make_server("127.0.0.1", port, app, threaded=True, request_handler=handler)
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class Studio:
    """A web server that answers as Label Studio does, as far as the doctor asks; its fields are what it says."""

    def __init__(self, image):
        self.version = {"label-studio-os-package": {"version": "1.23.2"}}
        self.status = 200
        self.ahead = 0.0
        self.refuse = None
        self.leads_to = None
        self.me = {
            "id": 1,
            "email": "daemon@example.com",
            "permissions": [*inspect.NEEDED, inspect.WEBHOOKS],
            "custom_hotkeys": dict(SUBMIT_ON_SPACE),
        }
        self.keymap = '"{\\"annotation:submit\\":{\\"key\\":\\"space\\"}}"'
        self.projects = {}
        self.by_hand = []
        self.hooks = [self.hook()]
        self.takes_webhook = (201, {"id": 99})
        self.takes_backend = (400, {"validation_errors": {"project": ["This field is required."]}})
        self.takes_prediction = (400, _wrong("task ID 0 not found in project"))
        self.image = image
        self.changes = []
        app = Flask(__name__)
        app.add_url_rule("/<path:path>", view_func=self.answer, methods=["GET", "POST", "DELETE"])
        studio = self

        class Handler(WSGIRequestHandler):
            def date_time_string(self, timestamp=None):
                return super().date_time_string(time.time() + studio.ahead)

            def log(self, *_):
                return

        self.served = Served(app, 0, Handler)
        self.url = f"http://127.0.0.1:{self.served.server.port}"

    @staticmethod
    def hook(**given):
        return {
            "id": 7,
            "actions": [*WEBHOOK_ACTIONS, "TASKS_CREATED"],
            "url": f"{WEBHOOK}/webhook",
            "is_active": True,
            "headers": {"X-Propagate-Secret": SECRET},
            **given,
        }

    def answer(self, path):
        said, status = self.said(path.strip("/"))
        if isinstance(said, str | bytes):
            return Response(said, status)
        return said if isinstance(said, Response) else (jsonify(said), status)

    def said(self, path):
        if self.leads_to:
            return Response(status=302, headers={"Location": self.leads_to}), 302
        if path == "api/version":
            return self.version, self.status
        if path == "api/token/refresh":
            return (
                ({"access": personal(300, "access")}, 200) if not self.refuse else ({"detail": self.refuse}, 401)
            )
        if self.refuse:
            return {"detail": self.refuse}, 401
        if path.startswith("data/"):
            return (self.image, 200) if self.image else ("", 404)
        if request.method != "GET":
            self.changes.append((request.method, path, request.get_json(silent=True)))
            if path == "api/webhooks":
                return self.takes_webhook[1], self.takes_webhook[0]
            if path.endswith("import/predictions"):
                return self.takes_prediction[1], self.takes_prediction[0]
            return (self.takes_backend[1], self.takes_backend[0]) if path == "api/ml" else ("", 204)
        if path == "projects":
            return (
                f"<script>var defaultEditorKeymap = JSON.parse({self.keymap});</script>",
                200 if self.keymap else 302,
            )
        if path.startswith("api/projects/"):
            made = self.projects.get(int(path.rsplit("/", 1)[1]))
            return (made, 200) if made else ({"detail": "Not found."}, 404)
        return {
            "api/current-user/whoami": self.me,
            "api/webhooks": [{**hook, "project": request.args.get("project", type=int)} for hook in self.hooks],
            "api/tasks": {"tasks": self.by_hand, "total": len(self.by_hand)},
        }[path], 200


@pytest.fixture
def studio(office, monkeypatch, tmp_path):
    """A campaign that has begun on a server where all is as it should be; the doctor finds it by its settings."""
    office.prepared()
    connection = pipeline.connection_of(office.store)
    made = Studio(next(iter(office.gateway.files.values())))
    source = office.gateway.project(connection.project)
    page = config_of("page")
    for number, config, given in (
        (connection.project, source.label_config, {}),
        (connection.pages, page, PROJECT_SETTINGS),
        (connection.crops, "", {}),
    ):
        made.projects[number] = {
            "id": number,
            "title": f"project {number}",
            "label_config": config,
            "description": "",
            **given,
        }
    made.pages = connection.pages
    made.source = connection.project
    office.store.remember(connection={**office.store.fact("connection"), "server": made.url})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    segmenter = office.settings.segmenter
    (tmp_path / "ls-propagate.toml").write_text(
        f"""
        data_dir = {json.dumps(str(office.settings.data_dir))}
        webhook_url = "{WEBHOOK}"
        daemon_port = {port}
        [segmenter]
        name = "precomputed"
        predictions = {json.dumps(str(segmenter.predictions))}
        images = {json.dumps(str(segmenter.images))}
        """
    )
    made.port = port
    for name, value in (
        ("LABEL_STUDIO_URL", made.url),
        ("LABEL_STUDIO_API_KEY", personal()),
        ("LS_PROPAGATE_WEBHOOK_SECRET", SECRET),
        ("LS_PROPAGATE_DAEMON_PASSWORD", PASSWORD),
    ):
        monkeypatch.setenv(name, value)
    yield made
    made.served.close()


@pytest.fixture
def health(studio):
    """What answers where the daemon should: None for nothing."""
    told = {"live": True, "ready": True, "reason": "the last pass ended well 1 s ago"}
    app = Flask("health")
    app.add_url_rule("/health", view_func=lambda: told.get("text") or jsonify(told))
    served = Served(app, studio.port)
    yield told
    served.close()


@pytest.fixture
def running(office):
    """Another process, as far as the lock can tell, that is this store's daemon."""
    other = Store(office.settings.store_url)
    assert other.lock().acquire()
    yield
    other.close()


def found():
    findings = list(examine())
    assert [finding.name for finding in findings] == NAMES
    for finding in findings:
        assert (finding.state == "good") == (finding.remedy == "" and "not checked" not in finding.said), finding
        for secret in (LEGACY, SECRET, PASSWORD, "eyJ"):
            assert secret not in f"{finding}"
    return {finding.name: finding for finding in findings}


def others_are_good(findings, *but):
    for name, finding in findings.items():
        assert finding.state == "good" or name in (*but, "daemon"), finding


def test_all_is_good_where_all_is_as_it_should_be_and_nothing_is_left_behind(studio, running, health):
    findings = found()
    others_are_good(findings)
    assert findings["daemon"].state == "good"
    assert "a personal access token of daemon@example.com" in findings["token"].said
    assert "space submits a page, for everybody" in findings["hotkey"].said
    assert [(method, path) for method, path, _ in studio.changes] == [
        ("POST", "api/ml"),
        ("POST", "api/webhooks"),
        ("DELETE", "api/webhooks/99"),
        ("POST", f"api/projects/{studio.source}/import/predictions"),
    ]
    assert "project" not in studio.changes[0][2]
    assert studio.changes[1][2]["is_active"] is False
    assert studio.changes[1][2]["url"] == f"{WEBHOOK}/webhook"
    assert [item["task"] for item in studio.changes[3][2]] == [0]


def with_version(version):
    return lambda studio, _: studio.version.update({"label-studio-os-package": {"version": version}})


def with_settings(**given):
    return lambda studio, _: studio.projects[studio.pages].update(given)


def with_me(**given):
    return lambda studio, _: studio.me.update(given)


def with_(**given):
    return lambda studio, _: [setattr(studio, name, value) for name, value in given.items()]


def with_environment(**given):
    return lambda _, patch: [patch.setenv(name, value) for name, value in given.items()]


def with_token(token):
    return with_environment(LABEL_STUDIO_API_KEY=token)


def with_hook(**given):
    return lambda studio, _: studio.hooks[0].update(given)


def without_source(studio, _):
    del studio.projects[studio.source]


def with_labels(config):
    return lambda studio, _: studio.projects[studio.source].update(label_config=config)


def elsewhere(studio, _):
    with_open = Store(f"sqlite:///{Path('data').absolute() / 'store.sqlite'}")
    with_open.remember(connection={**with_open.fact("connection"), "server": "http://before"})
    with_open.close()


def by_hand(by=1, editor=1, seconds=3.0):
    annotation = {"id": 1, "completed_by": by, "updated_by": editor, "lead_time": seconds}
    return with_(by_hand=[{"id": 5, "annotations": [annotation]}])


def _wrong(said):
    return {"detail": "Validation error", "validation_errors": {"non_field_errors": [said]}}


SLOW_IMPORTS = (400, _wrong("corresponding task ID couldn't be retrieved"))
BANNED = (403, {"detail": "URL resolves to a reserved network address (block: 10.0.0.0/8)"})
WRONG_URL = (400, {"validation_errors": {"url": ["Enter a valid URL."]}})
WITHOUT_Y = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="x"/></PolygonLabels></View>"""


@pytest.mark.parametrize(
    ("change", "name", "state", "said", "remedy"),
    [
        (with_version("1.22.0"), "server", "doubtful", "1.22.0 .*tested with 1.23", "use 1.23"),
        (with_version("2.0.0"), "server", "doubtful", "2.0.0 ", "use 1.23"),
        (with_me(permissions=["projects.view"]), "permissions", "bad", "lacks projects.create, ", "a role"),
        (with_me(permissions=[*inspect.NEEDED]), "permissions", "bad", "lacks webhooks.change", "a role"),
        (with_me(permissions=None), "permissions", "doubtful", "doesn't tell", "may make projects"),
        (with_(keymap="null"), "hotkey", "doubtful", "not submit .* for annotators", "EDITOR_KEYMAP="),
        (with_(keymap='""'), "hotkey", "doubtful", "not submit .* for annotators", "EDITOR_KEYMAP="),
        (with_(keymap='"{}"'), "hotkey", "doubtful", "not submit .* for annotators", "EDITOR_KEYMAP="),
        (with_(ahead=20.0), "clock", "doubtful", r"(19|20) s ahead", "NTP"),
        (with_(ahead=-20.0), "clock", "doubtful", r"(19|20) s behind", "NTP"),
        (with_(ahead=-900.0), "clock", "doubtful", r"(899|900) s behind", "NTP"),
        (with_(ahead=900.0), "clock", "bad", "ahead of .* personal token", "NTP"),
        (elsewhere, "project", "doubtful", "connected at http://before", "same server"),
        (by_hand(), "account", "doubtful", "1 task .* as daemon@", "an account for the daemon"),
        (with_settings(enable_empty_annotation=False), "pages", "bad", "annotation is False", "/settings"),
        (with_settings(maximum_annotations=3), "pages", "bad", "maximum_annotations is 3, not 1", "/settings"),
        (with_settings(skip_queue="REQUEUE_FOR_ME"), "pages", "bad", "skip_queue is", "/settings"),
        (with_settings(show_skip_button=False), "pages", "doubtful", "show_skip_button is False", "/settings"),
        (with_settings(sampling="Uniform sampling"), "pages", "doubtful", "sampling is", "/settings"),
        (with_settings(label_config="<View/>"), "pages", "doubtful", "labeling config is not", "run: .*connect"),
        (with_(takes_webhook=BANNED), "network", "bad", "reserved network", "USE_DEFAULT_BANNED_SUBNETS=false"),
        (with_(takes_webhook=WRONG_URL), "network", "bad", "Enter a valid URL", "a dot, or localhost"),
        (with_(takes_prediction=SLOW_IMPORTS), "imports", "doubtful", "longer the more", "fflag_.*=true"),
        (with_(hooks=[]), "webhooks", "doubtful", "has none that", "ls-propagate sync"),
        (with_hook(is_active=False), "webhooks", "doubtful", "none that is active", "ls-propagate sync"),
        (with_hook(url=f"{WEBHOOK}0/webhook"), "webhooks", "doubtful", "has none that", "ls-propagate sync"),
        (with_hook(headers={"X-Propagate-Secret": "x"}), "webhooks", "bad", "another secret", "ls-propagate sync"),
        (with_hook(actions=["ANNOTATION_CREATED"]), "webhooks", "doubtful", "tells all", "ls-propagate sync"),
        (with_hook(headers=None), "webhooks", "bad", "another secret", "ls-propagate sync"),
        (with_(image=b""), "images", "bad", "404", "restore the file"),
        (with_(image=b"no image"), "images", "bad", "cannot be read", "replace the file"),
        (with_token(personal(3600)), "token", "doubtful", "expires on", "personal access token"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_remedy_and_all_else_is_checked(
    studio, monkeypatch, change, name, state, said, remedy
):
    change(studio, monkeypatch)
    findings = found()
    assert findings[name].state == state, findings[name]
    assert re.search(said, findings[name].said), findings[name]
    assert re.search(remedy, findings[name].remedy), findings[name]
    others_are_good(findings, name)


@pytest.mark.parametrize(
    ("change", "name", "said", "remedy"),
    [
        (with_(status=500), "server", "answers 500", "server's log"),
        (with_(leads_to="https://sso.test/?token=9f"), "server", "leads to https://sso.test/$", "where Label"),
        (with_(version={}), "server", "not Label Studio", "LABEL_STUDIO_URL"),
        (with_(version="<html>"), "server", "not Label Studio", "LABEL_STUDIO_URL"),
        (with_environment(LABEL_STUDIO_URL="http://127.0.0.1:1"), "server", "no answer", "LABEL_STUDIO_URL"),
        (with_(refuse="legacy token authentication has been disabled"), "token", "legacy tokens", "personal"),
        (with_(refuse="Token is blacklisted"), "token", "refuses the token", "LABEL_STUDIO_API_KEY"),
        (with_token(personal(-60)), "token", "expired on 20", "personal access token"),
        (with_token(personal(99, "access")), "token", "five minutes", "personal access"),
        (with_token(""), "token", "no token", "LABEL_STUDIO_API_KEY"),
        (without_source, "project", "no such thing", "deleted"),
        (with_labels(WITHOUT_Y), "labeling", "no label for the predicted category 'Y'", "labels"),
        (with_labels("<View/>"), "labeling", "no image", "add"),
    ],
)  # fmt: skip
def test_a_fault_that_others_build_on_is_said_once_and_the_rest_is_named_as_unchecked(
    studio, monkeypatch, change, name, said, remedy
):
    change(studio, monkeypatch)
    findings = found()
    assert findings[name].state == "bad"
    assert re.search(said, findings[name].said), findings[name]
    assert re.search(remedy, f"{findings[name].said} {findings[name].remedy}"), findings[name]
    lacking = {name}
    for other, needs, _ in CHECKS:
        if lacking & set(needs):
            lacking.add(other)
            assert findings[other].state == "doubtful"
            assert findings[other].said.startswith("not checked; it needs: ")
        elif other not in (name, "daemon"):
            assert findings[other].state == "good", findings[other]


@pytest.mark.parametrize("change", [by_hand(by=2), by_hand(editor=2), by_hand(seconds=None)])
def test_what_others_annotate_or_edit_and_what_the_daemon_writes_is_not_work_by_hand_of_its_account(
    studio, monkeypatch, change
):
    change(studio, monkeypatch)
    assert found()["account"].state == "good"


def test_instructions_may_be_worded_anew(studio, monkeypatch):
    with_settings(expert_instruction="Mark the bad ones.", show_instruction=True)(studio, monkeypatch)
    assert found()["pages"].state == "good"


def test_a_legacy_token_is_good_and_the_hotkey_is_that_of_the_account(studio, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    studio.keymap = ""
    findings = found()
    assert "a legacy token of" in findings["token"].said
    assert findings["hotkey"].state == "good"
    assert "for this account" in findings["hotkey"].said
    studio.me["custom_hotkeys"] = {}
    finding = found()["hotkey"]
    assert (finding.state, finding.remedy) == ("doubtful", "run: ls-propagate connect PROJECT")


def test_a_clock_that_is_off_is_no_fault_where_the_token_lasts(studio, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    studio.ahead = 900.0
    assert found()["clock"].state == "doubtful"


def test_without_webhooks_only_the_rule_for_backends_is_looked_up(studio, monkeypatch):
    config = Path("ls-propagate.toml")
    config.write_text(config.read_text().replace("webhook_url", "# webhook_url"))
    studio.takes_backend = BANNED
    studio.hooks = []
    studio.me["permissions"].remove(inspect.WEBHOOKS)
    findings = found()
    others_are_good(findings)
    assert "an ML backend at http://127.0.0.1:9090 would be refused" in findings["network"].said
    assert [path for _, path, _ in studio.changes] == [
        "api/ml",
        f"api/projects/{studio.source}/import/predictions",
    ]


@pytest.mark.parametrize(
    ("location", "said", "remedy"),
    [
        ("https://images.example/a.png?X-Amz-Signature=9f", "2 of 2 .* https://images.example .2.", "image_hosts"),
        ("https://me:9f@images.example/a.png", "2 of 2 .* https://images.example .2.", "take them out"),
        ("s3://bucket/a.png", "2 of 2 .* s3://bucket .2.", "under Cloud Storage"),
        ("a.png", "2 of 2 .* no host .2.", "let Label Studio serve"),
    ],
)
def test_images_at_hosts_that_are_not_trusted_are_counted_by_host(studio, office, location, said, remedy):
    tasks = office.store.source_tasks()
    office.store.set_source_tasks([type(t)(t.image, t.task, location) for t in tasks])
    finding = found()["images"]
    assert finding.state == "bad"
    assert re.search(said, finding.said)
    assert remedy in finding.remedy
    assert "9f" not in finding.said


def test_images_at_a_host_in_the_settings_may_be_read(studio, office, monkeypatch):
    tasks = office.store.source_tasks()
    office.store.set_source_tasks([type(t)(t.image, t.task, f"{studio.url}{t.location}") for t in tasks])
    monkeypatch.setenv("LS_PROPAGATE_IMAGE_HOSTS", '["images.example"]')
    assert found()["images"].state == "good"
    (*more, last) = office.store.source_tasks()
    there = type(last)(last.image, last.task, "https://images.example/a.png")
    office.store.set_source_tasks([*more, there])
    assert found()["images"].state == "good"


def test_before_anything_is_detected_the_images_are_those_of_the_tasks(studio, office):
    office.store.set_source_tasks([])
    studio.by_hand = [
        {"id": 1, "updated_at": "2026-01-01T00:00:00Z", "annotations": [], "data": {"image": "http://x/a.png"}}
    ]
    assert re.search("1 of 1 .* http://x .1.", found()["images"].said)
    studio.by_hand = []
    assert found()["images"].state == "doubtful"


@pytest.mark.parametrize(
    ("text", "said"),
    [("nonsense = 1", "nonsense"), ("a = ", "not TOML"), ('webhook_secret = "hook-5ecret"', "take it out")],
)
def test_settings_that_do_not_load_are_one_finding_and_the_rest_is_unchecked(studio, text, said):
    Path("ls-propagate.toml").write_text(text)
    findings = found()
    assert findings["settings"].state == "bad"
    assert said in f"{findings['settings'].said} {findings['settings'].remedy}"
    assert {finding.state for name, finding in findings.items() if name != "settings"} == {"doubtful"}


def test_a_settings_file_that_is_not_there_is_a_finding(studio):
    finding = next(iter(examine(Path("nowhere.toml"))))
    assert (finding.name, finding.state) == ("settings", "bad")
    assert "nowhere.toml" in finding.said


@pytest.mark.parametrize(
    ("name", "value", "state", "said"),
    [
        ("LS_PROPAGATE_WEBHOOK_SECRET", "", "bad", "no secret"),
        ("LS_PROPAGATE_DAEMON_HOST", "0.0.0.0", "bad", "LS_PROPAGATE_DAEMON_PASSWORD"),
        ("LS_PROPAGATE_SEGMENTER__IMAGES", "gone.json", "doubtful", "there is no segmenter.images = gone.json"),
    ],
)
def test_settings_that_do_not_fit_together_are_found(studio, monkeypatch, name, value, state, said):
    monkeypatch.setenv(name, value)
    if name.endswith("HOST"):
        monkeypatch.delenv("LS_PROPAGATE_DAEMON_PASSWORD")
    finding = next(iter(examine()))
    assert finding.state == state
    assert said in f"{finding.said}; {finding.remedy}"


def test_a_check_that_fails_by_itself_stops_no_other(studio, monkeypatch):
    def broken(*_):
        raise KeyError(SECRET)

    monkeypatch.setattr(inspect, "worked_on", broken)
    findings = found()
    assert findings["account"].state == "bad"
    assert "the check itself failed (KeyError: '***')" in findings["account"].said
    others_are_good(findings, "account")


def test_before_connect_it_says_what_to_run_and_makes_no_store(studio, monkeypatch, tmp_path):
    monkeypatch.setenv("LS_PROPAGATE_DATA_DIR", str(tmp_path / "new"))
    findings = found()
    assert findings["store"].remedy == "run: ls-propagate connect PROJECT"
    assert findings["token"].state == findings["permissions"].state == "good"
    assert not (tmp_path / "new").exists()
    Store(f"sqlite:///{tmp_path / 'new' / 'store.sqlite'}").close()
    findings = found()
    assert findings["store"].state == "good"
    assert findings["project"].said == "none is connected"
    assert findings["daemon"].state == "good"


# this machine


def room(monkeypatch, megabytes):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, megabytes << 20))


@pytest.mark.parametrize(("megabytes", "state"), [(2000, "good"), (500, "doubtful"), (50, "bad")])
def test_little_room_is_found_before_a_write_fails(studio, monkeypatch, megabytes, state):
    room(monkeypatch, megabytes)
    findings = found()
    assert (findings["folder"].state, findings["mirror"].state) == (state, state)
    assert f"{megabytes:,} MB free" in findings["folder"].said


def test_a_folder_that_cannot_be_made_is_found(studio, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LS_PROPAGATE_DATA_DIR", str(tmp_path / "file" / "below"))
    finding = found()["folder"]
    assert finding.state == "bad"
    assert "cannot be written to" in finding.said


@pytest.mark.parametrize("break_it", ["truncate", "schema", "away"])
def test_a_store_that_does_not_open_is_found(studio, office, monkeypatch, break_it):
    if break_it == "truncate":
        office.store.close()
        for file in Path("data").glob("store.sqlite*"):
            file.write_bytes(b"no database" * 100)
    elif break_it == "schema":
        office.store.remember(schema=99)
    else:
        monkeypatch.setenv("LS_PROPAGATE_STORE", f"postgresql://me:{PASSWORD}@127.0.0.1:1/x")
    findings = found()
    assert findings["store"].state == "bad"
    assert findings["store"].remedy
    assert findings["artefacts"].said == "not checked; it needs: store"
    assert findings["server"].state == "good"


def change_content(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["masks", "trees"])
@pytest.mark.parametrize("what", ["content", "manifest", "file", "folder"])
def test_an_artefact_that_changed_is_found(studio, kind, what):
    (folder,) = Path("data/artefacts").glob(f"{kind}-*")
    if what == "folder":
        shutil.rmtree(folder)
    elif what == "manifest":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "settings": {"model": "another"}}))
    else:
        file = max(path for path in folder.iterdir() if path.name != "manifest.json")
        file.unlink() if what == "file" else change_content(file)
    findings = found()
    assert findings["artefacts"].state == "bad"
    assert folder.name in findings["artefacts"].said


def test_artefacts_of_another_campaign_are_found(studio, office):
    (trees,) = Path("data/artefacts").glob("trees-*")
    made = json.loads((trees / "manifest.json").read_text())

    def copied(folder):
        shutil.copytree(trees, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))

    other = write_artefact(trees.parent, "trees", {"another": 1}, made["parents"], copied)
    office.store.remember(trees=other.folder.name)
    finding = found()["artefacts"]
    assert finding.state == "bad"
    assert "other artefacts" in finding.said


@pytest.fixture
def mirror(studio, office):
    """The mirror of a log of three events."""
    store = Store(office.settings.store_url, office.settings.mirror_file)
    assert store.lock().acquire()
    list(store.stream())
    store.append([PageAnswered(f"p{n}", n, "v", 2, None, ("yes",)) for n in range(2)])
    store.close()
    return office.settings.mirror_file


def test_a_mirror_in_step_is_good(mirror):
    finding = found()["mirror"]
    assert finding.state == "good"
    assert "all 3 events" in finding.said


@pytest.mark.parametrize("torn", ["", '{"seq": 3, "kind'])
def test_a_mirror_that_lags_or_has_a_torn_line_is_caught_up_by_sync(mirror, torn):
    lines = mirror.read_text().splitlines(keepends=True)
    mirror.write_text("".join(lines[:2]) + torn)
    finding = found()["mirror"]
    assert finding.state == "doubtful"
    assert "lacks the last 1 " in finding.said
    assert "ls-propagate sync" in finding.remedy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines, lines[-1]], "ahead of the store from its line 4"),
        (lambda lines: [lines[0], lines[1].replace("yes", "no"), lines[2]], "line 2 of .* differs"),
        (lambda lines: [lines[0], "nonsense\n", lines[2]], "line 2 of .* differs"),
        (lambda lines: [lines[0], "[]\n", lines[2]], "line 2 of .* differs"),
    ],
)
def test_a_mirror_of_another_log_is_found(mirror, change, said):
    mirror.write_text("".join(change(mirror.read_text().splitlines(keepends=True))))
    before = mirror.read_bytes()
    finding = found()["mirror"]
    assert finding.state == "bad"
    assert re.search(said, finding.said)
    assert mirror.read_bytes() == before


def test_no_daemon_on_a_campaign_that_has_begun_is_doubtful(studio):
    finding = found()["daemon"]
    assert (finding.state, finding.remedy) == (
        "doubtful",
        "run: ls-propagate sync, unless the campaign is finished",
    )


def test_the_lock_is_free_again_afterwards(studio, office):
    found()
    assert office.store.lock().acquire()


def test_a_daemon_that_runs_is_asked_how_it_is(studio, running, health):
    assert "the last pass ended well" in found()["daemon"].said
    health.update(ready=False, reason="no pass has ended well yet")
    finding = found()["daemon"]
    assert finding.state == "doubtful"
    assert "no pass has ended well yet" in finding.said
    health.update(text="something else")
    assert "something else" in found()["daemon"].said


def test_a_daemon_that_does_not_answer_is_doubtful(studio, running):
    finding = found()["daemon"]
    assert finding.state == "doubtful"
    assert "nothing answers" in finding.said


def test_a_daemon_on_any_port_cannot_be_asked(studio, running, monkeypatch):
    monkeypatch.setenv("LS_PROPAGATE_DAEMON_PORT", "0")
    assert found()["daemon"].state == "good"


def test_a_port_that_something_else_has_taken_is_doubtful(studio, health):
    finding = found()["daemon"]
    assert finding.state == "doubtful"
    assert "something answers" in finding.said
    assert "daemon_port" in finding.remedy


def test_every_check_is_after_those_that_it_needs():
    for place, (_, needs, _) in enumerate(examining.CHECKS):
        assert set(needs) <= set(NAMES[:place])
