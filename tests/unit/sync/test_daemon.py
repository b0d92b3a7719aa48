"""The daemon on a server in memory: a whole campaign, cut off anywhere, and people who do as they please."""

import re
import threading
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from pycocotools import mask as coco

from plugin.crops import SIDE, unreadable_crop
from plugin.label_studio.images import decode
from plugin.label_studio.regions import META, mask_of, rle_of
from propagation.errors import Refused, StoreError, Unreachable
from propagation.events import Decided, PageIssued
from propagation.masks import build_table
from sync.source import pool, push_predictions
from sync.store import Hint
from sync.writeback import write_back

CHANGING = ("import_tasks", "import_predictions", "predictions_to_annotations", "update_annotation", "upload")


def changing_calls(world):
    return [name for name in world.gateway.calls if name in CHANGING]


# an undisturbed campaign


def test_a_campaign_writes_just_the_masks_that_are_right(world):
    world.run(world.daemon())
    right = {mask for mask, good in world.truth.items() if good}
    assert set(world.outcome()["accepted"]) == right
    written = {mask_of(region) for made in world.annotations().values() for a in made for region in a["result"]}
    assert written == right
    assert all(len(made) == 1 for made in world.annotations().values())


def test_each_region_tells_where_it_comes_from(make_world):
    world = make_world(write_every=1000)
    daemon = world.daemon()
    world.run(daemon)
    rows = {mask: row for row, mask in enumerate(world.table.ids.tolist())}
    names = daemon.campaign.deciding_cluster()
    images = dict(zip([task.task for task in daemon.store.source_tasks()], world.table.images, strict=True))
    for task, (annotation,) in world.annotations().items():
        for region in annotation["result"]:
            told = region["meta"][META]
            row = rows[told["mask"]]
            assert world.table.images[world.table.image[row]] == images[task]
            assert told["campaign"] == "campaign"
            assert told["cluster"] == names[row]
            assert told["verified"] == (daemon.campaign.verdict[row] == 1)
            assert 0.85 <= told["estimate"] <= 1
            assert region["value"][region["type"]] == [world.table.categories[world.table.category[row]]]


def test_every_mask_is_written_as_it_was_found(make_world, encode, detections):
    patterns = [
        lambda x, y: (x > 0) & (x < 6) & (y > 0) & (y < 7),
        lambda x, y: (abs(x - 3) < 3) & (abs(y - 3) < 3) & ((x != 3) | (y != 3)),  # a hole
        lambda x, y: ((x < 3) & (y < 3)) | ((x > 3) & (x < 7) & (y > 3) & (y < 7)),  # two parts
        lambda x, y: (x - 3) ** 2 + (y - 3) ** 2 < 10,
        lambda x, y: (x + y < 7) & (x > 0),
        lambda x, y: (x == 3) & (y == 3),  # a pixel
        lambda x, y: (x == y) & (x < 7),  # parts that touch at corners
    ]

    def shapes(scores, categories, names, keys):
        rles = []
        for place in range(len(scores)):
            y, x = np.mgrid[:32, :32]
            left, top = place % 16 % 4 * 8, place % 16 // 4 * 8
            cell = (x >= left) & (x < left + 8) & (y >= top) & (y < top + 8)
            rles.append(encode(cell & patterns[place % len(patterns)](x - left, y - top)))
        found = [
            detections(rles[b : b + 16], scores[b : b + 16], categories[b : b + 16])
            for b in range(0, len(rles), 16)
        ]
        return build_table(keys, found, names, "model-1")

    world = make_world(shapes)
    world.run(world.daemon())
    regions = {}
    for made in world.annotations().values():
        for region in made[0]["result"]:
            regions.setdefault(mask_of(region), []).append(region)
    assert set(regions) == {mask for mask, good in world.truth.items() if good}
    for mask, parts in regions.items():
        row = world.table.ids.tolist().index(mask)
        assert coco.iou([rle_of(parts)], [world.table.rle(row)], [0])[0, 0] >= 0.98
    assert {region["type"] for parts in regions.values() for region in parts} == {"polygonlabels", "brushlabels"}


def test_running_again_changes_nothing(world):
    world.run(world.daemon())
    world.close()
    before, calls, pages = world.outcome(), changing_calls(world), world.pages()
    daemon = world.daemon()
    for _ in range(3):
        step = daemon.step()
        assert step.finished
        assert (step.questions, step.decisions, step.pages, step.images_written) == (0, 0, 0, 0)
    assert (world.outcome(), changing_calls(world), world.pages()) == (before, calls, pages)


