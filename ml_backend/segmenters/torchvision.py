"""torchvision's Mask R-CNN as a segmenter."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models import get_model, get_model_weights

from ml_backend.segmenters.roi import Features, Regions, RoiSegmenter, check_classes, pick_device, take
from propagation.errors import SettingsError

BORDER = 1  # cell, that torchvision puts around a mask before it pastes it
NAMELESS = ("N/A", "__background__")  # what torchvision calls numbers that COCO has no class for


def load(
    model: str,
    weights: str,
    classes: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    least_score: float = 0.5,
    most: int = 100,
    features: Features = "attention",
    device: str = "auto",
) -> RoiSegmenter:
    """A Mask R-CNN of torchvision.

    model: a name such as ``maskrcnn_resnet50_fpn``. weights: a name of torchvision's, which are downloaded, or the
    path of a .pth file: a state dict, or a checkpoint with one as ``model``; then classes are their names, without
    background. categories, least_score, most: see ``RoiSegmenter``; features: of masks, the paper's mask
    attention, the box head's, or none. Raises SettingsError naming the setting that does not fit.
    """
    chosen = pick_device(device)
    options = {"box_score_thresh": least_score, "box_detections_per_img": most}
    if Path(weights).suffix in (".pth", ".pt"):
        if classes is None:
            raise SettingsError("setting segmenter.classes: weights of your own need it; list the classes' names")
        names: tuple[str | None, ...] = tuple(classes)
        network = get_model(model, weights=None, weights_backbone=None, num_classes=len(names) + 1, **options)
        _load_file(network, weights)
    else:
        known = get_model_weights(model)
        if weights not in known.__members__:
            raise SettingsError(
                f"setting segmenter.weights: torchvision has no {weights!r} of {model}; there are "
                f"{', '.join(known.__members__)}, or name a .pth file"
            )
        try:
            network = get_model(model, weights=known[weights], **options)
        except (OSError, RuntimeError) as error:
            raise SettingsError(
                f"setting segmenter.weights: {weights} cannot be downloaded ({error}); download "
                f"{known[weights].url} where you can, and name the file, with segmenter.classes"
            ) from error
        told = known[weights].meta["categories"][1:]
        names = check_classes(classes or [None if name in NAMELESS else name for name in told], len(told))
    network.eval().to(chosen)
    return RoiSegmenter(_Network(network, features), names, take(names, categories), least_score, most)


def _load_file(network: Any, weights: str) -> None:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state.get("model", state))
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        first = " ".join(str(error).split())[:300]
        raise SettingsError(
            f"setting segmenter.weights: {weights} cannot be loaded ({first}); name the state dict of this model, "
            "with as many classes as segmenter.classes lists and the background"
        ) from error


@dataclass(frozen=True)
class _Network:
    """The model's steps one after the other, since its own call hands out no features."""

    model: Any
    features: Features

    def __call__(self, pixels: NDArray[np.uint8]) -> Regions:
        heads = self.model.roi_heads
        device = next(self.model.parameters()).device
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(device).float() / 255
        with torch.inference_mode():
            images, _ = self.model.transform([image])
            maps = self.model.backbone(images.tensors)
            proposals, _ = self.model.rpn(images, maps)
            (found,), _ = heads(maps, proposals, images.image_sizes)
            boxes = found["boxes"]
            rois = None
            if self.features == "attention":
                rois = heads.mask_roi_pool(maps, [boxes], images.image_sizes)
            elif self.features == "box":
                rois = heads.box_head(heads.box_roi_pool(maps, [boxes], images.image_sizes))
        high, wide = images.image_sizes[0]
        height, width = pixels.shape[:2]
        scale = np.array([width / wide, height / high] * 2, np.float32)
        told = None if rois is None else rois.cpu().numpy()
        masks = found["masks"][:, 0].cpu().numpy()
        return Regions(
            boxes=pasted_boxes(boxes.cpu().numpy() * scale, masks.shape[1]),
            border=BORDER,
            scores=found["scores"].cpu().numpy(),
            classes=found["labels"].cpu().numpy() - 1,
            masks=masks,
            features=told if self.features == "box" else None,
            maps=told if self.features == "attention" else None,
        )


def pasted_boxes(boxes: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(n, 4) the whole pixels that torchvision pastes masks of (side, side) cells over, their border with them.

    As in its ``paste_masks_in_image``, of the older convention by which a box's last pixel is within.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = (boxes[:, 2:] - boxes[:, :2]) / 2 * np.float32((side + 2 * BORDER) / side)
    return np.concatenate([np.trunc(middle - reach), np.trunc(middle + reach) + 1], axis=1).astype(np.float32)
