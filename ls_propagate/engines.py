"""Where detection and clustering are done: in this process, or by the workers of Ray, on one machine or many.

Either way the result is the same, bit for bit, on machines of one kind.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ls_propagate import logs
from ls_propagate.models import load_segmenter
from ls_propagate.settings import SECRETS, Settings
from ml_backend import detect
from ml_backend.detect import Found
from ml_backend.reading import BLOCK
from ml_backend.segmenters.base import Segmenter
from ml_backend.segmenters.precomputed import Precomputed
from plugin.label_studio.gateway import LabelStudioGateway, chunks
from propagation.errors import EngineError, PropagateError, SettingsError
from propagation.masks import MaskTable, read_table
from propagation.tree import ClusterTree, build_tree

TRIES = 4  # of a block of images, or a tree, whose worker died

Read = Callable[[str], bytes]
Open = Callable[[], tuple[Segmenter, Read]]


def segment(
    settings: Settings,
    segmenter: Segmenter,
    locations: Mapping[str, str],
    read: Read,
    skip_unreadable: bool,
    trained: str | None = None,
) -> Iterator[Sequence[Found]]:
    """What is found in each image, in order, some images at a time; what was found earlier is looked up.

    trained: as ``load_segmenter`` takes it. locations: image key to the task's image value; read: the file of such
    a value. Ray's workers load the segmenter and read the files by themselves. Raises EngineError where a worker
    died again and again on the same images, SettingsError where Ray is missing or too small, and what segmenter
    and reader raise.
    """
    if isinstance(segmenter, Precomputed) and not getattr(settings.segmenter, "read_images", True):
        yield from chunks(segmenter.look_up(list(locations)), BLOCK)
    elif settings.engine == "local":
        yield from detect.segment(segmenter, list(locations), lambda key: read(locations[key]), skip_unreadable)
    else:
        with running(settings.workers) as workers:
            yield from segment_on_ray(
                partial(_open, portable(settings), trained), locations, skip_unreadable, workers
            )


def build_trees(
    settings: Settings,
    table: MaskTable,
    folder: Path,
    weights: Mapping[str, float],
    progress: Callable[[int], None],
) -> list[ClusterTree]:
    """The tree of each category that has masks, in the order of the categories; on Ray, a task a category.

    folder: where the table lies, for Ray's workers; the rest as ``segment``, and ``build_tree``.
    """
    chosen = settings.tree
    arguments = (dict(weights), chosen.linkage, 0, chosen.exact_below)
    places = range(len(table.categories))
    if settings.engine == "local":
        return _counted((build_tree(table, place, *arguments) for place in places), progress)
    with running(settings.workers):
        return _counted(trees_on_ray(folder, table.best, places, arguments), progress)


def _counted(trees: Iterator[ClusterTree | None], progress: Callable[[int], None]) -> list[ClusterTree]:
    found = []
    for tree in trees:
        found.extend([tree] if tree else [])
        progress(1)
    return found


# Ray


def segment_on_ray(
    make: Open, locations: Mapping[str, str], skip_unreadable: bool, workers: int
) -> Iterator[Sequence[Found]]:
    """``segment`` by workers of Ray, which has been started. make: opens segmenter and reader in a worker."""
    import ray

    blocks = [
        {"keys": [key for key, _ in block], "locations": [location for _, location in block]}
        for block in chunks(locations.items(), BLOCK)
    ]
    if not blocks:
        return
    gpus = ray.cluster_resources().get("GPU", 0)
    dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
        _Worker,
        fn_constructor_args=(make, skip_unreadable, ray.remote(num_cpus=0)(_Tries).remote(TRIES)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=min(1, gpus / workers) or None,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    try:
        for row in dataset.iter_rows():
            found = row["answer"].found
            if isinstance(found, PropagateError):
                raise found
            yield found
    except ray.exceptions.RayActorError as error:
        raise EngineError(
            "a worker died before it had its model; look for the reason, such as too little memory, in Ray's logs "
            "under /tmp/ray, then detect again"
        ) from error


class _Tries:
    """How often each block of images was begun, in a process that outlives the workers."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: Counter[str] = Counter()

    def begin(self, key: str) -> bool:
        """Whether the block of an image may be tried (again). Ray itself would try without end."""
        self._begun[key] += 1
        return self._begun[key] <= self._most


@dataclass(frozen=True)
class _Answer:
    """What is found in a block of images; or the error to raise, which Ray would wrap in its own."""

    found: list[Found] | PropagateError


