"""Write-back against a server in memory: what is written, what is left alone, and what it asks the server for."""

from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco

from plugin.label_studio.fake import FakeGateway
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.pace import Pace
from plugin.label_studio.regions import META, mask_of, rle_of
from propagation.campaign import Campaign
from propagation.errors import Unreachable
from propagation.events import (
    CampaignStarted,
    Commanded,
    Decided,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    WriteIntended,
)
from propagation.paper import PaperStrategy
from propagation.tree import cluster_name
from sync.changes import Changes
from sync.source import ANNOTATION_FIELDS, Source, people
from sync.store import SourceTask
from sync.writeback import model_version, write_back

IMAGES = 6
CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="x"/></PolygonLabels></View>"""
CHANGING = {"import_predictions", "predictions_to_annotations", "update_annotation"}


class Few(Pace):
    """So many items in each call."""

    def __init__(self, items):
        super().__init__(clock=lambda: 0.0)
        self.items = items

    def size(self, kind, first=0, alone=False):
        return self.items


class Site:
    """A project of six images with sixteen masks each, the lower half of them in one cluster."""

    def __init__(self, table, tree):
        self.gateway = FakeGateway()
        self.project = self.gateway.create_project("cells", CONFIG, "", {}).id
        keys = [f"/data/upload/1/{number:03}.png" for number in range(IMAGES)]
        numbers = self.gateway.import_tasks(self.project, [{"data": {"image": key}} for key in keys])
        self.tasks = [SourceTask(key, number, key) for key, number in zip(keys, numbers, strict=True)]
        self.table = table([0.9] * (16 * IMAGES), names=("x",), keys=keys)
        values = [place % 16 + place / 1000 + 1000 * (place % 16 >= 8) for place in range(len(self.table))]
        self.tree = tree(self.table, values)
        self.lower, self.upper = sorted(
            self.tree.halves(self.tree.root),
            key=lambda node: int((self.tree.rows[self.tree.slice(node)] % 16).min()),
        )
        self.source = Source(self.project, read_labeling(CONFIG, ("x",), {}, "cells"), self.gateway.user().id)
        self.log = []
        self.campaign = Campaign(self.table, [self.tree], PaperStrategy())
        self.record([CampaignStarted("first", {}, "", ""), self.decided("split", self.tree.root)])
        self.changes = None

    def decided(self, decision, node):
        return Decided(cluster_name(self.tree, node), decision, 0, 0)

    def accept(self, *nodes):
        self.record([self.decided("accept", node) for node in nodes])

    def judge(self, row, verdict):
        """A page about one mask is answered, or its answer changed."""
        page = f"page about {row}"
        if page not in self.campaign.pages:
            mask = str(self.table.ids[row])
            self.record([PageIssued(page, 1, "x", (mask,), ()), PagePosted(page, 10_000 + int(row))])
        self.record([PageAnswered(page, int(row), f"at {len(self.log)}", 2, 1.0, (verdict,))])

    def record(self, events):
        self.log += events
        for event in events:
            self.campaign.apply(event)

    def writing(self, gateway=None, tasks=None):
        return write_back(gateway or self.gateway, self.source, self.campaign, tasks or self.tasks, self.record)

    def write(self, gateway=None):
        return list(self.writing(gateway))

    def replayed(self):
        """The campaign of another process, which knows the log and nothing else."""
        self.campaign = Campaign(self.table, [self.tree], PaperStrategy())
        for event in self.log:
            self.campaign.apply(event)

    def rows(self, image, node=None):
        rows = np.flatnonzero(self.table.image == image)
        return rows if node is None else rows[np.isin(rows, self.tree.rows[self.tree.slice(node)])]

    def masks(self, image, node=None):
        return set(self.table.ids[self.rows(image, node)].tolist())

    def annotations(self, image):
        (task,) = self.gateway.tasks(self.project, ANNOTATION_FIELDS, ids=[self.tasks[image].task])
        return task["annotations"]

    def written(self, image):
        """The masks of an image's only annotation."""
        (made,) = self.annotations(image)
        return {mask_of(region) for region in made["result"]}

    def predictions(self, image):
        (task,) = self.gateway.tasks(self.project, ["predictions"], ids=[self.tasks[image].task])
        return task["predictions"]

    def taken(self):
        return {event.image for event in self.log if isinstance(event, ImageTaken)}

    def calls(self):
        """What was asked of the server since the last time."""
        found = list(self.gateway.calls)
        self.gateway.calls.clear()
        return found


