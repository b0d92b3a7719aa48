"""A further round: what a model that was trained anew finds joins the masks that a campaign has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from propagation.campaign import YES, Campaign
from propagation.columns import Runs
from propagation.errors import InputError
from propagation.masks import COMPETE_IOU, MaskTable

SHARED = 0.5  # of the smaller of two masks of a category, above which they are taken for one object
OF_THE_MODEL = "deep"  # the block whose columns mean something else with each model


def decided(campaign: Campaign) -> NDArray[np.bool_]:
    """(n,) the masks that a further round leaves as they are: accepted, or judged right."""
    free = campaign.table.best & ~campaign.taken[campaign.table.image]
    return campaign.accepted() | (free & (campaign.verdict == YES))


def closed_images(campaign: Campaign) -> set[str]:
    """The images in which nothing is open: a person has annotated them, or every mask there is decided."""
    table = campaign.table
    masks, open_ = (
        np.bincount(table.image[some], minlength=len(table.images))
        for some in (table.best, table.best & ~decided(campaign))
    )
    closed = campaign.taken | ((masks > 0) & (open_ == 0))
    return set(table.images[closed].tolist())


def join(table: MaskTable, kept: NDArray[np.bool_], found: MaskTable) -> MaskTable:
    """The table of a further round: the rows of the table so far, in their places, then those found anew.

    kept: (n,) the masks that stay as they are. What else there was is no longer best, but a mask that was found
    again: it keeps its row, and so its verdict, and gets its new score. Found masks of an object that a kept one
    covers are left out. Columns of the model's own are zero for the masks of earlier models.

    Raises InputError where a category is found that the table doesn't know, or images are of another size.
    """
    unknown = sorted(set(found.categories) - set(table.categories))
    if unknown:
        raise InputError(
            f"the model finds {', '.join(unknown)}, which the campaign began without; give the categories that it "
            "began with, or begin another campaign in another data_dir"
        )
    images = np.concatenate([table.images, found.images[~np.isin(found.images, table.images)]])
    place = {key: number for number, key in enumerate(images.tolist())}
    image = np.array([place[key] for key in found.images.tolist()], dtype=np.int32)[found.image]
    category = np.array([table.categories.index(name) for name in found.categories], np.int32)[found.category]
    rows = np.flatnonzero(found.best)
    rows = rows[~_covered(table, kept, found, image, category)[rows]]
    before = _rows_of(table, found, rows)
    again, fresh = rows[before >= 0], rows[before < 0]
    standing = before[before >= 0]
    best = kept.copy()
    best[standing] = True
    score = np.array(table.score)
    score[standing] = np.where(kept[standing], score[standing], found.score[again])

    def both(name: str, values: NDArray[Any] | None = None) -> NDArray[Any]:
        taken = getattr(found, name) if values is None else values
        return np.concatenate([getattr(table, name), taken[fresh]])

    joined = MaskTable(
        ids=np.concatenate([np.asarray(table.ids), np.asarray(found.ids[fresh])]),
        images=images,
        image=both("image", image),
        categories=table.categories,
        category=both("category", category),
        score=np.concatenate([score, found.score[fresh]]),
        box=both("box"),
        area=both("area"),
        size=both("size"),
        counts=Runs.of(table.counts) + Runs.of(found.counts[row] for row in fresh.tolist()),
        best=np.concatenate([best, np.ones(len(fresh), dtype=bool)]),
        model_version=found.model_version,
    )
    blocks = {name: _block(table, found, name, standing, again, fresh) for name in found.features}
    return replace(joined, features=blocks)


def _rows_of(table: MaskTable, found: MaskTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the table where the same masks are, -1 for those that are new."""
    place = {one: row for row, one in enumerate(table.ids.tolist())}
    return np.array([place.get(one, -1) for one in found.ids[rows].tolist()], dtype=np.int64)


def _covered(
    table: MaskTable,
    kept: NDArray[np.bool_],
    found: MaskTable,
    image: NDArray[np.int32],
    category: NDArray[np.int32],
) -> NDArray[np.bool_]:
    """(m,) the found masks of objects that kept ones cover, but for those that are the same mask.

    image, category: (m,) of the found masks, as the table counts them.
    """
    covered = np.zeros(len(found), dtype=bool)
    order = np.flatnonzero(kept)
    order = order[np.argsort(table.image[order], kind="stable")]
    begins = np.searchsorted(table.image[order], np.arange(len(table.images) + 1))
    for rows in found.rows_by_image():
        if not len(rows) or image[rows[0]] >= len(table.images):
            continue
        there = order[begins[image[rows[0]]] : begins[image[rows[0]] + 1]]
        if not len(there):
            continue
        if (found.size[rows[0]] != table.size[there[0]]).any():
            raise InputError(
                f"image {table.images[image[rows[0]]]} is {found.size[rows[0]].tolist()} now, and was "
                f"{table.size[there[0]].tolist()} when the campaign began; put the image back that was there"
            )
        ours, theirs = found.rles(rows), table.rles(there)
        united = coco.iou(ours, theirs, [0] * len(theirs))
        of_ours = coco.iou(ours, theirs, [1] * len(theirs))
        of_theirs = coco.iou(theirs, ours, [1] * len(ours)).T
        same = category[rows][:, None] == table.category[there]
        over = (united > COMPETE_IOU) | (same & (np.maximum(of_ours, of_theirs) > SHARED))
        covered[rows] = over.any(axis=1)
    return covered


def _block(
    table: MaskTable,
    found: MaskTable,
    name: str,
    standing: NDArray[np.int64],
    again: NDArray[np.int64],
    fresh: NDArray[np.int64],
) -> NDArray[np.floating[Any]]:
    new = found.features[name]
    old = table.features.get(name)
    if old is None or name == OF_THE_MODEL or old.shape[1] != new.shape[1]:
        before = np.zeros((len(table), new.shape[1]), dtype=new.dtype)
    else:
        before = np.array(old)
    before[standing] = new[again]
    return np.concatenate([before, new[fresh]])
