"""The board's page: whole without a script, nothing inline, names shown literally, tables beside charts."""

from __future__ import annotations

import base64
import json
import zlib
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

from plugin.board import render
from plugin.board.advice import advice
from plugin.board.charts import Line, lines, short, stacked
from plugin.label_studio.views import Where, task_url, view_url

HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


def document(**changed: Any) -> dict[str, Any]:
    """A campaign halfway, all of whose names somebody wrote to do harm."""
    link = "http://127.0.0.1:8080/projects/1/data"
    row = {
        "category": HOSTILE, "masks": 1000, "outdone": 10, "questions": 120, "accepted": 500, "rejected": 90,
        "open": 400, "clusters_accepted": 3, "clusters_rejected": 1, "clusters_open": 2, "estimate": 0.8,
        "bound": None,
    }  # fmt: skip
    annotator = {
        "annotator": 3, "name": HOSTILE, "link": link, "pages": 6, "questions": 120, "seconds_a_question": 1.9,
        "hours": 0.06, "marked": 0.25, "latest": "2026-11-02T10:00:00Z", "missed": None, "false_alarms": None,
        "agreement": None, "asked_again": {}, "suspected": False,
    }  # fmt: skip
    team = {**annotator, "gold_share": 0.1}
    point = {"at": "2026-11-02T08:00:00Z", "questions": 0, "hours": 0.0, "accepted": 0}
    now = {"at": "2026-11-02T10:00:00Z", "questions": 120, "hours": 0.06, "accepted": 500}
    end = {"at": "2026-11-02T10:00:00Z", "questions": 400, "hours": 0.2, "accepted": 820}
    cluster = {"cluster": f"{HOSTILE}/7", "masks": 40, "asked": 15, "yes": 14, "task": 5,
               "links": {"card": link, "page": link}}  # fmt: skip
    state = {"state": "accepted", "clusters": 3, "masks": 90, "by_size": [2, 1], "largest": [cluster]}
    made = {
        "campaign": "c0ffee", "strategy": "calibrated", "claim": "promise", "statement": HOSTILE, "target": 0.85,
        "scope": "campaign", "at": now["at"], "begun": point["at"], "title": HOSTILE,
        "masks": {"found": 990, "outdone": 10, "accepted": 500, "rejected": 90, "open": 400, "written": 450,
                  "wanted": 800, "estimate": 0.9, "bound": 0.85},
        "questions": {"answered": 120, "asked": 140, "budget": 400, "pages_waiting": 1, "waiting": 20,
                      "latest": "2026-11-02T10:00:00Z"},
        "leftover": None, "measured": True, "assumed": {"miss": 0.0, "false_alarm": 0.0},
        "work": {"seconds_a_question": 1.9, "measured": True, "hours": 0.06, "drawing_seconds": 80.0,
                 "drawing_hours": 11.1, "times_faster": 185.0, "hour_cost": 30.0, "currency": HOSTILE[:8],
                 "cost": 1.8, "drawing_cost": 333.0},
        "history": [point, now],
        "forecast": {"basis": "evidence", "points": [now, end], "end": end,
                     "wanted": {"questions": 390, "hours": 0.19}},
        "clusters": {"sizes": [[10, 29], [30, 99]], "states": [state]},
        "categories": [row], "others": None, "annotators": [annotator], "team": team,
        "links": {"source": link, "verify": link, "annotated": link, "answered": link, "waiting": link,
                  "answer": link, "board": link, "rejected": link, "open": link, "states": {"accepted": link},
                  "categories": {HOSTILE: {"accepted": link, "rejected": link, "open": link, "questions": link}}},
    }  # fmt: skip
    return {**made, **changed}