class _Worker:
    """A process of Ray's that holds the model, reads images and segments them."""

    def __init__(self, make: Open, skip_unreadable: bool, tries: Any) -> None:
        self._make = make
        self._skip = skip_unreadable
        self._tries = tries
        self._opened: tuple[Segmenter, Read] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The answer to a block of images."""
        import ray

        keys, places = (map(str, batch[name][0]) for name in ("keys", "locations"))
        locations = dict(zip(keys, places, strict=True))
        answer = np.empty(1, dtype=object)
        try:
            first = next(iter(locations))
            if not ray.get(self._tries.begin.remote(first)):
                raise EngineError(
                    f"worker after worker died on the images from {first} on; look for the reason, such as too "
                    "little memory, in Ray's logs under /tmp/ray, then detect again"
                )
            segmenter, read = self._opened = self._opened or self._make()
            batches = detect.segment(segmenter, list(locations), lambda key: read(locations[key]), self._skip)
            answer[0] = _Answer(list(chain.from_iterable(batches)))
        except PropagateError as error:
            answer[0] = _Answer(error)
        return {"answer": answer}


def trees_on_ray(
    folder: Path, best: NDArray[np.bool_], places: range, arguments: tuple[Any, ...]
) -> Iterator[ClusterTree | None]:
    """The trees of the categories of a table that lies in a folder, by tasks of Ray, which has been started.

    best: (n,) the masks to be clustered.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_tree)
    chosen = ray.put(best)
    waiting = [task.remote(str(folder.resolve()), chosen, place, arguments) for place in places]
    for tree in waiting:
        try:
            found = ray.get(tree)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise EngineError(
                f"{TRIES} workers died on the same tree; look for the reason, such as too little "
                "memory, in Ray's logs under /tmp/ray, then cluster again"
            ) from error
        if isinstance(found, PropagateError):
            raise found
        yield found and _copied(found)


def _copied(tree: ClusterTree) -> ClusterTree:
    """A tree whose arrays do not lie in memory that Ray gives back."""
    arrays: dict[str, Any] = {n: value.copy() for n, value in vars(tree).items() if isinstance(value, np.ndarray)}
    return replace(tree, **arrays)


def _tree(
    folder: str, best: NDArray[np.bool_], place: int, arguments: tuple[Any, ...]
) -> ClusterTree | PropagateError | None:
    try:
        return build_tree(replace(read_table(Path(folder)), best=best), place, *arguments)
    except PropagateError as error:
        return error


@contextmanager
def running(wanted: int | None) -> Iterator[int]:
    """Ray, and how many workers it is to have; stopped in the end where it was started here.

    The cluster that RAY_ADDRESS names; else on this machine, where it listens on loopback alone.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1" if address else "0")  # 0: no other machines
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(
            "the engine ray needs Ray, which is not installed; install label-studio-propagate[ray], "
            "or leave out --engine"
        ) from error
    begun = not ray.is_initialized()
    if begun:
        options: dict[str, Any] = {"address": address}
        if not address:
            options = {"address": "local", "num_cpus": wanted or os.cpu_count(), "include_dashboard": False}
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises of many kinds, plain Exception among them
            where = f"at RAY_ADDRESS {address} " if address else ""
            raise EngineError(f"Ray {where}cannot be begun ({error}); see to it, or leave out --engine") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        there = ray.cluster_resources()
        cores = int(there.get("CPU", 0))
        if wanted and wanted > cores:
            raise SettingsError(f"setting workers: {wanted} are more than Ray's {cores} cores; set fewer")
        yield wanted or int(there.get("GPU", 0)) or cores
    finally:
        if begun:
            ray.shutdown()


def portable(settings: Settings) -> dict[str, Any]:
    """The settings as another machine takes them: with whole paths, and without any secret."""
    return _whole(settings.model_dump(exclude={*SECRETS, "store"}))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    return str(value.resolve()) if isinstance(value, Path) else value


def _open(given: dict[str, Any], trained: str | None = None) -> tuple[Segmenter, Read]:
    """The segmenter and the reader of images in a worker, whose machine's environment has the token."""
    settings = Settings(**given)
    logs.configure(settings.log_format, settings.log_level, settings.secrets)
    gateway = LabelStudioGateway(settings.label_studio_url, settings.token, settings.image_hosts)
    return load_segmenter(settings, trained)[0], gateway.read_file
