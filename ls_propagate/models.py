"""The segmenter that the settings name; what a model needs is imported when it is named."""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
from importlib.util import find_spec
from pathlib import Path

from ls_propagate.settings import (
    Detectron2Settings,
    PrecomputedSettings,
    Settings,
    TorchvisionSettings,
    UNetSettings,
    WatershedSettings,
)
from ml_backend.segmenters.base import Segmenter
from ml_backend.segmenters.precomputed import Precomputed
from propagation.artefacts import read_artefact
from propagation.errors import PropagateError, SettingsError, StoreError
from sync.store import Store

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two looks for a newer model

INSTALL = {
    "torchvision": "in a checkout, run: pip install '.[torchvision]'",
    "detectron2": "in a checkout, run: pip install '.[detectron2]', then install detectron2 as its own page says: "
    "https://detectron2.readthedocs.io/en/latest/tutorials/install.html",
}


def load_segmenter(settings: Settings, trained: str | None = None) -> tuple[Segmenter, str]:
    """The segmenter that the settings name, and its version.

    trained: the artefact of the network that was trained last, None without one. Raises SettingsError when the
    settings name none, one that is not installed, or files that are not there; StoreError when none was trained.
    """
    chosen = settings.segmenter
    if chosen is None:
        raise SettingsError(
            'no segmenter is set; add [segmenter] with name = "precomputed", "watershed", "unet", "detectron2" or '
            '"torchvision" to the settings'
        )
    if isinstance(chosen, UNetSettings):
        return _load_unet(settings, trained)
    check_paths(settings)
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


def check_paths(settings: Settings) -> None:
    """Refuse a segmenter whose files are not there."""
    for name, path in settings.segmenter or ():
        if isinstance(path, Path) and not path.exists():
            raise SettingsError(f"setting segmenter.{name}: there is no {path}; correct it")


def check_torch() -> None:
    """Refuse to go on where PyTorch is not installed."""
    if find_spec("torch") is None:
        raise SettingsError("the segmenter unet needs PyTorch; run: pip install 'label-studio-propagate[unet]'")


def version_of(fingerprint: str) -> str:
    """The version of a network, by its artefact's fingerprint."""
    return f"unet-{fingerprint[:8]}"


def _load_unet(settings: Settings, folder: str | None) -> tuple[Segmenter, str]:
    check_torch()
    if folder is None:
        raise StoreError("no network was trained yet; run: ls-propagate train")
    from ml_backend.segmenters.unet import read_unet

    artefact = read_artefact(settings.artefacts / folder, "model")
    return read_unet(artefact.folder), version_of(artefact.fingerprint)


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


class Newest:
    """The segmenter of a store that is served: a newer one takes its place as soon as it is trained.

    To be called for the segmenter of now and its version. Until ``close``, a thread looks for a newer one.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._folder = store.fact("model")
        self._now = load_segmenter(settings, self._folder)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if isinstance(settings.segmenter, UNetSettings):
            self._thread = threading.Thread(target=self._watch, name="model", daemon=True)
            self._thread.start()

    def __call__(self) -> tuple[Segmenter, str]:
        return self._now

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                folder = self._store.fact("model")
                if folder == self._folder:
                    continue
                self._folder = folder  # one that cannot be read is told once
                self._now = _load_unet(self._settings, folder)
                log.warning("now serving %s", self._now[1])
            except PropagateError as error:
                log.warning("still serving %s: %s", self._now[1], error)
