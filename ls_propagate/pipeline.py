"""The steps of the main job, each safe to run again: connect, detect, cluster, sync, export."""

from __future__ import annotations

import getpass
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ls_propagate import engines
from ls_propagate.models import load_segmenter
from ls_propagate.settings import PrecomputedSettings, Settings
from ml_backend.detect import gather
from ml_backend.gold import make_gold
from ml_backend.segmenters.base import Image, Segmenter
from ml_backend.segmenters.precomputed import Precomputed
from ml_backend.segmenters.seed_set import Labeled
from plugin.label_studio.clusters import BOARD_SETTINGS, tabs
from plugin.label_studio.drawing import DRAWING_SETTINGS
from plugin.label_studio.gateway import Gateway, LabelStudioGateway, Project
from plugin.label_studio.images import decode, file_names, image_key
from plugin.label_studio.labeling import Labeling, read_labeling
from plugin.label_studio.pages import HOTKEYS, Ask, Examples, config_of, instructions, settings_of, takes
from plugin.label_studio.tabs import add_tabs
from propagation.artefacts import Artefact, read_artefact, write_artefact
from propagation.campaign import Campaign
from propagation.errors import ImageError, InputError, Missing, SettingsError, StoreError
from propagation.events import CampaignStarted, Certified, Commanded, Decided, Event
from propagation.gold import Checks, GoldPool, read_gold, write_gold
from propagation.masks import MaskTable, read_table, write_table
from propagation.progress import History
from propagation.rounds import closed_images
from propagation.strategies import Strategy
from propagation.summary import provenance, statement
from propagation.tree import ClusterTree, read_trees
from sync.board import Place
from sync.daemon import Daemon
from sync.examples import make_examples
from sync.overview import Overview
from sync.pages import VerifyProjects
from sync.sample import Sample, draw_sample, post_sample, report
from sync.source import Source, annotated, pool
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


class Busy(StoreError):
    """What is wanted has to wait: a daemon runs, or a page is out."""


@contextmanager
def writing(store: Store) -> Iterator[None]:
    """Hold the store's lock for a while. Raises Busy where a daemon has it."""
    lock = store.lock()
    if lock.held():
        yield
        return
    if not lock.acquire():
        raise Busy(f"a daemon runs on the store {store.url}; stop it, then run this again")
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Connection:
    """The projects of a campaign on one server: the source, and those that were made for it.

    board: that of the clusters; None where the campaign was connected before there was one. ask: the way in which
    pages are asked.
    """

    server: str
    project: int
    title: str
    pages: int
    crops: int
    board: int | None = None
    ask: Ask = "page"


def connect(gateway: Gateway, store: Store, wanted: str, ask: Ask = "page") -> Connection:
    """Connect an existing project, by number or title, and make the projects for its pages, crops and clusters.

    What people have annotated so far gives the examples that pages show. Run again, it finds what it made, brings
    the labeling config of the pages up to date, and makes examples where there were none. Raises ConfigError where
    the project's labeling config does not fit, Missing where there is no such project, StoreError where another
    one is connected already, or with pages of another kind.
    """
    gateway.user()
    project = _find_project(gateway, wanted)
    known = store.fact("connection")
    if known and known.get("ask", "page") != ask:
        raise StoreError(
            f"this data folder asks by ask = {known.get('ask', 'page')!r}; set it so again, or another data_dir"
        )
    if known and (known["project"] != project.id or _made(gateway, project, f"verify_{ask}") != known["pages"]):
        raise StoreError(
            f"this data folder is connected to project {known['project']} ({known['title']}) at "
            f"{known['server']}; set another data_dir for another project"
        )
    labeling = read_labeling(project.label_config, (), {}, project.title)
    crops = _own_project(gateway, project, "crops", _config("crops"), {})
    examples = _examples_of(store) or make_examples(gateway, project.id, labeling, crops)
    settings = {**settings_of(ask), "expert_instruction": instructions(ask, examples)}
    pages = _own_project(gateway, project, f"verify_{ask}", config_of(ask), settings)
    board = _own_project(gateway, project, "clusters", _config("cluster_board"), BOARD_SETTINGS)
    add_tabs(gateway, board, tabs())
    gateway.set_hotkeys(HOTKEYS)
    connection = Connection(gateway.url, project.id, project.title, pages, crops, board, ask)
    store.remember(connection=asdict(connection), examples={name: asdict(each) for name, each in examples.items()})
    return connection


def _examples_of(store: Store) -> dict[str, Examples]:
    """The examples that ``connect`` made, by label."""
    return {name: Examples(**each) for name, each in (store.fact("examples") or {}).items()}


