"""Drawing: one object to outline as a task, and what an annotation of it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugin.label_studio.pages import in_a_line
from plugin.label_studio.regions import rle_of
from propagation.errors import AnswerError, MaskError
from propagation.rle import Rle

NONE = "none"
_HOW_TO = """
Outline <b>the whole object at the yellow ring, and nothing else</b>, as far as it can be seen: press 1 and click
around it, or press 2 and paint it. An object in several parts takes several outlines. Go by the image
alone.<br><br>
No object of that kind at the ring? Press 0. Then submit.
"""

DRAWING_SETTINGS: Mapping[str, Any] = {
    "maximum_annotations": 1,
    "enable_empty_annotation": False,
    "show_collab_predictions": False,
    "show_skip_button": True,
    "sampling": "Sequential sampling",
    "expert_instruction": _HOW_TO,
    "show_instruction": True,
}


def drawing_task(mask: str, category: str, url: str, window: tuple[int, int, int, int]) -> dict[str, Any]:
    """The task to draw an object. window: x, y, width and height of the piece of the image that is shown."""
    question = f"Outline the “{in_a_line(category)}” at the ring"
    return {"data": {"question": question, "image": url, "mask": mask, "window": list(window)}}


def read_drawing(annotation: Mapping[str, Any]) -> Rle | None:
    """What was drawn, in pixels of the piece that was shown; None where there is no such object.

    Raises AnswerError for an answer that says neither, or both.
    """
    result = annotation.get("result") or []
    drawn = [item for item in result if item.get("type") in ("polygonlabels", "brushlabels")]
    none = any(item.get("from_name") == NONE for item in result)
    if none == bool(drawn):
        said = (
            "both an outline and that there is no object" if none else "neither an outline nor that there is none"
        )
        raise AnswerError(f"annotation {annotation.get('id')} has {said}; correct it in Label Studio")
    try:
        return rle_of(drawn) if drawn else None
    except (MaskError, LookupError, TypeError, ValueError) as error:
        raise AnswerError(f"annotation {annotation.get('id')} cannot be read ({error}); draw it anew") from error
