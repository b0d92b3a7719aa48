"""A finding, and what the checks have found out so far for those that come after."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ls_propagate.pipeline import Connection
from ls_propagate.settings import Settings
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.inspect import Account, Answering
from plugin.label_studio.labeling import Labeling
from sync.store import Store

State = Literal["good", "doubtful", "bad"]
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Finding:
    """What a check found; remedy: what to do, unless all is good."""

    name: str
    state: State
    said: str
    remedy: str = ""


@dataclass(frozen=True)
class Found:
    """What a check says; lacking: whether what other checks need isn't there, though nothing is bad."""

    state: State
    said: str
    remedy: str = ""
    lacking: bool = False


def good(said: str) -> Found:
    """Nothing to do."""
    return Found("good", said)


def doubtful(said: str, remedy: str, lacking: bool = False) -> Found:
    """Something to look at; the campaign runs."""
    return Found("doubtful", said, remedy, lacking)


def bad(said: str, remedy: str) -> Found:
    """The campaign doesn't run, or not as it should."""
    return Found("bad", said, remedy)


@dataclass
class Case:
    """What is examined. A field is set by the check that finds it out, and read by those that need that check.

    closing: closes what was opened.
    """

    config: Path | None
    closing: ExitStack = field(default_factory=ExitStack)
    settings: Settings = field(init=False)
    store: Store = field(init=False)
    answering: Answering = field(init=False)
    gateway: LabelStudioGateway = field(init=False)
    account: Account = field(init=False)
    connection: Connection = field(init=False)
    labeling: Labeling = field(init=False)


Check = Callable[[Case], Found]
