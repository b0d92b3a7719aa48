"""Pages: k questions as one task of the verify project, in one of three ways, and what an annotation says."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any, Literal, get_args

from propagation.errors import AnswerError, InputError
from propagation.events import Verdict

#: How a page is asked: all crops in one grid; crop after crop; whole image after whole image.
Ask = Literal["page", "single", "context"]
WAYS: tuple[Ask, ...] = get_args(Ask)

OUTLINES = "outlines"  # the model version of outlines in context
LONGEST_NAME = 200  # characters of a category that a question shows
RIGHT_TO_LEFT = {"R", "AL", "AN"}  # directions of characters, as Unicode names them
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
ISOLATE, END_ISOLATE = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"

#: One key a crop, in the order of the grid: its four rows of five are the left hand's block of the keyboard.
KEYS = tuple("12345qwertasdfgzxcvb")

#: What a config has to have for the tasks that are made for it; the rest is looks.
_NEEDED: Mapping[Ask, tuple[str, ...]] = {
    "page": ('name="wrong"', 'name="unsure"', "var(--outlined"),
    "single": ('valueList="$pictures"', 'name="verdict"'),
    "context": ('valueList="$pictures"', 'name="verdict"', '<PolygonLabels name="outline"'),
}

# Line breaks by hand: Label Studio shows paragraphs and lists without space or marks.
_HOW_TO: Mapping[Ask, str] = {
    "page": """
<b>Click every crop whose outline is wrong</b>, or press the key shown on it; once more takes the mark back.
Then <b>press space</b> (or Submit). None wrong? Just press space.<br><br>
<b>Not sure</b> about one? Press Shift and its key, or click its question mark.<br><br>
To look beneath an outline, point at the crop; H hides all outlines.<br><br>
""",
    "single": """
<b>Press 1 where the outline is right, 2 where it is wrong, 3 where you are not sure.</b>
The next one is shown by the right arrow key, the one before by the left.
After the last one <b>press space</b> (or Submit).<br><br>
To change an answer later, press space right after the change.<br><br>
Beside each outline is the same without it.<br><br>
""",
    "context": """
<b>Press 1 where the outline is right, 2 where it is wrong, 3 where you are not sure.</b>
The next one is shown by the right arrow key, the one before by the left.
After the last one <b>press space</b> (or Submit).<br><br>
To change an answer later, press space right after the change.<br><br>
To look beneath an outline, press Ctrl and H. To zoom, turn the wheel with Ctrl held.<br><br>
""",
}
_RULES = """
An outline is right when<br>
✓ it goes around the whole object,<br>
✓ and around nothing else: no second object, no background,<br>
✓ and the object is what the question names.<br><br>
A pixel more or less at the edge does not matter.
"""

#: Seen where a browser cannot show a page's picture; below the crop's key.
_NO_PICTURE = "&#10;&#10;cannot be read: say not sure"

#: What makes a project one where pages are answered quickly, each by one annotator.
PROJECT_SETTINGS: Mapping[str, Any] = {
    "maximum_annotations": 1,
    "enable_empty_annotation": True,  # a page without a wrong mask is an answer
    "show_collab_predictions": False,
    "show_annotation_history": False,
    "show_skip_button": True,
    "skip_queue": "IGNORE_SKIPPED",
    "sampling": "Sequential sampling",
    "show_instruction": False,  # the page says it already; the full text is behind the Instructions button
}

#: The keys of the editor that pages are answered with, as the server's EDITOR_KEYMAP has them.
KEYMAP: Mapping[str, Mapping[str, str]] = {
    "annotation:submit": {"key": "space"},
    "image:next": {"key": "right"},
    "image:prev": {"key": "left"},
}

#: The same as hotkeys of an account.
SUBMIT_ON_SPACE: Mapping[str, Any] = {"annotation:annotation:submit": {"key": "space", "active": True}}
HOTKEYS: Mapping[str, Any] = {
    **SUBMIT_ON_SPACE,
    "image_gallery:image:next": {"key": "right", "active": True},
    "image_gallery:image:prev": {"key": "left", "active": True},
}


@dataclass(frozen=True)
class Question:
    """One mask to be judged, and the address of its picture: in a grid, of one that holds all crops of its page.

    regions: where the picture has no outline, the mask's own on it, as a prediction has them.
    """

    mask_id: str
    picture: str
    regions: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Examples:
    """Addresses of pictures of some right outlines of a category, and of some wrong ones."""

    right: str
    wrong: str


def config_of(ask: Ask) -> str:
    """The labeling config of a project where pages are asked in this way."""
    configs = files("plugin.label_studio").joinpath("configs")
    shared, config = (configs.joinpath(name).read_text("utf-8") for name in ("verify.css", f"verify_{ask}.xml"))
    return config.replace("<Style>", f"<Style>\n{shared}", 1)


def takes(ask: Ask, label_config: str) -> bool:
    """Whether a project's labeling config can show the pages that are made for a way."""
    return all(part in label_config for part in _NEEDED[ask])


def settings_of(ask: Ask) -> dict[str, Any]:
    """The settings of such a project, its instructions aside."""
    # outlines in context are predictions, of which an annotation begins as a copy
    return {**PROJECT_SETTINGS, "show_collab_predictions": ask == "context"}