@pytest.fixture
def site(table, tree):
    return Site(table, tree)


def drawn(name="mine"):
    return [
        {
            "id": name,
            "from_name": "label",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": 32,
            "original_height": 32,
            "value": {"points": [[10, 10], [20, 10], [20, 20]], "polygonlabels": ["x"]},
        }
    ]


class Interrupted:
    """The server, to which something happens before or after a call of a name."""

    def __init__(self, gateway, name, before=None, after=None):
        self._gateway = gateway
        self._name = name
        self._before, self._after = before, after

    def __getattr__(self, name):
        found = getattr(self._gateway, name)
        if name != self._name:
            return found

        def called(*args, **more):
            before, after = self._before, self._after
            self._before = self._after = None
            if before:
                before()
            answer = found(*args, **more)
            answer = iter(list(answer)) if name == "tasks" else answer
            if after:
                after()
            return answer

        return called


# what is written


def test_every_image_gets_one_annotation_with_just_the_accepted_masks(site):
    site.accept(site.lower)
    site.judge(site.rows(1, site.lower)[0], "no")
    site.judge(site.rows(2, site.upper)[0], "yes")
    assert sum(site.write()) == IMAGES
    gone, more = site.table.ids[site.rows(1, site.lower)[0]], site.table.ids[site.rows(2, site.upper)[0]]
    for image in range(IMAGES):
        wanted = site.masks(image, site.lower)
        wanted -= {gone} if image == 1 else set()
        wanted |= {more} if image == 2 and site.campaign.accepted()[site.rows(2, site.upper)[0]] else set()
        assert site.written(image) == wanted


def test_each_region_covers_the_mask_that_it_names(site):
    site.accept(site.lower, site.upper)
    site.write()
    row_of = {mask: row for row, mask in enumerate(site.table.ids.tolist())}
    for image in range(IMAGES):
        (made,) = site.annotations(image)
        for region in made["result"]:
            row = row_of[mask_of(region)]
            assert coco.iou([rle_of([region])], [site.table.rle(row)], [0])[0, 0] >= 0.98


def test_each_region_tells_by_which_decision_it_stands(site):
    site.accept(site.lower)
    site.judge(site.rows(0, site.lower)[3], "yes")
    site.write()
    (made,) = site.annotations(0)
    reasons = site.campaign.reasons()
    rows = {mask: row for row, mask in enumerate(site.table.ids.tolist())}
    told = {rows[region["meta"][META]["mask"]]: region["meta"][META] for region in made["result"]}
    for row, meta in told.items():
        assert meta["campaign"] == "first"
        assert meta["decision"] == reasons[row]
        assert meta["cluster"] == cluster_name(site.tree, site.lower)
        assert meta["verified"] == (row == site.rows(0, site.lower)[3])
    assert {meta["decision"] for meta in told.values()} >= {f"cluster/{cluster_name(site.tree, site.lower)}"}
    said = {region["meta"]["text"][0] for region in made["result"]}
    assert said >= {
        f"cluster {cluster_name(site.tree, site.lower)} · accepted by its answers · nothing else is claimed"
    }


