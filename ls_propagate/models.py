"""The segmenter that the settings name; what a model needs is imported when it is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ls_propagate.settings import PrecomputedSettings, Settings
from ml_backend.segmenters.base import Segmenter
from ml_backend.segmenters.precomputed import Precomputed
from propagation.errors import SettingsError


def load_segmenter(settings: Settings) -> tuple[Segmenter, str]:
    """The segmenter that the settings name, and its version. Raises SettingsError when they name none."""
    chosen = settings.segmenter
    if chosen is None:
        raise SettingsError(
            'no segmenter is set; add [segmenter] with name = "precomputed" or "watershed" to the settings'
        )
    for name, path in chosen:
        if isinstance(path, Path) and not path.exists():
            raise SettingsError(f"setting segmenter.{name}: there is no {path}; correct it")
    if isinstance(chosen, PrecomputedSettings):
        precomputed = Precomputed(chosen.predictions, chosen.images, chosen.features)
        return precomputed, f"precomputed-{_fingerprint(chosen.predictions)}"
    from ml_backend.segmenters.seed_set import read_seed_set
    from ml_backend.segmenters.watershed import train

    return train(read_seed_set(chosen.seed)), f"watershed-{_fingerprint(chosen.seed / 'ground_truth.json')}"


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
