"""``cluster``: the trees of a campaign's masks, and of each further round; the campaign begins with the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np

from ls_propagate import engines
from ls_propagate.pipeline import (
    Busy,
    Connection,
    KnownMasks,
    Progress,
    artefact_of,
    connection_of,
    labeling_of,
    load_gold,
    load_table,
    load_trees,
    open_campaign,
    predicted,
    show,
    silent,
    writing,
)
from ls_propagate.settings import Settings
from plugin.label_studio.gateway import Gateway
from propagation.artefacts import Artefact, write_artefact
from propagation.errors import SettingsError
from propagation.events import CampaignStarted, RoundStarted
from propagation.features import default_weights
from propagation.masks import MaskTable, read_table, write_table
from propagation.rounds import decided, join
from propagation.strategies import Strategy
from propagation.tree import ClusterTree, write_trees
from sync.source import Source, pool, push_predictions
from sync.store import Store


def cluster(
    gateway: Gateway, store: Store, settings: Settings, progress: Progress = silent
) -> tuple[list[ClusterTree], int]:
    """Cluster the masks of each category, begin the campaign, and push the predictions.

    Once a campaign has begun, its trees stay, but for a round for which masks were found: it begins now,
    or by the daemon as soon as no page is out. The trees, and how many predictions were pushed now.
    """
    if not store.begun():
        connection, table = connection_of(store), load_table(store, settings)
        labeling_of(gateway, connection, settings, table.categories)
        begin_campaign(store, settings, table, progress)
    elif store.fact("found"):
        store.remember(following=True)
        with suppress(Busy), writing(store):
            begin_round(gateway, store, settings, progress)
    return load_trees(store, settings), push(gateway, store, settings, progress)


def begin_campaign(store: Store, settings: Settings, table: MaskTable, progress: Progress = silent) -> None:
    """Build the trees of a table's masks and begin the campaign, under the lock.

    Raises SettingsError where the strategy goes by gold that there is none of.
    """
    strategy, known = settings.strategy, load_gold(store, settings)
    if known is None and getattr(strategy, "rates", "known") == "gold":
        raise SettingsError(
            'strategy.rates is "gold", but there is none: annotate some images in the project, set gold_share '
            "above 0 and detect again, or give the annotators' rates as strategy.miss and strategy.false_alarm"
        )
    parent = artefact_of(store, settings, "table", "masks")
    weights = settings.tree.weights or default_weights(table)
    bar = progress("cluster", len(table.categories))
    trees = engines.build_trees(settings, table, parent.folder, weights, bar)
    made = _write_trees(settings, weights, [parent.fingerprint], trees)
    with writing(store):
        started = started_by(connection_of(store), strategy, made, known)
        store.append([started], trees=made.folder.name)


def _write_trees(
    settings: Settings, weights: Mapping[str, float], parents: Sequence[str], trees: list[ClusterTree]
) -> Artefact:
    told = {**settings.tree.model_dump(), "weights": dict(weights)}
    return write_artefact(settings.artefacts, "trees", told, parents, lambda folder: write_trees(trees, folder))


def begin_round(gateway: Gateway, store: Store, settings: Settings, progress: Progress = silent) -> None:
    """Begin the round for which masks were found, under the lock. Raises Busy where a page is out.

    The masks that are decided by now stay, those found join them, and their images the source's tasks.
    """
    campaign = open_campaign(store, settings)
    if campaign.waiting_pages:
        raise Busy(f"{len(campaign.waiting_pages)} pages wait for their answers; the next round begins after them")
    before, found = (artefact_of(store, settings, fact, "masks") for fact in ("table", "found"))
    table = join(campaign.table, decided(campaign), read_table(found.folder))
    made = write_artefact(
        settings.artefacts,
        "masks",
        {"model": table.model_version, "round": campaign.round + 1},
        [before.fingerprint, found.fingerprint],
        lambda folder: write_table(table, folder),
    )
    weights = settings.tree.weights or default_weights(table)
    earlier = np.pad(campaign.accepted(), (0, len(table) - len(campaign.table)))
    open_ = replace(table, best=table.best & ~earlier)
    bar = progress("cluster", len(table.categories))
    grown = engines.build_trees(settings, open_, made.folder, weights, bar)
    trees = [*campaign.trees, *(replace(tree, round=campaign.round + 1) for tree in grown)]
    parents = [made.fingerprint, artefact_of(store, settings, "trees", "trees").fingerprint]
    written = _write_trees(settings, weights, parents, trees)
    known = connection_of(store)
    field = labeling_of(gateway, known, settings, table.categories).field
    there = set(table.images.tolist())
    tasks = {task.image: task for task in [*pool(gateway, known.project, field), *store.source_tasks()]}
    store.set_source_tasks([task for task in tasks.values() if task.image in there])
    started = RoundStarted(campaign.round + 1, made.fingerprint, written.fingerprint)
    store.append([started], table=made.folder.name, trees=written.folder.name, found=None, following=None)


def push(gateway: Gateway, store: Store, settings: Settings, progress: Progress = silent) -> int:
    """Push the predictions that show all masks with their clusters; how many were new."""
    connection, tasks = connection_of(store), store.source_tasks()
    table, trees = load_table(store, settings), load_trees(store, settings)
    labeling = labeling_of(gateway, connection, settings, table.categories)
    pushed = push_predictions(
        gateway,
        Source(connection.project, labeling, gateway.user().id),
        tasks,
        table,
        trees,
        predicted(store, settings),
        settings.strategy.least_size,
        progress("predictions", len(tasks)),
    )
    show(gateway, store, settings)
    return pushed


def started_by(
    connection: Connection, strategy: Strategy, trees: Artefact, known: KnownMasks | None
) -> CampaignStarted:
    """The first event of a campaign; its name follows from what it is about."""
    chosen = asdict(strategy)  # type: ignore[call-overload]
    identity = json.dumps([connection.server, connection.project, trees.fingerprint, chosen], sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return CampaignStarted(name, chosen, trees.parents[0], trees.fingerprint, known.fingerprint if known else "")
