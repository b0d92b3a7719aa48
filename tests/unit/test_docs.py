"""The snippets of docs/models.md, run with stand-ins of the documented shapes: what they write is read."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Picture
from pycocotools import mask as coco

from ls_propagate.settings import load_settings
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.precomputed import Precomputed
from propagation.rle import decode

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
SNIPPETS = dict(re.findall(r"### From (\w+)\n.*?```python\n(.*?)```", PAGE, re.DOTALL))
SETTINGS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
SIZE = (24, 32)  # of a.png; b.png has nothing in it
MASKS = np.zeros((2, *SIZE), bool)
MASKS[0, 2:9, 3:20] = MASKS[1, 12:20, 10:15] = True


class Tensor(np.ndarray):
    """As much of a torch tensor as results are read by."""

    def cpu(self):
        return self

    def numpy(self):
        return np.asarray(self)


def tensor(values, dtype=np.float32):
    return np.asarray(values, dtype).view(Tensor)


def ultralytics():
    """``Results``: masks of the image's size with ``retina_masks``, None where nothing is found."""

    class YOLO:
        def __init__(self, weights):
            self.names = {0: "cell", 1: "dust"}

        def predict(self, source, retina_masks, conf, stream):
            assert retina_masks
            some = SimpleNamespace(conf=tensor([0.9, 1.0000001]), cls=tensor([1, 0]))
            masks = SimpleNamespace(data=tensor(MASKS))
            none = SimpleNamespace(conf=tensor([]), cls=tensor([]))
            yield SimpleNamespace(path="pool/a.png", orig_shape=SIZE, masks=masks, boxes=some)
            yield SimpleNamespace(path="pool/b.png", orig_shape=SIZE, masks=None, boxes=none)

    return {"ultralytics": {"YOLO": YOLO}}


def segment_anything():
    """Records of ``SamAutomaticMaskGenerator.generate``, with ``output_mode="coco_rle"``."""

    class Generator:
        def __init__(self, model, output_mode):
            assert output_mode == "coco_rle"

        def generate(self, pixels):
            assert pixels.shape == (*SIZE, 3)
            if not pixels.any():
                return []
            rles = coco.encode(np.asfortranarray(MASKS.transpose(1, 2, 0), np.uint8))
            rles = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
            return [
                {"segmentation": rle, "predicted_iou": iou, "stability_score": 0.95, "area": int(coco.area(rle))}
                for rle, iou in zip(rles, (0.9, 1.02), strict=True)
            ]

    registry = {"vit_b": lambda checkpoint: None}
    return {"segment_anything": {"SamAutomaticMaskGenerator": Generator, "sam_model_registry": registry}}


def mmdet():
    """``DetDataSample.pred_instances``: masks of the image's size, scores, labels."""
    model = SimpleNamespace(dataset_meta={"classes": ("cell", "dust")})

    def infer(model, path):
        n = 2 if path.endswith("a.png") else 0
        found = SimpleNamespace(
            masks=tensor(MASKS[:n], bool), scores=tensor([0.9, 1.0][:n]), labels=tensor([1, 0][:n], np.int64)
        )
        return SimpleNamespace(ori_shape=SIZE, pred_instances=found)

    apis = {"init_detector": lambda config, weights: model, "inference_detector": infer}
    return {"mmdet": {}, "mmdet.apis": apis}


@pytest.mark.parametrize(
    ("heading", "library", "categories"),
    [
        ("ultralytics", ultralytics, ["dust", "cell"]),
        ("SAM", segment_anything, ["object", "object"]),
        ("mmdetection", mmdet, ["dust", "cell"]),
    ],
)
def test_what_a_snippet_writes_is_read_as_precomputed(heading, library, categories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").mkdir()
    for name, grey in (("a.png", 200), ("b.png", 0)):
        Picture.fromarray(np.full((*SIZE, 3), grey, np.uint8)).save(tmp_path / "pool" / name)
    for name, members in library().items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(SNIPPETS[heading], heading, "exec"), {})
    found = Precomputed(tmp_path / "predictions.json", tmp_path / "images.json")
    pixels = np.zeros((*SIZE, 3), np.uint8)
    one, none = found.segment([Image("/data/upload/1/a.png", pixels), Image("/data/upload/1/b.png", pixels)])
    assert [found.categories[number] for number in one.categories] == categories
    np.testing.assert_allclose(one.scores, [0.9, 1], atol=1e-6)
    np.testing.assert_array_equal([decode(rle) for rle in one.rles], MASKS)
    assert len(none) == 0


@pytest.mark.parametrize("shown", SETTINGS, ids=range(len(SETTINGS)))
def test_the_settings_that_are_shown_can_be_loaded(shown, tmp_path):
    file = tmp_path / "ls-propagate.toml"
    file.write_text(shown)
    assert load_settings(file).segmenter.name == tomllib.loads(shown)["segmenter"]["name"]
