"""The steps of the main job, each safe to run again: connect, detect, cluster, sync, export."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ls_propagate.settings import PrecomputedSettings, Settings
from ml_backend.detect import detect as detect_masks
from ml_backend.gold import make_gold
from ml_backend.segmenters.base import Image, Segmenter
from ml_backend.segmenters.precomputed import Precomputed
from ml_backend.segmenters.seed_set import Labeled
from plugin.label_studio.gateway import Gateway, LabelStudioGateway, Project
from plugin.label_studio.images import decode, file_name, image_key
from plugin.label_studio.labeling import Labeling, read_labeling
from plugin.label_studio.pages import PROJECT_SETTINGS, SUBMIT_ON_SPACE
from propagation.artefacts import Artefact, read_artefact, write_artefact
from propagation.campaign import Campaign
from propagation.errors import ImageError, InputError, Missing, SettingsError, StoreError
from propagation.events import CampaignStarted
from propagation.features import default_weights
from propagation.gold import Checks, GoldPool, read_gold, write_gold
from propagation.masks import MaskTable, read_table, write_table
from propagation.strategies import Strategy
from propagation.summary import statement
from propagation.tree import ClusterTree, build_tree, read_trees, write_trees
from sync.daemon import Daemon
from sync.pages import VerifyProjects
from sync.source import Source, annotated, pool, push_predictions
from sync.store import SourceTask, Store

log = logging.getLogger(__name__)

GOLD_IMAGES = 60  # annotated images that gold is made of, at most

Progress = Callable[[str, int | None], Callable[[int], None]]
Observe = Callable[[str, float, bool], None]


def silent(what: str, total: int | None) -> Callable[[int], None]:
    """No progress bar."""
    return lambda done: None


@contextmanager
def open_gateway(
    settings: Settings, observe: Observe = lambda name, seconds, ok: None
) -> Iterator[LabelStudioGateway]:
    """The gateway to the server that the settings name, closed in the end. observe: is told of each call."""
    gateway = LabelStudioGateway(settings.label_studio_url, settings.token, settings.image_hosts, observe=observe)
    try:
        yield gateway
    finally:
        gateway.close()


@contextmanager
def open_store(settings: Settings) -> Iterator[Store]:
    """The store that the settings name, closed in the end."""
    store = Store(settings.store_url, settings.mirror_file)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def writing(store: Store) -> Iterator[None]:
    """Hold the store's lock for a while. Raises StoreError where a daemon has it."""
    lock = store.lock()
    if lock.held():
        yield
        return
    if not lock.acquire():
        raise StoreError(f"a daemon runs on the store {store.url}; stop it, then run this again")
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Connection:
    """The projects of a campaign on one server: the source, and the two that were made for it."""

    server: str
    project: int
    title: str
    pages: int
    crops: int


def connect(gateway: Gateway, store: Store, wanted: str) -> Connection:
    """Connect an existing project, by number or title, and make the projects for its pages and crops.

    Run again, it finds what it made. Raises ConfigError where the project's labeling config does not fit,
    Missing where there is no such project, StoreError where another one is connected already.
    """
    gateway.user()
    project = _find_project(gateway, wanted)
    known = store.fact("connection")
    if known and (known["project"] != project.id or _made(gateway, project, "verify_page") != known["pages"]):
        raise StoreError(
            f"this data folder is connected to project {known['project']} ({known['title']}) at "
            f"{known['server']}; set another data_dir for another project"
        )
    read_labeling(project.label_config, (), {}, project.title)
    made = {
        kind: _own_project(gateway, project, kind, title, settings)
        for kind, title, settings in (
            ("verify_page", f"{project.title[:30]} · verify", PROJECT_SETTINGS),
            ("crops", f"{project.title[:30]} · crops", {}),
        )
    }
    gateway.set_hotkeys(SUBMIT_ON_SPACE)
    connection = Connection(gateway.url, project.id, project.title, made["verify_page"], made["crops"])
    store.remember(connection=asdict(connection))
    return connection


