"""A small U-Net for teams without a model: trained from scratch on a seed set, on a CPU, in minutes.

It learns two things of a pixel: which category it belongs to, if any, and how far inside its object it lies. Objects
that touch come apart where the second one dips.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage, sparse
from skimage.measure import label
from skimage.segmentation import watershed
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled, SeedSet, count_right, f2, overlaps, painted
from propagation.errors import InputError
from propagation.masks import Detections
from propagation.quality import RIGHT_IOU
from propagation.rle import Rle

WIDTHS = (16, 32, 64, 128)  # channels, from the image's own size down to an eighth of it
STRIDE = 2 ** (len(WIDTHS) - 1)
TILE, MARGIN = 768, 64  # pixels: larger images are looked at in tiles; what is near a tile's edge is another's
FEATURES = sum(WIDTHS)
LEAST_SCORE = 0.05  # masks less likely to be right are not worth a question
FOREGROUND = (0.4, 0.5, 0.6)
INSIDE = (0.25, 0.35, 0.45, 0.55, 0.65)
EVIDENCE = 8  # numbers that a mask is judged by

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Told = Callable[[int, float], None]


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    steps: at most, of ``batch`` crops with sides of ``side`` pixels each. held_out: the share of the images by which
    it is judged, and training stopped after ``patience`` looks, ``every`` steps apart, that found it no better.
    seconds: after which no further step is begun, None for no limit. seed: of what is drawn at random.
    """

    steps: int = 1500
    batch: int = 8
    side: int = 160
    rate: float = 4e-3
    held_out: float = 0.2
    every: int = 100
    patience: int = 5
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Cut:
    """How maps become masks.

    foreground: the probability from which a pixel is no background. inside: the depth (1 at an object's middle, 0 at
    its edge) from which what hangs together is one object's core. least_area: in pixels.
    """

    foreground: float = 0.5
    inside: float = 0.45
    least_area: int = 1


@dataclass(frozen=True)
class Held:
    """What training came to on the images it was judged by.

    objects: there; masks: found; right: masks with an IoU above 0.75 with an object, whatever the category; seconds:
    that training took; steps: that it took to the weights kept.
    """

    images: int
    objects: int
    masks: int
    right: int
    seconds: float
    steps: int


@dataclass(frozen=True)
class UNet:
    """Masks, categories and scores by a network. Made by ``train``, or read by ``read_unet``.

    The features of a mask are the network's own at each of its levels, averaged over the mask: (n, 240) float32.
    Masks that score under ``least_score`` are left out.
    """

    categories: tuple[str, ...]
    network: nn.ModuleDict
    cut: Cut
    judge: Floats  # (EVIDENCE + 1,) of a logistic regression, the last one its intercept
    least_score: float = LEAST_SCORE

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        """The masks of each image; see ``Segmenter``."""
        return [self._detections(image) for image in images]

    def _detections(self, image: Image) -> Detections:
        maps = _look(self.network, image)
        parts = _parts(maps, self.cut)
        rles, evidence, categories = _described(parts, maps)
        scores = _scores(self.judge, evidence)
        kept = np.flatnonzero(scores >= self.least_score)
        return Detections(
            rles=[rles[row] for row in kept],
            scores=scores[kept],
            categories=categories[kept],
            features=_pooled(parts, maps)[kept],
        )


def train(
    seed: SeedSet, training: Training | None = None, told: Told = lambda step, loss: None
) -> tuple[UNet, Held]:
    """Train a network on a seed set, and what it came to on the images that were held out.

    told: is told of each step and its loss. Raises InputError where the objects of the seed set cannot be learned.
    """
    training = training or Training()
    began = time.monotonic()
    known, held = _divided(seed, training)
    torch.manual_seed(training.seed)
    network = _network(len(seed.categories))
    steps = _fit(network, _Crops(known, len(seed.categories), training), held, training, told, began)
    maps = [_look(network, labeled.image) for labeled in held]
    areas = [float(coco.area(dict(rle))) for labeled in known for rle in labeled.rles]
    cut = _best_cut(maps, held, max(1, round(float(np.percentile(areas, 2)) / 2)))
    judge = _judge(maps, held, cut, len(seed.categories))
    counts = np.sum([_counted(one, labeled, cut) for one, labeled in zip(maps, held, strict=True)], axis=0)
    right, masks, objects = (int(count) for count in counts)
    if not right:
        raise InputError(
            "the network found no object of the images that it was judged by: annotate some more images, whole, "
            "or use another segmenter"
        )
    seconds = round(time.monotonic() - began, 1)
    return UNet(seed.categories, network, cut, judge), Held(len(held), objects, masks, right, seconds, steps)