def _config(name: str) -> str:
    return files("plugin.label_studio").joinpath(f"configs/{name}.xml").read_text(encoding="utf-8")


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


def _own_project(gateway: Gateway, source: Project, kind: str, config: str, settings: Mapping[str, Any]) -> int:
    """The project that was made for a source project, its labeling config brought up to date; or a new one."""
    made = _made(gateway, source, kind)
    if made is None:
        title = f"{source.title[:30]} · {kind.partition('_')[0]}"
        return gateway.create_project(title, config, _mark(source, kind), settings).id
    if "".join(gateway.project(made).label_config.split()) != "".join(config.split()):
        gateway.set_label_config(made, config)
    return made


def connection_of(store: Store) -> Connection:
    """What ``connect`` remembered. Raises StoreError before it was run."""
    known = store.fact("connection")
    if known is None:
        raise StoreError("no project is connected; run: ls-propagate connect PROJECT")
    return Connection(**known)


def place_of(store: Store, settings: Settings) -> Place:
    """Where the campaign is, for the progress board."""
    known = connection_of(store)
    people = {int(number): name for number, name in (store.fact("people") or {}).items()}
    return Place(known.server, known.project, known.title, known.pages, settings.labels, people, known.board)


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
    further: bool = False,
) -> tuple[MaskTable, list[ImageError]]:
    """Find the masks of the pool's images and store them as a mask table.

    Once a campaign has begun, its table stays. further: for its next round, then, look with the model as it is now
    at the images in which something is open; ``cluster`` makes the round of it. Raises what the segmenter, the
    images and the labeling config raise, and StoreError for a further round of nothing; nothing is stored then.
    """
    connection = connection_of(store)
    if further != store.begun():
        if not further:
            return load_table(store, settings), []
        raise StoreError("no campaign has begun, so there is no further round; run: ls-propagate detect")
    closed = closed_images(open_campaign(store, settings)) if further else set()
    segmenter, version = load_segmenter(settings, store.fact("model"))
    labeling = labeling_of(gateway, connection, settings, segmenter.categories)
    tasks = [task for task in pool(gateway, connection.project, labeling.field) if task.image not in closed]
    if not tasks and further:
        raise StoreError("in no image of the pool is anything open: there is nothing to begin a further round for")
    locations = {task.image: task.location for task in tasks}
    if isinstance(segmenter, Precomputed):
        _check_entries(segmenter, list(locations), settings)

    batches = engines.segment(
        settings, segmenter, locations, gateway.read_file, skip_unreadable, store.fact("model")
    )
    advance = progress("detect", len(tasks))
    table, unreadable = gather(list(locations), batches, segmenter.categories, version, skip_unreadable, advance)
    artefact = write_artefact(
        settings.artefacts, "masks", {"model": version}, [], lambda folder: write_table(table, folder)
    )
    if further:
        store.remember(found=artefact.folder.name)
        return table, unreadable
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


def artefact_of(store: Store, settings: Settings, fact: str, kind: str) -> Artefact:
    folder = store.fact(fact)
    if folder is None:
        missing = {"table": "detect", "trees": "cluster", "found": "detect --further"}[fact]
        raise StoreError(f"no {fact} yet; run: ls-propagate {missing}")
    return read_artefact(settings.artefacts / folder, kind)


def load_table(store: Store, settings: Settings) -> MaskTable:
    """The mask table that ``detect`` stored. Raises StoreError before it was run."""
    return read_table(artefact_of(store, settings, "table", "masks").folder)


def predicted(store: Store, settings: Settings) -> str:
    """The version of the predictions that show all masks with their clusters."""
    return f"propagate-{artefact_of(store, settings, 'trees', 'trees').fingerprint[:12]}"


def open_overview(gateway: Gateway, store: Store, settings: Settings) -> Overview:
    """What people see of the campaign in its source project. Raises StoreError before ``cluster`` was run."""
    known, version = connection_of(store), predicted(store, settings)
    field = labeling_of(gateway, known, settings, ()).field
    return Overview(gateway, store, known.project, known.crops, field, version, settings.terms)


def show(gateway: Gateway, store: Store, settings: Settings) -> None:
    """Show a campaign that has begun in its source project, also where people had taken that away."""
    if store.begun():
        open_overview(gateway, store, settings).make(open_history(store, settings))


def load_trees(store: Store, settings: Settings) -> list[ClusterTree]:
    """The trees that ``cluster`` stored. Raises StoreError before it was run."""
    return read_trees(artefact_of(store, settings, "trees", "trees").folder)


