"""``train``: what the network learns from, its training, and the model that is kept; as a process of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from ls_propagate.models import check_paths, check_torch, version_of
from ls_propagate.pipeline import Progress, connection_of, labeling_of, load_table, open_campaign, silent
from ls_propagate.settings import Settings, UNetSettings
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled, Partly, SeedSet, read_seed_set
from plugin.label_studio.gateway import Gateway
from plugin.label_studio.images import decode, image_key
from propagation.artefacts import Artefact, read_artefact, write_artefact
from propagation.errors import ArtefactError, ImageError, InputError, SettingsError, StoreError
from propagation.masks import MaskTable
from propagation.rle import Rle
from sync.source import annotated
from sync.store import Store

if TYPE_CHECKING:
    from ml_backend.segmenters.unet import UNet

log = logging.getLogger(__name__)

READERS = 4
MOST_PIXELS = 150_000_000  # of the campaign's images: training looks at no more of them


@dataclass(frozen=True)
class Picture:
    """An image to learn from: its key, where it is, its objects with the rows of their categories.

    doubtful: masks of which it is not known whether they are right. None where people annotated all of the image.
    """

    key: str
    location: str
    objects: Sequence[tuple[Rle, int]]
    doubtful: Sequence[Rle] | None = None


@dataclass(frozen=True)
class Lessons:
    """What there is to learn from, without the images.

    seed: a folder. parents: fingerprints of the artefacts that it comes from.
    """

    categories: tuple[str, ...]
    seed: Path | None
    annotated: Sequence[Picture]
    accepted: Sequence[Picture]
    parents: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change with anything that is learned from."""
        said = hashlib.sha256(json.dumps(self.categories).encode())
        if self.seed:
            said.update((self.seed / "ground_truth.json").read_bytes())
        for picture in (*self.annotated, *self.accepted):
            said.update(json.dumps([picture.key, picture.doubtful is None]).encode())
            for rle, category in (*picture.objects, *((rle, -1) for rle in picture.doubtful or ())):
                said.update(json.dumps([list(rle["size"]), category]).encode() + rle["counts"])
        return said.hexdigest()


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    images, objects: that people annotated. accepted_images, accepted: of the campaign. held_out: the figures of
    images that it had not learned from, as ``Held`` has them. new: False where nothing had changed since.
    """

    version: str
    folder: str
    images: int
    objects: int
    accepted_images: int
    accepted: int
    held_out: dict[str, Any] = field(default_factory=dict)
    new: bool = True


def lessons(gateway: Gateway, store: Store, settings: Settings) -> Lessons:
    """What people annotated, in the seed folder and in the project, and what the campaign accepted elsewhere.

    Raises SettingsError where the segmenter is none that learns so, or its seed folder is missing.
    """
    chosen = settings.segmenter
    if not isinstance(chosen, UNetSettings):
        raise SettingsError('there is nothing to train; set name = "unet" under [segmenter]')
    check_paths(settings)
    connection = connection_of(store)
    labeling = labeling_of(gateway, connection, settings, ())
    if chosen.seed:
        categories = read_seed_set(chosen.seed).categories
    elif store.fact("table"):
        categories = load_table(store, settings).categories
    else:
        category_of = {label: category for category, label in settings.labels.items()}
        categories = tuple(category_of.get(label, label) for label in {**labeling.polygons, **labeling.brushes})
    drawn = [
        Picture(image_key(location), location, objects)
        for location, objects in annotated(gateway, connection.project, labeling, categories)
    ]
    accepted: list[Picture] = []
    parents: list[str] = []
    if store.begun():
        accepted = _accepted(store, settings, categories, {picture.key for picture in drawn})
        parents = [read_artefact(settings.artefacts / store.fact("table"), "masks").fingerprint]
    return Lessons(categories, chosen.seed, drawn, accepted, parents)


def _accepted(
    store: Store, settings: Settings, categories: Sequence[str], annotated_keys: set[str]
) -> list[Picture]:
    """The campaign's images with accepted masks that no person annotated; of too many, some at random."""
    campaign = open_campaign(store, settings)
    locations = {task.image: task.location for task in store.source_tasks() if task.image not in annotated_keys}
    found: list[Picture] = []
    pixels = 0
    pictures = partly_known(campaign.table, campaign.accepted(), categories, locations, campaign.is_taken)
    for picture in sorted(pictures, key=lambda one: hashlib.blake2b(one.key.encode(), digest_size=8).digest()):
        pixels += int(np.prod(picture.objects[0][0]["size"]))
        if found and pixels > MOST_PIXELS:
            break
        found.append(picture)
    return found


