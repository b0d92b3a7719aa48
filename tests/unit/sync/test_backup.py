"""Backup and restore: the whole of a store, from either database into either, or nothing."""

import hashlib
import json
import stat
import threading
import zipfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from propagation.artefacts import read_artefact, write_artefact
from propagation.errors import StoreError
from propagation.events import CampaignStarted, CertificateOpened, ImageTaken, MasksWritten, PageAnswered
from sync.backup import FORMAT, MANIFEST, backup, restore
from sync.store import EVENTS as TABLE
from sync.store import SCHEMA, Hint, SourceTask, Store

EVENTS = [
    CampaignStarted("c", {"samples": 15, "budget": None, "share": 0.85}, "table", "trees"),
    PageAnswered("p", 3, "2026-01-01T00:00:00.000001Z", 2, 1 / 3, ("yes", "no")),
    CertificateOpened(1, "Größe “x”\x00\n", 0.05, "z" * 300_000, (0.1, 0.25)),
    *(MasksWritten(f"/data/{number}.png", number, number, ("m1", "m2")) for number in range(2500)),
]


@pytest.fixture
def opened():
    stores = []

    def again(url):
        stores.append(Store(url))
        return stores[-1]

    yield again
    for store in stores:
        store.close()


def filled(store, artefacts, events=EVENTS):
    """A store with something in each table, and the artefacts it builds on."""
    store.events()
    store.append(events, **{"cursor:verify": "2026-01-01", "connection": {"title": "Größe", "project": 1}})
    store.set_source_tasks([SourceTask(f"/data/{n}.png", n, f"/data/{n}.png?signed=1") for n in range(1500)])
    for task in range(3):
        store.notice(Hint("ANNOTATION_CREATED", 7, (task,)))

    def table(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "masks.npy").write_bytes(bytes(range(256)) * 5000)
        (folder / "empty").write_bytes(b"")

    made = write_artefact(artefacts, "masks", {"model": "m"}, [], table)
    trees = write_artefact(artefacts, "trees", {}, [made.fingerprint], lambda f: (f / "t").write_text("tree"))
    store.remember(table=made.folder.name, trees=trees.folder.name)
    (artefacts / ".draft-left-behind").mkdir()
    (artefacts / ".draft-left-behind" / "half").write_text("half")
    return store