def test_a_mask_judged_right_or_accepted_by_command_has_a_cluster_and_no_share(site):
    site.accept(site.lower)
    upper, lower = (cluster_name(site.tree, node) for node in (site.upper, site.lower))
    site.campaign.evidence[lower] = 10, 9
    judged = site.rows(0, site.upper)[0]
    site.judge(judged, "yes")
    site.write()
    metas = {r["meta"][META]["mask"]: r["meta"] for r in site.annotations(0)[0]["result"]}
    one = metas[site.table.ids[judged]]
    assert one[META]["cluster"] == upper
    assert one[META]["decision"].startswith("page/")
    assert one[META]["estimate"] is None
    assert "judged right on a page" in one["text"][0]
    assert {m[META]["estimate"] for m in metas.values() if m is not one} == {0.9}
    site.campaign.apply(Commanded(upper, "accept", "user 1", "2026-01-01T00:00:00Z", "board/1/x"))
    site.write()
    metas = {r["meta"][META]["mask"]: r["meta"] for r in site.annotations(1)[0]["result"]}
    commanded = [meta for meta in metas.values() if meta[META]["decision"].startswith("command/")]
    assert commanded
    assert {(m[META]["cluster"], m[META]["estimate"]) for m in commanded} == {(upper, None)}
    assert commanded[0]["text"] == [f"cluster {upper} · accepted by command · nothing else is claimed"]


def test_nothing_is_asked_of_the_server_where_nothing_is_due(site):
    assert site.write() == []
    site.accept(site.lower)
    site.write()
    site.calls()
    assert site.write() == []
    assert site.calls() == []


def test_images_without_a_task_and_tasks_without_an_image_are_left_out(site):
    site.accept(site.lower)
    tasks = [*site.tasks[2:], SourceTask("/data/unknown.png", 999, "")]
    assert sum(site.writing(tasks=tasks)) == IMAGES - 2
    assert site.annotations(0) == []


def test_the_log_tells_what_is_written_before_and_after(site):
    site.accept(site.lower)
    place = len(site.log)
    site.write()
    events = site.log[place:]
    intended = {event.task: event.digest for event in events if isinstance(event, WriteIntended)}
    done = {event.task: event for event in events if isinstance(event, MasksWritten)}
    assert intended.keys() == done.keys() == {task.task for task in site.tasks}
    for image, task in enumerate(site.tasks):
        assert events.index(done[task.task]) > events.index(WriteIntended(task.task, intended[task.task]))
        assert set(done[task.task].masks) == site.masks(image, site.lower)


# batch by batch


def test_it_says_after_each_batch_how_many_images_it_has_written(site):
    site.gateway.pace = Few(2)
    site.accept(site.lower)
    assert site.write() == [2, 2, 2]
    site.accept(site.upper)
    assert site.write() == [2, 2, 2]


def test_what_is_learned_between_two_batches_holds_for_the_next(site):
    site.gateway.pace = Few(2)
    site.accept(site.lower)
    writing = site.writing()
    assert next(writing) == 2
    row = site.rows(4, site.lower)[5]
    site.judge(row, "no")  # its regions are drawn already
    site.record([ImageTaken(site.tasks[3].image)])
    assert list(writing) == [2, 1]
    assert site.written(4) == site.masks(4, site.lower) - {site.table.ids[row]}
    assert site.annotations(3) == []
    digests = {event.digest for event in site.log if isinstance(event, WriteIntended)}
    assert len(digests) == 5


def test_more_may_be_accepted_between_two_batches(site):
    site.gateway.pace = Few(2)
    site.accept(site.lower)
    writing = site.writing()
    next(writing)
    site.accept(site.upper)
    list(writing)
    for image in range(IMAGES):
        assert site.written(image) == (site.masks(image, site.lower) if image < 2 else site.masks(image))
    site.write()
    assert all(site.written(image) == site.masks(image) for image in range(IMAGES))


def test_it_may_be_stopped_between_two_batches_and_begun_again(site):
    site.gateway.pace = Few(2)
    site.accept(site.lower)
    writing = site.writing()
    next(writing)
    writing.close()
    assert [len(site.annotations(image)) for image in range(IMAGES)] == [1, 1, 0, 0, 0, 0]
    site.replayed()
    assert site.write() == [2, 2]
    assert all(len(site.annotations(image)) == 1 for image in range(IMAGES))