def partly_known(
    table: MaskTable,
    accepted: np.ndarray[Any, np.dtype[np.bool_]],
    categories: Sequence[str],
    locations: dict[str, str],
    is_taken: Callable[[str], bool] = lambda key: False,
) -> Iterator[Picture]:
    """The images of a table that have accepted masks; whatever else was found there is doubtful.

    accepted: (n,) of the table's masks. is_taken: whether a person has annotated an image meanwhile.
    """
    place_of = {
        table.categories.index(name): place for place, name in enumerate(categories) if name in table.categories
    }
    usable = accepted & np.isin(table.category, list(place_of))
    for key, rows in zip(table.images.tolist(), table.rows_by_image(), strict=True):
        good = rows[usable[rows]]
        if len(good) and key in locations and not is_taken(key):
            objects = [(table.rle(row), place_of[int(table.category[row])]) for row in good.tolist()]
            yield Picture(key, locations[key], objects, table.rles(rows[~usable[rows]].tolist()))


def train(
    gateway: Gateway, store: Store, settings: Settings, again: bool = False, progress: Progress = silent
) -> Trained:
    """Train the network that the settings name, and remember it; nothing is kept before it is whole.

    It goes on from the network of the last training; where nothing has changed since, that one stands. again:
    begin anew in any case. Raises SettingsError without PyTorch, StoreError while another training runs,
    InputError where there is too little to learn from.
    """
    check_torch()
    from ml_backend.segmenters import unet, unet_training

    with _alone(settings):
        known = lessons(gateway, store, settings)
        fingerprint = known.fingerprint
        last = _last(store, settings)
        if last is not None and last.settings.get("lessons") == fingerprint and not again:
            return _told(last, new=False)
        seed = [*read_seed_set(known.seed).images] if known.seed else []
        bar = progress("read", len(known.annotated) + len(known.accepted))
        drawn = list(_read(gateway, known.annotated, bar))
        partly = list(_read(gateway, known.accepted, bar))
        # an image of the seed folder that is annotated in the project too is learned from once, as it is there
        whole = list({_looks(one): one for one in (*seed, *(labeled for labeled, _ in drawn))}.values())
        if len(whole) < 2:
            raise InputError(
                "two or more images are needed that people annotated whole; annotate some more in the project, or "
                "name a seed folder under [segmenter]"
            )
        assert isinstance(settings.segmenter, UNetSettings)
        start = None if last is None or again else unet.read_unet(last.folder)
        if start is not None and not _goes_on(start, known.categories, whole):
            start = None
        training = unet_training.LATER if start else unet_training.Training()
        training = replace(training, seconds=settings.segmenter.minutes * 60)
        bar = progress("train", training.steps)
        model, held = unet_training.train(
            SeedSet(known.categories, whole),
            training,
            lambda step, loss: bar(1),
            [Partly(labeled, doubtful) for labeled, doubtful in partly],
            start,
        )
        told = {
            "lessons": fingerprint,
            "images": len(whole),
            "objects": sum(len(labeled.rles) for labeled in whole),
            "accepted_images": len(partly),
            "accepted": sum(len(labeled.rles) for labeled, _ in partly),
            "held_out": asdict(held),
        }
        parents = [*known.parents, *([last.fingerprint] if start and last else [])]
        made = write_artefact(
            settings.artefacts, "model", told, parents, lambda folder: unet.write_unet(model, folder)
        )
        store.remember(model=made.folder.name)
        return _told(made)


