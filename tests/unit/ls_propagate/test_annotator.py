"""The simulated annotator, over a scripted server."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from ls_propagate.demo.annotator import Annotator
from propagation.errors import ServerError

MASKS = [f"mask-{number}" for number in range(200)]
RIGHT = {mask: place % 3 > 0 for place, mask in enumerate(MASKS)}
PAGE = {"id": 7, "data": {"crops": [{"alias": mask} for mask in MASKS[:6]]}}


class Server:
    """One page, then none; what was submitted is kept."""

    def __init__(self, refuse: bool = False) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.pages = [PAGE]
        self.refuse = refuse
        self.client = httpx.Client(transport=httpx.MockTransport(self), base_url="http://server")

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/projects/3/next/":
            return httpx.Response(200, json=self.pages[0]) if self.pages else httpx.Response(404)
        assert request.url.path == "/api/tasks/7/annotations/"
        if self.refuse:
            return httpx.Response(500, text="no room")
        self.submitted.append(json.loads(request.content))
        self.pages.clear()
        return httpx.Response(201, json={"id": 1})


def test_wrong_masks_are_marked_and_nothing_else() -> None:
    server = Server()
    annotator = Annotator(server.client, 3, RIGHT)
    assert annotator.answer_next()
    assert not annotator.answer_next()
    (answer,) = server.submitted
    assert answer["result"][0]["value"]["choices"] == ["mask-0", "mask-3"]
    assert answer["lead_time"] > 0


def test_a_page_without_a_wrong_mask_is_answered_by_an_empty_result() -> None:
    server = Server()
    Annotator(server.client, 3, dict.fromkeys(MASKS, True)).answer_next()
    assert server.submitted[0]["result"] == []


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_errors_come_at_the_rate_that_is_set_and_are_the_same_every_time(rate: float) -> None:
    annotator = Annotator(Server().client, 3, RIGHT, error_rate=rate)
    wrong = [mask for mask in MASKS if annotator.judge(mask) != RIGHT[mask]]
    assert len(wrong) == pytest.approx(rate * len(MASKS), abs=20)
    assert wrong == [mask for mask in MASKS if annotator.judge(mask) != RIGHT[mask]]


def test_a_refused_answer_is_told() -> None:
    with pytest.raises(ServerError, match="500 no room"):
        Annotator(Server(refuse=True).client, 3, RIGHT).answer_next()


def test_an_annotator_who_is_told_to_stop_while_looking_submits_nothing() -> None:
    server, stop = Server(), threading.Event()
    stop.set()
    Annotator(server.client, 3, RIGHT, delay=60).answer_next(stop)
    assert server.submitted == []