def test_regions_are_drawn_ahead_once(site, monkeypatch):
    import sync.writeback

    rows = []
    region_of = sync.writeback.region_of
    monkeypatch.setattr(
        sync.writeback, "region_of", lambda table, row, *more: rows.append(row) or region_of(table, row, *more)
    )
    site.gateway.pace = Few(2)
    site.accept(site.lower)
    site.write()
    assert sorted(rows) == sorted(site.tree.rows[site.tree.slice(site.lower)].tolist())


# how little is asked


def test_first_annotations_go_in_bulk_and_nothing_is_read(site):
    site.accept(site.lower)
    site.write()
    assert Counter(site.calls()[2:]) == {
        "unannotated": 1,
        "import_predictions": 1,
        "predictions_to_annotations": 1,
        "settled": 1,
    }


def test_a_set_that_grows_is_patched(site):
    site.gateway.pace = Few(IMAGES)
    site.accept(site.lower)
    site.write()
    site.calls()
    site.accept(site.upper)
    site.write()
    assert Counter(site.calls()) == {"tasks": 2, "update_annotation": IMAGES}
    assert all(site.written(image) == site.masks(image) for image in range(IMAGES))


def test_an_image_whose_masks_are_all_taken_back_has_no_annotation_until_it_has_masks_again(site):
    site.accept(site.lower)
    site.write()
    for row in site.rows(0, site.lower):
        site.judge(row, "no")
    site.write()
    assert site.annotations(0) == []
    changes = Changes(
        site.gateway, site.project, ANNOTATION_FIELDS, site.gateway.latest(site.project), site.campaign.ours
    )
    assert site.write() == []
    assert changes.read() == []
    site.judge(site.rows(0, site.lower)[0], "yes")
    site.write()
    assert site.written(0) == {site.table.ids[site.rows(0, site.lower)[0]]}


def test_the_campaigns_own_changes_are_not_read_again(site):
    changes = Changes(
        site.gateway, site.project, ANNOTATION_FIELDS, site.gateway.latest(site.project), site.campaign.ours
    )
    site.accept(site.lower)
    for _ in range(2):
        site.write()
        assert changes.read() == []
        assert changes.cursor == site.gateway.latest(site.project)
        site.accept(site.upper)
    site.gateway.submit(site.tasks[2].task, drawn())
    assert [task["id"] for task in changes.read()] == [site.tasks[2].task]


# people


def test_an_image_that_a_person_annotated_gets_nothing(site):
    site.accept(site.lower)
    theirs = site.gateway.submit(site.tasks[2].task, drawn())
    assert sum(site.write()) == IMAGES - 1
    assert [made["id"] for made in site.annotations(2)] == [theirs]
    assert site.predictions(2) == []
    assert site.taken() == {site.tasks[2].image}
    assert site.write() == []


def test_a_skip_takes_nothing(site):
    site.accept(site.lower)
    site.gateway.skip(site.tasks[2].task)
    assert sum(site.write()) == IMAGES
    assert [made["was_cancelled"] for made in site.annotations(2)] == [True, False]
    assert site.taken() == set()