def instructions(ask: Ask, examples: Mapping[str, Examples]) -> str:
    """What the Instructions button shows: what to do, what is right, and examples by category."""
    shown = "".join(
        f"<br><br><b>{escape(in_a_line(name))}</b><br>{_shown(each)}" for name, each in examples.items()
    )
    return f"{_HOW_TO[ask]}{_RULES}{shown}"


def page_task(
    page_id: str,
    category: str,
    questions: Sequence[Question],
    ask: Ask = "page",
    examples: Examples | None = None,
) -> dict[str, Any]:
    """A page as the body of a task to import, its questions in order.

    Category and addresses are shown literally, whatever markup they hold; of a category, as one line.
    Raises InputError for no question, more than there are keys, or a mask asked twice.
    """
    ids = [question.mask_id for question in questions]
    if not 1 <= len(ids) <= len(KEYS):
        raise InputError(f"page {page_id} has {len(ids)} questions: a page takes 1 to {len(KEYS)}")
    if len(set(ids)) < len(ids):
        twice = next(mask for mask in ids if ids.count(mask) > 1)
        raise InputError(f"page {page_id} asks mask {twice} twice: give each mask once")
    name = in_a_line(category)
    data = {"page": page_id, "examples": _shown(examples) if examples else ""}
    if ask == "page":
        return {
            "data": {
                **data,
                "question": f"Which of these are NOT a correctly outlined “{name}”?",
                "crops": [_choice(question, place, len(ids)) for place, question in enumerate(questions)],
            }
        }
    task: dict[str, Any] = {
        "data": {
            **data,
            "question": f"Is this a correctly outlined “{name}”?",
            "pictures": [question.picture for question in questions],
            "masks": ids,
        }
    }
    outlines = [{**each, "item_index": place} for place, q in enumerate(questions) for each in q.regions]
    return {**task, "predictions": [{"model_version": OUTLINES, "result": outlines}]} if outlines else task


def _choice(question: Question, place: int, count: int) -> dict[str, str]:
    """A crop of the grid. The page's picture has all crops beside each other, two squares each; it shows two."""
    squares = zip(("outlined", "plain"), (2 * place, 2 * place + 1), strict=True)
    style = ";".join(f"--{name}:{100 * square / (2 * count - 1):.4f}%" for name, square in squares)
    key = KEYS[place]
    return {
        "value": question.mask_id,
        "alias": question.mask_id,
        "hotkey": key,
        "html": f'<img src="{escape(question.picture)}" style="{style}" alt="{_NO_PICTURE}"><kbd>{key}</kbd>',
    }


def masks_of(data: Mapping[str, Any]) -> list[str]:
    """The masks that a page's task asks about, in order, whichever way; none where it is no page."""
    crops = data.get("crops")
    if isinstance(crops, list):
        return [str(crop.get("alias")) for crop in crops if isinstance(crop, dict)]
    masks = data.get("masks")
    return [str(mask) for mask in masks] if isinstance(masks, list) else []


def _shown(examples: Examples) -> str:
    return "".join(
        f'<img src="{escape(url)}" alt="{word} outlines" title="{word}" class="{word}">'
        for word, url in (("right", examples.right), ("wrong", examples.wrong))
    )


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


def read_answer(
    page_id: str, questions: Sequence[str], annotation: Mapping[str, Any], ask: Ask = "page"
) -> dict[str, Verdict]:
    """Mask id -> verdict, for every question of the page, in its order.

    On a page of crops, what is not marked is right, and what is marked both wrong and unsure is wrong.
    Raises AnswerError when a mark is not one of the page's, and, where masks are asked one by one, when one has
    no verdict.
    """
    verdicts = _of_grid(questions, annotation) if ask == "page" else _of_items(questions, annotation)
    strange = next((mask for mask in verdicts if mask not in set(questions)), None)
    lacking = next((mask for mask in questions if mask not in verdicts), None)
    if strange is not None or lacking is not None:
        said = (
            f"marks {strange!r}, which is not on the page" if strange is not None else "says nothing of one mask"
        )
        raise AnswerError(
            f"annotation {annotation.get('id')} of page {page_id} {said}: "
            "delete the annotation in Label Studio, so that the page is asked again"
        )
    return {mask: verdicts[mask] for mask in questions}


def _of_grid(questions: Sequence[str], annotation: Mapping[str, Any]) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = dict.fromkeys(questions, "yes")
    by_key = dict(zip(KEYS, questions, strict=False))  # a short page has keys without a crop, which say nothing
    for key in _chosen(annotation, "unsure"):
        if key in by_key:
            verdicts[by_key[key]] = "unsure"
    for mask in _chosen(annotation, "wrong"):
        verdicts[mask] = "no"
    return verdicts


def _of_items(questions: Sequence[str], annotation: Mapping[str, Any]) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = {}
    for item in annotation.get("result", ()):
        if item.get("from_name") != "verdict":
            continue
        place, said = item.get("item_index", 0), item["value"]["choices"]
        if type(place) is int and 0 <= place < len(questions) and said and said[0] in get_args(Verdict):
            verdicts[questions[place]] = said[0]
    return verdicts


def _chosen(annotation: Mapping[str, Any], name: str) -> list[str]:
    return [
        str(choice)
        for item in annotation.get("result", ())
        if item.get("from_name") == name
        for choice in item["value"]["choices"]
    ]
