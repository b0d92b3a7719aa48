"""What people see of a campaign in its source project, and an expert's drawings of what it wrote."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from playwright.sync_api import expect

from ls_propagate import pipeline
from ls_propagate.demo.browser import log_in, open_browser
from plugin.label_studio.regions import META
from propagation.campaign import Campaign
from sync.source import ANNOTATION_FIELDS, Source, people

Site = Any
IMAGE = re.compile(r'<img [^>]*src="(/data/upload/[^"]+)"[^>]*>')


def images(site: Site, campaign: Campaign) -> dict[str, set[int]]:
    """The source tasks that each tab is about, as the campaign knows them."""
    table, accepted, rejected = campaign.table, campaign.accepted(), campaign.rejected()
    found: dict[str, set[int]] = {"Propagated": set(), "Partly decided": set(), "Undecided": set()}
    for task in site.store.source_tasks():
        rows = np.flatnonzero((table.images[table.image] == task.image) & table.best)
        if accepted[rows].any():
            found["Propagated"].add(task.task)
            if (~accepted[rows] & ~rejected[rows]).any():
                found["Partly decided"].add(task.task)
        elif len(rows):
            found["Undecided"].add(task.task)
    return found


def listed(site: Site) -> dict[str, set[int]]:
    """The source tasks that the server lists in each tab."""
    project, found = site.connection.project, {}
    for number, tab in site.gateway.tabs(project).items():
        params = {"view": number, "project": project, "page_size": 500}
        answer = site.gateway.answer("GET", "api/tasks/", params=params).json()
        numbers = [task["id"] for task in answer["tasks"]]
        assert answer["total"] == len(numbers) == len(set(numbers))
        found[tab["title"]] = set(numbers)
    return found


def test_each_tab_lists_its_images(finished: tuple[Site, Campaign]) -> None:
    site, campaign = finished
    found, wanted = listed(site), images(site, campaign)
    assert list(found) == ["Default", *wanted]
    assert len(found.pop("Default")) == len(list(site.gateway.tasks(site.connection.project, [])))
    assert found == wanted


def test_each_region_says_its_cluster_decision_and_bound(finished: tuple[Site, Campaign]) -> None:
    site, campaign = finished
    regions = written(site)
    assert len(regions) >= campaign.accepted().sum() > 100
    for region in regions:
        told = region["meta"][META]
        campaign.find(told["cluster"])
        assert told["decision"] in set(campaign.reasons())
        assert told["promise"] == campaign.search.bound()
        (said,) = region["meta"]["text"]
        assert said.startswith(f"cluster {told['cluster']} · certificate ")
        assert said.endswith("promise: at least 85% of all that is written is right")


def written(site: Site) -> list[dict[str, Any]]:
    """The regions of the annotations that the campaign made."""
    tasks = site.gateway.tasks(site.connection.project, ["annotations", "result", "parent_prediction"])
    made = [a for task in tasks for a in task["annotations"] if a["parent_prediction"]]
    return [region for annotation in made for region in annotation["result"]]


def test_the_instructions_keep_their_text_and_have_the_picture_as_it_is_now(
    finished: tuple[Site, Campaign],
) -> None:
    site, campaign = finished
    project = site.connection.project
    text = site.gateway.project(project).instructions
    assert text.startswith("<b>Draw tightly.</b>")
    (url,) = IMAGE.findall(text)
    assert f"{campaign.accepted().sum()} of {campaign.table.best.sum()} masks accepted" in text
    assert b"<svg" in site.gateway.read_file(url)
    site.gateway.set_instructions(project, f"{text} And look twice.")
    overview = pipeline.open_overview(site.gateway, site.store, site.settings)
    overview.look(pipeline.open_history(site.store, site.settings), finished=True)
    assert site.gateway.project(project).instructions == f"{text} And look twice."
    with open_browser() as page:
        log_in(page, site.server.url, site.server.email, site.server.password)
        page.goto(f"{site.server.url}/projects/{project}/data?task={site.store.source_tasks()[0].task}")
        page.get_by_role("button", name="Instructions").click()
        shown = page.get_by_role("img", name="masks accepted")
        expect(shown).to_be_visible()
        assert shown.evaluate("one => one.complete && one.naturalWidth > 0")


def test_a_region_tells_it_to_people_and_keeps_it_through_their_edit(finished: tuple[Site, Campaign]) -> None:
    site, campaign = finished
    project = site.connection.project

    def task() -> dict[str, Any]:
        return next(
            task
            for task in site.gateway.tasks(project, ANNOTATION_FIELDS)
            if len(campaign.standing(task["id"])) > 2
        )

    source = Source(
        project, pipeline.labeling_of(site.gateway, site.connection, site.settings, []), site.gateway.user().id
    )
    before = task()
    (ours,) = before["annotations"]
    campaign.ours[before["id"]] = 0, ""  # look at the annotation itself
    assert not people(before, campaign, source)
    first, *rest = ours["result"]
    with open_browser(1400, 1200) as page:
        log_in(page, site.server.url, site.server.email, site.server.password)
        page.goto(f"{site.server.url}/projects/{project}/data?task={before['id']}")
        label = first["value"][first["type"]][0]
        regions = page.locator(".lsf-tree-treenode", has_text=label)
        regions.first.click()
        page.get_by_text(first["meta"]["text"][0]).wait_for()
        page.keyboard.press("Backspace")
        page.get_by_role("button", name="submit").click()  # says "Update"
        page.get_by_text("Annotation updated successfully", exact=True).wait_for()
    after = task()
    (edited,) = after["annotations"]
    assert [region["meta"] for region in edited["result"]] == [region["meta"] for region in rest]
    assert people(after, campaign, source)
