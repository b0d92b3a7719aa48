"""Masks to the regions of an annotation, and back.

A region's polygon has its corners in percent of the image; it runs along pixel edges, as COCO polygons do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from plugin.label_studio.labeling import Labeling
from propagation.errors import MaskError
from propagation.rle import Box, Rle, boxed, decode
from propagation.summary import share_text

FAITHFUL_IOU = 0.985
TOLERANCES = (0.8, 0.5, 0.0)
META = "propagate"

Ring = NDArray[np.integer[Any] | np.floating[Any]]


def regions_of(
    mask_id: str,
    rle: Rle,
    category: str,
    score: float,
    provenance: Mapping[str, Any],
    labeling: Labeling,
    box: Box | None = None,
) -> list[dict[str, Any]]:
    """The regions of one mask, each with its mask id and provenance in ``meta``.

    Polygons where they hold the mask to an IoU of 0.98 or the project has no brush for the label; else a
    brush. A mask of several parts takes several polygons. box: the mask within its box, by ``boxed``, which is
    quicker for many together.
    """
    height, width = (int(side) for side in rle["size"])
    label = labeling.label(category)
    rings, iou = outlines(rle, box or next(boxed([rle])), keyholes=label not in labeling.brushes)
    if label in labeling.polygons and (label not in labeling.brushes or iou >= FAITHFUL_IOU):
        kind, control = "polygonlabels", labeling.polygons[label]
        values = [
            {"points": np.round(ring * (100 / width, 100 / height), 5).tolist(), "closed": True} for ring in rings
        ]
    else:
        from label_studio_sdk.converter.brush import encode_rle  # with 100 MB of libraries, and brushes are few

        kind, control = "brushlabels", labeling.brushes[label]
        alpha = np.repeat(decode(rle).ravel() * np.uint8(255), 4)
        values = [{"format": "rle", "rle": encode_rle(alpha)}]
    return [
        {
            "id": f"{mask_id[:12]}-{part}",
            "from_name": control,
            "to_name": labeling.image,
            "type": kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(float(score), 4),
            "meta": {META: {"mask": mask_id, **provenance}},
            "value": {**value, kind: [label]},
        }
        for part, value in enumerate(values)
    ]


def outline_of(mask_id: str, rle: Rle) -> tuple[dict[str, Any], ...]:
    """The outline of one mask as regions to be looked at, for a control ``outline`` of an image ``picture``."""
    height, width = (int(side) for side in rle["size"])
    return tuple(
        {
            "id": f"{mask_id}-{part}",
            "from_name": "outline",
            "to_name": "picture",
            "type": "polygonlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "readonly": True,
            "value": {
                "points": np.round(ring * (100 / width, 100 / height), 5).tolist(),
                "closed": True,
                "polygonlabels": ["outline"],
            },
        }
        for part, ring in enumerate(outlines(rle, next(boxed([rle])), keyholes=True)[0])
    )


def rle_of(regions: Sequence[Mapping[str, Any]]) -> Rle:
    """The mask that some regions of one image cover together. Raises MaskError for other kinds of region."""
    parts = []
    for region in regions:
        height, width = region["original_height"], region["original_width"]
        value = region["value"]
        if region["type"] == "polygonlabels":
            ring = np.array(value["points"]) * (width / 100, height / 100)
            parts.extend(coco.frPyObjects([ring.ravel().tolist()], height, width))
        elif region["type"] == "brushlabels":
            from label_studio_sdk.converter.brush import decode_rle

            alpha = np.asarray(decode_rle(value["rle"])).reshape(height, width, 4)[:, :, 3]
            parts.append(coco.encode(np.asfortranarray(alpha > 0, dtype=np.uint8)))
        else:
            raise MaskError(f"region {region.get('id')}: {region['type']} is neither polygon nor brush")
    merged: Rle = coco.merge(parts)
    return merged


def mask_of(region: Mapping[str, Any]) -> str | None:
    """The mask id in a region's provenance, or None for a region that the product did not write."""
    provenance = (region.get("meta") or {}).get(META)
    return provenance.get("mask") if isinstance(provenance, Mapping) else None


