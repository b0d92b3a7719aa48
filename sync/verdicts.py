"""Verdicts in: what changed in the verify project since the last look, as events."""

from __future__ import annotations

from collections.abc import Iterable

from plugin.label_studio.gateway import Json
from plugin.label_studio.pages import is_answer, read_answer
from propagation.campaign import Campaign, PageState
from propagation.errors import AnswerError
from propagation.events import PageAnswered, PageReturned, Verdict

FIELDS = (
    "annotations", "result", "was_cancelled", "completed_by", "lead_time",
)  # fmt: skip


def read_verdicts(
    tasks: Iterable[Json], campaign: Campaign
) -> tuple[list[PageAnswered | PageReturned], list[AnswerError]]:
    """The events that changed page tasks call for, and the answers that cannot be used.

    A page's first answer stands. A page whose answer was skipped, deleted or unusable comes back.
    """
    by_task = {page.task: page for page in campaign.pages.values() if page.task is not None}
    events: list[PageAnswered | PageReturned] = []
    problems: list[AnswerError] = []
    for task in tasks:
        page = by_task.get(task["id"])
        if page is None:
            continue
        event, problem = _read_page(task, page)
        if event is not None:
            events.append(event)
        if problem is not None:
            problems.append(problem)
    return events, problems


def _read_page(task: Json, page: PageState) -> tuple[PageAnswered | PageReturned | None, AnswerError | None]:
    annotations = sorted(task.get("annotations") or [], key=lambda a: int(a["id"]))
    answers = [annotation for annotation in annotations if is_answer(annotation)]
    if not answers:
        version = str(task["updated_at"])
        if page.answer is None and (page.returned or not annotations):
            return None, None
        last = annotations[-1]["id"] if annotations else page.answer.annotation if page.answer else 0
        return PageReturned(page.issued.page, last, version), None
    answer = answers[0]
    version = str(answer["updated_at"])
    if page.answer and (page.answer.annotation, page.answer.version) == (answer["id"], version):
        return None, None
    try:
        right = read_answer(page.issued.page, page.issued.questions, answer)
    except AnswerError as error:
        return (None if page.returned else PageReturned(page.issued.page, answer["id"], version)), error
    verdicts: tuple[Verdict, ...] = tuple("yes" if judged else "no" for judged in right.values())
    return (
        PageAnswered(
            page.issued.page, answer["id"], version, answer["completed_by"], answer.get("lead_time"), verdicts
        ),
        None,
    )
