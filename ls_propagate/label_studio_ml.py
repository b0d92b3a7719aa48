"""The segmenter as a model of label-studio-ml 2, for teams that run their backends with its server.

A ``model.py`` for it is one line: ``from ls_propagate.label_studio_ml import Propagate``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from ls_propagate.models import load_segmenter
from ls_propagate.pipeline import open_store
from ls_propagate.settings import load_settings
from ml_backend.server import Predictor
from plugin.label_studio.gateway import LabelStudioGateway


@cache
def _predictor() -> Predictor:
    """The segmenter that the settings in this folder and the environment name, loaded once a process."""
    settings = load_settings()
    with open_store(settings) as store:
        model = load_segmenter(settings, store.fact("model"))
    gateway = LabelStudioGateway(settings.label_studio_url, settings.token, settings.image_hosts)
    return Predictor(lambda: model, gateway.read_file, settings.labels)


class Propagate(LabelStudioMLBase):  # type: ignore[misc]
    """Predictions of the segmenter. It learns nothing from events: ``fit`` is the base's, which does nothing."""

    def setup(self) -> None:
        """Say which version predicts."""
        self.set("model_version", _predictor().model_version)

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """A prediction a task, in order; see ``Predictor.answer``."""
        return _predictor().answer(tasks, self.label_config, self.project_id)