class Elements(HTMLParser):
    """All elements of a page, and the text of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def elements(page: str) -> Elements:
    return Elements(page)


def test_what_people_wrote_is_shown_literally() -> None:
    for page in (render.page(document(), "v1"), render.file(document())):
        assert "<script>alert" not in page
        assert "49" not in "".join(elements(page).text)
        assert HOSTILE in " ".join(elements(page).text)
    assert "<b>" not in render.waiting("<b>no</b>")


def test_nothing_in_the_served_page_is_inline() -> None:
    found = elements(render.page(document(), "v1")).found
    assert not [tag for tag, attributes in found if tag == "style" or "style" in attributes]
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    scripts = [attributes for tag, attributes in found if tag == "script"]
    assert [script["src"] for script in scripts] == ["board.js"]
    assert "unsafe" not in render.POLICY


def test_the_file_needs_nothing_beside_it() -> None:
    page = render.file(document())
    found = elements(page).found
    assert not [tag for tag, _ in found if tag in ("script", "button", "iframe", "img")]
    assert [one["href"] for tag, one in found if tag == "link"] == ["data:,"]
    assert "url(" not in page
    assert "@import" not in page
    assert render.asset("board.css") in page


def test_ids_are_told_apart() -> None:
    ids = [one["id"] for _, one in elements(render.page(document(), "v1")).found if one.get("id")]
    assert len(ids) == len(set(ids))


def test_each_figure_leads_to_label_studio() -> None:
    page = render.file(document())
    for figure in ("500", "120", "450 written", "1 page waits", "8.4 min", "90", "400", "15"):
        assert f'data">{figure}</a>' in page


def test_charts_have_their_figures_in_a_table() -> None:
    page = render.file(document())
    for cell in ("2026-11-02 10:00 UTC", "820", "10–29", "14"):
        assert cell in page
    assert page.count('aria-hidden="true"') >= page.count("<svg")


def test_words_follow_the_claim() -> None:
    assert "Nothing is proven" in render.file(document(claim="estimate", strategy="paper"))
    assert "of a single one there is an estimate" in render.file(document())
    assert "forecast, not a promise" in render.file(document())
    nothing = {"basis": None, "points": [], "end": None, "wanted": None}
    assert "at most, for the 280 questions left" in render.file(document(forecast=nothing))
    none_out = {**document()["questions"], "pages_waiting": 0}
    assert "no page waits" in render.file(document(forecast=nothing, questions=none_out))


def test_annotators_errors_are_told_with_what_they_rest_on_or_why_they_are_not() -> None:
    row = {
        **document()["annotators"][0],
        "missed": {"share": 0.1, "low": 0.012, "high": 0.317, "of": 20},
        "agreement": {"share": 0.95, "of": 40},
        "asked_again": {"too fast": 2, "missed gold": 1},
        "suspected": True,
    }
    text = " ".join(" ".join(elements(render.file(document(annotators=[row]))).text).split())
    assert "10.0% 1.2% – 31.7% of 20 wrong no gold yet 3 2 too fast 1 missed gold 95.0% of 40 questions" in text
    assert "asked again now" in text
    assert "no overlap yet" in text
    assert "no gold yet" not in render.file(document(team={**document()["team"], "gold_share": 0.0}))


def test_categories_beyond_the_largest_share_a_row() -> None:
    names = ("masks", "outdone", "questions", "accepted", "rejected", "open")
    others = {"categories": 1950, **dict.fromkeys(names, 7)}
    assert "1,950 smaller ones" in render.file(document(others=others))
    assert "smaller ones" not in render.file(document())


def whats(**changed: Any) -> list[str]:
    return [one.what for one in advice(document(**changed))]


def test_what_to_do_follows_from_where_it_stands() -> None:
    given = document()
    assert whats() == ["Have 1 page answered"]
    wanted = {**given["masks"], "wanted": 900}
    assert whats(masks=wanted) == ["Have 1 page answered", "Plan for 80 more masks"]
    assert whats(masks={**wanted, "accepted": 900}) == ["Have 1 page answered", "Stop, if you like"]
    over = {
        "questions": {**given["questions"], "pages_waiting": 0, "waiting": 0},
        "forecast": {"basis": None, "points": [], "end": None, "wanted": None},
        "leftover": "The budget is spent",
    }
    told = ["Look at the 400 masks that are left", "Plan for 300 more masks", "Check the quality"]
    assert whats(**over) == told
    undone = {**given["clusters"]["states"][0], "state": "undone", "clusters": 2}
    links = {**given["links"], "states": {"undone": "there"}}
    suspected = {**given["annotators"][0], "name": "Ada", "suspected": True}
    clusters = {**given["clusters"], "states": [undone]}
    changed = advice(document(annotators=[suspected], clusters=clusters, links=links))
    assert [one.what for one in changed] == ["Talk to Ada", "Have 1 page answered", "Decide on 2 undone clusters"]
    assert changed[2].where == "there"
    assert "The budget is spent" in render.file(document(**over))


def test_an_empty_campaign_has_a_page() -> None:
    point = document()["history"][0]
    nothing = {"basis": None, "points": [], "end": None, "wanted": None}
    work = {**document()["work"], "times_faster": None, "cost": None, "drawing_cost": None, "hours": 0.0}
    page = render.file(
        document(
            history=[point], forecast=nothing, work=work, annotators=[], categories=[], begun=None, target=None,
            clusters={"sizes": [], "states": []},
            masks=dict.fromkeys(document()["masks"]) | dict.fromkeys(("found", "accepted", "written"), 0),
        )
    )  # fmt: skip
    assert "Nobody has answered yet" in page
    assert "No cluster is decided on yet" in page


def test_charts_take_their_colours_from_the_style_sheet() -> None:
    drawn = str(lines([Line("accepted", [(0, 0), (1, 5)])], "x")) + str(stacked(["a"], {"open": [1]}, "y"))
    found = elements(drawn).found
    assert {"line reactive nofill"} <= {one.get("class") for _, one in found}
    assert {"series accepted", "series open"} <= {one.get("class") for _, one in found}
    for tag, attributes in found:
        assert tag not in ("style", "script", "title")
        assert not {"style", "id", "fill", "stroke"} & attributes.keys()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.25, "0.25"), (20, "20"), (1500, "1,500"), (15_000, "15 k"), (2.5e6, "2.5 M"), (3e9, "3 bn")],
)
def test_numbers_on_axes_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


def test_a_view_is_held_by_its_address() -> None:
    none, first = Where("total_annotations", "equal", "Number", 0), Where("inner_id", "less", "Number", 9)
    url = view_url("https://labels.example.com/sub", 7, "waiting ☃", none, first)
    packed = parse_qs(urlsplit(url).query)["tab"][0]
    assert url.startswith("https://labels.example.com/sub/projects/7/data?tab=")
    assert not packed[0].isdigit()  # else it would be taken for the number of a stored tab
    view = json.loads(zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))))
    assert view["title"] == "waiting ☃"
    item, other = view["filters"]["items"]
    assert (view["filters"]["conjunction"], other["filter"]) == ("and", "filter:tasks:inner_id")
    assert item == {"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0}
    assert task_url("http://here", 3, 9) == "http://here/projects/3/data?task=9"


def test_the_picture_is_whole_by_itself_and_in_words() -> None:
    shown = document()
    picture = ElementTree.fromstring(render.picture(shown))
    said = " ".join("".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text"))
    for figure in ("500 of 990 masks accepted", "120 questions answered", "some 820 masks expected after"):
        assert figure in said
        assert figure in render.in_words(shown)
    assert not [one for one in picture.iter() if one.tag.endswith("script")]
    nothing = {"basis": None, "points": [], "end": None, "wanted": None}
    assert "expected" not in render.picture(document(forecast=nothing))
    assert "expected" not in render.in_words(document(forecast=nothing))