def _looks(labeled: Labeled) -> tuple[Any, bytes]:
    """What tells whether two images are the same: the size, and a hash of the pixels."""
    pixels = labeled.image.pixels
    return pixels.shape, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _goes_on(model: UNet, categories: Sequence[str], whole: Sequence[Labeled]) -> bool:
    """Whether a network can learn on: of these categories, and with images to judge it by that it has not seen."""
    return model.categories == tuple(categories) and any(one.image.key not in model.learned for one in whole)


def _told(artefact: Artefact, new: bool = True) -> Trained:
    told = {name: value for name, value in artefact.settings.items() if name != "lessons"}
    return Trained(version_of(artefact.fingerprint), artefact.folder.name, **told, new=new)


def _last(store: Store, settings: Settings) -> Artefact | None:
    folder = store.fact("model")
    try:
        return read_artefact(settings.artefacts / folder, "model") if folder else None
    except ArtefactError:  # lost, so it is made again
        return None


def _read(
    gateway: Gateway, pictures: Sequence[Picture], bar: Callable[[int], None]
) -> Iterator[tuple[Labeled, Sequence[Rle]]]:
    """Images with their objects and what is doubtful there; one that cannot be read or used is left out."""

    def one(picture: Picture) -> tuple[Labeled, Sequence[Rle]] | None:
        rles = [rle for rle, _ in picture.objects]
        try:
            pixels = decode(picture.key, gateway.read_file(picture.location))
        except ImageError as error:
            log.warning("nothing is learned from this image: %s", error)
            return None
        if any(tuple(rle["size"]) != pixels.shape[:2] for rle in (*rles, *(picture.doubtful or ()))):
            log.warning("nothing is learned from image %s: its masks are of another size", picture.key)
            return None
        places = np.array([place for _, place in picture.objects], np.int64)
        return Labeled(Image(picture.key, pixels), rles, places), picture.doubtful or ()

    with ThreadPoolExecutor(READERS) as readers:
        for read in readers.map(one, pictures):
            bar(1)
            if read is not None:
                yield read


def _lock(settings: Settings) -> filelock.FileLock:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(settings.data_dir / "training.lock", thread_local=False)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One training a data folder at a time; the kernel frees the lock of one that was killed."""
    lock = _lock(settings)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError("another training runs in this data folder; wait for its end") from None
    try:
        yield
    finally:
        lock.release()


class Trainer:
    """Starts ``ls-propagate train`` as a process of its own, one at a time.

    config: the settings file that it is to read.
    """

    def __init__(self, settings: Settings, store: Store, config: Path | None) -> None:
        self._settings, self._store, self._config = settings, store, config
        self._guard = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, project: int | None) -> str:
        """Begin a training unless one runs; what is to be said of it.

        project: whose people asked. Raises SettingsError for another one than that of the campaign.
        """
        connected = connection_of(self._store).project
        if project not in (None, connected):
            raise SettingsError(f"this backend trains for project {connected}, not for {project}; start it there")
        with self._guard:
            if self.running():
                return "already training"
            program = "from ls_propagate.cli import main; main()"
            chosen = ["--config", str(self._config)] if self._config else []
            self._child = subprocess.Popen(  # noqa: S603  this program again
                [sys.executable, "-c", program, "train", *chosen], stdin=subprocess.DEVNULL
            )
        log.warning("training started in process %d", self._child.pid)
        return "training started"

    def running(self) -> bool:
        """Whether a training runs, whoever started it."""
        if self._child is not None and self._child.poll() is None:
            return True
        try:
            with _lock(self._settings).acquire(timeout=0):
                return False
        except filelock.Timeout:
            return True

    def close(self) -> None:
        """End a training that was started here; what it had learned is lost."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.wait()