def rows(file):
    """The rows of a backup by table; the inbox is numbered anew by each database."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.startswith("tables/")]
        found = {name: [json.loads(line) for line in archive.read(name).splitlines()] for name in names}
    for hint in found["tables/inbox.jsonl"]:
        del hint["id"]
    return found


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_empty(store, artefacts):
    hints, tasks, facts = store.hints(), store.source_tasks(), [store.fact(n) for n in ("table", "connection")]
    return not (store.events() or hints or tasks or any(facts) or any(artefacts.iterdir()))


def change(file, changed, members=None, manifest=None):
    """A backup made up from another: members in place of its own, by name, and a manifest that fits them."""
    with zipfile.ZipFile(file) as archive:
        told = json.loads(archive.read(MANIFEST))
        held = {info: archive.read(info) for info in archive.infolist() if info.filename != MANIFEST}
    held = {info: content for info, content in held.items() if info.filename not in (members or {})}
    held |= {name: content for name, content in (members or {}).items() if content is not None}
    names = {getattr(name, "filename", name): content for name, content in held.items()}
    told["members"] = {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in names.items()}
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
        archive.writestr(MANIFEST, json.dumps(told | (manifest or {})))
    return changed


@pytest.fixture
def small(tmp_path, make_url, opened):
    """The backup of a store with little in it."""
    store = filled(opened(make_url("sqlite")), tmp_path / "small", EVENTS[:2])
    backup(store, tmp_path / "small", tmp_path / "small.zip")
    return tmp_path / "small.zip"


@pytest.fixture
def empty(tmp_path, make_url, opened):
    """An empty store, and an empty folder for its artefacts."""
    (tmp_path / "restored").mkdir()
    return opened(make_url("sqlite")), tmp_path / "restored"


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
def test_a_store_is_made_again_in_either_database(source, target, tmp_path, make_url, opened):
    first, second = opened(make_url(source)), opened(make_url(target))
    filled(first, tmp_path / "a")
    backup(first, tmp_path / "a", tmp_path / "deep" / "b.zip")
    restore(tmp_path / "deep" / "b.zip", second, tmp_path / "b")
    assert second.events() == EVENTS
    assert second.source_tasks() == first.source_tasks()
    assert [second.fact(n) for n in ("connection", "schema")] == [{"title": "Größe", "project": 1}, SCHEMA]
    assert [hint for _, hint in second.hints()] == [hint for _, hint in first.hints()]
    read_artefact(tmp_path / "b" / second.fact("table"), "masks")
    kept = {name: content for name, content in files(tmp_path / "a").items() if ".draft" not in name}
    assert files(tmp_path / "b") == kept
    assert [path.name for path in (tmp_path / "b").glob(".*")] == []
    # the moments too, which only a second backup shows
    backup(second, tmp_path / "b", tmp_path / "c.zip")
    assert rows(tmp_path / "c.zip") == rows(tmp_path / "deep" / "b.zip")
    # and work goes on
    second.append([ImageTaken("new")])
    numbers = [number for number, _ in second.hints()]
    second.notice(Hint("a", 1))
    assert second.hints()[-1][0] > max(numbers)
    assert second.lock().acquire()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_beside_a_running_daemon_is_one_state(kind, tmp_path, make_url, opened):
    url = make_url(kind)
    store, daemon = opened(url), opened(url)
    filled(store, tmp_path / "a")
    daemon.events()
    assert daemon.lock().acquire()
    stop = threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            daemon.append([ImageTaken(str(number)), ImageTaken(str(number))], **{"cursor:verify": str(number)})
            daemon.notice(Hint("a", 1, (number,)))
            number += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        made = [tmp_path / f"{number}.zip" for number in range(3)]
        for file in made:
            backup(store, tmp_path / "a", file)
    finally:
        stop.set()
        thread.join()
    for file in made:
        found = rows(file)
        taken = [row["body"]["image"] for row in found["tables/events.jsonl"] if row["kind"] == "ImageTaken"]
        cursors = [row["value"] for row in found["tables/facts.jsonl"] if row["name"] == "cursor:verify"]
        assert cursors == (taken[-1:] or ["2026-01-01"])
        assert [row["seq"] for row in found["tables/events.jsonl"]] == list(
            range(1, len(found["tables/events.jsonl"]) + 1)
        )
    assert len(rows(made[-1])["tables/events.jsonl"]) > len(EVENTS)


def test_the_manifest_says_what_is_there(small):
    with zipfile.ZipFile(small) as archive:
        told = json.loads(archive.read(MANIFEST))
        assert told["format"] == FORMAT
        assert told["schema"] == SCHEMA
        assert told["rows"] == {"events": 2, "source_tasks": 1500, "facts": 5, "inbox": 3}
        assert set(told["members"]) == set(archive.namelist()) - {MANIFEST}
        for name, (size, digest) in told["members"].items():
            content = archive.read(name)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)


def test_a_backup_that_fails_leaves_the_one_before(small, tmp_path, make_url, opened, monkeypatch):
    before = small.read_bytes()
    store = opened(make_url("sqlite"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sync.backup.os.fsync", full)
    with pytest.raises(StoreError, match=r"small\.zip cannot be written .*No space left.*make room"):
        backup(store, tmp_path / "small", small)
    assert small.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_place_where_no_file_can_be_is_told_in_words(small, tmp_path, make_url, opened):
    with pytest.raises(StoreError, match=r"below\.zip cannot be written .*name another file"):
        backup(opened(make_url("sqlite")), tmp_path / "small", small / "below.zip")


def test_a_backup_replaces_the_one_before(small, tmp_path, make_url, opened):
    store = opened(make_url("sqlite"))
    backup(store, tmp_path / "none", small)
    assert rows(small)["tables/events.jsonl"] == []


@pytest.mark.parametrize(
    "fill",
    [
        lambda store: store.append(EVENTS[:1]),
        lambda store: store.remember(connection={}),
        lambda store: store.set_source_tasks([SourceTask("a", 1, "a")]),
    ],
)
def test_a_store_that_is_not_empty_is_refused(fill, small, empty):
    store, artefacts = empty
    fill(store)
    before = store.events(), store.source_tasks(), store.fact("connection")
    with pytest.raises(StoreError, match=r"the store sqlite.* is not empty; restore into a new one"):
        restore(small, store, artefacts)
    assert (store.events(), store.source_tasks(), store.fact("connection")) == before
    assert not any(artefacts.iterdir())


def test_a_store_that_somebody_writes_to_is_refused(small, empty, opened):
    store, artefacts = empty
    daemon = opened(f"sqlite:///{store.database.file}")
    assert daemon.lock().acquire()
    with pytest.raises(StoreError, match=r"a daemon runs on the store .*; stop it, then restore again"):
        restore(small, store, artefacts)
    daemon.lock().release()
    restore(small, store, artefacts)
    assert daemon.lock().acquire()


def test_who_holds_the_lock_may_restore_and_keeps_it(small, empty):
    store, artefacts = empty
    assert store.lock().acquire()
    restore(small, store, artefacts)
    assert store.lock().held()


def test_artefacts_that_are_there_already_stay_if_they_are_the_same(small, empty, tmp_path):
    store, artefacts = empty
    filled(store, artefacts)
    other = Store(f"sqlite:///{tmp_path / 'other.sqlite'}")
    restore(small, other, artefacts)
    assert len(other.events()) == 2
    other.close()


@pytest.mark.parametrize("damage", ["changed", "lacking", "more"])
def test_an_artefact_with_another_content_is_refused(damage, small, empty):
    store, artefacts = empty
    with zipfile.ZipFile(small) as archive:
        name = next(name for name in archive.namelist() if name.endswith("masks.npy"))
        path = artefacts.joinpath(*Path(name).parts[1:])
        for member in archive.namelist():
            if member.startswith("/".join(Path(name).parts[:2])):
                there = artefacts.joinpath(*Path(member).parts[1:])
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(archive.read(member))
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif damage == "lacking":
        path.unlink()
    else:
        path.with_name("more").touch()
    before = files(artefacts)
    with pytest.raises(StoreError, match=r"masks-\w+ has another content than in the backup; move it away"):
        restore(small, store, artefacts)
    assert files(artefacts) == before
    assert store.events() == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_a_backup_damaged_anywhere_is_refused_or_harmless(place, value, cut, small, tmp_path, make_url, opened):
    whole = bytearray(small.read_bytes())
    at = int(place * len(whole))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(bytes(whole[:at]) if cut else bytes(whole[:at]) + bytes([value]) + bytes(whole[at + 1 :]))
    store, artefacts = (
        opened(make_url("sqlite")),
        tmp_path / "restored" / str(len(list(tmp_path.glob("restored/*")))),
    )
    try:
        restore(damaged, store, artefacts)
    except StoreError:
        assert is_empty(store, artefacts)
    else:
        assert not cut
        assert files(artefacts) == {n: c for n, c in files(tmp_path / "small").items() if ".draft" not in n}
        backup(store, artefacts, tmp_path / "again.zip")
        assert rows(tmp_path / "again.zip") == rows(small)
    store.close()


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9])
def test_a_member_that_was_changed_is_refused(place, small, empty, tmp_path):
    with zipfile.ZipFile(small) as archive:
        info = archive.getinfo("tables/events.jsonl")
        content = archive.read(info)
    at = int(place * len(content))
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    with zipfile.ZipFile(small) as archive:
        told = json.loads(archive.read(MANIFEST))["members"]
    file = change(small, tmp_path / "x.zip", {info.filename: changed}, {"members": told})
    with pytest.raises(StoreError, match="is broken, or no backup"):
        restore(file, *empty)
    assert is_empty(*empty)


@pytest.mark.parametrize("wrong", ["missing", "a folder", "text", "nothing", "another zip", "another manifest"])
def test_what_is_no_backup_is_refused(wrong, empty, tmp_path):
    file = tmp_path / "x.zip"
    if wrong == "a folder":
        file.mkdir()
    elif wrong in ("text", "nothing"):
        file.write_text("no backup" if wrong == "text" else "")
    elif wrong != "missing":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(MANIFEST if wrong == "another manifest" else "readme", '["of another program"]')
    with pytest.raises(StoreError, match=r"x\.zip (is broken, or no backup|cannot be restored)"):
        restore(file, *empty)
    assert is_empty(*empty)


def link():
    info = zipfile.ZipInfo("artefacts/masks/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "artefacts/../../out",
        "artefacts/masks/../../../out",
        "/out",
        "artefacts//out/x",
        "artefacts/./x/y",
        "artefacts/masks/..\\..\\out",
        "C:/out/x/y",
        "artefacts/file-beside-the-folders",
        "artefacts/.restore-x/y",
        "artefacts/masks/folder/",
        "tables/others.jsonl",
        "other/masks/x",
        link(),
    ],
    ids=str,
)
def test_a_name_that_leads_elsewhere_is_refused(name, small, empty, tmp_path):
    file = change(small, tmp_path / "x.zip", {name: b"/etc/passwd"})
    before = files(tmp_path)
    with pytest.raises(StoreError, match=r"is no plain file inside it|belongs to no backup"):
        restore(file, *empty)
    assert is_empty(*empty)
    assert {name for name in files(tmp_path) if "deep" not in name} == {n for n in before if "deep" not in n}


def test_a_member_that_the_manifest_does_not_name_is_refused(small, empty):
    with zipfile.ZipFile(small, "a") as archive:
        archive.writestr("artefacts/masks/more", b"more")
    with pytest.raises(StoreError, match="it lacks members, or has others"):
        restore(small, *empty)
    assert is_empty(*empty)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(small, empty):
    with zipfile.ZipFile(small, "a") as archive:
        archive.writestr("tables/events.jsonl", b"")
    with pytest.raises(StoreError, match="it lacks members, or has others"):
        restore(small, *empty)
    assert is_empty(*empty)


def test_a_backup_of_a_later_schema_is_refused(small, empty, tmp_path):
    file = change(small, tmp_path / "x.zip", manifest={"schema": SCHEMA + 1})
    with pytest.raises(StoreError, match=f"has schema {SCHEMA + 1}, this version knows {SCHEMA}; update it"):
        restore(file, *empty)
    assert is_empty(*empty)


def test_a_backup_of_an_earlier_schema_is_taken(small, empty, tmp_path):
    file = change(small, tmp_path / "x.zip", {"tables/inbox.jsonl": None}, {"schema": 1})
    store, artefacts = empty
    restore(file, store, artefacts)
    assert store.events() == EVENTS[:2]
    assert store.hints() == []
    assert store.fact("schema") == SCHEMA


@pytest.mark.parametrize(
    "more",
    [
        b'{"seq": 3, "kind": "ImageTaken", "body": {}, "at": "2026-01-01T00:00:00+00:00", "colour": "red"}\n',
        b'{"seq": 2, "kind": "ImageTaken", "body": {}, "at": "2026-01-01T00:00:00+00:00"}\n',
        b'{"seq": 3, "kind": "ImageTaken", "body": {}, "at": "yesterday"}\n',
        b'{"seq": 3}\n',
        b"no JSON\n",
        b"[1, 2]\n",
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_rows_that_fit_no_table_leave_nothing_behind(kind, more, small, tmp_path, make_url, opened):
    with zipfile.ZipFile(small) as archive:
        content = archive.read("tables/events.jsonl") + more
    file = change(small, tmp_path / "x.zip", {"tables/events.jsonl": content})
    store, artefacts = opened(make_url(kind)), tmp_path / "restored"
    with pytest.raises(StoreError):
        restore(file, store, artefacts)
    assert is_empty(store, artefacts)


def test_artefacts_that_cannot_be_placed_leave_nothing_behind(small, empty, monkeypatch):
    store, artefacts = empty
    rename, done = Path.rename, []

    def once(path, target):
        if done:
            raise OSError(28, "No space left on device")
        done.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(StoreError, match=r"small\.zip cannot be restored .*No space left"):
        restore(small, store, artefacts)
    assert done
    assert is_empty(store, artefacts)
    with store.database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(TABLE)).scalar() == 0
