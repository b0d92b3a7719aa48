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

    @property
    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]

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


NAMES = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "quotes": """ "' `""" + "\u2028&amp; &lt;b&gt;",
    "a reference": "$question {{question}} ${page}",
    "lines": "a\r\nb\x00\x1b[31m\tc",
    "half a character": "a\ud800b",
    "turned": "\u202egnorw\u2066 \u05d0\u05d1",
    "a megabyte": "x" * 1_000_000,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_of_a_category_stays_one_line_of_text_in_the_question(name: str) -> None:
    data = page(category=name)
    question = data["question"]
    assert question.startswith("Which of these are NOT a correctly outlined “")
    assert question.endswith("”?")
    assert len(question) < 300
    assert not any(c in question for c in "\r\n\t\x00\x1b\u2028\u202e\u2066\ud800")
    question.encode()
    assert all(name not in crop["html"] and Images(crop["html"]).names == ["img", "kbd"] for crop in data["crops"])


def test_a_name_written_from_right_to_left_does_not_turn_the_question() -> None:
    arabic = "خلية"
    assert f"“\u2068{arabic}\u2069”?" in page(category=arabic)["question"]
    assert "“größe 細胞”?" in page(category="größe 細胞")["question"]


def test_a_long_name_is_cut_where_it_is_told() -> None:
    question = page(category="y" * 201)["question"]
    assert "y" * 199 + "…”?" in question
    assert "y" * 200 + "”?" in page(category="y" * 200)["question"]


@pytest.mark.parametrize(
    "url", ["/a\nb.jpg", "/\u202eb.jpg", "javascript:alert(1)", "/" + "a" * 1_000_000, "/&quot;>"]
)
def test_any_address_of_a_crop_stays_in_its_attribute(url: str) -> None:
    html = page_task("p1", "zero", [Question(IDS[0], url)])["data"]["crops"][0]["html"]
    (image, key) = Images(html).tags
    assert image == ("img", {"src": url, "alt": ""})
    assert key == ("kbd", {})


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