def open_campaign(store: Store, settings: Settings) -> Campaign:
    """The campaign as its event log tells it. Raises StoreError before ``cluster`` was run.

    Raises SettingsError when the strategy's settings are no longer those that it began with.
    """
    campaign = _begin(store, settings)
    for event, _ in _log(store, settings):
        campaign.apply(event)
    return campaign


def open_history(store: Store, settings: Settings) -> History:
    """The same campaign with its history."""
    history = History(_begin(store, settings))
    for event, at in _log(store, settings):
        history.take(event, at)
        history.campaign.apply(event)
    return history


def _begin(store: Store, settings: Settings) -> Campaign:
    table, trees = load_table(store, settings), load_trees(store, settings)
    return Campaign(table, trees, settings.strategy, checks_of(settings, load_gold(store, settings)))


def _log(store: Store, settings: Settings) -> Iterator[tuple[Event, datetime]]:
    for event, at in store.timed():
        if isinstance(event, CampaignStarted) and not _same(event.settings, settings.strategy):
            raise SettingsError(
                f"the campaign began with the strategy {dict(event.settings)}; set it so again, "
                "or begin another campaign in another data_dir"
            )
        yield event, at


def _same(begun: Mapping[str, Any], strategy: Strategy) -> bool:
    """Whether a campaign began with a strategy; what its log doesn't name, it began with as by default."""
    now = asdict(strategy)  # type: ignore[call-overload]
    before = asdict(type(strategy)()) if begun.get("name") == strategy.name else {}  # type: ignore[call-overload]
    return {**before, **begun} == now


def open_daemon(gateway: Gateway, store: Store, settings: Settings) -> Daemon:
    """The daemon over the campaign, ready to run.

    Raises SettingsError where pages are to be asked in another way than they were, or their project cannot show
    them, as one that an earlier version made.
    """
    connection = connection_of(store)
    if connection.ask != settings.ask:
        raise SettingsError(
            f"this data folder asks by ask = {connection.ask!r}; set it so again, or another data_dir"
        )
    if not takes(connection.ask, gateway.project(connection.pages).label_config):
        raise SettingsError(
            f"the labeling config of project {connection.pages} cannot show the pages of this version; "
            f"run: ls-propagate connect {connection.project}"
        )
    history = open_history(store, settings)
    campaign = history.campaign
    labeling = labeling_of(gateway, connection, settings, campaign.table.categories)
    examples = _examples_of(store)
    labels = {category: labeling.label(category) for category in campaign.table.categories}
    shown = {category: examples[label] for category, label in labels.items() if label in examples}
    known = load_gold(store, settings)
    return Daemon(
        store,
        gateway,
        campaign,
        Source(connection.project, labeling, gateway.user().id),
        VerifyProjects(connection.pages, connection.crops, connection.ask, shown),
        settings.write_every,
        settings.abandoned_minutes * 60,
        settings.poll_seconds,
        connection.board,
        history,
        (known.table, known.locations) if known else None,
    )


def to_undo(store: Store, settings: Settings, targets: Sequence[str], since: str | None) -> list[Commanded]:
    """The commands that take back clusters and decisions by name, or all that came since a time.

    Raises CommandError where one of those named can't be undone, SettingsError for a time that is none or to come.
    """
    if bool(targets) == bool(since):
        raise SettingsError("name clusters or decisions to undo, or a time with --since")
    campaign = open_campaign(store, settings)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    wanted = []
    for target in dict.fromkeys(targets) if since is None else _latest(campaign, store.since(_moment(since))):
        said = Commanded(target, "undo", getpass.getuser(), now, f"terminal/{uuid.uuid4()}")
        judged = campaign.commands.judged(said) if since else campaign.commands.checked(said)
        campaign.apply(judged)  # the next one is judged by what this one leaves
        wanted.append(said)
    return wanted


def _moment(since: str) -> datetime:
    now = datetime.now().astimezone()
    try:
        moment = datetime.fromisoformat(since).astimezone()
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"--since {since} is no time; write one like 2026-11-22T10:00") from error
    if moment > now:
        raise SettingsError(
            f"--since {since} is to come; here it is {now.isoformat(timespec='minutes')}, write an earlier one"
        )
    return moment


