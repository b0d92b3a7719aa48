"""What detectron2 and torchvision really give, held against tests/data/detectors.json.

Run by hand where both are installed: make detectors. With LS_PROPAGATE_RECORD=1 the file is written anew. The
weights are drawn at random, with batch norms fitted to a photograph and outputs scaled to the spread of a trained
model's, and are read from a file as a trained model's are.
"""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import pytest
import torch
import torchvision
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.projects.point_rend import add_pointrend_config
from PIL import Image as Picture
from pycocotools import mask as coco
from torchvision.models import get_model
from torchvision.models.detection.roi_heads import paste_masks_in_image as torchvision_paste

from ml_backend.segmenters import detectron2 as of_detectron2
from ml_backend.segmenters import torchvision as of_torchvision
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.roi import PROJECTED, Regions, RoiSegmenter, paste
from propagation.errors import SettingsError
from propagation.masks import build_table

RECORD = Path(__file__).parents[1] / "data" / "detectors.json"
PHOTOS = ("skimage/data/astronaut.png", "skimage/data/chelsea.png", "sklearn/datasets/images/china.jpg")
ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
OUTPUTS = ("cls_score", "mask_fcn_logits", "predictor", "prediction")
SPREAD = 3.0  # standard deviation of a trained model's logits, about
PASTED = 4  # masks kept whole


@pytest.fixture(scope="session")
def photos() -> dict[str, np.ndarray[Any, Any]]:
    import skimage
    import sklearn

    homes = {"skimage": Path(skimage.__file__).parent, "sklearn": Path(sklearn.__file__).parent}
    found = {}
    for photo in PHOTOS:
        package, rest = photo.split("/", 1)
        found[Path(photo).name] = np.asarray(Picture.open(homes[package] / rest).convert("RGB"))
    return found


def fitted(model: Any, run: Callable[[Any], Any]) -> Any:
    """A model of random weights that says about as much as a trained one: batch norms fitted, outputs spread."""

    def fit(module: Any, given: Any) -> None:
        (x,) = given
        module.running_mean.copy_(x.mean(dim=(0, 2, 3)))
        module.running_var.copy_(x.var(dim=(0, 2, 3), correction=0).clamp(min=1e-4))

    def spread(module: Any, given: Any, said: Any) -> Any:
        share = SPREAD / float(said.std().clamp(min=1e-6))
        module.weight.mul_(share)
        return said * share

    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "running_var"):
            hooks.append(module.register_forward_pre_hook(fit))
        elif name.endswith(OUTPUTS) and hasattr(module, "weight"):
            hooks.append(module.register_forward_hook(spread))
    with torch.no_grad():
        run(model.eval())
    for hook in hooks:
        hook.remove()
    return model


def weights_of(model: Any, photo: np.ndarray[Any, Any], file: Path) -> str:
    """The file of a detectron2 model's weights, as its training writes it."""
    image = torch.from_numpy(photo.transpose(2, 0, 1).astype(np.float32))
    fitted(model, lambda made: made([{"image": image}]))
    DetectionCheckpointer(model, str(file.parent), save_to_disk=True).save(file.stem)
    return str(file)


def own_config(file: Path, **changes: Any) -> tuple[str, Any]:
    """The zoo's Mask R-CNN with changes, as the config.yaml that training writes."""
    made = get_cfg()
    add_pointrend_config(made)
    made.merge_from_file(model_zoo.get_config_file(ZOO))
    made.merge_from_list([part for name, value in changes.items() for part in (name.replace("__", "."), value)])
    made.MODEL.DEVICE = "cpu"
    file.write_text(made.dump())
    return str(file), build_model(made)


def zoo(name: str) -> tuple[str, Any]:
    if name.endswith(".py"):
        return name, instantiate(LazyConfig.load(model_zoo.get_config_file(name)).model)
    made = model_zoo.get_config(name)
    made.MODEL.DEVICE = "cpu"
    return name, build_model(made)


def point_rend(folder: Path) -> tuple[str, Any]:
    return own_config(
        folder / "config.yaml",
        MODEL__ROI_MASK_HEAD__NAME="PointRendMaskHead",
        MODEL__ROI_MASK_HEAD__POOLER_TYPE="",
        MODEL__ROI_MASK_HEAD__POINT_HEAD_ON=True,
    )


def mask_iou(folder: Path) -> tuple[str, Any]:
    import tests.records.mask_iou  # noqa: F401

    return own_config(folder / "config.yaml", MODEL__ROI_MASK_HEAD__NAME="MaskIouHead")


MODELS: dict[str, tuple[Callable[[Path], tuple[str, Any]], dict[str, Any], int]] = {
    "mask_rcnn_R_50_FPN": (lambda folder: zoo(ZOO), {}, 3),
    "point_rend_R_50_FPN": (point_rend, {}, 3),
    "cascade_mask_rcnn_R_50_FPN": (
        lambda folder: zoo("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"),
        {"features": "box"},
        1,
    ),
    "mask_rcnn_R_50_C4": (
        lambda folder: zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x.yaml"),
        {"features": "box"},
        1,
    ),
    "mask_rcnn_R_50_FPN_100ep_LSJ": (lambda folder: zoo("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"), {}, 1),
    "mask_iou_R_50_FPN": (mask_iou, {"imports": ("tests.records.mask_iou",), "least_score": 0.1}, 1),
}