def in_words(provenance: Mapping[str, Any]) -> str:
    """Provenance as people read it beside a region: its cluster, what decided, and how good that is."""
    kind, _, rest = str(provenance["decision"]).partition("/")
    decided = {
        "certificate": f"certificate {rest}",
        "cluster": "accepted by its answers",
        "page": "judged right on a page",
        "command": "accepted by command",
    }[kind]
    if provenance["verified"] and kind != "page":
        decided += ", and judged right on a page"
    if provenance.get("promise") is not None:
        bound = f"promise: at least {share_text(provenance['promise'])} of all that is written is right"
    elif provenance.get("estimate") is not None:
        bound = f"estimate: {share_text(provenance['estimate'])} of its cluster is right"
    else:
        bound = "nothing else is claimed"
    return f"cluster {provenance['cluster']} · {decided} · {bound}"


def digest(result: Sequence[Mapping[str, Any]]) -> str:
    """A fingerprint of what a person could change in a result: kinds, labels, outlines, order."""
    kept = [[region.get("id"), region["type"], region["value"]] for region in result]
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=10).hexdigest()


def outlines(rle: Rle, box: Box, keyholes: bool) -> tuple[list[Ring], float]:
    """One ring (k, 2) of x, y in pixels for each part of a mask, and their IoU with the mask.

    They are simplified as far as that holds. box: the mask within its box. keyholes: whether holes are kept, by a
    slit of no width to each; else they are filled.
    """
    x, y, mask = box
    exact = _rings(mask, keyholes)
    for tolerance in TOLERANCES:
        rings: list[Ring] = [_simplified(ring, tolerance) + (x, y) for ring in exact]
        iou = _iou(rings, rle) if all(len(ring) > 2 for ring in rings) else 0.0
        if iou >= FAITHFUL_IOU:
            break
    return rings, iou


def _rings(mask: NDArray[np.bool_], keyholes: bool) -> list[Ring]:
    """The exact outline of each part of a mask, along the edges of its pixels; corners may come twice in a row."""
    # the contour runs through pixel centres: in a mask twice as large, those lie beside the edges of the pixels
    whole = mask.astype(np.uint8, order="C")
    doubled = cv2.resize(whole, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    edges = [(np.asarray(contour)[:, 0] + 1) // 2 for contour in contours]
    parents = hierarchy[0, :, 3].tolist()
    rings = {place: edge for place, edge in enumerate(edges) if parents[place] < 0}
    if keyholes:
        for hole, place in zip(edges, parents, strict=True):
            if place >= 0:
                rings[place] = _slit(rings[place], hole)
    return list(rings.values())


def _slit(ring: Ring, hole: Ring) -> Ring:
    """A ring that also goes around a hole, by a slit where the two are nearest."""
    gaps = np.abs(ring[:, None] - hole[None]).sum(axis=2)
    here, there = np.unravel_index(int(gaps.argmin()), gaps.shape)
    around = np.concatenate([hole[there:], hole[: there + 1]])
    return np.concatenate([ring[: here + 1], around, ring[here:]])


def _simplified(ring: Ring, tolerance: float) -> Ring:
    if not tolerance:
        return ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    return np.asarray(cv2.approxPolyDP(ring[:, None], tolerance, closed=True))[:, 0]


def _iou(rings: Sequence[Ring], rle: Rle) -> float:
    height, width = rle["size"]
    drawn = coco.merge(coco.frPyObjects([ring.ravel().tolist() for ring in rings], height, width))
    shared = int(coco.area(coco.merge([drawn, rle], intersect=True)))
    return shared / (int(coco.area(drawn)) + int(coco.area(rle)) - shared)
