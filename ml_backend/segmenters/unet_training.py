"""How the U-Net learns: from images that people annotated, and from those of which some masks were accepted."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from ml_backend.segmenters.seed_set import Labeled, Partly, SeedSet, count_right, f2, overlaps, painted
from ml_backend.segmenters.unet import (
    EVIDENCE,
    Cut,
    Floats,
    Maps,
    Numbers,
    UNet,
    described,
    forward,
    fused,
    light,
    look,
    make_network,
    parts_of,
    scaled,
)
from propagation.errors import InputError
from propagation.quality import RIGHT_IOU
from propagation.rle import decode

FOREGROUND = (0.4, 0.5, 0.6)
INSIDE = (0.25, 0.35, 0.45)
UNIT = 16  # by which weights of pixels are kept, as bytes
BETWEEN = 5 * UNIT  # the weight of what is between two objects that nearly touch: a mistake there joins them

AROUND = 3  # pixels around an accepted mask that are background, as far as no other mask was found there

Bytes = NDArray[np.uint8]
Told = Callable[[int, float], None]


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    steps: at most, of ``batch`` crops with sides of ``side`` pixels each. rate: of learning, at its highest;
    decay: of the mean of the weights over the steps, which is what is kept. held_out: the share of the annotated
    images by which it is judged; training ends after ``patience`` looks, ``every`` steps apart, that found it no
    better. seconds: that it takes about at most, None for no limit. seed: of what is drawn at random. partly: the
    share of the crops that come from images of which only some masks are known; rest: the weight there of pixels
    of which nothing is known, taken as background.
    """

    steps: int = 800
    batch: int = 8
    side: int = 160
    rate: float = 4e-3
    decay: float = 0.98
    held_out: float = 0.2
    every: int = 100
    patience: int = 5
    seconds: float | None = None
    seed: int = 0
    partly: float = 0.4
    rest: float = 0.0


LATER = Training(steps=400, rate=1e-3)  # where an earlier network is gone on from


@dataclass(frozen=True)
class Held:
    """What training came to on the images that it was judged by.

    objects: there; masks: found; right: masks with an IoU above 0.75 with an object, whatever the category; steps:
    that it took to the weights kept.
    """

    images: int
    objects: int
    masks: int
    right: int
    steps: int


def train(
    seed: SeedSet,
    training: Training | None = None,
    told: Told = lambda step, loss: None,
    partly: Sequence[Partly] = (),
    start: UNet | None = None,
) -> tuple[UNet, Held]:
    """Train a network, and what it came to on the images of the seed set that were held out.

    told: is told of each step and its loss. start: an earlier network of the same categories, to go on from.
    Raises InputError where the objects of the seed set cannot be learned.
    """
    training = training or Training()
    began = time.monotonic()
    known, held = _divided(seed, training, start.learned if start else frozenset())
    torch.manual_seed(training.seed)
    network = copy.deepcopy(start.network) if start else make_network(len(seed.categories))
    crops = _Crops(known, partly, len(seed.categories), training)
    areas = [float(coco.area(dict(rle))) for labeled in known for rle in labeled.rles]
    least = max(1, round(float(np.percentile(areas, 2)) / 2))
    steps = _fit(network, crops, held, training, Cut(least_area=least), told, began)
    network = network.eval() if start else fused(network)
    maps = [look(network, labeled.image) for labeled in held]
    numbers = [painted(labeled) for labeled in held]
    cuts = [Cut(foreground, inside, least) for foreground in FOREGROUND for inside in INSIDE]
    cut = max(cuts, key=lambda one: _worth(maps, numbers, one))
    judge = _judge(maps, held, cut, len(seed.categories))
    pairs = zip(maps, numbers, strict=True)
    counts = np.sum([count_right(parts_of(one, cut), there) for one, there in pairs], axis=0)
    right, masks, objects = (int(count) for count in counts)
    if not right:
        raise InputError(
            "the network found no object of the images that it was judged by: annotate some more images, whole, "
            "or use another segmenter"
        )
    learned = frozenset(labeled.image.key for labeled in known)
    model = UNet(seed.categories, network, cut, judge, learned=learned)
    return model, Held(len(held), objects, masks, right, steps)


