"""What detectron2 and torchvision really give, held against tests/data/detectors.json.

Run by hand where both are installed: make detectors. With RECORD=1 the file is written anew. The
weights are drawn at random, with batch norms fitted to a photograph and outputs scaled to the spread of a trained
model's, and are read from a file as a trained model's are.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
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
from detectron2.data.transforms import AugInput, AugmentationList, ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.projects.point_rend import add_pointrend_config
from PIL import Image as Picture
from pycocotools import mask as coco
from torchvision.models import get_model

from ml_backend.segmenters import detectron2 as of_detectron2
from ml_backend.segmenters import torchvision as of_torchvision
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.roi import PROJECTED, Regions, RoiSegmenter
from propagation.errors import SettingsError
from propagation.masks import build_table

FILE = Path(__file__).parents[1] / "data" / "detectors.json"
PHOTOS = ("skimage/data/astronaut.png", "skimage/data/chelsea.png", "sklearn/datasets/images/china.jpg")
ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
OUTPUTS = ("cls_score", "mask_fcn_logits", "predictor", "prediction")
SPREAD = 3.0  # standard deviation of a trained model's logits, about
MOST = 20  # masks a photograph
PASTED = 2  # of them kept whole
KEPT = ("mask_rcnn_R_50_FPN", "maskrcnn_resnet50_fpn_v2")  # by whose masks pasting is held
SIDE = 320  # pixels, to which photographs are resized for the networks: 800 would take six times as long


@pytest.fixture(scope="session")
def photos() -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for photo in PHOTOS:
        package, rest = photo.split("/", 1)
        home = Path(find_spec(package).origin).parent
        found[Path(photo).name] = np.asarray(Picture.open(home / rest).convert("RGB"))
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


def small(photo: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(Picture.fromarray(photo).resize((SIDE, SIDE))).transpose(2, 0, 1)).float()


def weights_of(model: Any, photo: np.ndarray[Any, Any], file: Path) -> str:
    """The file of a detectron2 model's weights, as its training writes it."""
    image = small(photo)
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
    "mask_rcnn_R_50_FPN": (lambda folder: zoo(ZOO), {}, 2),
    "point_rend_R_50_FPN": (point_rend, {}, 2),
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
    given = {"config": config, "weights": weights, "least_score": 0.2, "most": MOST, "device": "cpu"}
    loaded = of_detectron2.load(**{**given, **options})
    resize = AugmentationList([ResizeShortestEdge([SIDE, SIDE], 2 * SIDE)])
    return request.param, replace(loaded, network=replace(loaded.network, resize=resize)), number


