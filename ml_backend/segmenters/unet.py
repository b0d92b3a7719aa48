"""A small U-Net for teams without a model of their own; ``unet_training`` makes one in minutes, on a CPU.

It tells two things of a pixel: which category it belongs to, if any, and how far inside its object it lies.
Objects that touch come apart where the second one dips.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage, sparse, special
from skimage.measure import label
from skimage.segmentation import watershed
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ml_backend.segmenters.base import Image
from propagation.errors import InputError
from propagation.masks import Detections
from propagation.rle import Rle

WIDTHS = (16, 32, 64, 128)  # channels, from the image's own size down to an eighth of it
STRIDE = 2 ** (len(WIDTHS) - 1)
TILE, MARGIN = 768, 64  # pixels: larger images are looked at in tiles; what is near a tile's edge is another's
FLIPS: tuple[tuple[int, ...], ...] = ((), (0, 1))  # the image, and turned by half: the mean of both is better
FEATURES = sum(WIDTHS)
LEAST_SCORE = 0.2  # masks less likely to be right are not worth a question
EVIDENCE = 8  # numbers that a mask is judged by
LARGEST_HALF = 6e4  # that 16 bits hold

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """How maps become masks.

    foreground: the probability from which a pixel is no background. inside: the depth (1 at an object's middle,
    0 at its edge) from which what hangs together is one object's core. least_area: in pixels.
    """

    foreground: float = 0.5
    inside: float = 0.35
    least_area: int = 12


@dataclass(frozen=True)
class UNet:
    """Masks, categories and scores by a network. Made by ``train``, or read by ``read_unet``.

    The features of a mask are the network's own at each of its levels, averaged over the mask: (n, 240) float32.
    Masks that score under ``least_score`` are left out. learned: keys of the images that it was trained on.
    """

    categories: tuple[str, ...]
    network: nn.ModuleDict  # fused
    cut: Cut
    judge: Floats  # (EVIDENCE + 1,) of a logistic regression, the last one its intercept
    least_score: float = LEAST_SCORE
    learned: frozenset[str] = frozenset()

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        """The masks of each image; see ``Segmenter``."""
        return [self._detections(image) for image in images]

    def _detections(self, image: Image) -> Detections:
        maps = look(self.network, image)
        parts = parts_of(maps, self.cut)
        rles, evidence, categories = described(parts, maps)
        found = scores(self.judge, evidence)
        kept = np.flatnonzero(found >= self.least_score)
        return Detections(
            rles=[rles[row] for row in kept],
            scores=found[kept],
            categories=categories[kept],
            features=_pooled(parts, maps)[kept],
        )


def write_unet(model: UNet, folder: Path) -> None:
    """Store a model as ``weights.pt`` and ``unet.json``."""
    torch.save(model.network.state_dict(), folder / "weights.pt")
    told = {
        "categories": model.categories,
        "cut": asdict(model.cut),
        "judge": model.judge.tolist(),
        "least_score": model.least_score,
        "learned": sorted(model.learned),
    }
    (folder / "unet.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def read_unet(folder: Path) -> UNet:
    """Read what ``write_unet`` stored. Raises InputError where that cannot be read."""
    try:
        told = json.loads((folder / "unet.json").read_text(encoding="utf-8"))
        categories = tuple(str(name) for name in told["categories"])
        network = fused(make_network(len(categories)))
        network.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        judge = np.array(told["judge"], np.float32)
        learned = frozenset(told["learned"])
        return UNet(categories, network, Cut(**told["cut"]), judge, float(told["least_score"]), learned)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{folder} holds no model that can be read ({error}); run: ls-propagate train") from error


# the network


def make_network(categories: int) -> nn.ModuleDict:
    """An untrained network: blocks down, blocks up, and a head with a channel a category and two more."""
    layers: dict[str, nn.Module] = {}
    before = 3
    for place, width in enumerate(WIDTHS):
        layers[f"down{place}"] = _block(before, width)
        before = width
    for place in reversed(range(len(WIDTHS) - 1)):
        layers[f"up{place}"] = _block(WIDTHS[place + 1] + WIDTHS[place], WIDTHS[place])
    layers["head"] = nn.Conv2d(WIDTHS[0], categories + 2, 1)
    return _laid_out(layers)


def _block(before: int, width: int) -> nn.Sequential:
    def convolved(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]

    return nn.Sequential(*convolved(before), *convolved(width))


def _laid_out(layers: dict[str, nn.Module]) -> nn.ModuleDict:
    network = nn.ModuleDict(layers)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as processors like it
    return network


def fused(network: nn.ModuleDict) -> nn.ModuleDict:
    """The same network with its norms folded into what is before them: no more to be trained, and quicker."""
    layers: dict[str, nn.Module] = {}
    for name, layer in network.eval().items():
        if isinstance(layer, nn.Sequential):
            parts: list[nn.Module] = []
            inner = list(layer)
            for one, norm in (inner[:2], inner[3:5]):
                assert isinstance(one, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                parts += [fuse_conv_bn_eval(one, norm), nn.ReLU(inplace=True)]
            layer = nn.Sequential(*parts)
        layers[name] = layer
    return _laid_out(layers).eval()


def forward(network: nn.ModuleDict, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """(b, 1 + categories, h, w) logits, (b, h, w) depths, and the features of each level, the finest first."""
    levels: list[torch.Tensor] = []
    here = images
    for place in range(len(WIDTHS)):
        here = network[f"down{place}"](functional.max_pool2d(here, 2) if place else here)
        levels.append(here)
    for place in reversed(range(len(WIDTHS) - 1)):
        above = functional.interpolate(here, scale_factor=2.0, mode="bilinear", align_corners=False)
        here = network[f"up{place}"](torch.cat([above, levels[place]], dim=1))
        levels[place] = here
    out = network["head"](here)
    return out[:, :-1], torch.sigmoid(out[:, -1]), levels


def scaled(pixels: NDArray[Any], dark: float, bright: float) -> Floats:
    """Pixels, with nearly all of an image's from 0 to 1. dark, bright: of the image, by ``light``."""
    return (pixels.astype(np.float32) - np.float32(dark)) / np.float32(max(bright - dark, 16.0))


