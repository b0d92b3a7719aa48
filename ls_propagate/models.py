"""The segmenter that the settings name; what a model needs is imported when it is named."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

from ls_propagate.settings import (
    Detectron2Settings,
    PrecomputedSettings,
    Settings,
    TorchvisionSettings,
    WatershedSettings,
)
from ml_backend.segmenters.base import Segmenter
from ml_backend.segmenters.precomputed import Precomputed
from propagation.errors import SettingsError

INSTALL = {
    "torchvision": "in a checkout, run: pip install '.[torchvision]'",
    "detectron2": "in a checkout, run: pip install '.[detectron2]', then install detectron2 as its own page says: "
    "https://detectron2.readthedocs.io/en/latest/tutorials/install.html",
}


def load_segmenter(settings: Settings) -> tuple[Segmenter, str]:
    """The segmenter that the settings name, and its version.

    Raises SettingsError when they name none, one that is not installed, or files that are not there.
    """
    chosen = settings.segmenter
    if chosen is None:
        raise SettingsError(
            'no segmenter is set; add [segmenter] with name = "precomputed", "watershed", "detectron2" or '
            '"torchvision" to the settings'
        )
    for name, path in chosen:
        if isinstance(path, Path) and not path.exists():
            raise SettingsError(f"setting segmenter.{name}: there is no {path}; correct it")
    match chosen:
        case PrecomputedSettings():
            precomputed = Precomputed(chosen.predictions, chosen.images, chosen.features)
            return precomputed, f"precomputed-{_fingerprint(chosen.predictions)}"
        case WatershedSettings():
            from ml_backend.segmenters.seed_set import read_seed_set
            from ml_backend.segmenters.watershed import train

            version = f"watershed-{_fingerprint(chosen.seed / 'ground_truth.json')}"
            return train(read_seed_set(chosen.seed)), version
        case _:
            return _load_detector(chosen)


def _load_detector(chosen: Detectron2Settings | TorchvisionSettings) -> tuple[Segmenter, str]:
    try:
        module = importlib.import_module(f"ml_backend.segmenters.{chosen.name}")
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter where torch is another version
        raise SettingsError(
            f"setting segmenter.name: {chosen.name} cannot be imported ({error}); {INSTALL[chosen.name]}"
        ) from error
    segmenter: Segmenter = module.load(**chosen.model_dump(exclude={"name"}))
    model = chosen.config if isinstance(chosen, Detectron2Settings) else chosen.model
    parts = [model, chosen.weights or ""]
    told = " ".join(_fingerprint(Path(part)) if Path(part).is_file() else part for part in parts)
    return segmenter, f"{chosen.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
