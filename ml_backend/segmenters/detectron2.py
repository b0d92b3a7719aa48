"""detectron2's instance segmentation as a segmenter: of its model zoo or your own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2.data.transforms as augment
import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.point_rend import add_pointrend_config
from numpy.typing import NDArray

from ml_backend.segmenters.roi import Features, Regions, RoiSegmenter, check_classes, pick_device, take
from propagation.errors import SettingsError


def load(
    config: str,
    weights: str | None = None,
    imports: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    least_score: float = 0.5,
    most: int = 100,
    features: Features = "attention",
    device: str = "auto",
) -> RoiSegmenter:
    """A model of detectron2.

    config: a file, .yaml or .py (LazyConfig), or a name of the model zoo. weights: a file or an address that
    detectron2 reads; without it, those of the model zoo for a config of the zoo. imports: modules that register
    what the config names. classes: their names, where the config's dataset has none. categories, least_score,
    most: see ``RoiSegmenter``; features: of masks, the paper's mask attention, the box head's, or none.
    Raises SettingsError naming the setting that does not fit.
    """
    _import(imports)
    plan = _read_config(config, pick_device(device))
    heads: Any = getattr(plan.model, "roi_heads", None)
    if not getattr(heads, "mask_on", False):
        raise SettingsError(
            f"setting segmenter.config: {config} has no mask head; choose one of instance segmentation"
        )
    _load_weights(plan.model, weights or _zoo_weights(config))
    _limit(heads, least_score, most)
    names = check_classes(classes or plan.classes, heads.num_classes)
    pool = _pool(heads, features)
    network = _Network(plan.model.eval(), plan.resize, plan.rgb, features, pool)
    return RoiSegmenter(network, names, take(names, categories), least_score, most)


@dataclass(frozen=True)
class _Plan:
    """What a config says: the model, how images are resized, the order of its colours, its classes' names."""

    model: Any
    resize: Any
    rgb: bool
    classes: Sequence[str] | None


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SettingsError(
                f"setting segmenter.imports: {name} cannot be imported ({error}); install it, or correct the name"
            ) from error


def _read_config(config: str, device: str) -> _Plan:
    path = config
    if not Path(config).is_file():
        try:
            path = model_zoo.get_config_file(config)
        except RuntimeError as error:
            raise SettingsError(
                f"setting segmenter.config: there is no {config}, neither as a file nor in the model zoo; "
                'name one, such as "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"'
            ) from error
    try:
        return _lazy(path, device) if path.endswith(".py") else _yaml(path, device)
    except Exception as error:  # whatever the YAML, the registries and the modules that are built raise
        raise SettingsError(
            f"setting segmenter.config: no model can be built of {config} ({type(error).__name__}: {error}); "
            "correct it, or name the modules that register its parts as segmenter.imports"
        ) from error


def _yaml(path: str, device: str) -> _Plan:
    made = get_cfg()
    add_pointrend_config(made)
    made.set_new_allowed(True)  # keys of other projects: their parts are registered by their own modules
    made.merge_from_file(path)
    made.MODEL.DEVICE = device
    resize = augment.ResizeShortestEdge([made.INPUT.MIN_SIZE_TEST] * 2, made.INPUT.MAX_SIZE_TEST)
    sets = [*made.DATASETS.TEST, *made.DATASETS.TRAIN]
    return _Plan(build_model(made), augment.AugmentationList([resize]), made.INPUT.FORMAT == "RGB", _names(sets))


def _lazy(path: str, device: str) -> _Plan:
    made = LazyConfig.load(path)
    mapper = made.dataloader.test.mapper
    resize = augment.AugmentationList([instantiate(step) for step in mapper.augmentations])
    names = made.dataloader.test.dataset.names
    model = instantiate(made.model).to(device)
    return _Plan(model, resize, mapper.image_format == "RGB", _names([names] if isinstance(names, str) else names))


def _names(datasets: Sequence[str]) -> Sequence[str] | None:
    """The class names of the first dataset that detectron2 knows."""
    known = (MetadataCatalog.get(name).get("thing_classes") for name in datasets if name in MetadataCatalog.list())
    return next((names for names in known if names), None)


def _zoo_weights(config: str) -> str:
    try:
        return str(model_zoo.get_checkpoint_url(config))
    except RuntimeError as error:
        raise SettingsError(
            f"setting segmenter.weights: it is needed, since {config} has none in the model zoo; name the file "
            "that training wrote, model_final.pth"
        ) from error


