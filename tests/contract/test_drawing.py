"""What a person draws on the real server, read back as a mask."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import encode_rle
from pycocotools import mask as coco

from plugin.crops import render_place
from plugin.label_studio.drawing import DRAWING_SETTINGS, drawing_task, read_drawing

FIELDS = ("data", "annotations", "result", "was_cancelled")
SHOWN = {"original_width": 90, "original_height": 60, "to_name": "image", "image_rotation": 0}


def answer_of(side: Any, gateway: Any, result: list[dict[str, Any]]) -> Any:
    """What is read of a task that a person answered so."""
    config = files("plugin.label_studio").joinpath("configs/drawing.xml").read_text()
    project = gateway.create_project("contract: drawing", config, "", DRAWING_SETTINGS).id
    picture = np.full((60, 90, 3), 80, dtype=np.uint8)
    mask = np.zeros((60, 90), dtype=np.uint8, order="F")
    mask[20:40, 30:60] = 1
    jpeg, window = render_place(picture, coco.encode(mask), np.random.default_rng(0), 90)
    crops = gateway.create_project("contract: places", '<View><Image name="i" value="$image"/></View>', "", {})
    (url,) = gateway.upload(crops.id, [("place.jpg", jpeg)])
    (task,) = gateway.import_tasks(project, [drawing_task("m", "cell", url, window)])
    side.submit(task, result)
    (found,) = gateway.tasks(project, FIELDS)
    assert found["data"]["window"] == list(window)
    return read_drawing(found["annotations"][0])


def area(rle: Any) -> int:
    return int(coco.area(rle))


def test_a_polygon_is_read(side: Any, gateway: Any) -> None:
    value = {"points": [[10, 10], [60, 10], [60, 60], [10, 60]], "closed": True, "polygonlabels": ["Outline"]}
    drawn = answer_of(
        side, gateway, [{**SHOWN, "id": "p", "from_name": "polygon", "type": "polygonlabels", "value": value}]
    )
    assert drawn["size"] == [60, 90]
    assert area(drawn) == 45 * 30


def test_paint_is_read(side: Any, gateway: Any) -> None:
    painted = np.zeros((60, 90, 4), dtype=np.uint8)
    painted[10:30, 5:45, 3] = 255
    value = {"format": "rle", "rle": encode_rle(painted.ravel()), "brushlabels": ["Paint"]}
    drawn = answer_of(
        side, gateway, [{**SHOWN, "id": "b", "from_name": "brush", "type": "brushlabels", "value": value}]
    )
    assert area(drawn) == 20 * 40


def test_that_there_is_no_object_is_read(side: Any, gateway: Any) -> None:
    none = {"id": "n", "from_name": "none", "to_name": "image", "type": "choices", "value": {"choices": ["none"]}}
    assert answer_of(side, gateway, [none]) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_place_shows_the_whole_object_and_not_where_it_ends(seed: int) -> None:
    mask = np.zeros((300, 400), dtype=np.uint8, order="F")
    mask[100:140, 200:260] = 1
    jpeg, (x, y, width, height) = render_place(
        np.full((300, 400, 3), 90, np.uint8), coco.encode(mask), np.random.default_rng(seed)
    )
    assert jpeg[:2] == b"\xff\xd8"
    assert max(x - 192, y - 92) <= 0
    assert min(x + width - 268, y + height - 148) >= 0
    assert width >= 3 * 60