def write_unet(model: UNet, folder: Path) -> None:
    """Store a model as ``weights.pt`` and ``unet.json``."""
    torch.save(model.network.state_dict(), folder / "weights.pt")
    told = {
        "categories": model.categories,
        "cut": asdict(model.cut),
        "judge": model.judge.tolist(),
        "least_score": model.least_score,
    }
    (folder / "unet.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def read_unet(folder: Path) -> UNet:
    """Read what ``write_unet`` stored. Raises InputError where that cannot be read."""
    try:
        told = json.loads((folder / "unet.json").read_text(encoding="utf-8"))
        categories = tuple(str(name) for name in told["categories"])
        network = _network(len(categories))
        network.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        judge = np.array(told["judge"], np.float32)
        return UNet(categories, network, Cut(**told["cut"]), judge, float(told["least_score"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} holds no model that can be read ({error}); train again") from error


# the network


def _network(categories: int) -> nn.ModuleDict:
    layers: dict[str, nn.Module] = {}
    before = 3
    for place, width in enumerate(WIDTHS):
        layers[f"down{place}"] = _block(before, width)
        before = width
    for place in reversed(range(len(WIDTHS) - 1)):
        layers[f"up{place}"] = _block(WIDTHS[place + 1] + WIDTHS[place], WIDTHS[place])
    layers["head"] = nn.Conv2d(WIDTHS[0], categories + 2, 1)
    return nn.ModuleDict(layers).to(memory_format=torch.channels_last)


def _block(before: int, width: int) -> nn.Module:
    def convolved(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]

    return nn.Sequential(*convolved(before), *convolved(width))


def _forward(network: nn.ModuleDict, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
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


# what it learns from


@dataclass(frozen=True)
class _Known:
    """An image to learn from: (h, w, 3) its pixels, (h, w) the category of each from 1, 0 for none, and its depth."""

    pixels: Floats
    category: NDArray[np.uint8]
    depth: Floats
    weight: Floats


class _Crops:
    """Crops at random, turned, scaled and coloured a little, so that none comes twice."""

    def __init__(self, images: Sequence[Labeled], categories: int, training: Training) -> None:
        self._images = [_known(labeled) for labeled in images]
        self._random = np.random.default_rng(training.seed)
        self._training = training
        there = [np.unique(labeled.categories) for labeled in images]
        with_category = [[place for place, found in enumerate(there) if c in found] for c in range(categories)]
        # half of the crops go to the categories alike, so that a rare one is learned too
        self._by_category = [places for places in with_category if places]

    def batch(self) -> tuple[torch.Tensor, ...]:
        """Pixels (b, 3, s, s), categories (b, s, s), depths and weights of pixels."""
        crops = [self._crop() for _ in range(self._training.batch)]
        pixels = np.stack([crop.pixels for crop in crops]).transpose(0, 3, 1, 2)
        return (
            torch.from_numpy(np.ascontiguousarray(pixels)).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(np.stack([crop.category for crop in crops]).astype(np.int64)),
            torch.from_numpy(np.stack([crop.depth for crop in crops])),
            torch.from_numpy(np.stack([crop.weight for crop in crops])),
        )

    def _crop(self) -> _Known:
        random, side = self._random, self._training.side
        if random.random() < 0.5 and self._by_category:
            places = self._by_category[random.integers(len(self._by_category))]
            known = self._images[places[random.integers(len(places))]]
        else:
            known = self._images[random.integers(len(self._images))]
        height, width = known.category.shape
        angle, scale = random.uniform(0, 2 * np.pi), np.exp(random.uniform(-0.35, 0.35))
        if random.random() < 0.5:  # a quarter turn keeps pixels as they are
            angle, scale = np.pi / 2 * random.integers(4), 1.0
        reach = side / scale / 2
        middle = [random.uniform(min(reach, size / 2), max(size - reach, size / 2)) for size in (width, height)]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        if random.random() < 0.5:
            turn[:, 0] *= -1
        place = np.array(middle) - turn @ np.array([side / 2, side / 2])
        matrix = np.column_stack([turn, place]).astype(np.float32)

        def taken(values: NDArray[Any], how: int) -> NDArray[Any]:
            flags = how | cv2.WARP_INVERSE_MAP
            return np.asarray(cv2.warpAffine(values, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT))

        pixels = taken(known.pixels, cv2.INTER_LINEAR)
        return _Known(
            self._coloured(pixels),
            taken(known.category, cv2.INTER_NEAREST),
            taken(known.depth, cv2.INTER_LINEAR),
            taken(known.weight, cv2.INTER_NEAREST),
        )

    def _coloured(self, pixels: Floats) -> Floats:
        random = self._random
        pixels = np.clip(pixels, 0, None) ** np.float32(np.exp(random.uniform(-0.35, 0.35)))
        pixels = pixels * random.uniform(0.75, 1.25) + random.uniform(-0.1, 0.1)
        pixels = pixels * random.uniform(0.9, 1.1, 3)
        if random.random() < 0.3:
            pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, 1.2))
        if random.random() < 0.3:
            pixels = pixels + random.normal(0, random.uniform(0.01, 0.06), pixels.shape)
        return pixels.astype(np.float32)


def _known(labeled: Labeled) -> _Known:
    numbers = painted(labeled)
    category = np.concatenate([[0], labeled.categories + 1]).astype(np.uint8)[numbers]
    depth = np.zeros(numbers.shape, np.float32)
    for number, window in enumerate(ndimage.find_objects(numbers), start=1):
        if window is None:  # covered by others
            continue
        mask = np.pad(numbers[window] == number, 1).astype(np.uint8)
        far = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[1:-1, 1:-1]
        inside = mask[1:-1, 1:-1] > 0
        depth[window][inside] = (far / far.max())[inside]
    # between two objects that nearly touch a mistake joins them
    thick = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(numbers.astype(np.float32), thick)
    lowest = -cv2.dilate(np.where(numbers > 0, -numbers, -np.inf).astype(np.float32), thick)
    between = np.isfinite(lowest) & (highest != lowest) & (highest > 0)
    return _Known(_scaled(labeled.image.pixels), category, depth, 1 + 4 * between.astype(np.float32))


def _scaled(pixels: NDArray[np.uint8]) -> Floats:
    """(h, w, 3) pixels, with nearly all of them from 0 to 1, however dark the image is."""
    dark, bright = np.percentile(pixels, (0.5, 99.5))
    scaled: Floats = (pixels.astype(np.float32) - np.float32(dark)) / np.float32(max(bright - dark, 16.0))
    return scaled


def _divided(seed: SeedSet, training: Training) -> tuple[list[Labeled], list[Labeled]]:
    """The images to learn from, and those to judge by: of each category some, where there are enough."""
    there = [labeled for labeled in seed.images if labeled.rles]
    if len(there) < 2:
        raise InputError("fewer than two of the seed images have an object; annotate some more of them")
    random = np.random.default_rng(training.seed)
    main = np.array([np.bincount(labeled.categories).argmax() for labeled in there])
    held: list[int] = []
    for category in np.unique(main):
        places = random.permutation(np.flatnonzero(main == category))
        held += places[: int(len(places) * training.held_out)].tolist()
    held = held or [int(random.integers(len(there)))]
    known = [labeled for place, labeled in enumerate(there) if place not in held]
    return known, [there[place] for place in held]


# how it learns


def _fit(
    network: nn.ModuleDict,
    crops: _Crops,
    held: Sequence[Labeled],
    training: Training,
    told: Told,
    began: float,
) -> int:
    """Train; the network keeps its best weights. After how many steps it had them."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, total_steps=training.steps, pct_start=0.15)
    judged = [_known(labeled) for labeled in held]
    best, kept, poor = np.inf, 0, 0
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(1, training.steps + 1):
        network.train()
        pixels, category, depth, weight = crops.batch()
        optimizer.zero_grad(set_to_none=True)
        logits, depths, _ = _forward(network, pixels)
        loss = _loss(logits, depths, category, depth, weight)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        told(step, float(loss.detach()))
        late = training.seconds is not None and time.monotonic() - began > training.seconds
        if step % training.every == 0 or step == training.steps or late:
            now = _judged(network, judged)
            if now < best:
                best, kept, poor = now, step, 0
                weights = {name: value.clone() for name, value in network.state_dict().items()}
            else:
                poor += 1
            if poor >= training.patience or late:
                break
    network.load_state_dict(weights)
    network.eval()
    return kept


def _loss(
    logits: torch.Tensor, depths: torch.Tensor, category: torch.Tensor, depth: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    named = (functional.cross_entropy(logits, category, reduction="none") * weight).mean()
    far = (functional.smooth_l1_loss(depths, depth, reduction="none", beta=0.1) * weight).mean()
    chances = logits.softmax(dim=1)[:, 0]
    inside, found = (category > 0).float(), 1 - chances
    overlap = (2 * (inside * found).sum() + 1) / (inside.sum() + found.sum() + 1)
    return named + 3 * far + (1 - overlap)


def _judged(network: nn.ModuleDict, images: Sequence[_Known]) -> float:
    network.eval()
    losses = []
    for known in images:
        logits, depths, _ = _run(network, known.pixels)
        height, width = known.category.shape
        with torch.inference_mode():
            loss = _loss(
                logits[..., :height, :width],
                depths[..., :height, :width],
                torch.from_numpy(known.category.astype(np.int64))[None],
                torch.from_numpy(known.depth)[None],
                torch.from_numpy(known.weight)[None],
            )
        losses.append(float(loss))
    return float(np.mean(losses))


# what it sees


@dataclass(frozen=True)
class _Maps:
    """(1 + categories, h, w) probabilities, (h, w) depths, and the features of each level, (c, h', w')."""

    chances: Floats
    depth: Floats
    levels: list[NDArray[np.float16]]


def _run(network: nn.ModuleDict, pixels: Floats) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The network on one image, its sides filled up to what the levels need."""
    height, width = pixels.shape[:2]
    filled = np.pad(pixels, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")
    with torch.inference_mode():
        tensor = torch.from_numpy(np.ascontiguousarray(filled.transpose(2, 0, 1)))[None]
        return _forward(network, tensor.contiguous(memory_format=torch.channels_last))


def _look(network: nn.ModuleDict, image: Image) -> _Maps:
    """What the network sees in an image, the mean over its four mirror images."""
    network.eval()
    pixels = _scaled(image.pixels)
    height, width = pixels.shape[:2]
    wide = [-(-side // STRIDE) * STRIDE for side in (height, width)]
    categories = network["head"].out_channels - 2
    assert isinstance(categories, int)
    chances = np.zeros((categories + 1, height, width), np.float32)
    depth = np.zeros((height, width), np.float32)
    levels = [
        np.zeros((channels, wide[0] >> place, wide[1] >> place), np.float16) for place, channels in enumerate(WIDTHS)
    ]
    for outer, inner in _tiles(height, width):
        tile = pixels[outer]
        size = tile.shape[:2]
        seen = np.zeros((categories + 2, *size), np.float32)
        for axes in ((), (0,), (1,), (0, 1)):
            logits, depths, features = _run(network, np.flip(tile, axes))
            maps = torch.cat([logits.softmax(dim=1)[0], depths]).numpy()[:, : size[0], : size[1]]
            seen += np.flip(maps, [axis + 1 for axis in axes]) / 4
            if not axes:
                _keep_levels(levels, features, outer, inner)
        within = tuple(slice(i.start - o.start, i.stop - o.start) for o, i in zip(outer, inner, strict=True))
        chances[(slice(None), *inner)] = seen[(slice(None, -1), *within)]
        depth[inner] = seen[(-1, *within)]
    return _Maps(chances, depth, levels)


def _keep_levels(
    levels: list[NDArray[np.float16]],
    features: list[torch.Tensor],
    outer: tuple[slice, slice],
    inner: tuple[slice, slice],
) -> None:
    for place, (level, seen) in enumerate(zip(levels, features, strict=True)):
        here = [slice(i.start >> place, -(-i.stop // STRIDE) * STRIDE >> place) for i in inner]
        there = [slice(h.start - (o.start >> place), h.stop - (o.start >> place)) for h, o in zip(here, outer, strict=True)]
        level[:, here[0], here[1]] = seen[0, :, there[0], there[1]].numpy()


def _tiles(height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """What is looked at at once, and the part of it that is kept, of which the image is made up."""
    core = TILE - 2 * MARGIN

    def along(side: int) -> list[tuple[slice, slice]]:
        if side <= TILE:
            return [(slice(0, side), slice(0, side))]
        starts = range(0, side, core)
        return [
            (slice(max(0, start - MARGIN), min(side, start + core + MARGIN)), slice(start, min(side, start + core)))
            for start in starts
        ]

    for down in along(height):
        for across in along(width):
            yield (down[0], across[0]), (down[1], across[1])


# masks


def _parts(maps: _Maps, cut: Cut) -> Numbers:
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


def _described(parts: Numbers, maps: _Maps) -> tuple[list[Rle], Floats, Numbers]:
    """Each mask, (n, 8) what it is judged by, and (n,) its category."""
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


def _pooled(parts: Numbers, maps: _Maps) -> Floats:
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


# what it is worth


def _best_cut(maps: Sequence[_Maps], images: Sequence[Labeled], least_area: int) -> Cut:
    """The cut that finds the most objects."""

    def worth(cut: Cut) -> float:
        return f2([_counted(one, labeled, cut) for one, labeled in zip(maps, images, strict=True)])

    return max((Cut(f, i, least_area) for f in FOREGROUND for i in INSIDE), key=worth)


def _counted(maps: _Maps, labeled: Labeled, cut: Cut) -> tuple[int, int, int]:
    return count_right(_parts(maps, cut), painted(labeled))


def _judge(maps: Sequence[_Maps], images: Sequence[Labeled], cut: Cut, categories: int) -> Floats:
    """(9,) a logistic regression: how probable a mask is to be right, learned on images not trained on."""
    evidence, right = [np.zeros((0, EVIDENCE), np.float32)], [np.zeros(0, bool)]
    for one, labeled in zip(maps, images, strict=True):
        rles, found, category = _described(_parts(one, cut), one)
        evidence.append(found)
        right.append(overlaps(rles, labeled, categories)[np.arange(len(rles)), category] > RIGHT_IOU)
    known, truth = np.concatenate(evidence), np.concatenate(right)
    if truth.all() or not truth.any():  # nothing to tell apart
        return np.array([0.0] * EVIDENCE + [3.0 if len(truth) and truth.all() else -3.0], np.float32)
    middle, spread = known.mean(axis=0), np.maximum(known.std(axis=0), 1e-3)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit((known - middle) / spread, truth)
    slopes = fitted.coef_[0] / spread
    return np.append(slopes, fitted.intercept_[0] - slopes @ middle).astype(np.float32)


def _scores(judge: Floats, evidence: Floats) -> Floats:
    """(n,) the estimated probability that a mask and its category are right."""
    scores: Floats = (1 / (1 + np.exp(-(evidence @ judge[:-1] + judge[-1])))).astype(np.float32)
    return scores