def _find_project(gateway: Gateway, wanted: str) -> Project:
    if wanted.isdecimal():
        return gateway.project(int(wanted))
    found = [project for project in gateway.projects() if project.title == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(str(project.id) for project in found)
        raise Missing(f"{len(found)} projects are called {wanted!r}; name one by its number: {numbers}")
    titles = ", ".join(repr(project.title) for project in gateway.projects()) or "none at all"
    raise Missing(f"{gateway.url} has no project {wanted!r}; it has {titles}")


def _mark(source: Project, kind: str) -> str:
    return f"made by label-studio-propagate: {kind} of project {source.id}"


def _made(gateway: Gateway, source: Project, kind: str) -> int | None:
    """The number of the project that was made for a source project, found by its description."""
    return next((p.id for p in gateway.projects() if p.description == _mark(source, kind)), None)


def _own_project(gateway: Gateway, source: Project, kind: str, title: str, settings: Any) -> int:
    made = _made(gateway, source, kind)
    if made is not None:
        return made
    config = files("plugin.label_studio").joinpath(f"configs/{kind}.xml").read_text()
    return gateway.create_project(title, config, _mark(source, kind), settings).id


def connection_of(store: Store) -> Connection:
    """What ``connect`` remembered. Raises StoreError before it was run."""
    known = store.fact("connection")
    if known is None:
        raise StoreError("no project is connected; run: ls-propagate connect PROJECT")
    return Connection(**known)


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


def labeling_of(gateway: Gateway, connection: Connection, settings: Settings, categories: Any) -> Labeling:
    """The source project's labeling. Raises ConfigError where it lacks a category's label."""
    project = gateway.project(connection.project)
    return read_labeling(project.label_config, categories, settings.labels, project.title)


def detect(
    gateway: Gateway,
    store: Store,
    settings: Settings,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> tuple[MaskTable, list[ImageError]]:
    """Find the masks of the pool's images and store them as a mask table.

    Once a campaign has begun, its table stays. Raises what the segmenter, the images and the labeling
    config raise; nothing is stored then.
    """
    connection = connection_of(store)
    if store.begun():
        return load_table(store, settings), []
    segmenter, version = load_segmenter(settings)
    labeling = labeling_of(gateway, connection, settings, segmenter.categories)
    tasks = pool(gateway, connection.project, labeling.field)
    locations = {task.image: task.location for task in tasks}
    if isinstance(segmenter, Precomputed):
        _check_entries(segmenter, list(locations), settings)

    def read(key: str) -> NDArray[np.uint8]:
        return decode(key, gateway.read_file(locations[key]))

    table, unreadable = detect_masks(
        segmenter, list(locations), read, version, skip_unreadable, progress("detect", len(tasks))
    )
    artefact = write_artefact(
        settings.artefacts, "masks", {"model": version}, [], lambda folder: write_table(table, folder)
    )
    gold = _detect_gold(gateway, connection, settings, labeling, segmenter, table, artefact.fingerprint)
    store.set_source_tasks(tasks)
    store.remember(table=artefact.folder.name, gold=gold.folder.name if gold else None)
    return table, unreadable


def _detect_gold(
    gateway: Gateway,
    connection: Connection,
    settings: Settings,
    labeling: Labeling,
    segmenter: Segmenter,
    table: MaskTable,
    parent: str,
) -> Artefact | None:
    """Masks on the images that people have annotated, their truth and where the images are; None without any.

    An image that cannot be read, or whose annotation cannot, is passed over.
    """
    if not settings.gold_share:
        return None
    images: list[Labeled] = []
    locations: dict[str, str] = {}
    for location, objects in annotated(gateway, connection.project, labeling, segmenter.categories):
        key = image_key(location)
        try:
            pixels = decode(key, gateway.read_file(location))
        except ImageError as error:
            log.warning("no gold from this image: %s", error)
            continue
        fitting = [(rle, place) for rle, place in objects if tuple(rle["size"]) == pixels.shape[:2]]
        if fitting and len(fitting) == len(objects):
            places = np.array([place for _, place in fitting], dtype=np.int64)
            images.append(Labeled(Image(key, pixels), [rle for rle, _ in fitting], places))
            locations[key] = location
        if len(images) == GOLD_IMAGES:
            break
    if len(images) < 2:
        return None
    known, right = make_gold(segmenter, images, frozenset(table.ids.tolist()))
    if not len(known) or right.all():
        return None

    def fill(folder: Path) -> None:
        write_gold(known, right, folder)
        (folder / "locations.json").write_text(json.dumps(locations, sort_keys=True))

    return write_artefact(settings.artefacts, "gold", {}, [parent], fill)


@dataclass(frozen=True)
class KnownMasks:
    """The gold that ``detect`` stored: its masks, (g,) whether each is right, and where its images are."""

    fingerprint: str
    folder: Path
    table: MaskTable
    right: NDArray[np.bool_]
    locations: Mapping[str, str]

    @property
    def truth(self) -> dict[str, bool]:
        """Mask id to whether it is right."""
        return dict(zip(self.table.ids.tolist(), self.right.tolist(), strict=True))


def load_gold(store: Store, settings: Settings) -> KnownMasks | None:
    """The gold of a store's project; None where nobody had annotated enough of it."""
    folder = store.fact("gold")
    return None if folder is None else read_known(read_artefact(settings.artefacts / folder, "gold"))


def read_known(artefact: Artefact) -> KnownMasks:
    """The gold of an artefact."""
    table, right = read_gold(artefact.folder)
    locations = json.loads((artefact.folder / "locations.json").read_text())
    return KnownMasks(artefact.fingerprint, artefact.folder, table, right, locations)


def checks_of(settings: Settings, known: KnownMasks | None) -> Checks:
    """How a campaign's answers are checked."""
    return Checks(
        GoldPool.of(known.table, known.right) if known else None,
        settings.gold_share,
        settings.tolerated_miss,
        settings.least_seconds,
        settings.overlap,
    )


def _check_entries(segmenter: Precomputed, keys: Sequence[str], settings: Settings) -> None:
    """Refuse predictions of other images; say how many images they leave out."""
    lacking = [key for key, entry in zip(keys, segmenter.match(keys), strict=True) if entry is None]
    if not lacking:
        return
    assert isinstance(settings.segmenter, PrecomputedSettings)
    named = settings.segmenter.images
    said = f"{len(lacking)} of {len(keys)} images of the project are not in {named}, {lacking[0]} for one"
    if len(lacking) == len(keys):
        raise InputError(f"{said}; name the COCO file whose images these are")
    log.warning("%s; they get no masks", said)


def _artefact(store: Store, settings: Settings, fact: str, kind: str) -> Artefact:
    folder = store.fact(fact)
    if folder is None:
        missing = {"table": "detect", "trees": "cluster"}[fact]
        raise StoreError(f"no {fact} yet; run: ls-propagate {missing}")
    return read_artefact(settings.artefacts / folder, kind)


def load_table(store: Store, settings: Settings) -> MaskTable:
    """The mask table that ``detect`` stored. Raises StoreError before it was run."""
    return read_table(_artefact(store, settings, "table", "masks").folder)


def cluster(
    gateway: Gateway, store: Store, settings: Settings, progress: Progress = silent
) -> tuple[list[ClusterTree], int]:
    """Cluster the masks of each category, begin the campaign, and push the predictions.

    Once a campaign has begun, its trees stay. The trees, and how many predictions were pushed now.
    """
    connection = connection_of(store)
    table = load_table(store, settings)
    labeling = labeling_of(gateway, connection, settings, table.categories)
    strategy = settings.strategy
    if not store.begun():
        known = load_gold(store, settings)
        if known is None and getattr(strategy, "rates", "known") == "gold":
            raise SettingsError(
                'strategy.rates is "gold", but there is none: annotate some images in the project, set gold_share '
                "above 0 and detect again, or give the annotators' rates as strategy.miss and strategy.false_alarm"
            )
        parent = _artefact(store, settings, "table", "masks")
        trees = []
        bar = progress("cluster", len(table.categories))
        weights = settings.tree.weights or default_weights(table)
        for place in range(len(table.categories)):
            tree = build_tree(table, place, weights, settings.tree.linkage, exact_below=settings.tree.exact_below)
            trees.extend([tree] if tree else [])
            bar(1)
        made = write_artefact(
            settings.artefacts,
            "trees",
            {**settings.tree.model_dump(), "weights": weights},
            [parent.fingerprint],
            lambda folder: write_trees(trees, folder),
        )
        with writing(store):
            store.append([started_by(connection, strategy, made, known)], trees=made.folder.name)
    trees = load_trees(store, settings)
    tasks = store.source_tasks()
    source = Source(connection.project, labeling, gateway.user().id)
    version = f"propagate-{_artefact(store, settings, 'trees', 'trees').fingerprint[:12]}"
    pushed = push_predictions(
        gateway, source, tasks, table, trees, version, strategy.least_size, progress("predictions", len(tasks))
    )
    return trees, pushed


def started_by(
    connection: Connection, strategy: Strategy, trees: Artefact, known: KnownMasks | None
) -> CampaignStarted:
    """The first event of a campaign; its name follows from what it is about."""
    chosen = asdict(strategy)  # type: ignore[call-overload]
    identity = json.dumps([connection.server, connection.project, trees.fingerprint, chosen], sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return CampaignStarted(name, chosen, trees.parents[0], trees.fingerprint, known.fingerprint if known else "")


def load_trees(store: Store, settings: Settings) -> list[ClusterTree]:
    """The trees that ``cluster`` stored. Raises StoreError before it was run."""
    return read_trees(_artefact(store, settings, "trees", "trees").folder)


def open_campaign(store: Store, settings: Settings) -> Campaign:
    """The campaign as its event log tells it. Raises StoreError before ``cluster`` was run.

    Raises SettingsError when the strategy's settings are no longer those that it began with.
    """
    table, trees = load_table(store, settings), load_trees(store, settings)
    campaign = Campaign(table, trees, settings.strategy, checks_of(settings, load_gold(store, settings)))
    for event in store.stream():
        if isinstance(event, CampaignStarted) and not _same(event.settings, settings.strategy):
            raise SettingsError(
                f"the campaign began with the strategy {dict(event.settings)}; set it so again, "
                "or begin another campaign in another data_dir"
            )
        campaign.apply(event)
    return campaign


def _same(begun: Mapping[str, Any], strategy: Strategy) -> bool:
    """Whether a campaign began with a strategy; what its log doesn't name, it began with as by default."""
    now = asdict(strategy)  # type: ignore[call-overload]
    before = asdict(type(strategy)()) if begun.get("name") == strategy.name else {}  # type: ignore[call-overload]
    return {**before, **begun} == now


def open_daemon(gateway: Gateway, store: Store, settings: Settings) -> Daemon:
    """The daemon over the campaign, ready to run."""
    connection = connection_of(store)
    campaign = open_campaign(store, settings)
    labeling = labeling_of(gateway, connection, settings, campaign.table.categories)
    known = load_gold(store, settings)
    return Daemon(
        store,
        gateway,
        campaign,
        Source(connection.project, labeling, gateway.user().id),
        VerifyProjects(connection.pages, connection.crops),
        settings.write_every,
        settings.abandoned_minutes * 60,
        settings.poll_seconds,
        (known.table, known.locations) if known else None,
    )


def export_coco(campaign: Campaign, tasks: list[SourceTask]) -> dict[str, Any]:
    """The accepted masks as a COCO dataset, each with the cluster that it was accepted with."""
    table, cluster_of = campaign.table, campaign.deciding_cluster()
    rows = np.flatnonzero(campaign.accepted()).tolist()
    sizes = {int(table.image[row]): table.size[row].tolist() for row in range(len(table))}
    numbers = {task.image: task.task for task in tasks}
    keys = table.images.tolist()
    return {
        "info": {
            "description": f"campaign {campaign.name}. {statement(campaign)}",
            "claim": campaign.claim,
            "bound": campaign.search.bound(),
        },
        "images": [
            {
                "id": numbers[keys[place]],
                "file_name": file_name(keys[place]),
                "height": sizes[place][0],
                "width": sizes[place][1],
            }
            for place in sorted({int(table.image[row]) for row in rows})
        ],
        "categories": [{"id": place, "name": name} for place, name in enumerate(table.categories, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[keys[table.image[row]]],
                "category_id": int(table.category[row]) + 1,
                "segmentation": {"size": table.size[row].tolist(), "counts": table.counts[row].decode()},
                "area": int(table.area[row]),
                "bbox": table.box[row].tolist(),
                "iscrowd": 0,
                "score": float(table.score[row]),
                "mask_id": str(table.ids[row]),
                "cluster": cluster_of[row],
            }
            for number, row in enumerate(rows, 1)
        ],
    }
