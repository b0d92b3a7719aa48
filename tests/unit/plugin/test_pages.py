"""A page's task says what to ask, and its annotation is read back mask by mask."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from plugin.label_studio.pages import (
    KEYS,
    PROJECT_SETTINGS,
    SUBMIT_ON_SPACE,
    Question,
    is_answer,
    page_task,
    read_answer,
)
from propagation.errors import AnswerError, InputError

IDS = [f"{n:020x}" for n in range(20)]


def page(ids: list[str] = IDS, category: str = "zero") -> dict[str, Any]:
    task = page_task("p1", category, [Question(mask, f"/data/upload/1/{mask}.jpg") for mask in ids])
    return dict(task["data"])


def annotation(*marked: str, **fields: Any) -> dict[str, Any]:
    item = {"from_name": "wrong", "to_name": "page", "type": "choices", "value": {"choices": list(marked)}}
    return {"id": 7, "was_cancelled": False, "result": [item], **fields}


class Images(HTMLParser):
    """Every tag of a piece of html, with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_page_asks_its_masks_in_order_with_a_key_each() -> None:
    data = page()
    assert data["page"] == "p1"
    assert [crop["alias"] for crop in data["crops"]] == IDS
    assert [crop["hotkey"] for crop in data["crops"]] == list(KEYS)
    json.dumps(data)


def test_no_two_crops_share_a_key() -> None:
    assert len(set(KEYS)) == len(KEYS) == 20


def test_the_question_names_the_category_as_it_is() -> None:
    category = '<b>zero</b> & "nought" $page'
    assert f"“{category}”" in page(category=category)["question"]


def test_markup_in_an_address_stays_part_of_the_address() -> None:
    url = "/data/local-files/?d=a\"><script>alert(1)</script>&x=<b>'"
    data = page_task("p1", "zero", [Question(IDS[0], url)])["data"]
    tags = Images(data["crops"][0]["html"]).tags
    assert [tag for tag, _ in tags] == ["img", "kbd"]
    assert tags[0][1]["src"] == url


@pytest.mark.parametrize("ids", [[], [*IDS, "one more"], [IDS[0], IDS[1], IDS[0]]])
def test_a_page_that_cannot_be_asked_is_refused(ids: list[str]) -> None:
    with pytest.raises(InputError, match="page p1"):
        page(ids)


def test_marked_masks_are_wrong_and_all_others_right() -> None:
    answer = read_answer("p1", IDS, annotation(IDS[3], IDS[17]))
    assert list(answer) == IDS
    assert [mask for mask, right in answer.items() if not right] == [IDS[3], IDS[17]]


@pytest.mark.parametrize("empty", [annotation(), annotation(result=[])])
def test_a_page_without_marks_is_all_right(empty: dict[str, Any]) -> None:
    assert read_answer("p1", IDS, empty) == dict.fromkeys(IDS, True)


def test_another_tags_result_is_not_a_mark() -> None:
    other = {"from_name": "remark", "type": "textarea", "value": {"text": ["dark"]}}
    assert all(read_answer("p1", IDS, annotation(result=[other])).values())


def test_a_mark_of_a_mask_that_is_not_asked_is_refused() -> None:
    with pytest.raises(AnswerError, match=r"annotation 7 of page p1 marks 'stranger'.*delete the annotation"):
        read_answer("p1", IDS, annotation("stranger"))


def test_skipped_pages_and_drafts_are_no_answers() -> None:
    assert is_answer(annotation())
    assert not is_answer(annotation(was_cancelled=True))
    draft = {"id": 9, "annotation": None, "lead_time": 3.0, "result": annotation()["result"]}
    assert not is_answer(draft)


def test_settings_let_a_page_without_marks_be_submitted_by_space() -> None:
    assert PROJECT_SETTINGS["enable_empty_annotation"] is True
    assert PROJECT_SETTINGS["maximum_annotations"] == 1
    assert SUBMIT_ON_SPACE == {"annotation:annotation:submit": {"key": "space", "active": True}}
    assert " " not in KEYS
