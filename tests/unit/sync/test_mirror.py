"""The mirror: every line of the log, once, in order, whatever broke off; and never over something else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from propagation.errors import StoreError
from propagation.events import ImageTaken, MasksWritten, PagePosted, to_record
from sync.store import Store

EVENTS = [
    ImageTaken("/data/ü b.png"),
    PagePosted("p", 17),
    MasksWritten("x\ny\u2028", 5, 6, ("m1",)),
    ImageTaken("z"),
]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, make_url):
    return make_url(request.param)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mirrors" / "events.jsonl"


@pytest.fixture
def opened(path):
    """Opens a store once more, as another process would."""
    stores = []

    def again(url, mirror=path, lock=True):
        stores.append(Store(url, mirror))
        if lock:
            assert stores[-1].lock().acquire()
        return stores[-1]

    yield again
    for store in stores:
        store.close()


def mirrored(path):
    return [(entry["kind"], entry["body"]) for entry in map(json.loads, path.read_text().splitlines())]


def records(events):
    return [(kind, json.loads(json.dumps(body))) for kind, body in map(to_record, events)]


def test_what_is_appended_is_mirrored_line_by_line(opened, url, path):
    store = opened(url)
    for count, event in enumerate(EVENTS, 1):
        store.append([event])
        assert mirrored(path) == records(EVENTS[:count])
    store.append([], cursor="moved")
    entries = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert [entry["seq"] for entry in entries] == [1, 2, 3, 4]
    assert [list(entry) for entry in entries] == [["seq", "kind", "body", "at"]] * 4
    assert all(entry["at"].endswith("+00:00") for entry in entries)


def test_who_does_not_hold_the_lock_leaves_the_mirror_alone(opened, url, path):
    store = opened(url, lock=False)
    store.append(EVENTS)
    assert store.events() == EVENTS
    assert not path.exists()
    writer = opened(url)
    writer.events()
    assert mirrored(path) == records(EVENTS)
    path.write_text("changed by somebody")
    assert store.events() == EVENTS
    assert path.read_text() == "changed by somebody"


def test_a_mirror_that_was_behind_is_caught_up_as_the_log_is_read(opened, url, path):
    first = opened(url)
    first.append(EVENTS[:2])
    first.close()
    before = path.read_bytes()
    without = opened(url, mirror=None)
    without.events()
    without.append(EVENTS[2:])
    without.close()
    assert path.read_bytes() == before
    assert next(opened(url).stream()) == EVENTS[0]
    assert mirrored(path) == records(EVENTS)
    assert path.read_bytes().startswith(before)


def test_a_mirror_that_was_behind_is_caught_up_as_something_is_appended(opened, url, path):
    store = opened(url, lock=False)
    store.append(EVENTS[:3])
    assert store.lock().acquire()
    store.append(EVENTS[3:])
    assert mirrored(path) == records(EVENTS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_mirror_cut_off_anywhere_is_whole_again(opened, make_url, path, share):
    path.unlink(missing_ok=True)
    store = opened(make_url("sqlite"))
    store.append(EVENTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(share * len(whole))])
    store.events()
    assert path.read_bytes() == whole
    store.close()


def test_a_line_that_was_begun_and_is_in_no_store_is_cut_off(opened, url, path):
    store = opened(url)
    store.append(EVENTS)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seq": 5, "kind": "Im')
    store.events()
    assert path.read_bytes() == whole


def test_a_mirror_that_went_away_or_was_cut_while_the_daemon_runs_is_made_again(opened, url, path):
    store = opened(url)
    store.append(EVENTS[:2])
    path.unlink()
    store.append(EVENTS[2:3])
    assert mirrored(path) == records(EVENTS[:3])
    path.write_bytes(path.read_bytes()[:-5])
    store.append(EVENTS[3:])
    assert mirrored(path) == records(EVENTS)


def test_a_mirror_that_is_ahead_is_refused_and_left_as_it_is(opened, url, make_url, path):
    opened(url).append(EVENTS)
    whole = path.read_bytes()
    behind = opened(make_url("sqlite"), lock=False)
    behind.lock().acquire()
    with pytest.raises(
        StoreError, match=r"events\.jsonl is ahead of the store from its line 1 on.*move the mirror"
    ):
        behind.events()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_mirror_with_another_line_is_refused_and_left_as_it_is(opened, url, path, number):
    store = opened(url)
    store.append(EVENTS)
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = lines[number - 1].replace(b'"seq": ', b'"seq": 1')
    changed = b"\n".join(lines)
    path.write_bytes(changed)
    with pytest.raises(StoreError, match=rf"line {number} of the mirror .* differs from the store.*written anew"):
        store.events()
    assert path.read_bytes() == changed


@pytest.mark.parametrize("content", ["a diary, without a line's end", "a diary\n", "\n", "{}"])
def test_a_file_that_is_something_else_is_not_written_to(opened, make_url, path, content):
    path.parent.mkdir()
    path.write_text(content)
    store = opened(make_url("sqlite"))
    with pytest.raises(StoreError, match="is ahead of the store"):
        store.events()
    with pytest.raises(StoreError, match="differs from the store"):
        store.append(EVENTS)
    assert path.read_text() == content


def test_a_mirror_that_cannot_be_written_is_told_and_nothing_is_lost(opened, url, path):
    path.mkdir(parents=True)
    store = opened(url)
    with pytest.raises(StoreError, match=r"events\.jsonl cannot be written .*then start again"):
        store.append(EVENTS[:1])
    path.rmdir()
    store.append(EVENTS[1:])
    assert store.events() == EVENTS
    assert mirrored(path) == records(EVENTS)
