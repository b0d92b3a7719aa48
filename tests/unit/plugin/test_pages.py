"""A page's task says what to ask, and its annotation is read back mask by mask."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from plugin.label_studio.pages import (
    KEYS,
    PROJECT_SETTINGS,
    SUBMIT_ON_SPACE,
    WAYS,
    Ask,
    Examples,
    Question,
    config_of,
    instructions,
    is_answer,
    masks_of,
    page_task,
    read_answer,
    settings_of,
    takes,
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


@pytest.mark.parametrize("count", [1, 7, 20])
def test_each_crop_has_two_squares_of_the_pages_picture(count: int) -> None:
    """Percent of an object-position: 0 shows the first of 2 * count squares, 100 the last."""
    styles = [Images(crop["html"]).tags[0][1]["style"] or "" for crop in page(IDS[:count])["crops"]]
    shown = [re.fullmatch(r"--outlined:([\d.]+)%;--plain:([\d.]+)%", style) for style in styles]
    places = [float(share) / 100 * (2 * count - 1) for found in shown if found for share in found.groups()]
    assert places == pytest.approx(range(2 * count), abs=1e-3)


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
    assert (image[0], image[1]["src"]) == ("img", url)
    assert set(image[1]) == {"src", "style", "alt"}
    assert key == ("kbd", {})


@pytest.mark.parametrize("ids", [[], [*IDS, "one more"], [IDS[0], IDS[1], IDS[0]]])
def test_a_page_that_cannot_be_asked_is_refused(ids: list[str]) -> None:
    with pytest.raises(InputError, match="page p1"):
        page(ids)


def test_marked_masks_are_wrong_and_all_others_right() -> None:
    answer = read_answer("p1", IDS, annotation(IDS[3], IDS[17]))
    assert list(answer) == IDS
    assert [mask for mask, verdict in answer.items() if verdict == "no"] == [IDS[3], IDS[17]]
    assert set(answer.values()) == {"yes", "no"}


@pytest.mark.parametrize("empty", [annotation(), annotation(result=[])])
def test_a_page_without_marks_is_all_right(empty: dict[str, Any]) -> None:
    assert read_answer("p1", IDS, empty) == dict.fromkeys(IDS, "yes")


def test_another_tags_result_is_not_a_mark() -> None:
    other = {"from_name": "remark", "type": "textarea", "value": {"text": ["dark"]}}
    assert set(read_answer("p1", IDS, annotation(result=[other])).values()) == {"yes"}


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


def unsure(*keys: str) -> dict[str, Any]:
    return {"from_name": "unsure", "to_name": "page", "type": "choices", "value": {"choices": list(keys)}}


def test_an_unsure_mark_is_that_of_the_crop_with_its_key() -> None:
    answer = read_answer("p1", IDS, annotation(result=[unsure("1", "b")]))
    assert [mask for mask, verdict in answer.items() if verdict == "unsure"] == [IDS[0], IDS[19]]
    assert list(answer.values()).count("yes") == 18


def test_what_is_marked_wrong_and_unsure_is_wrong() -> None:
    both = annotation(IDS[5])
    both["result"].append(unsure("q", "w"))
    answer = read_answer("p1", IDS, both)
    assert (answer[IDS[5]], answer[IDS[6]]) == ("no", "unsure")


def test_an_unsure_key_without_a_crop_says_nothing() -> None:
    assert set(read_answer("p1", IDS[:7], annotation(result=[unsure("b")])).values()) == {"yes"}


def test_hiding_the_outlines_is_no_mark() -> None:
    look = {"from_name": "look", "to_name": "page", "type": "choices", "value": {"choices": ["hide outlines"]}}
    assert set(read_answer("p1", IDS, annotation(result=[look])).values()) == {"yes"}


def said(*verdicts: str) -> dict[str, Any]:
    items = [
        {
            "from_name": "verdict",
            "to_name": "picture",
            "type": "choices",
            "item_index": n,
            "value": {"choices": [v]},
        }
        for n, v in enumerate(verdicts)
        if v
    ]
    outline = {"from_name": "outline", "to_name": "picture", "type": "polygon", "item_index": 0, "value": {}}
    return annotation(result=[outline, *reversed(items)])


@pytest.mark.parametrize("ask", ["single", "context"])
def test_masks_asked_one_by_one_have_a_verdict_each(ask: Ask) -> None:
    answer = read_answer("p1", IDS[:3], said("yes", "no", "unsure"), ask)
    assert answer == dict(zip(IDS, ["yes", "no", "unsure"], strict=False))
    assert list(answer) == IDS[:3]


@pytest.mark.parametrize("given", [said("yes", "", "no"), said("yes", "no", "perhaps"), said()])
def test_a_mask_without_a_verdict_is_no_yes(given: dict[str, Any]) -> None:
    with pytest.raises(AnswerError, match="says nothing of one mask"):
        read_answer("p1", IDS[:3], given, "single")


def test_one_by_one_a_task_has_a_picture_a_mask_and_outlines_where_the_picture_has_none() -> None:
    region = {"id": "a-0", "type": "polygon", "value": {"points": []}}
    task = page_task("p1", "zero", [Question(mask, f"/{mask}", (region,)) for mask in IDS[:2]], "context")
    assert task["data"]["pictures"] == [f"/{mask}" for mask in IDS[:2]]
    assert [r["item_index"] for r in task["predictions"][0]["result"]] == [0, 1]
    assert "“zero”?" in task["data"]["question"]
    assert "predictions" not in page_task("p1", "zero", [Question(IDS[0], "/a")], "single")


@pytest.mark.parametrize("ask", WAYS)
def test_a_task_tells_its_masks_whichever_way_it_asks(ask: Ask) -> None:
    assert masks_of(page_task("p1", "zero", [Question(mask, "/a") for mask in IDS], ask)["data"]) == IDS


@pytest.mark.parametrize("data", [{}, {"crops": "a"}, {"masks": None}, {"image": "/a.png"}])
def test_a_task_that_is_no_page_has_no_masks(data: dict[str, Any]) -> None:
    assert masks_of(data) == []


@pytest.mark.parametrize("ask", WAYS)
def test_each_config_takes_the_tasks_of_its_way_and_no_others(ask: Ask) -> None:
    assert [other for other in WAYS if takes(other, config_of(ask))] == (
        ["single", "context"] if ask == "context" else [ask]
    )


def test_the_unsure_keys_are_those_of_the_crops_with_shift() -> None:
    config = config_of("page")
    assert all(f'<Choice value="{key}" hotkey="shift+{key}"' in config for key in KEYS)
    assert config.count("hotkey=") == len(KEYS) + 1


def test_examples_are_shown_by_their_addresses_and_nothing_else() -> None:
    examples = Examples('/a"><script>', "/b")
    shown = page_task("p1", "zero", [Question(IDS[0], "/c")], examples=examples)["data"]["examples"]
    assert [(tag, attrs["src"]) for tag, attrs in Images(shown).tags] == [("img", '/a"><script>'), ("img", "/b")]
    assert page()["examples"] == ""


@pytest.mark.parametrize("ask", WAYS)
def test_the_instructions_name_each_category_as_text(ask: Ask) -> None:
    made = instructions(ask, {"<script>x</script>": Examples("/a", "/b")})
    assert {"script", "iframe"}.isdisjoint(Images(made).names)
    assert Images(made).names.count("img") == 2
    assert "&lt;script&gt;" in made


def test_outlines_in_context_are_shown_as_predictions_are() -> None:
    assert [settings_of(ask)["show_collab_predictions"] for ask in WAYS] == [False, False, True]
