"""What the daemon tells of itself, for those who ask from outside: whether it is ready, and its figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from propagation import errors

if TYPE_CHECKING:
    from sync.daemon import Step

PATIENCE = 300.0  # seconds without a sign, beside some polls: a refit takes its time
POLLS = 5
MOST_NAMES = 50  # of calls that are counted apart
OTHER = "other"
#: What Label Studio's webhooks are about.
ACTIONS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_DELETED",
        "LABEL_LINK_CREATED",
        "LABEL_LINK_DELETED",
        "LABEL_LINK_UPDATED",
        "PROJECT_CREATED",
        "PROJECT_DELETED",
        "PROJECT_UPDATED",
        "TASKS_CREATED",
        "TASKS_DELETED",
    }
)
PASS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
CALL_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Monitor:
    """Is told by the daemon and its server what happens, from any thread, and tells others.

    every: seconds between two polls of Label Studio. Its metrics are in a registry of its own, each named
    ``ls_propagate_…``; a label never takes more than a few values.
    """

    def __init__(self, every: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = PATIENCE + POLLS * every
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: str | None = "this daemon has not begun yet"
        self._ended: float | None = None
        self._failure: str | None = None
        self._names: set[str] = set()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"ls_propagate_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"ls_propagate_{name}", what, registry=registry)

        self._passes = counter("passes", "Passes of the daemon that ended well.")
        self._failures = counter("failures", "Passes that failed, by the kind of error.", "kind")
        self._questions = counter("questions_answered", "Questions whose answers were read.")
        self._decisions = counter("decisions", "Decisions about clusters.")
        self._pages = counter("pages_posted", "Pages given to annotators.")
        self._images = counter("images_written", "Images whose annotation was written.")
        self._left_out = counter("answers_left_out", "Answers that did not fit their page.")
        self._hints = counter("hints", "Webhooks of Label Studio, by action.", "action")
        self._call_failures = counter("call_failures", "Calls of Label Studio that failed, by name.", "name")
        self._waiting = gauge("pages_waiting", "Pages that wait for an answer.")
        self._accepted = gauge("masks_accepted", "Masks accepted so far.")
        self._finished = gauge("finished", "1 when nothing is left to ask.")
        self._last = gauge("last_pass_timestamp_seconds", "When the last pass ended well, in Unix time.")
        self._held = gauge("holds_lock", "1 when this daemon is the store's writer.")
        self._pass_seconds = Histogram(
            "ls_propagate_pass_seconds",
            "Length of the passes that ended well.",
            buckets=PASS_SECONDS,
            registry=registry,
        )
        self._call_seconds = Histogram(
            "ls_propagate_call_seconds",
            "Length of calls of Label Studio.",
            ["name"],
            buckets=CALL_SECONDS,
            registry=registry,
        )

    def waiting(self, why: str = "another daemon holds the store's lock; this one waits for it") -> None:
        """The store's lock is not, or no longer, this daemon's; or there is nothing yet to run."""
        self._hold(why)

    def began(self) -> None:
        """The store's lock is this daemon's: its passes begin."""
        self._hold(None)

    def passed(self, step: Step, seconds: float) -> None:
        """A pass has ended well; how long it took."""
        self._passes.inc()
        self._questions.inc(step.questions)
        self._decisions.inc(step.decisions)
        self._pages.inc(step.pages)
        self._images.inc(step.images_written)
        self._left_out.inc(len(step.problems))
        self._waiting.set(step.waiting)
        self._accepted.set(step.accepted)
        self._finished.set(step.finished)
        self._pass_seconds.observe(seconds)
        self._last.set_to_current_time()
        with self._lock:
            self._ended, self._failure = self._clock(), None

    def alive(self) -> None:
        """A long pass goes on well."""
        with self._lock:
            self._ended = self._clock()

    def failed(self, error: BaseException) -> None:
        """A pass has failed."""
        kind = type(error).__name__
        known = getattr(errors, kind, None) is type(error)
        self._failures.labels(kind if known else OTHER).inc()
        with self._lock:
            # the error's own message may name addresses and paths
            self._failure = (type(error).__doc__ or kind) if known else "It failed as nothing should."

    def hinted(self, action: str) -> None:
        """A webhook has come."""
        self._hints.labels(action if action in ACTIONS else OTHER).inc()

    def called(self, name: str, seconds: float, ok: bool) -> None:
        """Label Studio was called; name: of the kind of call."""
        with self._lock:
            if len(self._names) < MOST_NAMES:
                self._names.add(name)
            name = name if name in self._names else OTHER
        self._call_seconds.labels(name).observe(seconds)
        if not ok:
            self._call_failures.labels(name).inc()

    def ready(self) -> tuple[bool, str]:
        """Whether the campaign goes on here, and why or why not, in words."""
        with self._lock:
            idle, ended, failure = self._idle, self._ended, self._failure
        if idle:
            return False, idle
        because = f"; the last one failed: {failure}" if failure else ""
        if ended is None:
            return False, f"no pass has ended well yet{because}"
        ago = self._clock() - ended
        if ago > self._limit:
            return False, f"no pass has ended well for {ago:.0f} s{because}"
        return True, f"the last pass ended well {ago:.0f} s ago"

    def metrics(self) -> bytes:
        """All figures, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _hold(self, idle: str | None) -> None:
        self._held.set(idle is None)
        with self._lock:
            self._idle = idle