def _latest(campaign: Campaign, events: Sequence[Event]) -> Iterator[str]:
    """What events commanded and decided that still stands: a cluster once for each, parts before wholes.

    Each is undone in the campaign before the next is taken.
    """
    commands = campaign.commands
    sources = {event.source for event in events if isinstance(event, Commanded)}
    kept = {key for key, said in commands.standing.items() if any(one.source not in sources for _, one in said)}
    kept |= {hold.key for hold in commands.holds if hold.key is not None}
    said = [(number, key) for key, all_ in commands.standing.items() for number, e in all_ if e.source in sources]
    yield from (campaign.cluster(*key) for _, key in sorted(said, reverse=True))
    reasons = campaign.reasons()
    steps = {f"certificate/{e.certificate}/{e.level}" for e in events if isinstance(e, Certified)}
    yield from sorted(steps & set(reasons[reasons != None].tolist()))  # noqa: E711  of each
    decided = [event.cluster for event in events if isinstance(event, Decided) and event.asked]
    for cluster in dict.fromkeys(reversed(decided)):
        key = campaign.find(cluster)
        if key not in kept and campaign.state.get(key) in ("accepted", "rejected", "split"):
            yield cluster


def quality(
    gateway: Gateway, store: Store, settings: Settings, size: int | None = None, new: bool = False
) -> dict[str, Any]:
    """What an expert's outlines say of a random sample of the accepted masks, made where there is none yet.

    size: masks of a sample that is to be made. Raises InputError where there is nothing to make one of.
    """
    connection, campaign = connection_of(store), open_campaign(store, settings)
    samples: list[dict[str, Any]] = store.fact("quality") or []
    if new or not samples:
        samples.append(asdict(draw_sample(campaign, size, len(samples))))
        store.remember(quality=samples)  # before anything depends on it
    elif size is not None and size != samples[-1]["size"]:
        raise InputError(f"a sample of {samples[-1]['size']} masks is out; add --new for one of {size}")
    sample = Sample(**samples[-1])
    source = gateway.project(connection.project)
    kind = "drawing" if sample.number == 0 else f"drawing {sample.number + 1}"
    project = _own_project(gateway, source, kind, _config("drawing"), DRAWING_SETTINGS)
    locations = {task.image: task.location for task in store.source_tasks()}
    post_sample(gateway, project, connection.crops, campaign, sample, locations)
    told = report(gateway, project, campaign, sample)
    return {**told, "address": f"{connection.server}/projects/{project}/data?labeling=1"}


def export_coco(campaign: Campaign, tasks: list[SourceTask], file: TextIO) -> tuple[int, int]:
    """Write the accepted masks as a COCO dataset, each with what stands behind it, and all categories.

    An image's name is its path below the folder that all images of the campaign share, its key the whole address.
    One mask after the other, since all of them as objects are larger than the campaign. How many masks and images
    were written.
    """
    table, behind = campaign.table, provenance(campaign)
    rows = np.flatnonzero(campaign.accepted())
    numbers = {task.image: task.task for task in tasks}
    names = file_names(table.images.tolist())
    places, first = np.unique(table.image[rows], return_index=True)
    number_of = {place: numbers[table.images[place].item()] for place in places.tolist()}
    sizes = table.size[rows[first]].tolist()
    images = (
        {
            "id": number,
            "file_name": names[place],
            "height": height,
            "width": width,
            "key": table.images[place].item(),
        }
        for (place, number), (height, width) in zip(number_of.items(), sizes, strict=True)
    )
    annotations = (
        {
            "id": number,
            "image_id": number_of[int(table.image[row])],
            "category_id": int(table.category[row]) + 1,
            "segmentation": {"size": table.size[row].tolist(), "counts": table.counts[row].decode()},
            "area": int(table.area[row]),
            "bbox": table.box[row].tolist(),
            "iscrowd": 0,
            "score": float(table.score[row]),
            # the one place for them that datumaro, CVAT and FiftyOne read
            "attributes": {"mask_id": str(table.ids[row]), **behind(row)},
        }
        for number, row in enumerate(rows.tolist(), 1)
    )
    parts: dict[str, Any] = {
        "info": {
            "description": f"campaign {campaign.name}. {statement(campaign)}",
            "claim": campaign.claim,
            "bound": campaign.search.bound(),
        },
        "licenses": [],
        "images": images,
        "categories": [{"id": place, "name": name} for place, name in enumerate(table.categories, 1)],
        "annotations": annotations,
    }
    for count, (name, part) in enumerate(parts.items()):
        file.write(f'{", " if count else "{"}"{name}": ')
        if isinstance(part, dict):
            file.write(json.dumps(part))
            continue
        file.write("[")
        for place, entry in enumerate(part):
            file.write((", " if place else "") + json.dumps(entry))
        file.write("]")
    file.write("}")
    return len(rows), len(places)
