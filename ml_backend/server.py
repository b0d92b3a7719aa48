"""The ML backend that Label Studio calls: its wire protocol, in Flask, served by waitress."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
from flask import Flask, Response, jsonify

from ml_backend.detect import segment
from ml_backend.segmenters.base import Segmenter
from plugin import web
from plugin.label_studio.images import image_key
from plugin.label_studio.labeling import Labeling, read_labeling
from plugin.label_studio.regions import regions_of
from propagation.errors import ImageError, PropagateError, ServerError
from propagation.masks import NOTHING, Detections, check_detections, mask_id

log = logging.getLogger(__name__)

Json = dict[str, Any]

LARGEST = 100 * 2**20  # bytes: Label Studio sends all tasks of a project at once, with their annotations
LONGEST_ERROR, LONGEST_NAME = 2000, 100  # characters


def create_app(
    segmenter: Segmenter,
    model_version: str,
    read: Callable[[str], bytes],
    names: Mapping[str, str],
    password: str | None = None,
) -> Flask:
    """The backend's WSGI application.

    read: the file of a task's image value, called in threads; names: category to label where they differ.
    password: what Label Studio must send by basic authentication, as any user; None lets
    everyone in.
    """
    app = Flask(__name__, static_folder=None)
    # Label Studio sends no credentials with events, and nothing is done upon one
    web.guard(app, password, {"/health", "/webhook"}, LARGEST)
    web.describe(app, json.loads(files(__package__).joinpath("openapi.json").read_text("utf-8")))

    @app.errorhandler(PropagateError)
    def refuse(error: PropagateError) -> tuple[Response, int]:
        said = str(error) if len(str(error)) <= LONGEST_ERROR else f"{str(error)[:LONGEST_ERROR]}…"
        log.warning("%s", said)
        return web.refusal(503 if isinstance(error, ServerError) else 400, said)

    @app.get("/")
    @app.get("/health")
    def health() -> Response:
        return jsonify(status="UP", model_class=type(segmenter).__name__)

    @app.post("/setup")
    def setup() -> Response:
        return jsonify(model_version=model_version)

    @app.get("/versions")
    def versions() -> Response:
        return jsonify(versions=[model_version])

    @app.post("/predict")
    def predict() -> Response | tuple[Response, int]:
        body = web.read_json()
        if not _is_request(body):
            return web.refusal(400, "send JSON with tasks (a list) and label_config")
        labeling = read_labeling(body["label_config"], segmenter.categories, names, _named(body.get("project")))
        locations = [(task.get("data") or {}).get(labeling.field) for task in body["tasks"]]
        predictions = _predictions(locations, read, segmenter, labeling)
        return jsonify(results=[{"model_version": model_version, **prediction} for prediction in predictions])

    @app.post("/webhook")
    def webhook() -> Response:
        # training from Label Studio's events is not this backend's: events are only acknowledged
        return jsonify(status="ignored")

    return app


def _predictions(
    locations: Sequence[Any], read: Callable[[str], bytes], segmenter: Segmenter, labeling: Labeling
) -> Iterator[Json]:
    """A prediction a task, in order; an empty one where it has no image that can be read."""
    addresses = [location for location in locations if isinstance(location, str) and location]
    keys = [image_key(address) for address in addresses]
    address_of = dict(zip(keys, addresses, strict=True))
    batches = segment(segmenter, keys, lambda key: read(address_of[key]), skip_unreadable=True)
    found = zip(keys, chain.from_iterable(batches), strict=True)
    for location in locations:
        key, item = next(found) if isinstance(location, str) and location else ("", NOTHING)
        if isinstance(item, ImageError):
            log.warning("%s", item)
            item = NOTHING
        yield _prediction(key, item, segmenter, labeling)


def _prediction(key: str, detections: Detections, segmenter: Segmenter, labeling: Labeling) -> Json:
    check_detections(key, detections, segmenter.categories)
    regions: list[Json] = []
    for rle, score, number in zip(detections.rles, detections.scores, detections.categories, strict=True):
        category = segmenter.categories[number]
        regions += regions_of(mask_id(key, category, rle), rle, category, score, {}, labeling)
    score = float(np.mean(detections.scores)) if len(detections) else 0.0
    return {"score": round(score, 4), "result": regions}


def _named(project: Any) -> str:
    """A project as messages name it."""
    return str(project)[:LONGEST_NAME] if isinstance(project, str | int) else "?"


def _is_request(body: Any) -> TypeGuard[Json]:
    """Whether a body has tasks, each with its data, and a labeling config."""
    return (
        isinstance(body, dict)
        and "label_config" in body
        and isinstance(body.get("tasks"), list)
        and all(isinstance(task, dict) and isinstance(task.get("data"), dict | None) for task in body["tasks"])
    )