@pytest.fixture(scope="session", params=MODELS)
def detectron(request, tmp_path_factory, photos) -> tuple[str, RoiSegmenter, int]:
    make, options, number = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config, model = make(folder)
    weights = weights_of(model, photos["astronaut.png"], folder / "model_final.pth")
    given = {"config": config, "weights": weights, "least_score": 0.2, "device": "cpu"}
    return request.param, of_detectron2.load(**{**given, **options}), number


@pytest.fixture(scope="session", params=["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def vision(request, tmp_path_factory, photos) -> tuple[str, RoiSegmenter, int]:
    torch.manual_seed(0)
    model = get_model(request.param, weights=None, weights_backbone=None, num_classes=3)
    image = torch.from_numpy(photos["astronaut.png"].transpose(2, 0, 1).copy()).float() / 255
    fitted(model, lambda made: made([image]))
    file = tmp_path_factory.mktemp("vision") / "model.pth"
    torch.save(model.state_dict(), file)
    made = of_torchvision.load(request.param, str(file), classes=("cat", "cup"), least_score=0.2, device="cpu")
    return request.param, made, 1


@pytest.fixture(scope="session")
def record():
    """The record as it stands; what this run puts into it is compared, or written, at the end."""
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {"runs": [], "pasted": []}
    made: dict[str, Any] = {"versions": versions(), "runs": [], "pasted": []}
    yield known, made
    if os.environ.get("LS_PROPAGATE_RECORD"):
        RECORD.write_text(json.dumps(made, indent=1) + "\n")


def versions() -> dict[str, str]:
    libraries = {"torch": torch, "torchvision": torchvision, "detectron2": detectron2, "numpy": np}
    return {"python": platform.python_version(), **{name: one.__version__ for name, one in libraries.items()}}


def told(regions: Regions) -> dict[str, Any]:
    """Shape, type and range of everything that a network says."""
    arrays = {field.name: getattr(regions, field.name) for field in fields(regions)}
    return {
        name: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "range": [float(f"{array.min():.4g}"), float(f"{array.max():.4g}")],
        }
        for name, array in arrays.items()
        if array is not None
    }


def check(model, segmenter, number, photos, record, library_paste) -> None:
    known, made = record
    for name in list(photos)[:number]:
        pixels = photos[name]
        regions = segmenter.network(pixels)
        assert len(regions.boxes), "no regions: nothing would be shown"
        (found,) = segmenter.segment([Image(name, pixels)])
        (again,) = segmenter.segment([Image(name, pixels)])
        assert [rle["counts"] for rle in found.rles] == [rle["counts"] for rle in again.rles]
        np.testing.assert_array_equal(found.scores, again.scores)
        np.testing.assert_array_equal(found.features, again.features)
        table = build_table([name], [found], segmenter.categories, "v1")
        assert len(table) and np.isfinite(table.features["deep"]).all()
        pasted = library_paste(regions, pixels.shape[:2])
        own = [paste(mask, box, pixels.shape[:2]) for mask, box in zip(regions.masks, regions.boxes, strict=True)]
        there = [row for row, rle in enumerate(own) if rle is not None]
        overlaps = [float(coco.iou([own[row]], [pasted[row]], [0])[0, 0]) for row in there]
        run = {
            "model": model,
            "photo": name,
            "size": list(pixels.shape[:2]),
            "regions": told(regions),
            "features": list(found.features.shape),
            "pasted_as_the_library": [float(f"{min(overlaps):.4f}"), float(f"{np.mean(overlaps):.4f}")],
        }
        made["runs"].append(run)
        if regions.masks.shape[1] < 32 and name == "astronaut.png" and len(made["pasted"]) < 2 * PASTED:
            small = sorted(there, key=lambda row: len(pasted[row]["counts"]))[:PASTED]
            made["pasted"] += [
                {
                    "model": model,
                    "size": run["size"],
                    "box": [float(side) for side in regions.boxes[row]],
                    "mask": base64.b64encode(regions.masks[row].astype(np.float16).tobytes()).decode(),
                    "side": regions.masks.shape[1],
                    "counts": pasted[row]["counts"].decode(),
                }
                for row in small
            ]
        if not os.environ.get("LS_PROPAGATE_RECORD"):
            (before,) = (one for one in known["runs"] if one["model"] == model and one["photo"] == name)
            for part, facts in run["regions"].items():
                assert facts["dtype"] == before["regions"][part]["dtype"]
                assert facts["shape"][1:] == before["regions"][part]["shape"][1:]
            assert run["features"][1:] == before["features"][1:]


def encoded(masks: Any) -> list[Any]:
    return coco.encode(np.asfortranarray(np.asarray(masks).transpose(1, 2, 0), np.uint8))


def test_detectron2_gives_what_the_record_says(detectron, photos, record):
    def library_paste(regions, size):
        # of the rounded masks, since these are kept
        masks = torch.from_numpy(regions.masks.astype(np.float16).astype(np.float32))
        return encoded(paste_masks_in_image(masks, torch.from_numpy(regions.boxes), size))

    model, segmenter, number = detectron
    check(model, segmenter, number, photos, record, library_paste)


def test_torchvision_gives_what_the_record_says(vision, photos, record):
    def library_paste(regions, size):
        masks = torch.from_numpy(regions.masks.astype(np.float16).astype(np.float32))
        return encoded(torchvision_paste(masks[:, None], torch.from_numpy(regions.boxes), size)[:, 0] >= 0.5)

    model, segmenter, number = vision
    check(model, segmenter, number, photos, record, library_paste)