def light(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """What is dark in an image, and what is bright: nearly all lies between."""
    dark, bright = np.percentile(pixels, (0.5, 99.5))
    return float(dark), float(bright)


# what it sees


@dataclass(frozen=True)
class Maps:
    """(1 + categories, h, w) probabilities, (h, w) depths, and the features of some levels, (c, h', w')."""

    chances: Floats
    depth: Floats
    levels: list[NDArray[np.float16]]


def look(network: nn.ModuleDict, image: Image, thorough: bool = True) -> Maps:
    """What the network sees in an image. thorough: the mean over ``FLIPS``, and with features."""
    network.eval()
    pixels = scaled(image.pixels, *light(image.pixels))
    height, width = pixels.shape[:2]
    wide = [-(-side // STRIDE) * STRIDE for side in (height, width)]
    head = network["head"]
    assert isinstance(head, nn.Conv2d)
    categories = head.out_channels - 2
    chances = np.zeros((categories + 1, height, width), np.float32)
    depth = np.zeros((height, width), np.float32)
    levels = [
        np.zeros((channels, wide[0] >> place, wide[1] >> place), np.float16)
        for place, channels in enumerate(WIDTHS if thorough else ())
    ]
    flips = FLIPS if thorough else FLIPS[:1]
    for outer, inner in _tiles(height, width):
        tile = pixels[outer]
        size = tile.shape[:2]
        seen = np.zeros((categories + 2, *size), np.float32)
        for axes in flips:
            logits, depths, features = _run(network, np.flip(tile, axes))
            maps = torch.cat([logits.softmax(dim=1)[0], depths]).numpy()[:, : size[0], : size[1]]
            seen += np.flip(maps, [axis + 1 for axis in axes]) / len(flips)
            if not axes:
                _keep(levels, features, outer, inner)
        within = tuple(slice(i.start - o.start, i.stop - o.start) for o, i in zip(outer, inner, strict=True))
        chances[:, inner[0], inner[1]] = seen[:-1, within[0], within[1]]
        depth[inner] = seen[-1, within[0], within[1]]
    return Maps(chances, depth, levels)


def _run(network: nn.ModuleDict, pixels: Floats) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The network on one image, its sides filled up to what the levels need."""
    height, width = pixels.shape[:2]
    filled = np.pad(pixels, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")
    with torch.inference_mode():
        tensor = torch.from_numpy(np.ascontiguousarray(filled.transpose(2, 0, 1)))[None]
        return forward(network, tensor.contiguous(memory_format=torch.channels_last))


def _keep(
    levels: Sequence[NDArray[np.float16]],
    features: Sequence[torch.Tensor],
    outer: tuple[slice, slice],
    inner: tuple[slice, slice],
) -> None:
    """Put the features of a tile's inner part where they belong."""
    for place, (level, seen) in enumerate(zip(levels, features, strict=False)):
        here = [slice(i.start >> place, -(-i.stop // STRIDE) * STRIDE >> place) for i in inner]
        start = [o.start >> place for o in outer]
        there = [slice(h.start - s, h.stop - s) for h, s in zip(here, start, strict=True)]
        few = seen[0, :, there[0], there[1]].clamp(max=LARGEST_HALF)
        level[:, here[0], here[1]] = few.half().numpy()


def _tiles(height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """What is looked at at once, and the part of it that is kept, of which the image is made up."""
    core = TILE - 2 * MARGIN

    def along(side: int) -> list[tuple[slice, slice]]:
        if side <= TILE:
            return [(slice(0, side), slice(0, side))]
        starts = range(0, side, core)
        return [
            (
                slice(max(0, start - MARGIN), min(side, start + core + MARGIN)),
                slice(start, min(side, start + core)),
            )
            for start in starts
        ]

    for down in along(height):
        for across in along(width):
            yield (down[0], across[0]), (down[1], across[1])


# masks


def parts_of(maps: Maps, cut: Cut) -> Numbers:
    """(h, w) the number of the mask that a pixel belongs to, 0 for none."""
    foreground = maps.chances[0] < 1 - cut.foreground
    cores = label(foreground & (maps.depth > cut.inside), connectivity=1)
    pieces = label(foreground, connectivity=1)
    without = np.ones(int(pieces.max()) + 1, bool)
    without[np.unique(pieces[cores > 0])] = False
    without[0] = False
    lonely = without[pieces]  # shallow, and not parted
    markers = np.where(lonely, pieces + int(cores.max()), cores)
    parts = watershed(-maps.depth, markers, mask=foreground)
    areas = np.bincount(parts.ravel())
    large = areas >= cut.least_area
    large[0] = False
    return np.where(large, np.cumsum(large), 0)[parts].astype(np.int64)


def described(parts: Numbers, maps: Maps) -> tuple[list[Rle], Floats, Numbers]:
    """Each mask, (n, 8) numbers that it is judged by, and (n,) its category."""
    count = int(parts.max())
    flat = parts.ravel()
    areas = np.maximum(np.bincount(flat, minlength=count + 1)[1:], 1).astype(np.float32)

    def mean(values: NDArray[Any]) -> Floats:
        return (np.bincount(flat, values.ravel(), count + 1)[1:] / areas).astype(np.float32)

    chances = np.stack([mean(one) for one in maps.chances])  # (1 + categories, n)
    categories = chances[1:].argmax(axis=0).astype(np.int64)
    best = np.sort(chances[1:], axis=0)[::-1]
    lead = best[0] - best[1] if len(best) > 1 else best[0]
    doubt = mean(np.minimum(maps.chances[0], 1 - maps.chances[0]))
    deepest = ndimage.maximum(maps.depth, parts, np.arange(1, count + 1)) if count else np.zeros(0)
    canvas = np.zeros((*parts.shape, 1), np.uint8, order="F")
    rles, solid, round_ = [], [], []
    for number, window in enumerate(ndimage.find_objects(parts), start=1):
        mask = (parts[window] == number).astype(np.uint8)
        canvas[window][..., 0] = mask
        rles.append(coco.encode(canvas)[0])
        canvas[window] = 0
        outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        points = np.concatenate(outline)
        hull = max(float(cv2.contourArea(cv2.convexHull(points))), 1.0)
        border = max(sum(cv2.arcLength(line, True) for line in outline), 1.0)
        solid.append(min(sum(cv2.contourArea(line) for line in outline) / hull, 1.0))
        round_.append(min(4 * np.pi * float(mask.sum()) / border**2, 2.0))
    evidence = np.column_stack(
        [best[0], lead, chances[0], doubt, deepest, np.log(areas), np.array(solid), np.array(round_)]
    )
    return rles, evidence.astype(np.float32).reshape(-1, EVIDENCE), categories


def _pooled(parts: Numbers, maps: Maps) -> Floats:
    """(n, 240) the mean of each level's features over each mask."""
    count = int(parts.max())
    rows, columns = np.nonzero(parts)
    masks = parts[rows, columns] - 1
    pooled = []
    for place, level in enumerate(maps.levels):
        channels, _, width = level.shape
        cells = (rows >> place) * width + (columns >> place)
        shape = (count, level[0].size)
        weights = sparse.csr_matrix((np.ones(len(masks), np.float32), (masks, cells)), shape=shape)
        pooled.append(weights @ level.reshape(channels, -1).T.astype(np.float32))
    areas = np.maximum(np.bincount(masks, minlength=count), 1)[:, None]
    return (np.hstack(pooled) / areas).astype(np.float32).reshape(count, FEATURES)


def scores(judge: Floats, evidence: Floats) -> Floats:
    """(n,) the estimated probability that a mask and its category are right."""
    return special.expit(evidence @ judge[:-1] + judge[-1]).astype(np.float32)
