"""The ML backend that Label Studio calls: its wire protocol, in Flask, served by waitress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
from flask import Flask, Response, jsonify

from ml_backend.detect import Found, segment
from ml_backend.segmenters.base import Segmenter
from plugin import web
from plugin.label_studio.images import image_key, lead
from plugin.label_studio.labeling import Labeling, read_labeling
from plugin.label_studio.regions import regions_of
from propagation.errors import ImageError, PropagateError, ServerError
from propagation.masks import NOTHING, Detections, check_detections, mask_id
from propagation.rle import boxed

log = logging.getLogger(__name__)

Json = dict[str, Any]
Model = Callable[[], tuple[Segmenter, str]]

IN_TIME = 60.0  # seconds; Label Studio gives up after 100, as it comes (ML_TIMEOUT_PREDICT)
LARGEST = 100 * 2**20  # bytes: Label Studio sends all tasks of a project at once, with their annotations
LONGEST_ERROR, LONGEST_NAME = 2000, 100  # characters


def create_app(
    model: Model,
    read: Callable[[str], bytes],
    names: Mapping[str, str],
    password: str | None = None,
    train: Callable[[int | None], str] | None = None,
    seconds: float = IN_TIME,
) -> Flask:
    """The backend's WSGI application.

    model: the segmenter of now and its version; each request keeps to the one that it began with. read: the file
    of a task's image value, called in threads; names: category to label where they differ. password: what Label
    Studio must send by basic authentication, as any user; None lets everyone in. train: begins a training and
    returns at once, with what is to be said of it; it is given the number of the project whose people asked for
    it. None where there is nothing to train. seconds: see ``Predictor``.
    """
    predictor = Predictor(model, read, names, seconds)
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
        return jsonify(results=predictor.answer(body["tasks"], body["label_config"], _named(body.get("project"))))

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


class Predictor:
    """Answers requests for predictions, as Label Studio makes them.

    seconds: after which a request for many tasks is answered with the first prediction alone. Label Studio then
    asks for one task after the other, each with its whole time limit; what was found is kept until it does so.
    """

    def __init__(
        self,
        model: Model,
        read: Callable[[str], bytes],
        names: Mapping[str, str],
        seconds: float = IN_TIME,
    ) -> None:
        self._model, self._read, self._names, self._seconds = model, read, names, seconds
        self._found: dict[tuple[str, str, Any], Json] = {}  # of the latest request cut short

    @property
    def model_version(self) -> str:
        """The version that predicts now."""
        return self._model()[1]

    def answer(self, tasks: Sequence[Json], label_config: str, project: str) -> list[Json]:
        """A prediction a task, in order, or the first alone. Raises ConfigError for a config that does not fit."""
        segmenter, version = self._model()
        labeling = read_labeling(label_config, segmenter.categories, self._names, project)
        locations = [_location(task, labeling.field) for task in tasks]
        kept = self._found.pop((version, label_config, locations[0]), None) if len(tasks) == 1 else None
        if kept is not None:
            return [kept]
        found = _predictions(locations, self._read, segmenter, labeling, time.monotonic() + self._seconds)
        results = [{"model_version": version, **prediction} for prediction in found]
        if len(results) == len(tasks):
            return results
        self._found = {(version, label_config, at): one for at, one in zip(locations, results, strict=False)}
        return results[:1]


def _location(task: Json, field: str) -> Any:
    """The image value of a task, as Label Studio would lead to it."""
    location, number = (task.get("data") or {}).get(field), task.get("id")
    known = isinstance(location, str) and isinstance(number, int)
    return lead(str(location), int(number or 0)) if known else location


def _predictions(
    locations: Sequence[Any],
    read: Callable[[str], bytes],
    segmenter: Segmenter,
    labeling: Labeling,
    until: float,
) -> list[Json]:
    """A prediction a task, in order; an empty one where it has no image that can be read.

    until: by the monotonic clock; no batch is begun after it but the first, and there are fewer predictions then.
    """
    addresses = [location for location in locations if isinstance(location, str) and location]
    keys = [image_key(address) for address in addresses]
    address_of = dict(zip(keys, addresses, strict=True))
    batches = segment(segmenter, keys, lambda key: read(address_of[key]), skip_unreadable=True)
    pairs = zip(chain.from_iterable(_in_time(batches, until)), keys, strict=False)
    found = (_drawn(key, one, segmenter, labeling) for one, key in pairs)
    predictions = []
    for location in locations:
        known = isinstance(location, str) and location
        prediction = next(found, None) if known else _prediction("", NOTHING, segmenter, labeling)
        if prediction is None:
            break
        predictions.append(prediction)
    return predictions


def _drawn(key: str, found: Found, segmenter: Segmenter, labeling: Labeling) -> Json:
    if isinstance(found, ImageError):
        log.warning("%s", found)
        found = NOTHING
    return _prediction(key, found, segmenter, labeling)


def _in_time(batches: Iterator[list[Found]], until: float) -> Iterator[list[Found]]:
    """The batches, until it is late; the first one in any case."""
    for batch in batches:
        yield batch
        if time.monotonic() > until:
            return


def _prediction(key: str, detections: Detections, segmenter: Segmenter, labeling: Labeling) -> Json:
    check_detections(key, detections, segmenter.categories)
    regions: list[Json] = []
    masks = zip(detections.rles, detections.scores, detections.categories, boxed(detections.rles), strict=True)
    for rle, score, number, box in masks:
        category = segmenter.categories[number]
        regions += regions_of(mask_id(key, category, rle), rle, category, score, {}, labeling, box)
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
