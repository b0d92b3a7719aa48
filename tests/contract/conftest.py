"""A gateway and a person beside it: both in memory, or both on the real server."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import httpx
import pytest

from ls_propagate.demo.server import Server, new_user
from plugin.label_studio.fake import FakeGateway
from plugin.label_studio.gateway import Gateway, Json, LabelStudioGateway

LABEL_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels>
</View>
"""


class Side(Protocol):
    """One implementation of the gateway, and what a person can do on its server."""

    gateway: Gateway
    person: int
    unknown_image: str

    def submit(self, task: int, result: Sequence[Json]) -> int: ...

    def skip(self, task: int) -> int: ...

    def edit(self, annotation: int, result: Sequence[Json]) -> None: ...

    def delete(self, annotation: int) -> None: ...

    def hotkeys(self) -> Mapping[str, Any]: ...


class FakeSide:
    """The gateway that ships for tests."""

    person = 2

    def __init__(self) -> None:
        self.gateway = FakeGateway()
        self.submit, self.skip = self.gateway.submit, self.gateway.skip
        self.edit, self.delete = self.gateway.edit, self.gateway.delete

    def hotkeys(self) -> Mapping[str, Any]:
        return self.gateway.hotkeys


class RealSide:
    """The gateway to a Label Studio, and another account's session there."""

    def __init__(self, server: Server, gateway: Gateway, session: httpx.Client) -> None:
        self.gateway = gateway
        self._server = server
        self._session = session
        self.person = int(session.get("/api/current-user/whoami").raise_for_status().json()["id"])

    def submit(self, task: int, result: Sequence[Json]) -> int:
        return self._annotate(task, {"result": list(result), "lead_time": 1.0})

    def skip(self, task: int) -> int:
        return self._annotate(task, {"result": [], "was_cancelled": True})

    def edit(self, annotation: int, result: Sequence[Json]) -> None:
        self._session.patch(f"/api/annotations/{annotation}/", json={"result": result}).raise_for_status()

    def delete(self, annotation: int) -> None:
        self._session.delete(f"/api/annotations/{annotation}/").raise_for_status()

    def hotkeys(self) -> Mapping[str, Any]:
        headers = {"Authorization": f"Token {self._server.token}"}
        answer = httpx.get(f"{self._server.url}/api/current-user/whoami", headers=headers, timeout=30)
        return dict(answer.raise_for_status().json()["custom_hotkeys"])

    def _annotate(self, task: int, body: Json) -> int:
        answer = self._session.post(f"/api/tasks/{task}/annotations/", json=body)
        return int(answer.raise_for_status().json()["id"])


@pytest.fixture(scope="session")
def person(label_studio: Server) -> Iterator[httpx.Client]:
    """The session of an account that is not the daemon's."""
    session = new_user(label_studio, f"person-{uuid.uuid4().hex[:8]}@example.com", "a long password")
    yield session
    session.close()


@pytest.fixture(scope="session")
def real_gateway(label_studio: Server) -> Iterator[LabelStudioGateway]:
    gateway = LabelStudioGateway(label_studio.url, label_studio.token)
    yield gateway
    gateway.close()


@pytest.fixture(params=["fake", "real"])
def side(request: pytest.FixtureRequest) -> Side:
    """Both implementations, one after the other."""
    if request.param == "fake":
        return FakeSide()
    server, gateway, session = map(request.getfixturevalue, ("label_studio", "real_gateway", "person"))
    return RealSide(server, gateway, session)


@pytest.fixture
def gateway(side: Side) -> Gateway:
    return side.gateway


NUMBERS = itertools.count(1)


@pytest.fixture
def project(gateway: Gateway) -> int:
    """A project with an image and a label, without tasks."""
    return gateway.create_project(f"contract {next(NUMBERS)}", LABEL_CONFIG, "", {}).id


@pytest.fixture
def tasks(gateway: Gateway, project: int) -> list[int]:
    """Five tasks of the project."""
    return gateway.import_tasks(project, [{"data": {"image": f"{number}.png"}} for number in range(5)])