def _divided(seed: SeedSet, training: Training, learned: frozenset[str]) -> tuple[list[Labeled], list[Labeled]]:
    """The images to learn from, and those to judge by: of each category some, where there are enough.

    learned: keys of images that the network has learned from before, so that they can't judge it any more.
    """
    there = [labeled for labeled in seed.images if labeled.rles]
    if len(there) < 2:
        raise InputError("fewer than two of the annotated images have an object; annotate some more of them")
    random = np.random.default_rng(training.seed)
    main = np.array([np.bincount(labeled.categories).argmax() for labeled in there])
    held: list[int] = []
    for category in np.unique(main):
        places = random.permutation(np.flatnonzero(main == category))
        fresh = [place for place in places.tolist() if there[place].image.key not in learned]
        held += fresh[: int(len(places) * training.held_out)]
    if not held:
        held = [
            place for place in random.permutation(len(there)).tolist() if there[place].image.key not in learned
        ][:1]
    if not held:
        raise InputError("all of the annotated images were learned from before; annotate some more of them")
    known = [labeled for place, labeled in enumerate(there) if place not in held]
    return known, [there[place] for place in held]


# what it learns from


@dataclass(frozen=True)
class _Known:
    """An image to learn from, in bytes: (h, w, 3) its pixels, and what is dark and bright there; (h, w) the
    category of each from 1, 0 for none, its depth from 0 to 255, and its weight in units. middles: (n, 2) of the
    objects, x and y, that crops are to show; none where any part of the image will do.
    """

    pixels: Bytes
    light: tuple[float, float]
    category: Bytes
    depth: Bytes
    weight: Bytes
    middles: Floats


class _Pool:
    """Images of which one is drawn: half of the time by its categories, so that a rare one is learned too."""

    def __init__(self, images: Sequence[tuple[_Known, Labeled]], categories: int) -> None:
        self.images = [known for known, _ in images]
        there = [np.unique(labeled.categories) for _, labeled in images]
        with_category = [[place for place, found in enumerate(there) if c in found] for c in range(categories)]
        self._by_category = [places for places in with_category if places]

    def draw(self, random: np.random.Generator) -> _Known:
        if random.random() < 0.5:
            places = self._by_category[random.integers(len(self._by_category))]
            return self.images[places[random.integers(len(places))]]
        return self.images[random.integers(len(self.images))]


