"""Examples of right and wrong outlines come from what people drew, and from nothing else."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from plugin.label_studio.fake import FakeGateway
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.regions import regions_of
from propagation.rle import decode
from sync.examples import EACH, make_examples, spoiled

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<PolygonLabels name="polygon" toName="image"><Label value="cell"/><Label value="dirt"/></PolygonLabels>'
    "</View>"
)
LABELING = read_labeling(CONFIG, (), {}, "cells")


def disc(x, y, radius=9, side=100):
    mask = cv2.circle(np.zeros((side, side), np.uint8), (x, y), radius, 1, -1)
    return coco.encode(np.asfortranarray(mask))


def drawn(rle, label="cell", **meta):
    regions = regions_of("m" * 20, rle, label, 1.0, {}, LABELING)
    return [
        {**{k: v for k, v in region.items() if k != "meta"}, **({"meta": meta} if meta else {})}
        for region in regions
    ]


@pytest.fixture
def studio():
    """A server with a project of four images, of which no one is annotated yet."""
    gateway = FakeGateway()
    project = gateway.create_project("cells", CONFIG, "", {}).id
    content = io.BytesIO()
    Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(content, "PNG")
    urls = gateway.upload(project, [(f"{number}.png", content.getvalue()) for number in range(4)])
    gateway.project_number = project
    gateway.numbers = gateway.import_tasks(project, [{"data": {"image": url}} for url in urls])
    gateway.crops = gateway.create_project("crops", "<View/>", "", {}).id
    return gateway


def made(studio):
    return make_examples(studio, studio.project_number, LABELING, studio.crops)


def test_without_human_annotations_there_are_none(studio):
    studio.skip(studio.numbers[0])
    assert made(studio) == {}


def test_each_label_that_people_drew_has_a_strip_of_right_ones_and_one_of_wrong_ones(studio):
    for task in studio.numbers:
        studio.submit(task, drawn(disc(40, 40)))
    examples = made(studio)
    assert list(examples) == ["cell"]
    right, wrong = (
        cv2.imdecode(np.frombuffer(studio.files[url], np.uint8), cv2.IMREAD_COLOR)
        for url in (examples["cell"].right, examples["cell"].wrong)
    )
    assert right.shape == wrong.shape == (192, EACH * 192 + (EACH - 1) * 8, 3)
    assert (right != wrong).any()


def test_what_a_campaign_wrote_and_specks_are_no_examples(studio):
    studio.submit(studio.numbers[0], drawn(disc(40, 40), propagate={"mask": "a", "campaign": "b"}))
    studio.submit(studio.numbers[1], drawn(disc(40, 40, radius=2), "dirt"))
    studio.submit(studio.numbers[2], [{"type": "choices", "from_name": "c", "value": {"choices": ["x"]}}])
    studio.submit(studio.numbers[3], [{"type": "polygonlabels", "from_name": "polygon", "value": {}}])
    assert made(studio) == {}


def test_an_image_that_cannot_be_read_gives_no_example(studio):
    studio.submit(studio.numbers[0], drawn(disc(40, 40)))
    studio.submit(studio.numbers[1], drawn(disc(60, 60)))
    studio.files[next(iter(studio.files))] = b"no image"
    examples = made(studio)
    strip = cv2.imdecode(np.frombuffer(studio.files[examples["cell"].right], np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape == (192, 192, 3)


@pytest.mark.parametrize("how", range(3))
@pytest.mark.parametrize("at", [(50, 50), (9, 9), (90, 90)])
def test_a_spoiled_mask_is_plainly_another(how, at):
    rle = disc(*at)
    iou = float(coco.iou([spoiled(rle, [], how)], [rle], [0])[0, 0])
    assert 0.05 < iou < 0.7


def test_a_mask_is_joined_with_its_neighbour_where_it_has_one():
    one, other = disc(40, 50), disc(62, 50)
    joined = decode(spoiled(one, [disc(90, 90), other], 2))
    assert joined[decode(one)].all()
    assert joined[decode(other)].all()
    assert not joined[85:, 85:].any()
    assert cv2.connectedComponents(joined.astype(np.uint8))[0] == 2