def test_nothing_is_written_before_enough_masks_are_accepted(make_world):
    world = make_world(write_every=1000)
    unfinished = []

    def look(step):
        if not step.finished:
            unfinished.extend(a for made in world.annotations().values() for a in made)

    world.run(world.daemon(), look)
    assert unfinished == []
    assert all(world.annotations().values())
    assert "update_annotation" not in world.gateway.calls


def test_the_log_says_what_was_answered_and_how_long_it_took(world):
    daemon = world.daemon()
    world.run(daemon)
    answers = [page.answer for page in daemon.campaign.pages.values()]
    assert all(answer.by == 2 and answer.seconds == 1.0 for answer in answers)


# a server that stumbles


@pytest.fixture
def no_crops(monkeypatch):
    """Pages without pictures, which take most of a run's time."""
    monkeypatch.setattr("sync.pages.draw_crop", lambda pixels, rle, side: unreadable_crop(8))


def undisturbed(make_world):
    world = make_world()
    world.run(world.daemon())
    return world


class Crash(Exception):
    """The process ends here."""


class StumblingGateway:
    """The server, one in twenty calls to which fails after a while, before or after it took effect."""

    def __init__(self, gateway, error=Unreachable, smooth=12):
        self._gateway = gateway
        self._error = error
        self._smooth = smooth
        self._chance = np.random.default_rng(1)

    def __getattr__(self, name):
        found = getattr(self._gateway, name)
        if not callable(found):
            return found

        def called(*args, **kwargs):
            self._smooth -= 1
            draw = 1.0 if self._smooth > 0 else self._chance.random()
            if draw < 0.025:
                raise self._error(f"{name} failed")
            answer = found(*args, **kwargs)
            if draw < 0.05:
                raise self._error(f"the answer to {name} was lost")
            return answer

        return called


def test_a_server_that_stumbles_is_waited_for(make_world, monkeypatch, no_crops, caplog):
    monkeypatch.setattr("sync.daemon.RETRY_SECONDS", 0)
    world = make_world()
    daemon = world.daemon(StumblingGateway(world.gateway))
    daemon.run(threading.Event(), every=0, told=lambda step: world.annotate(), until_finished=True)
    assert "trying again" in caplog.text
    assert world.outcome() == undisturbed(make_world).outcome()


def test_a_server_that_refuses_again_and_again_ends_the_daemon(world, monkeypatch):
    monkeypatch.setattr("sync.daemon.TRIES", 1)
    daemon = world.daemon(StumblingGateway(world.gateway, Refused))
    with pytest.raises(Refused):
        daemon.run(threading.Event(), every=0, told=lambda step: world.annotate(), until_finished=True)


def test_one_refusal_among_good_answers_is_waited_out(make_world, monkeypatch, no_crops):
    monkeypatch.setattr("sync.daemon.RETRY_SECONDS", 0)
    world = make_world()
    daemon = world.daemon()
    refused = iter([False, True, False, False, True])
    look = daemon._look_after

    def sometimes(now):
        if next(refused, False):
            raise Refused("a proxy's 401")
        look(now)

    monkeypatch.setattr(daemon, "_look_after", sometimes)
    daemon.run(threading.Event(), every=0, told=lambda step: world.annotate(), until_finished=True)
    assert next(refused, None) is None


@pytest.mark.parametrize("content", [None, b"no image"])
def test_an_image_that_cannot_be_read_holds_up_nothing(world, caplog, content):
    broken = world.table.images[1]
    for location in [name for name in world.gateway.files if name.startswith(broken)]:
        if content is None:
            del world.gateway.files[location]
        else:
            world.gateway.files[location] = content
    there = set(world.table.ids[world.table.image == 1].tolist())
    world.truth.update(dict.fromkeys(there, False))  # nobody says that it is right
    world.run(world.daemon())
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}
    assert str(broken) in caplog.text
    asked = {crop["alias"] for page in world.pages() for crop in page["data"]["crops"]}
    assert asked & there
    says_so = np.hstack(unreadable_crop())
    for page in world.pages():
        for place, crop in enumerate(page["data"]["crops"]):
            (address,) = re.findall(r'src="([^"]+)"', crop["html"])
            sheet = decode(address, world.gateway.files[address])
            shown = sheet[:, 2 * SIDE * place : 2 * SIDE * (place + 1)].astype(int)
            assert (abs(shown - says_so).mean() < 3) == (crop["alias"] in there)


