"""The ML backend that Label Studio calls: its wire protocol, in Flask, served by waitress."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeGuard

import numpy as np
from flask import Flask, Response, jsonify
from numpy.typing import NDArray

from ml_backend.segmenters.base import Image, Segmenter
from plugin import web
from plugin.label_studio import images
from plugin.label_studio.labeling import Labeling, read_labeling
from plugin.label_studio.regions import regions_of
from propagation.errors import ImageError, PropagateError, ServerError
from propagation.masks import Detections, check_detections, mask_id

log = logging.getLogger(__name__)

Json = dict[str, Any]

LARGEST = 100 * 2**20  # bytes: Label Studio sends all tasks of a project at once, with their annotations
IMAGES_AT_ONCE = 16
LONGEST_ERROR, LONGEST_NAME = 2000, 100  # characters


def create_app(
    model: Callable[[], tuple[Segmenter, str]],
    read: Callable[[str], NDArray[np.uint8]],
    names: Mapping[str, str],
    password: str | None = None,
    train: Callable[[int | None], str] | None = None,
) -> Flask:
    """The backend's WSGI application.

    model: the segmenter of now and its version; each request keeps to the one that it began with. read: the
    (height, width, 3) pixels of a task's image value; names: category to label where they differ. password: what
    Label Studio must send by basic authentication, as any user; None lets everyone in. train: begins a training
    and returns at once, with what is to be said of it; it is given the number of the project whose people asked
    for it. None where there is nothing to train.
    """
    app = Flask(__name__, static_folder=None)
    # Label Studio sends no credentials with events, and nothing is done upon one; but it does where people start a
    # training, and those are looked at below
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
        return jsonify(status="UP", model_class=type(model()[0]).__name__)

    @app.post("/setup")
    def setup() -> Response:
        return jsonify(model_version=model()[1])

    @app.get("/versions")
    def versions() -> Response:
        return jsonify(versions=[model()[1]])

    @app.post("/predict")
    def predict() -> Response | tuple[Response, int]:
        body = web.read_json()
        if not _is_request(body):
            return web.refusal(400, "send JSON with tasks (a list) and label_config")
        segmenter, model_version = model()
        labeling = read_labeling(body["label_config"], segmenter.categories, names, _named(body.get("project")))
        locations = [(task.get("data") or {}).get(labeling.field) for task in body["tasks"]]
        predictions = _predictions(locations, read, segmenter, labeling)
        return jsonify(results=[{"model_version": model_version, **prediction} for prediction in predictions])

    @app.post("/webhook")
    def webhook() -> Response:
        body = web.read_json()
        if train is None or not isinstance(body, dict) or body.get("action") != "START_TRAINING":
            return jsonify(status="ignored")  # an event: nothing is done upon one
        web.admit(password)
        project = body.get("project")
        number = project.get("id") if isinstance(project, dict) else None
        return jsonify(status=train(number if isinstance(number, int) else None))

    return app


def _predictions(
    locations: Sequence[Any], read: Callable[[str], NDArray[np.uint8]], segmenter: Segmenter, labeling: Labeling
) -> Iterator[Json]:
    """A prediction a task, in order; an empty one where it has no image that can be read."""
    for batch in _batches(locations, read):
        readable = [image for image in batch if image is not None]
        found = iter(segmenter.segment(readable) if readable else [])
        for image in batch:
            if image is None:
                yield {"score": 0.0, "result": []}
            else:
                yield _prediction(image.key, next(found), segmenter, labeling)


def _batches(locations: Sequence[Any], read: Callable[[str], NDArray[np.uint8]]) -> Iterator[list[Image | None]]:
    """The images of tasks in order, no more at once than memory takes."""
    batch: list[Image | None] = []
    pixels = 0
    for location in locations:
        image = _read(location, read)
        batch.append(image)
        pixels += 0 if image is None else image.pixels.size // 3
        if len(batch) == IMAGES_AT_ONCE or pixels >= images.LARGEST:
            yield batch
            batch, pixels = [], 0
    yield batch


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


def _read(location: Any, read: Callable[[str], NDArray[np.uint8]]) -> Image | None:
    """The image of a task, or None where it has none that can be read: the other tasks still get answers."""
    if not isinstance(location, str) or not location:
        return None
    try:
        return Image(images.image_key(location), read(location))
    except ImageError as error:
        log.warning("%s", error)
        return None