@pytest.mark.parametrize("call", ["import_predictions", "predictions_to_annotations", "settled"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_person_who_annotates_meanwhile_keeps_what_was_done(site, call, when):
    site.accept(site.lower)
    theirs = []

    def annotate():
        theirs.append(site.gateway.submit(site.tasks[2].task, drawn()))

    site.write(Interrupted(site.gateway, call, **{when: annotate}))
    before = call == "import_predictions" or (call, when) == ("predictions_to_annotations", "before")
    mine = [made for made in site.annotations(2) if made["id"] not in theirs]
    assert len(mine) == (0 if before else 1)
    assert [made["result"] for made in site.annotations(2) if made["id"] in theirs] == [drawn()]
    if (call, when) != ("settled", "after"):
        assert site.taken() == {site.tasks[2].image}
    (task,) = site.gateway.tasks(site.project, ANNOTATION_FIELDS, ids=[site.tasks[2].task])
    assert people(task, site.campaign, site.source)
    site.accept(site.upper)
    site.write()
    assert [made["result"] for made in site.annotations(2) if made["id"] in theirs] == [drawn()]
    assert site.taken() == {site.tasks[2].image}
    assert [made for made in site.annotations(2) if made["id"] not in theirs] == mine


@pytest.mark.parametrize("call", ["settled", "update_annotation", "tasks"])
def test_an_edit_meanwhile_is_seen_as_a_persons(site, call):
    site.accept(site.lower)
    if call != "settled":
        site.write()
        site.accept(site.upper)
    image = 2

    def edit():
        (made,) = site.annotations(image)
        site.gateway.edit(made["id"], drawn())

    # for PATCHes: after the last image was written, before the tasks' times are read
    if call == "update_annotation":
        image = 0
        gateway = Interrupted(site.gateway, call, after=edit)
    else:
        gateway = Interrupted(site.gateway, call, before=edit)
    site.write(gateway)
    (made,) = site.annotations(image)
    assert made["result"] == drawn()
    (task,) = site.gateway.tasks(site.project, ANNOTATION_FIELDS, ids=[site.tasks[image].task])
    assert people(task, site.campaign, site.source)


def test_an_annotation_of_ours_that_a_person_edited_is_left_alone(site):
    site.accept(site.lower)
    site.write()
    (made,) = site.annotations(1)
    site.gateway.edit(made["id"], drawn())
    site.accept(site.upper)
    assert sum(site.write()) == IMAGES - 1
    assert [found["result"] for found in site.annotations(1)] == [drawn()]
    assert site.taken() == {site.tasks[1].image}


def test_an_image_whose_masks_are_all_taken_back_is_as_it_was_before(site):
    other = {"task": site.tasks[0].task, "model_version": "other", "result": drawn()}
    site.gateway.import_predictions(site.project, [other])
    before = site.predictions(0)
    site.accept(site.lower)
    site.write()
    assert len(site.predictions(0)) == 2
    for row in site.rows(0, site.lower):
        site.judge(row, "no")
    site.write()
    assert (site.annotations(0), site.predictions(0)) == ([], before)
    assert len(site.predictions(1)) == 1


def test_a_prediction_that_a_skip_names_stays(site):
    site.accept(site.lower)
    site.write()
    (made,) = site.annotations(0)
    task = site.gateway._tasks[site.tasks[0].task]
    site.gateway._annotate(task, [], 2, parent=made["parent_prediction"], cancelled=True)
    (skip,) = [one for one in site.annotations(0) if one["was_cancelled"]]
    for row in site.rows(0, site.lower):
        site.judge(row, "no")
    site.write()
    assert site.annotations(0) == [skip]
    assert len(site.predictions(0)) == 1
    assert site.taken() == set()


@pytest.mark.parametrize("call", ["delete_annotation", "delete_prediction", "tasks"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("forgets", [False, True])
def test_what_was_cut_off_while_it_was_taken_back_is_made_up_for(site, call, when, forgets):
    site.accept(site.lower)
    site.write()
    for image in (0, 1):
        for row in site.rows(image, site.lower):
            site.judge(row, "no")
    with pytest.raises(Unreachable):
        site.write(Interrupted(site.gateway, call, **{when: failing}))
    if forgets:
        site.replayed()
    site.write()
    assert site.taken() == set()
    for image in range(IMAGES):
        assert len(site.annotations(image)) == len(site.predictions(image)) == (image > 1)
    assert site.write() == []


@pytest.mark.parametrize("taken_back", [False, True])
def test_what_a_person_has_begun_to_change_is_theirs(site, taken_back):
    site.accept(site.lower)
    site.write()
    (made,) = site.annotations(1)
    (begun, beside) = (site.tasks[number].task for number in (1, 2))
    site.gateway.draft(begun, made["id"])
    site.gateway.draft(beside)
    if taken_back:
        for row in site.rows(1, site.lower):
            site.judge(row, "no")
    site.accept(site.upper)
    site.write()
    assert site.annotations(1) == [made]
    assert site.gateway.drafts(begun) == {made["id"]}
    assert site.taken() == {site.tasks[1].image}
    assert site.written(2) == site.masks(2)


def test_an_annotation_of_ours_that_a_person_deleted_is_made_again(site):
    site.accept(site.lower)
    site.write()
    (made,) = site.annotations(1)
    site.gateway.delete(made["id"])
    site.accept(site.upper)
    assert sum(site.write()) == IMAGES
    assert site.written(1) == site.masks(1)
    assert len(site.predictions(1)) == 1


def test_a_task_that_was_deleted_gets_nothing_and_stops_nothing(site):
    site.accept(site.lower)
    site.gateway.delete_tasks(site.project, [site.tasks[1].task])
    assert sum(site.write()) == IMAGES - 1
    site.gateway.delete_tasks(site.project, [site.tasks[4].task])
    site.accept(site.upper)
    assert sum(site.write()) == IMAGES - 2
    assert site.taken() == {site.tasks[1].image, site.tasks[4].image}


def test_a_result_of_another_program_under_our_account_is_not_ours(site):
    site.accept(site.lower)
    site.write()
    (made,) = site.annotations(1)
    site.gateway.edit(made["id"], [{"type": "relation", "from_id": "a", "to_id": "b"}], by=site.source.account)
    site.accept(site.upper)
    site.write()
    assert site.annotations(1)[0]["result"][0]["type"] == "relation"
    assert site.taken() == {site.tasks[1].image}


# lost, late and doubled answers


def failing(*args):
    raise Unreachable("the answer was lost")


@pytest.mark.parametrize("call", ["unannotated", *sorted(CHANGING), "settled", "tasks"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("forgets", [False, True])
def test_what_was_cut_off_is_found_again(site, call, when, forgets):
    site.gateway.pace = Few(2)
    site.accept(site.lower)
    if call in ("update_annotation", "tasks"):
        site.write()
        site.accept(site.upper)
    with pytest.raises(Unreachable):
        site.write(Interrupted(site.gateway, call, **{when: failing}))
    if forgets:
        site.replayed()
    site.write()
    assert site.taken() == set()
    wanted = None if call in ("update_annotation", "tasks") else site.lower
    for image in range(IMAGES):
        assert site.written(image) == site.masks(image, wanted)
        assert len(site.predictions(image)) == 1


def test_what_was_cut_off_and_is_not_to_be_written_any_more_is_brought_up_to_date(site):
    site.accept(site.lower)
    with pytest.raises(Unreachable):
        site.write(Interrupted(site.gateway, "predictions_to_annotations", before=failing))
    row = site.rows(3, site.lower)[0]
    site.judge(row, "no")
    site.write()
    assert site.written(3) == site.masks(3, site.lower) - {site.table.ids[row]}


@pytest.mark.parametrize("again", ["predictions", "annotations"])
def test_what_the_server_was_given_twice_stays_once(site, again):
    site.accept(site.lower)
    version = model_version(site.campaign)

    def twice():
        if again == "predictions":
            for image in range(3):
                (made,) = site.predictions(image)
                one = {"task": site.tasks[image].task, "model_version": version, "result": made["result"]}
                site.gateway.import_predictions(site.project, [one])
        else:
            for image in range(3):
                (made,) = site.annotations(image)
                number = site.gateway._annotate(
                    site.gateway._tasks[site.tasks[image].task],
                    made["result"],
                    site.source.account,
                    parent=made["parent_prediction"],
                )
                assert number != made["id"]

    name = "import_predictions" if again == "predictions" else "predictions_to_annotations"
    site.write(Interrupted(site.gateway, name, after=twice))
    assert all(site.written(image) == site.masks(image, site.lower) for image in range(IMAGES))
    assert site.taken() == set()
    site.accept(site.upper)
    site.write()
    assert all(site.written(image) == site.masks(image) for image in range(IMAGES))