def _load_weights(model: Any, weights: str) -> None:
    """Load, and see that nothing is left of what the model was made with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    try:
        DetectionCheckpointer(model).load(weights)
    except Exception as error:  # whatever downloads and unpicklers raise
        raise SettingsError(
            f"setting segmenter.weights: {weights} cannot be loaded ({type(error).__name__}: {error}); correct "
            "it, or download the file where you can and name it"
        ) from error
    lacking = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if lacking:
        raise SettingsError(
            f"setting segmenter.weights: {weights} does not fit the config, it has no {lacking[0]} of that shape"
            + (f", nor {len(lacking) - 1} others" if lacking[1:] else "")
            + "; name the weights that were trained with this config"
        )


def _limit(heads: Any, least_score: float, most: int) -> None:
    """Have the model itself leave out what is not taken."""
    predictors = getattr(heads, "box_predictor", None)
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        if predictor is not None:
            predictor.test_score_thresh = least_score
            predictor.test_topk_per_image = most


Pool = Callable[[Any, Any], Any]


def _pool(heads: Any, features: Features) -> Pool | None:
    """How features of boxes are got: of the maps, by name, and the boxes. None where none are wanted."""
    mask_pooler = getattr(heads, "mask_pooler", None)
    by_points = getattr(heads.mask_head, "_roi_pooler", None)
    if features == "none":
        return None
    if features == "box" and hasattr(heads, "box_pooler"):
        head = heads.box_head[-1] if isinstance(heads.box_head, torch.nn.ModuleList) else heads.box_head
        return lambda maps, boxes: head(heads.box_pooler([maps[name] for name in heads.box_in_features], boxes))
    if features == "attention" and mask_pooler is not None:
        return lambda maps, boxes: mask_pooler([maps[name] for name in heads.mask_in_features], boxes)
    if features == "attention" and by_points is not None:  # PointRend
        return lambda maps, boxes: by_points(maps, boxes)
    if hasattr(heads, "res5"):  # C4: box and mask share their features

        def shared(maps: Any, boxes: Any) -> Any:
            pooled = heads.pooler([maps[name] for name in heads.in_features], boxes)
            return pooled if features == "attention" else heads.res5(pooled).mean(dim=(2, 3))

        return shared
    raise SettingsError(
        f'setting segmenter.features: {type(heads).__name__} gives no {features} features; set it to "none"'
    )


@dataclass(frozen=True)
class _Network:
    """The model's steps one after the other, since its own call hands out no features."""

    model: Any
    resize: Any
    rgb: bool
    features: Features
    pool: Pool | None

    def __call__(self, pixels: NDArray[np.uint8]) -> Regions:
        given = augment.AugInput(pixels if self.rgb else np.ascontiguousarray(pixels[:, :, ::-1]))
        self.resize(given)
        image = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)).astype(np.float32))
        with torch.inference_mode():
            images = self.model.preprocess_image([{"image": image}])
            maps = self.model.backbone(images.tensor)
            proposals, _ = self.model.proposal_generator(images, maps, None)
            (found,), _ = self.model.roi_heads(images, maps, proposals, None)
            rois = None if self.pool is None else self.pool(maps, [found.pred_boxes]).cpu().numpy()
        high, wide = images.image_sizes[0]
        height, width = pixels.shape[:2]
        scale = np.array([width / wide, height / high] * 2, np.float32)
        masks, quality = _masks(found)
        return Regions(
            boxes=found.pred_boxes.tensor.cpu().numpy() * scale,
            scores=found.scores.cpu().numpy(),
            classes=found.pred_classes.cpu().numpy(),
            masks=masks,
            quality=quality,
            features=rois if self.features == "box" else None,
            maps=rois if self.features == "attention" else None,
        )


def _masks(found: Any) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """(n, m, m) the mask of each region, and (n,) its predicted IoU where the model has a head for that.

    Such heads leave ``pred_ious``, (n,) or one for each of k masks as in the paper's code, or ``mask_scores``,
    the IoU times the class score, as in CenterMask2.
    """
    masks = found.pred_masks.cpu().numpy()
    if found.has("pred_ious"):
        ious = found.pred_ious.cpu().numpy().reshape(len(masks), -1)
        best = ious.argmax(axis=1) if len(ious) else np.empty(0, np.int64)
        each = np.arange(len(masks))
        return masks[each, best % masks.shape[1]], ious[each, best]
    if found.has("mask_scores"):
        return masks[:, 0], (found.mask_scores / found.scores).cpu().numpy()
    return masks[:, 0], None