def test_a_server_that_is_away_from_the_first_is_told_at_once(world):
    daemon = world.daemon()
    daemon._source_changes.read = lambda: (_ for _ in ()).throw(Unreachable("no answer"))
    with pytest.raises(Unreachable):
        daemon.run(threading.Event(), every=0)


def test_pages_answered_while_the_daemon_was_down_are_read(world, monkeypatch):
    # both are answered before the daemon knows their tasks, one long before the other
    imported = world.gateway.import_tasks

    def cut_off(*args):
        imported(*args)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(world.gateway, "import_tasks", cut_off)
        with pytest.raises(Crash):
            world.daemon().step()
    world.close()
    first, *others = world.pages()
    assert others
    world.gateway.submit(first["id"], world.marks(first))
    world.gateway._now += timedelta(hours=1)
    world.annotate()
    world.run(world.daemon())
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def test_two_daemons_at_once_are_told_apart(world):
    one, other = world.daemon(), world.daemon()
    one.step()
    with pytest.raises(StoreError, match="another process writes to this store"):
        other.step()
    world.annotate()
    world.run(one)
    pages = [page["data"]["page"] for page in world.pages()]
    assert len(set(pages)) == len(pages)


# people in the source project


def drawn(label="x"):
    points = [[10, 10], [20, 10], [20, 20]]
    return [
        {
            "id": "mine",
            "from_name": "polygon",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": 32,
            "original_height": 32,
            "value": {"points": points, "polygonlabels": [label]},
        }
    ]


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_an_image_that_a_person_annotates_gets_nothing_more(world, steps):
    daemon = world.daemon()
    task = daemon.store.source_tasks()[1]
    for _ in range(steps):
        daemon.step()
        world.annotate()
    before = [a for a in world.annotations()[task.task] if a["parent_prediction"]]
    theirs = world.gateway.submit(task.task, drawn())
    world.run(daemon)
    now = world.annotations()[task.task]
    assert [a["result"] for a in now if a["id"] == theirs] == [drawn()]
    assert [a for a in now if a["id"] != theirs] == before
    assert not set(world.outcome()["accepted"]) & set(world.table.ids[world.table.image == 1].tolist())
    others = [made for number, made in world.annotations().items() if number != task.task]
    assert all(len(made) == 1 for made in others)


def test_an_image_annotated_from_the_first_is_asked_nothing(world):
    daemon = world.daemon()
    world.gateway.submit(daemon.store.source_tasks()[1].task, drawn())
    world.run(daemon)
    there = set(world.table.ids[world.table.image == 1].tolist())
    asked = {crop["alias"] for page in world.pages() for crop in page["data"]["crops"]}
    assert asked
    assert not asked & there


def test_a_person_who_skips_a_source_task_takes_nothing(world):
    daemon = world.daemon()
    task = daemon.store.source_tasks()[1].task
    world.gateway.skip(task)
    world.run(daemon)
    assert [a["was_cancelled"] for a in world.annotations()[task]] == [True, False]


def test_an_annotation_of_ours_that_a_person_edits_is_theirs(world):
    daemon = world.daemon()
    task = daemon.store.source_tasks()[0].task
    world.run(daemon)
    (ours,) = world.annotations()[task]
    world.gateway.edit(ours["id"], drawn())
    # an answer is changed too, so that there is something to be written
    page = next(p for p in world.pages() if any(world.truth[crop["alias"]] for crop in p["data"]["crops"]))
    everything = [crop["alias"] for crop in page["data"]["crops"]]
    world.gateway.edit(page["annotations"][0]["id"], world.marking(everything))
    for _ in range(3):
        daemon.step()
    assert [a["result"] for a in world.annotations()[task]] == [drawn()]
    assert daemon.campaign.is_taken(daemon.store.source_tasks()[0].image)


@pytest.mark.parametrize("change", ["a new annotation", "an edit of ours"])
def test_what_a_person_does_between_looking_and_writing_is_not_lost(world, monkeypatch, change):
    daemon = world.daemon()
    task = daemon.store.source_tasks()[0].task
    theirs = []

    def write_late(*args):
        made = world.annotations()[task]
        if not theirs and change == "a new annotation":
            theirs.append(world.gateway.submit(task, drawn()))
        elif not theirs and made:
            theirs.append(made[0]["id"])
            world.gateway.edit(made[0]["id"], drawn())
        return write_back(*args)

    monkeypatch.setattr("sync.daemon.write_back", write_late)
    world.run(daemon)
    assert [(a["id"], a["result"]) for a in world.annotations()[task]] == [(theirs[0], drawn())]


