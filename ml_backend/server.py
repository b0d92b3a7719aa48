"""The ML backend that Label Studio calls: its wire protocol, in Flask, served by waitress."""

from __future__ import annotations

import base64
import hmac
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from flask import Flask, Response, jsonify, request
from numpy.typing import NDArray

from ml_backend.segmenters.base import Image, Segmenter
from plugin.label_studio.images import image_key
from plugin.label_studio.labeling import Labeling, read_labeling
from plugin.label_studio.regions import regions_of
from propagation.errors import ImageError, PropagateError
from propagation.masks import check_detections, mask_id

log = logging.getLogger(__name__)

Json = dict[str, Any]


def create_app(
    segmenter: Segmenter,
    model_version: str,
    read: Callable[[str], NDArray[np.uint8]],
    names: Mapping[str, str],
    password: str | None = None,
) -> Flask:
    """The backend's WSGI application.

    read: the (height, width, 3) pixels of a task's image value; names: category to label where they
    differ. password: what Label Studio must send by basic authentication, as any user; None lets
    everyone in.
    """
    app = Flask(__name__)

    @app.before_request
    def authenticate() -> Response | None:
        # Label Studio sends no credentials with events, and nothing is done upon one
        if password is None or request.path in ("/health", "/webhook"):
            return None
        given = _password(request.headers.get("Authorization", ""))
        # Label Studio sends Latin-1, browsers and curl UTF-8
        known = {password.encode(), password.encode("latin-1", "xmlcharrefreplace")}
        if any(hmac.compare_digest(given, one) for one in known):
            return None
        return Response(
            "give the backend's password in Label Studio's settings of this model\n",
            401,
            {"WWW-Authenticate": 'Basic realm="ls-propagate"'},
        )

    @app.errorhandler(PropagateError)
    def refuse(error: PropagateError) -> tuple[Response, int]:
        log.warning("%s", error)
        return jsonify(error=str(error)), 400

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
        body = request.get_json(silent=True)
        if not _is_request(body):
            return jsonify(error="send JSON with tasks (a list) and label_config"), 400
        labeling = read_labeling(body["label_config"], segmenter.categories, names, str(body.get("project")))
        images = [_read((task.get("data") or {}).get(labeling.field), read) for task in body["tasks"]]
        predictions = _predictions(images, segmenter, labeling)
        return jsonify(results=[{"model_version": model_version, **prediction} for prediction in predictions])

    @app.post("/webhook")
    def webhook() -> Response:
        # training from Label Studio's events is not this backend's: events are only acknowledged
        return jsonify(status="ignored")

    return app


def _predictions(images: Sequence[Image | None], segmenter: Segmenter, labeling: Labeling) -> Iterator[Json]:
    """A prediction an image, in order; an empty one where there is no image."""
    readable = [image for image in images if image is not None]
    found = iter(segmenter.segment(readable) if readable else [])
    for image in images:
        if image is None:
            yield {"score": 0.0, "result": []}
            continue
        detections = next(found)
        check_detections(image.key, detections, segmenter.categories)
        regions: list[Json] = []
        for rle, score, number in zip(detections.rles, detections.scores, detections.categories, strict=True):
            category = segmenter.categories[number]
            regions += regions_of(mask_id(image.key, category, rle), rle, category, score, {}, labeling)
        score = float(np.mean(detections.scores)) if len(detections) else 0.0
        yield {"score": round(score, 4), "result": regions}


def _password(authorization: str) -> bytes:
    """The password in a header of basic authentication; empty where it is none."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        return base64.b64decode(encoded).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


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
        return Image(image_key(location), read(location))
    except ImageError as error:
        log.warning("%s", error)
        return None
