"""A lost store made again, from its mirror or from Label Studio, and the artefact folders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing

from ls_propagate.clustering import started_by
from ls_propagate.pipeline import KnownMasks, connect, labeling_of, read_known, writing
from ls_propagate.settings import Settings
from plugin.label_studio.gateway import Gateway
from propagation.artefacts import Artefact, read_artefact
from propagation.campaign import Campaign
from propagation.errors import StoreError
from propagation.events import CampaignStarted, RoundStarted, from_record
from propagation.masks import read_table
from propagation.tree import read_trees
from sync.rebuild import names_pages, read_back, read_mirror, read_pool, restore_log
from sync.source import Source
from sync.store import Store


def rebuild(gateway: Gateway, settings: Settings, wanted: str) -> list[str]:
    """Make a lost store again, for the project that the campaign was about; what it comes to, in lines.

    From the mirror of the event log it is the same as before; without one, verdicts and what was written are read
    back from Label Studio. Tables and trees are taken from the artefact folders. Raises StoreError where the store
    is not empty, or nothing of a campaign is found.
    """
    # without a mirror, which is not to be written while it is read
    with closing(Store(settings.store_url)) as store, writing(store):
        if store.begun():
            raise StoreError(f"the store {store.url} has an event log already; rebuild into an empty one")
        connection = connect(gateway, store, wanted, settings.ask)
        mirror = settings.mirror_file
        if mirror.exists():
            log = (from_record(kind, body) for _, kind, body, _ in read_mirror(mirror))
            started, rounds = next(log, None), [event for event in log if isinstance(event, RoundStarted)]
            if not isinstance(started, CampaignStarted):
                raise StoreError(f"the mirror {mirror} does not begin with a campaign; move it away to go without")
        else:
            first = _found(
                settings,
                "trees",
                lambda made: names_pages(
                    gateway,
                    connection.pages,
                    started_by(connection, settings.strategy, made, None).campaign,
                    _truth(_known(settings, made.parents[0])),
                ),
            )
            started = started_by(connection, settings.strategy, first, _known(settings, first.parents[0]))
            rounds = list(_rounds_after(settings, first))
        latest = rounds[-1] if rounds else started
        trees = _found(settings, "trees", lambda made: made.fingerprint == latest.trees)
        folder = _found(settings, "masks", lambda made: made.fingerprint == latest.table)
        table = read_table(folder.folder)
        labeling = labeling_of(gateway, connection, settings, table.categories)
        tasks = read_pool(gateway, connection.project, labeling.field, table)
        store.set_source_tasks(tasks)
        known = _known(settings, started.table) if started.gold else None
        store.remember(
            table=folder.folder.name, trees=trees.folder.name, gold=known.folder.name if known else None
        )
        if mirror.exists():
            return [f"The whole event log, {restore_log(store, mirror)} entries, from {mirror}."]
        source = Source(connection.project, labeling, gateway.user().id)

        def begin() -> Campaign:
            return Campaign(table, read_trees(trees.folder), settings.strategy)

        found = read_back(
            gateway, source, connection.pages, started, begin, tasks, _truth(known), connection.ask, rounds
        )
        store.append(found.events)
        return [
            f"From Label Studio: {found.pages} pages, {found.answers} of them answered, and the annotations of "
            f"{found.images} images.",
            *(f"Lost: {what}." for what in found.lost),
        ]


def _known(settings: Settings, table: str) -> KnownMasks | None:
    """The gold beside a mask table; None where there is none."""
    made = (read_artefact(folder, "gold") for folder in sorted(settings.artefacts.glob("gold-*")))
    return next((read_known(one) for one in made if table in one.parents), None)


def _rounds_after(settings: Settings, trees: Artefact) -> Iterator[RoundStarted]:
    """The rounds whose trees were made from those; of several made from the same, the latest."""
    for number in itertools.count(2):
        made = [read_artefact(folder, "trees") for folder in settings.artefacts.glob("trees-*")]
        after = [one for one in made if trees.fingerprint in one.parents[1:]]
        if not after:
            return
        trees = max(after, key=lambda one: one.folder.stat().st_mtime)
        yield RoundStarted(number, trees.parents[0], trees.fingerprint)


def _truth(known: KnownMasks | None) -> dict[str, bool]:
    return known.truth if known else {}


def _found(settings: Settings, kind: str, fits: Callable[[Artefact], bool]) -> Artefact:
    """The artefact of a kind that fits. Raises StoreError where none does."""
    for folder in sorted(settings.artefacts.glob(f"{kind}-*")):
        made = read_artefact(folder, kind)
        if fits(made):
            return made
    raise StoreError(
        f"no {kind} in {settings.artefacts} belong to the campaign; set data_dir, LABEL_STUDIO_URL and strategy "
        "as they were when it began, or restore the folder from a backup"
    )