# people in the verify project


def test_a_skipped_page_is_asked_again(world):
    daemon = world.daemon()
    daemon.step()
    page, *_ = world.pages()
    world.gateway.skip(page["id"])
    world.run(daemon)
    same = [p for p in world.pages() if questions(p) == questions(page)]
    assert len(same) == 2
    assert same[0]["data"]["page"] != same[1]["data"]["page"]
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def questions(page):
    return [crop["alias"] for crop in page["data"]["crops"]]


@pytest.mark.parametrize("when", ["at once", "after the end"])
def test_a_page_whose_answer_was_deleted_is_asked_again(world, when):
    daemon = world.daemon()
    daemon.step()
    world.annotate()
    page = world.pages()[0]
    if when == "at once":
        daemon.step()
    else:
        world.run(daemon)
    expected = {mask for mask, good in world.truth.items() if good}
    world.gateway.delete(page["annotations"][0]["id"])
    assert not daemon.step().finished
    # Label Studio offers its task again, so there is no other
    (again,) = [p for p in world.pages() if questions(p) == questions(page)]
    assert not again["annotations"]
    world.gateway.submit(again["id"], world.marks(again))
    world.run(daemon)
    assert set(world.outcome()["accepted"]) == expected
    assert all(len(made) == 1 for made in world.annotations().values())


def test_a_page_whose_task_was_deleted_is_asked_again(world, monkeypatch):
    daemon = world.daemon()
    daemon.step()
    page, *_ = world.pages()
    world.gateway.delete_tasks(world.verify.pages, [page["id"]])
    daemon.store.notice(Hint("TASKS_DELETED", world.verify.pages))
    daemon.step()
    assert daemon.store.hints() == []
    assert [questions(p) for p in world.pages()].count(questions(page)) == 1
    # and without a hint, after a while
    again = next(p for p in world.pages() if questions(p) == questions(page))
    world.gateway.delete_tasks(world.verify.pages, [again["id"]])
    monkeypatch.setattr("sync.daemon.LOOK_SECONDS", 0)
    world.run(daemon)
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def test_a_page_that_somebody_opened_and_left_is_asked_again_once_later_ones_were_answered(world):
    daemon = world.daemon()
    daemon.abandoned_after = 0
    daemon.step()
    left, *others = world.pages()
    daemon.step()
    assert len(world.pages()) == len(others) + 1  # nobody has answered any: the annotators are away
    for page in others:
        world.gateway.submit(page["id"], world.marks(page))
    daemon.step()
    first, second = [p for p in world.pages() if questions(p) == questions(left)]
    # of both, the first answer counts, whichever task it is in
    world.gateway.submit(first["id"], world.marks(first))
    daemon.step()
    world.gateway.submit(second["id"], world.marking(questions(second)))
    daemon.abandoned_after = 1000
    world.run(daemon)
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


@pytest.mark.parametrize("answered", ["neither", "first", "second"])
def test_of_two_tasks_with_one_page_that_which_nobody_answered_is_deleted(world, answered):
    """A server may take an import long after its caller has given up waiting."""
    daemon = world.daemon()
    daemon.step()
    page = world.pages()[0]
    (double,) = world.gateway.import_tasks(world.verify.pages, [{"data": page["data"]}])
    theirs = world.gateway.import_tasks(world.verify.pages, [{"data": {"text": "a person's own"}}])
    if answered != "neither":
        world.gateway.submit({"first": page["id"], "second": double}[answered], world.marks(page))
    daemon.step()
    (kept,) = [p["id"] for p in world.pages() if p["data"].get("page") == page["data"]["page"]]
    assert kept == (double if answered == "second" else page["id"])
    for number in theirs:
        world.gateway.submit(number, [])
    world.run(daemon)
    world.gateway.delete_tasks(world.verify.pages, theirs)
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}
    asked = [mask for event in daemon.store.events() if isinstance(event, PageIssued) for mask in event.questions]
    assert len(set(asked)) == len(asked)