class _Crops:
    """Crops at random, turned, scaled and coloured a little, so that none comes twice."""

    def __init__(
        self, whole: Sequence[Labeled], partly: Sequence[Partly], categories: int, training: Training
    ) -> None:
        self._whole = _Pool([(_known(labeled), labeled) for labeled in whole], categories)
        known = [(_partly_known(one, training.rest), one.labeled) for one in partly if one.labeled.rles]
        self._partly = _Pool(known, categories) if known else None
        self._random = np.random.default_rng(training.seed)
        self._training = training

    def batch(self) -> tuple[torch.Tensor, ...]:
        """Pixels (b, 3, s, s), categories (b, s, s), depths and weights of pixels."""
        pixels, category, depth, weight = zip(*(self._crop() for _ in range(self._training.batch)), strict=True)
        channels = np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))
        return (
            torch.from_numpy(channels).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(np.stack(category).astype(np.int64)),
            torch.from_numpy(np.stack(depth).astype(np.float32) / np.float32(255)),
            torch.from_numpy(np.stack(weight).astype(np.float32) / np.float32(UNIT)),
        )

    def _crop(self) -> tuple[Floats, Bytes, Bytes, Bytes]:
        random, side = self._random, self._training.side
        pool = self._partly if self._partly and random.random() < self._training.partly else self._whole
        known = pool.draw(random)
        height, width = known.category.shape
        angle, scale = random.uniform(0, 2 * np.pi), np.exp(random.uniform(-0.35, 0.35))
        if random.random() < 0.5:  # a quarter turn keeps pixels as they are
            angle, scale = np.pi / 2 * random.integers(4), 1.0
        reach = side / scale / 2
        if len(known.middles):
            middle = known.middles[random.integers(len(known.middles))] + random.uniform(-reach, reach, 2) / 2
        else:
            middle = np.array([random.uniform(0, size) for size in (width, height)])
        most = np.array([max(size - reach, size / 2) for size in (width, height)])
        middle = np.clip(middle, np.array([width, height]) - most, most)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        if random.random() < 0.5:
            turn[:, 0] *= -1
        place = middle - turn @ np.array([side / 2, side / 2])
        matrix = np.column_stack([turn, place]).astype(np.float32)

        def taken(values: Bytes, how: int) -> Bytes:
            flags = how | cv2.WARP_INVERSE_MAP
            return np.asarray(
                cv2.warpAffine(values, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT), np.uint8
            )

        pixels = scaled(taken(known.pixels, cv2.INTER_LINEAR), *known.light)
        return (
            self._coloured(pixels),
            taken(known.category, cv2.INTER_NEAREST),
            taken(known.depth, cv2.INTER_LINEAR),
            taken(known.weight, cv2.INTER_NEAREST),
        )

    def _coloured(self, pixels: Floats) -> Floats:
        random = self._random
        made: NDArray[Any] = np.clip(pixels, 0, None) ** np.float32(np.exp(random.uniform(-0.35, 0.35)))
        made = made * random.uniform(0.75, 1.25) + random.uniform(-0.1, 0.1)
        made = made * random.uniform(0.9, 1.1, 3)
        if random.random() < 0.3:
            made = cv2.GaussianBlur(made, (0, 0), random.uniform(0.4, 1.2))
        if random.random() < 0.3:
            made = made + random.normal(0, random.uniform(0.01, 0.06), made.shape)
        return made.astype(np.float32)


def _known(labeled: Labeled) -> _Known:
    numbers = painted(labeled)
    category = np.concatenate([[0], labeled.categories + 1]).astype(np.uint8)[numbers]
    depth = np.zeros(numbers.shape, np.uint8)
    for number, window in enumerate(ndimage.find_objects(numbers), start=1):
        if window is None:  # covered by others
            continue
        mask = np.pad(numbers[window] == number, 1).astype(np.uint8)
        far = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[1:-1, 1:-1]
        inside = mask[1:-1, 1:-1] > 0
        depth[window][inside] = np.round(255 * far / far.max()).astype(np.uint8)[inside]
    thick = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(numbers.astype(np.float32), thick)
    lowest = -cv2.dilate(np.where(numbers > 0, -numbers, -np.inf).astype(np.float32), thick)
    between = np.isfinite(lowest) & (highest != lowest) & (highest > 0)
    weight = np.where(between, BETWEEN, UNIT).astype(np.uint8)
    pixels = labeled.image.pixels
    return _Known(pixels, light(pixels), category, depth, weight, np.zeros((0, 2), np.float32))


def _partly_known(partly: Partly, rest: float) -> _Known:
    """The same where only some objects are known: of doubtful masks nothing is learned, of what is left little."""
    known = _known(partly.labeled)
    doubtful = np.zeros(known.weight.shape, bool)
    for rle in partly.doubtful:
        doubtful |= decode(rle)
    weight = np.where(doubtful, 0, round(rest * UNIT)).astype(np.uint8)
    inside = known.category > 0
    around = cv2.dilate(inside.astype(np.uint8), np.ones((2 * AROUND + 1,) * 2, np.uint8)) > 0
    weight[around & ~doubtful] = UNIT
    weight[inside] = known.weight[inside]
    boxes = coco.toBbox([dict(rle) for rle in partly.labeled.rles])
    return _Known(
        known.pixels,
        known.light,
        known.category,
        known.depth,
        weight,
        (boxes[:, :2] + boxes[:, 2:] / 2).astype(np.float32),
    )


# how it learns


