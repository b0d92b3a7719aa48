"""Verdicts in: what changed page tasks say, as events."""

from __future__ import annotations

from collections.abc import Iterable

from plugin.label_studio.gateway import Json
from plugin.label_studio.pages import Ask, is_answer, read_answer
from propagation.campaign import Campaign, PageState
from propagation.errors import AnswerError
from propagation.events import PageAnswered, PageReopened, PageReturned

FIELDS = (
    "annotations", "result", "was_cancelled", "completed_by", "lead_time",
)  # fmt: skip

News = PageAnswered | PageReturned | PageReopened


def read_verdicts(
    tasks: Iterable[Json], campaign: Campaign, ask: Ask = "page"
) -> tuple[list[News], list[AnswerError]]:
    """The events that changed page tasks call for, and the answers that cannot be used. ask: how they are asked.

    A page's first answer stands. A page that was skipped, or whose answer is unusable, comes back; one whose
    answer was deleted waits again, since Label Studio offers its task again.
    """
    events: list[News] = []
    problems: list[AnswerError] = []
    for task in tasks:
        page = campaign.page_of.get(task["id"])
        if page is None:
            continue
        event, problem = _read_page(task, page, ask)
        if event is not None:
            events.append(event)
        if problem is not None:
            problems.append(problem)
    return events, problems


def _read_page(task: Json, page: PageState, ask: Ask) -> tuple[News | None, AnswerError | None]:
    name = page.issued.page
    annotations = sorted(task.get("annotations") or [], key=lambda a: int(a["id"]))
    answer = next(filter(is_answer, annotations), None)
    if answer is None:
        if annotations and (page.answer or not page.returned):
            return PageReturned(name, annotations[-1]["id"], str(task["updated_at"])), None
        if not annotations and page.answer:
            return PageReopened(name, page.answer.annotation, str(task["updated_at"])), None
        return None, None
    version = str(answer["updated_at"])
    if page.answer and (page.answer.annotation, page.answer.version) == (answer["id"], version):
        return None, None
    try:
        verdicts = read_answer(name, page.shown, answer, ask)
    except AnswerError as error:
        returned = page.returned and not page.answer
        return (None if returned else PageReturned(name, answer["id"], version)), error
    by, seconds = answer["completed_by"], answer.get("lead_time")
    return PageAnswered(name, answer["id"], version, by, seconds, tuple(verdicts.values())), None