def test_a_changed_answer_decides_anew_and_what_was_written_follows(world):
    daemon = world.daemon()
    world.run(daemon)
    before = written_masks(world)
    first = next(e for e in daemon.store.events() if isinstance(e, Decided) and e.decision == "accept" and e.asked)
    place, node = daemon.campaign.find(first.cluster)
    inside = set(world.table.ids[daemon.campaign.rows(place, node)].tolist())
    assert inside <= before
    for page in world.pages():
        if set(questions(page)) & inside:
            world.gateway.edit(page["annotations"][0]["id"], world.marking(questions(page)))
    world.run(daemon)
    decided = [e for e in daemon.store.events() if isinstance(e, Decided) and e.cluster == first.cluster]
    assert [e.decision for e in decided] == ["accept", "reject"]
    assert not inside & written_masks(world)
    for page in world.pages():
        if set(questions(page)) & inside:
            world.gateway.edit(page["annotations"][0]["id"], world.marks(page))
    world.run(daemon)
    assert inside <= written_masks(world)


def test_a_mask_judged_wrong_later_is_taken_back_though_pages_still_wait(world):
    daemon = world.daemon()
    world.run(daemon)
    page = next(p for p in world.pages() if world.truth[p["data"]["crops"][0]["alias"]])
    other = next(p for p in world.pages() if p["id"] != page["id"])
    gone = page["data"]["crops"][0]["alias"]
    assert gone in written_masks(world)
    world.gateway.delete(other["annotations"][0]["id"])  # so that the campaign waits
    marked = [mask for item in page["annotations"][0]["result"] for mask in item["value"]["choices"]]
    world.gateway.edit(page["annotations"][0]["id"], world.marking([*marked, gone]))
    step = daemon.step()
    assert not step.finished
    assert gone not in written_masks(world)


def test_what_was_read_when_the_server_failed_is_read_again(world, monkeypatch):
    daemon = world.daemon()
    daemon.step()
    world.annotate()
    with monkeypatch.context() as patch:
        patch.setattr("sync.daemon.read_verdicts", lambda *args: (_ for _ in ()).throw(Unreachable("away")))
        with pytest.raises(Unreachable):
            daemon.step()
    assert daemon.step().questions


def test_a_stop_is_heard_between_two_batches_of_writing(make_world, monkeypatch):
    world = make_world(write_every=1000)
    daemon = world.daemon()
    stop = threading.Event()
    batches = []

    def one_by_one(gateway, source, campaign, tasks, record):
        for task in tasks:
            batches.append(task)
            for written in write_back(gateway, source, campaign, [task], record):
                stop.set()
                yield written

    monkeypatch.setattr("sync.daemon.write_back", one_by_one)
    told = []
    daemon.run(stop, 0, lambda step: (told.append(step), world.annotate()), until_finished=True)
    assert len(batches) == 1
    assert not told[-1].finished
    world.close()
    monkeypatch.setattr("sync.daemon.write_back", write_back)
    world.run(world.daemon())
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def test_answers_are_read_and_pages_go_out_while_a_long_write_back_runs(make_world, monkeypatch):
    world = make_world(write_every=1)
    daemon = world.daemon()
    daemon.poll_every = 0
    posted = []

    def slowly(*args):
        for written in write_back(*args):
            posted.append(len(world.pages()))
            world.annotate()
            yield written
            posted.append(len(world.pages()))

    monkeypatch.setattr("sync.daemon.write_back", slowly)
    world.run(daemon)
    assert any(after > before for before, after in pairwise(posted))
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def test_an_answer_about_a_foreign_mask_is_a_problem_of_its_page_alone(world):
    daemon = world.daemon()
    daemon.step()
    page, *others = world.pages()
    world.gateway.submit(page["id"], world.marking(["elsewhere"]))
    world.annotate()
    step = daemon.step()
    assert [page["data"]["page"] in str(problem) for problem in step.problems] == [True]
    assert "elsewhere" in str(step.problems[0])
    assert step.questions == sum(len(questions(other)) for other in others)
    assert len([p for p in world.pages() if questions(p) == questions(page)]) == 2
    world.run(daemon)
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def test_a_mask_marked_wrong_later_is_taken_out_of_what_was_written(world):
    daemon = world.daemon()
    world.run(daemon)
    page = next(p for p in world.pages() if world.truth[p["data"]["crops"][0]["alias"]])
    gone = page["data"]["crops"][0]["alias"]
    answer = page["annotations"][0]
    already = [mask for item in answer["result"] for mask in item["value"]["choices"]]
    before = written_masks(world)
    assert gone in before
    world.gateway.edit(answer["id"], world.marking([*already, gone]))
    assert daemon.step().images_written == 1
    assert written_masks(world) == before - {gone}
    assert all(len(made) == 1 for made in world.annotations().values())
    # and a mark taken back brings it again
    world.gateway.edit(answer["id"], world.marking(already))
    daemon.step()
    assert written_masks(world) == before


