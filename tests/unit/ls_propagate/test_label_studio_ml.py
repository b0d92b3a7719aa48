"""The segmenter in label-studio-ml's own server: the library where it is installed, else as recorded."""

import importlib
import importlib.util
import io
import sys
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
from flask import Flask, jsonify, request
from pycocotools import mask as coco

from ml_backend.server import Predictor
from propagation.masks import Detections

CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels></View>"""


def png():
    content = io.BytesIO()
    PIL.Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def recorded():
    """label-studio-ml 2.0.1dev0 as far as a model and its server meet; it is on no package index."""
    kept = {}

    class LabelStudioMLBase:
        def __init__(self, project_id=None, label_config=None):
            self.project_id = project_id or ""
            if label_config is not None:
                self.set("label_config", label_config)
            if not self.get("model_version"):
                self.set("model_version", "0.0.1")
            self.setup()

        def get(self, key):
            return kept.get((self.project_id, key))

        def set(self, key, value):
            kept[self.project_id, key] = value

        @property
        def label_config(self):
            return self.get("label_config")

    def init_app(model_class):
        assert issubclass(model_class, LabelStudioMLBase)
        app = Flask("label_studio_ml.api")

        @app.post("/predict")
        def predict():
            body = request.get_json()
            params = body.get("params", {})
            context = params.pop("context", {})
            model = model_class(
                project_id=str(body["project"]).split(".", 1)[0], label_config=body["label_config"]
            )
            return jsonify(results=model.predict(body["tasks"], context=context, **params))

        @app.post("/setup")
        def setup():
            body = request.get_json()
            model = model_class(project_id=body["project"].split(".", 1)[0], label_config=body["schema"])
            return jsonify(model_version=model.get("model_version"))

        return app

    model, api = ModuleType("label_studio_ml.model"), ModuleType("label_studio_ml.api")
    model.LabelStudioMLBase, api.init_app = LabelStudioMLBase, init_app
    return {"label_studio_ml": ModuleType("label_studio_ml"), model.__name__: model, api.__name__: api}


class Block:
    """A block in every image."""

    categories = ("cell",)

    def segment(self, images):
        mask = np.zeros((20, 30), np.uint8, order="F")
        mask[5:10, 5:15] = 1
        return [Detections([coco.encode(mask)], np.array([0.5], np.float32), np.array([0])) for _ in images]


@pytest.fixture
def client(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    if importlib.util.find_spec("label_studio_ml") is None:
        for name, module in recorded().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ls_propagate.label_studio_ml", raising=False)
    ours = importlib.import_module("ls_propagate.label_studio_ml")
    predictor = Predictor(lambda: (Block(), "block-1"), lambda location: png(), {})
    monkeypatch.setattr(ours, "_predictor", lambda: predictor)
    return importlib.import_module("label_studio_ml.api").init_app(ours.Propagate).test_client()


def test_its_server_predicts_as_ours_does(client):
    tasks = [{"id": number, "data": {"image": f"{number}.png"}} for number in range(3)]
    params = {"context": None, "login": None, "password": None}
    body = {"tasks": tasks, "project": "7.17", "label_config": CONFIG, "params": params}
    results = client.post("/predict", json=body).get_json()["results"]
    assert [len(one["result"]) for one in results] == [1, 1, 1]
    assert {one["model_version"] for one in results} == {"block-1"}
    region = results[0]["result"][0]
    assert (region["from_name"], region["to_name"], region["type"]) == ("label", "image", "polygonlabels")


def test_its_server_tells_the_models_version(client):
    body = {"project": "7.17", "schema": CONFIG, "extra_params": None}
    assert client.post("/setup", json=body).get_json() == {"model_version": "block-1"}
