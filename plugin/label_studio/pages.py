"""Pages: k questions as one task of the verify project, and what an annotation of it says."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from propagation.errors import AnswerError, InputError

LONGEST_NAME = 200  # characters of a category that a question shows
RIGHT_TO_LEFT = {"R", "AL", "AN"}  # directions of characters, as Unicode names them
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
ISOLATE, END_ISOLATE = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"

#: One key a crop, in the order of the grid: its four rows of five are the left hand's block of the keyboard.
KEYS = tuple("12345qwertasdfgzxcvb")

# Line breaks by hand: Label Studio shows paragraphs and lists without space or marks.
_HOW_TO = """
<b>Click every crop whose outline is wrong</b>, or press the key shown on it; once more takes the mark back.
Then <b>press space</b> (or Submit). None wrong? Just press space.<br><br>
An outline is right when<br>
✓ it goes around the whole object,<br>
✓ and around nothing else: no second object, no background,<br>
✓ and the object is what the question names.<br><br>
A pixel more or less at the edge does not matter. Not sure? Mark it as wrong.
"""

#: What makes a project one where pages are answered quickly, each by one annotator.
PROJECT_SETTINGS: Mapping[str, Any] = {
    "maximum_annotations": 1,
    "enable_empty_annotation": True,  # a page without a wrong mask is an answer
    "show_collab_predictions": False,
    "show_annotation_history": False,
    "show_skip_button": True,
    "skip_queue": "IGNORE_SKIPPED",
    "sampling": "Sequential sampling",
    "expert_instruction": _HOW_TO,
    "show_instruction": False,  # the page says it already; the full text is behind the Instructions button
}

#: A hotkey of an account: space submits.
SUBMIT_ON_SPACE: Mapping[str, Any] = {"annotation:annotation:submit": {"key": "space", "active": True}}


@dataclass(frozen=True)
class Question:
    """One mask to be judged, and the address of its crop."""

    mask_id: str
    crop_url: str


def page_task(page_id: str, category: str, questions: Sequence[Question]) -> dict[str, Any]:
    """A page as the body of a task to import, its questions in the order of the grid.

    Category and addresses are shown literally, whatever markup they hold; of a category, as one line.
    Raises InputError for no question, more than there are keys, or a mask asked twice.
    """
    ids = [question.mask_id for question in questions]
    if not 1 <= len(ids) <= len(KEYS):
        raise InputError(f"page {page_id} has {len(ids)} questions: a page takes 1 to {len(KEYS)}")
    if len(set(ids)) < len(ids):
        twice = next(mask for mask in ids if ids.count(mask) > 1)
        raise InputError(f"page {page_id} asks mask {twice} twice: give each mask once")
    return {
        "data": {
            "question": f"Which of these are NOT a correctly outlined “{in_a_line(category)}”?",
            "page": page_id,
            "crops": [_choice(question, key) for question, key in zip(questions, KEYS[: len(ids)], strict=True)],
        }
    }


def _choice(question: Question, key: str) -> dict[str, str]:
    return {
        "value": question.mask_id,
        "alias": question.mask_id,
        "hotkey": key,
        "html": f'<img src="{escape(question.crop_url)}" alt=""><kbd>{key}</kbd>',
    }


def in_a_line(name: str) -> str:
    """A name within a sentence: without line breaks, not too long, its direction of writing kept to itself."""
    cut = name[: LONGEST_NAME - 1] + "…" if len(name) > LONGEST_NAME else name
    # control characters and lone halves of a pair are what a database or JSON may not take
    plain = ("�" if unicodedata.category(each) in ("Cc", "Cs") else each for each in " ".join(cut.split()))
    line = "".join(each for each in plain if unicodedata.bidirectional(each) not in TURNS)
    if RIGHT_TO_LEFT.isdisjoint(map(unicodedata.bidirectional, line)):
        return line
    return f"{ISOLATE}{line}{END_ISOLATE}"


def is_answer(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation answers its page: submitted, not skipped. A draft has no ``was_cancelled`` at all."""
    return annotation.get("was_cancelled") is False


def read_answer(page_id: str, questions: Sequence[str], annotation: Mapping[str, Any]) -> dict[str, bool]:
    """Mask id -> judged right, for every question of the page, in its order; what is not marked is right.

    Raises AnswerError when a mark is not a mask of the page.
    """
    right = dict.fromkeys(questions, True)
    for mask in _marked(annotation):
        if mask not in right:
            raise AnswerError(
                f"annotation {annotation.get('id')} of page {page_id} marks {mask!r}, "
                "which is not on the page: delete the annotation in Label Studio, so that the page is asked again"
            )
        right[mask] = False
    return right


def _marked(annotation: Mapping[str, Any]) -> list[str]:
    return [
        str(choice)
        for item in annotation.get("result", ())
        if item.get("from_name") == "wrong"
        for choice in item["value"]["choices"]
    ]