@pytest.fixture(scope="session", params=["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def vision(request, tmp_path_factory, photos) -> tuple[str, RoiSegmenter, int]:
    torch.manual_seed(0)
    model = get_model(request.param, weights=None, weights_backbone=None, num_classes=3)
    image = small(photos["astronaut.png"]) / 255
    model.transform.min_size = (SIDE,)
    fitted(model, lambda made: made([image]))
    file = tmp_path_factory.mktemp("vision") / "model.pth"
    torch.save(model.state_dict(), file)
    made = of_torchvision.load(
        request.param, str(file), classes=("cat", "cup"), least_score=0.2, most=MOST, device="cpu"
    )
    made.network.model.transform.min_size = (SIDE,)
    return request.param, made, 1


@pytest.fixture(scope="session")
def record():
    """The record as it stands. A model's part of it is compared, or written anew."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {"runs": [], "pasted": []}


def versions() -> dict[str, str]:
    libraries = {"torch": torch, "torchvision": torchvision, "detectron2": detectron2, "numpy": np}
    return {"python": platform.python_version(), **{name: one.__version__ for name, one in libraries.items()}}


def told(regions: Regions) -> dict[str, Any]:
    """Shape, type and range of everything that a network says."""
    arrays = {field.name: getattr(regions, field.name) for field in fields(regions) if field.name != "border"}
    return {
        name: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "range": [float(f"{array.min():.4g}"), float(f"{array.max():.4g}")],
        }
        for name, array in arrays.items()
        if array is not None
    }


def check(model, segmenter, number, photos, record, library) -> None:
    """Run the model on some photographs, through the adapter and step by step, and hold one to the other."""
    for name in list(photos)[:number]:
        pixels = photos[name]
        regions = segmenter.network(pixels)
        assert len(regions.boxes), "no regions: nothing would be shown"
        (found,) = replace(segmenter, network=lambda _, told=regions: told).segment([Image(name, pixels)])
        scores, classes, masks = library(segmenter.network, pixels)
        order = np.argsort(-regions.scores * (1 if regions.quality is None else regions.quality), kind="stable")
        theirs = encoded(masks)
        order = [row for row in order if coco.area(theirs[row])]
        assert [segmenter.categories[place] for place in found.categories] == [
            segmenter.classes[number] for number in classes[order]
        ]
        np.testing.assert_array_equal(regions.scores, scores)
        overlaps = [coco.iou([rle], [theirs[row]], [0])[0, 0] for rle, row in zip(found.rles, order, strict=True)]
        assert min(overlaps) > 0.999
        table = build_table([name], [found], segmenter.categories, "v1")
        assert np.isfinite(table.features["deep"]).all()
        run = {
            "model": model,
            "photo": name,
            "size": list(pixels.shape[:2]),
            "regions": told(regions),
            "masks": len(found),
            "features": list(found.features.shape),
            "least_overlap_with_the_library": round(float(min(overlaps)), 6),
        }
        print(json.dumps(run))
        if os.environ.get("RECORD"):
            least = sorted(order, key=lambda row: len(theirs[row]["counts"]))[:PASTED]
            write(record, run, [kept(run, regions, row, theirs[row]) for row in least] if model in KEPT else [])
            continue
        (before,) = (one for one in record["runs"] if one["model"] == model and one["photo"] == name)
        for part, facts in run["regions"].items():
            assert facts["dtype"] == before["regions"][part]["dtype"]
            assert facts["shape"][1:] == before["regions"][part]["shape"][1:]
        assert run["features"][1:] == before["features"][1:]


def kept(run: dict[str, Any], regions: Regions, row: int, theirs: Any) -> dict[str, Any]:
    """A mask as the network gave it, and as the library pastes it."""
    return {
        "model": run["model"],
        "photo": run["photo"],
        "size": run["size"],
        "box": [float(side) for side in regions.boxes[row]],
        "side": regions.masks.shape[1],
        "border": regions.border,
        "mask": base64.b64encode(zlib.compress(regions.masks[row].tobytes())).decode(),
        "counts": theirs["counts"].decode(),
    }


def write(record: dict[str, Any], run: dict[str, Any], pasted: list[dict[str, Any]]) -> None:
    for name, entries in (("runs", [run]), ("pasted", pasted)):
        others = [one for one in record[name] if (one["model"], one["photo"]) != (run["model"], run["photo"])]
        record[name] = [*others, *entries]
    record["versions"] = versions()
    FILE.write_text(json.dumps(record, indent=1) + "\n")


def encoded(masks: Any) -> list[Any]:
    return coco.encode(np.asfortranarray(np.asarray(masks).transpose(1, 2, 0), np.uint8))


def test_detectron2_gives_what_the_record_says(detectron, photos, record):
    def library(network, pixels):
        given = AugInput(pixels if network.rgb else pixels[:, :, ::-1])
        network.resize(given)
        image = torch.from_numpy(given.image.transpose(2, 0, 1).astype(np.float32))
        with torch.no_grad():
            (said,) = network.model([{"image": image, "height": pixels.shape[0], "width": pixels.shape[1]}])
        found = said["instances"]
        return found.scores.numpy(), found.pred_classes.numpy(), found.pred_masks.numpy()

    check(*detectron, photos, record, library)


def test_torchvision_gives_what_the_record_says(vision, photos, record):
    def library(network, pixels):
        with torch.no_grad():
            (found,) = network.model([torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255])
        return found["scores"].numpy(), found["labels"].numpy() - 1, found["masks"][:, 0].numpy() >= 0.5

    check(*vision, photos, record, library)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    config, model = own_config(tmp_path / "config.yaml", MODEL__ROI_HEADS__NUM_CLASSES=2)
    lacking = {name: one for name, one in model.state_dict().items() if not name.startswith("roi_heads.mask_head")}
    torch.save({"model": lacking}, tmp_path / "backbone.pth")
    with pytest.raises(SettingsError, match=r"segmenter\.weights: .*backbone\.pth does not fit .*mask_head"):
        of_detectron2.load(config, str(tmp_path / "backbone.pth"), device="cpu")
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pth")
    with pytest.raises(SettingsError, match=r"segmenter\.classes: 80 names, but the model has 2 classes"):
        of_detectron2.load(config, str(tmp_path / "whole.pth"), device="cpu")
    given = {"classes": ("crack", "spall"), "least_score": 1.0, "device": "cpu"}
    named = of_detectron2.load(config, str(tmp_path / "whole.pth"), **given)
    assert named.categories == ("crack", "spall")
    (found,) = named.segment([Image("nothing.png", np.zeros((64, 64, 3), np.uint8))])
    assert len(found) == 0
    assert found.features.shape == (0, PROJECTED)


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        (
            "COCO-InstanceSegmentation/none.yaml",
            None,
            r"segmenter\.config: there is no .*nor in the model zoo",
        ),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", None, r"segmenter\.config: .* has no mask head"),
        (ZOO, "gone.pth", r"segmenter\.weights: gone\.pth cannot be loaded"),
    ],
)
def test_what_is_not_there_is_named(config, weights, says):
    with pytest.raises(SettingsError, match=says):
        of_detectron2.load(config, weights, device="cpu")


def test_the_way_to_the_zoos_weights_is_the_real_one(monkeypatch):
    asked = []

    class Loaded(Exception):
        pass

    def load(self, path, *args, **kwargs):
        asked.append(path)
        raise Loaded

    monkeypatch.setattr(DetectionCheckpointer, "load", load)
    with pytest.raises(SettingsError, match="cannot be loaded"):
        of_detectron2.load(ZOO, device="cpu")
    assert asked == [model_zoo.get_checkpoint_url(ZOO)]


def test_torchvision_names_what_does_not_fit(tmp_path):
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(SettingsError, match=r"segmenter\.classes: weights of your own need it"):
        of_torchvision.load("maskrcnn_resnet50_fpn", str(tmp_path / "empty.pth"), device="cpu")
    with pytest.raises(SettingsError, match=r"segmenter\.weights: .*empty\.pth cannot be loaded"):
        of_torchvision.load("maskrcnn_resnet50_fpn", str(tmp_path / "empty.pth"), classes=("cat",), device="cpu")
    with pytest.raises(SettingsError, match=r"segmenter\.weights: torchvision has no 'COCO_V9'.*COCO_V1"):
        of_torchvision.load("maskrcnn_resnet50_fpn", "COCO_V9", device="cpu")
    with pytest.raises(SettingsError, match=r"segmenter\.device: no abacus"):
        of_torchvision.load("maskrcnn_resnet50_fpn", "COCO_V1", device="abacus")