def _fit(
    network: nn.ModuleDict,
    crops: _Crops,
    held: Sequence[Labeled],
    training: Training,
    cut: Cut,
    told: Told,
    began: float,
) -> int:
    """Train; the network keeps the best mean of its weights. After how many steps it had them."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=1e-3)
    numbers = [painted(labeled) for labeled in held]
    half = _has_bfloat16()
    mean = _copy(network)
    best, kept, poor, weights = -1.0, 0, 0, mean
    for step in range(1, training.steps + 1):
        done = (step - 1) / training.steps
        if training.seconds is not None:
            done = min(max(done, (time.monotonic() - began) / training.seconds), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = training.rate * _rate(done)
        network.train()
        pixels, category, depth, weight = crops.batch()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits, depths, _ = forward(network, pixels)
        loss = _loss(logits.float(), depths.float(), category, depth, weight)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        _add(mean, network, min(training.decay, step / (step + 10)))
        told(step, float(loss.detach()))
        last = step == training.steps or done >= 1
        if last or (step % training.every == 0 and done > 0.3):  # before, it is worse than it will be
            now = _copy(network)
            network.load_state_dict(mean)
            maps = [look(network, labeled.image, False) for labeled in held]
            found = max(_worth(maps, numbers, replace(cut, inside=inside)) for inside in INSIDE)
            poor += 1
            if found > best:
                best, kept, poor, weights = found, step, 0, _copy(network)
            network.load_state_dict(now)
            if last or poor >= training.patience:
                break
    network.load_state_dict(weights)
    return kept


def _has_bfloat16() -> bool:
    """Whether this processor reckons with bfloat16 itself, which is twice as quick; others would do so slowly."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return asked is not None and bool(asked())


def _rate(done: float) -> float:
    """The rate of learning as a share of the highest: it grows for a twentieth of the way, then falls to none."""
    return 0.02 + 19.6 * done if done < 0.05 else 0.5 + 0.5 * float(np.cos(np.pi * (done - 0.05) / 0.95))


def _copy(network: nn.ModuleDict) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _add(mean: dict[str, torch.Tensor], network: nn.ModuleDict, decay: float) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1 - decay)


def _loss(
    logits: torch.Tensor, depths: torch.Tensor, category: torch.Tensor, depth: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    named = (functional.cross_entropy(logits, category, reduction="none") * weight).mean()
    far = (functional.smooth_l1_loss(depths, depth, reduction="none", beta=0.1) * weight).mean()
    certain = weight.clamp(max=1)
    inside, found = (category > 0) * certain, (1 - logits.softmax(dim=1)[:, 0]) * certain
    overlap = (2 * ((category > 0) * found).sum() + 1) / (inside.sum() + found.sum() + 1)
    return named + 3 * far + (1 - overlap)


# what it is worth


def _worth(maps: Sequence[Maps], numbers: Sequence[Numbers], cut: Cut) -> float:
    """How good the masks of some images are: F2, the mean over the images, so that none of them decides alone."""
    pairs = zip(maps, numbers, strict=True)
    return float(np.mean([f2([count_right(parts_of(one, cut), there)]) for one, there in pairs]))


def _judge(maps: Sequence[Maps], images: Sequence[Labeled], cut: Cut, categories: int) -> Floats:
    """(9,) a logistic regression: how probable a mask is to be right, learned on images not trained on."""
    evidence: list[Floats] = [np.zeros((0, EVIDENCE), np.float32)]
    right = [np.zeros(0, bool)]
    for one, labeled in zip(maps, images, strict=True):
        rles, found, category = described(parts_of(one, cut), one)
        evidence.append(found)
        right.append(overlaps(rles, labeled, categories)[np.arange(len(rles)), category] > RIGHT_IOU)
    known, truth = np.concatenate(evidence), np.concatenate(right)
    if truth.all() or not truth.any():  # nothing to tell apart
        return np.array([0.0] * EVIDENCE + [3.0 if len(truth) and truth.all() else -3.0], np.float32)
    middle, spread = known.mean(axis=0), np.maximum(known.std(axis=0), 1e-3)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit((known - middle) / spread, truth)
    slopes = fitted.coef_[0] / spread
    return np.append(slopes, fitted.intercept_[0] - slopes @ middle).astype(np.float32)