def written_masks(world):
    return {mask_of(region) for made in world.annotations().values() for a in made for region in a["result"]}


def test_the_first_of_two_answers_stands(world):
    daemon = world.daemon()
    daemon.step()
    page = world.pages()[0]
    world.gateway.submit(page["id"], world.marks(page))
    world.gateway.submit(page["id"], world.marking(questions(page)), by=3)
    world.run(daemon)
    assert set(world.outcome()["accepted"]) == {mask for mask, good in world.truth.items() if good}


def test_decisions_follow_the_order_of_events_not_of_people(make_world):
    outcomes = []
    for reverse in (False, True):
        world = make_world()
        daemon = world.daemon()
        while not daemon.step().finished:
            waiting = [page for page in world.pages() if not page["annotations"]]
            for page in sorted(waiting, key=lambda p: p["id"], reverse=reverse):
                world.gateway.submit(page["id"], world.marks(page))
                daemon.step()
        outcomes.append(world.outcome())
    assert outcomes[0] == outcomes[1]


# predictions out, and the pool


def push(world):
    store = world.daemon().store
    return push_predictions(
        world.gateway, world.source, store.source_tasks(), world.table, world.trees, "propagate-1", 3
    )


def test_predictions_are_pushed_once(world):
    assert (push(world), push(world)) == (3, 0)
    for made in world.predictions().values():
        assert [p["model_version"] for p in made] == ["propagate-1"]


def test_predictions_cut_off_are_completed(world):
    daemon = world.daemon()
    first = daemon.store.source_tasks()[:1]
    push_predictions(world.gateway, world.source, first, world.table, world.trees, "propagate-1", 3)
    assert push(world) == 2
    assert all(len(made) == 1 for made in world.predictions().values())


def test_each_predicted_region_names_its_mask_and_a_cluster_around_it(world):
    world.table.best[5] = False
    push(world)
    seen = []
    for made in world.predictions().values():
        for region in made[0]["result"]:
            told = region["meta"][META]
            category, _, node = told["cluster"].rpartition("/")
            tree = next(tree for tree in world.trees if tree.category == category)
            inside = world.table.ids[tree.rows[tree.slice(int(node))]]
            assert told["mask"] in inside
            assert len(inside) >= 3
            seen.append(told["mask"])
    assert sorted(seen) == sorted(np.delete(world.table.ids, 5).tolist())


def test_each_predicted_region_covers_the_mask_that_it_names(world):
    push(world)
    for made in world.predictions().values():
        for region in made[0]["result"]:
            assert region["type"] == "polygonlabels"  # a brush would cover it whatever was outlined
            row = world.table.ids.tolist().index(mask_of(region))
            assert coco.iou([rle_of([region])], [world.table.rle(row)], [0])[0, 0] >= 0.98


def test_the_pool_is_the_images_that_no_person_annotated(world):
    keys = world.table.images.tolist()
    tasks = {task.image: task.task for task in pool(world.gateway, world.source.project, "image")}
    assert list(tasks) == keys
    world.gateway.submit(tasks[keys[0]], drawn())
    world.gateway.skip(tasks[keys[1]])
    again = {"data": {"image": f"{keys[2]}?signed=2"}}
    world.gateway.import_tasks(world.source.project, [again, {"data": {"text": "no image"}}])
    assert [(t.image, t.task) for t in pool(world.gateway, world.source.project, "image")] == [
        (key, tasks[key]) for key in keys[1:]
    ]


def test_what_a_campaign_wrote_leaves_an_image_in_the_pool(world):
    world.run(world.daemon())
    assert len(pool(world.gateway, world.source.project, "image")) == 3


def test_the_events_of_a_run_are_in_order(world):
    daemon = world.daemon()
    world.run(daemon)
    events = daemon.store.events()
    issued = [event.page for event in events if isinstance(event, PageIssued)]
    assert len(set(issued)) == len(issued)
    assert any(isinstance(event, Decided) and event.decision == "accept" for event in events)
