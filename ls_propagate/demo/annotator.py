"""A simulated annotator: an account of its own that answers pages through Label Studio's HTTP API."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from typing import Any

import httpx

from plugin.label_studio.pages import masks_of
from propagation.errors import ServerError

IDLE_SECONDS = 0.5


class Annotator:
    """Answers the verify project's pages from a truth, as a browser would: next task, look, submit.

    client: logged in as the annotator. right: mask id to whether it is right. error_rate: share of
    questions answered wrongly, the same ones in every run. delay: seconds a page takes.
    """

    def __init__(
        self,
        client: httpx.Client,
        project: int,
        right: Mapping[str, bool],
        error_rate: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self._client = client
        self._project = project
        self._right = right
        self._error_rate = error_rate
        self._delay = delay

    def run(self, stop: threading.Event) -> None:
        """Answer pages until told to stop."""
        while not stop.is_set():
            if not self.answer_next(stop):
                stop.wait(IDLE_SECONDS)

    def answer_next(self, stop: threading.Event | None = None) -> bool:
        """Answer one page; False when there is none. Raises ServerError when the answer is refused."""
        task = self._client.get(f"/api/projects/{self._project}/next/")
        if task.status_code == httpx.codes.NOT_FOUND:
            return False
        page = _checked(task).json()
        if self._delay and stop is not None and stop.wait(self._delay):
            return True
        answer = {"result": self._result(page["data"]), "lead_time": self._delay or 0.1}
        _checked(self._client.post(f"/api/tasks/{page['id']}/annotations/", json=answer))
        return True

    def _result(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a page's answer holds: the wrong ones of a grid, or a verdict a picture."""
        masks = masks_of(data)
        if "crops" in data:
            wrong = [mask for mask in masks if not self.judge(mask)]
            return [_choice("wrong", "page", wrong)] if wrong else []
        said = ["yes" if self.judge(mask) else "no" for mask in masks]
        return [
            {**_choice("verdict", "picture", [verdict]), "item_index": place} for place, verdict in enumerate(said)
        ]

    def judge(self, mask: str) -> bool:
        """Whether the annotator calls a mask right."""
        errs = zlib.crc32(mask.encode()) / 2**32 < self._error_rate
        return self._right[mask] != errs


def _choice(name: str, of: str, chosen: list[str]) -> dict[str, Any]:
    return {"from_name": name, "to_name": of, "type": "choices", "value": {"choices": chosen}}


def _checked(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        raise ServerError(
            f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:300]}"
        )
    return answer
