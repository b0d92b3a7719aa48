"""A gateway and a person beside it: in memory, and on the real server with each of its two databases."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import httpx
import pytest

from ls_propagate.demo.postgres import Postgres
from ls_propagate.demo.server import Server, new_user
from ls_propagate.demo.server import label_studio as started
from plugin.label_studio.fake import FakeGateway
from plugin.label_studio.gateway import Gateway, Json, LabelStudioGateway
from plugin.label_studio.inspect import QUICK_IMPORTS
from plugin.label_studio.pace import FIRST, Pace

LABEL_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels>
</View>
"""


class Side(Protocol):
    """One implementation of the gateway, and what a person can do on its server."""

    person: int

    @property
    def gateway(self) -> Gateway: ...

    def submit(self, task: int, result: Sequence[Json]) -> int: ...

    def skip(self, task: int) -> int: ...

    def edit(self, annotation: int, result: Sequence[Json]) -> None: ...

    def delete(self, annotation: int) -> None: ...

    def draft(self, task: int, annotation: int | None = None) -> None: ...

    def hotkeys(self) -> Mapping[str, Any]: ...


class FakeSide:
    """The gateway that ships for tests."""

    person = 2

    def __init__(self) -> None:
        self.gateway = FakeGateway()
        self.submit, self.skip = self.gateway.submit, self.gateway.skip
        self.edit, self.delete, self.draft = self.gateway.edit, self.gateway.delete, self.gateway.draft

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

    def draft(self, task: int, annotation: int | None = None) -> None:
        place = "" if annotation is None else f"annotations/{annotation}/"
        body = {"result": [], "lead_time": 1.0}
        self._session.post(f"/api/tasks/{task}/{place}drafts", json=body).raise_for_status()

    def hotkeys(self) -> Mapping[str, Any]:
        headers = {"Authorization": f"Token {self._server.token}"}
        answer = httpx.get(f"{self._server.url}/api/current-user/whoami", headers=headers, timeout=30)
        return dict(answer.raise_for_status().json()["custom_hotkeys"])

    def _annotate(self, task: int, body: Json) -> int:
        answer = self._session.post(f"/api/tasks/{task}/annotations/", json=body)
        return int(answer.raise_for_status().json()["id"])


def person_of(server: Server) -> closing[httpx.Client]:
    """The session of an account that is not the daemon's."""
    return closing(new_user(server, f"person-{uuid.uuid4().hex[:8]}@example.com", "a long password"))


@pytest.fixture(scope="session")
def person(label_studio: Server) -> Iterator[httpx.Client]:
    """The session of an account that is not the daemon's."""
    with person_of(label_studio) as session:
        yield session


@pytest.fixture(scope="session")
def real_gateway(label_studio: Server) -> Iterator[LabelStudioGateway]:
    with closing(LabelStudioGateway(label_studio.url, label_studio.token)) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def on_sqlite(label_studio: Server, real_gateway: LabelStudioGateway, person: httpx.Client) -> RealSide:
    return RealSide(label_studio, real_gateway, person)


@pytest.fixture(scope="session")
def label_studio_postgresql(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Label Studio on PostgreSQL."""
    name = "label studio"
    postgres.create(name)
    database = {
        "DJANGO_DB": "default",
        "POSTGRE_NAME": name,
        "POSTGRE_USER": postgres.user,
        "POSTGRE_PASSWORD": postgres.password,
        "POSTGRE_HOST": postgres.host,
        "POSTGRE_PORT": str(postgres.port),
        QUICK_IMPORTS: "false",  # as the server comes
    }
    with started(tmp_path_factory.mktemp("label-studio-postgresql"), extra=database) as server:
        yield server


@pytest.fixture(scope="session")
def on_postgresql(label_studio_postgresql: Server) -> Iterator[RealSide]:
    server = label_studio_postgresql
    with closing(LabelStudioGateway(server.url, server.token)) as gateway, person_of(server) as session:
        yield RealSide(server, gateway, session)


@pytest.fixture(params=["fake", "sqlite", "postgresql"])
def side(request: pytest.FixtureRequest) -> Side:
    """The fake, and the real one on each database, one after the other."""
    if request.param == "fake":
        return FakeSide()
    real: RealSide = request.getfixturevalue(f"on_{request.param}")
    return real


class Steady(Pace):
    """However busy the machine is, what fits in one call goes in one, and at once."""

    def __init__(self) -> None:
        super().__init__(sleep=lambda seconds: None)

    def size(self, kind: str, first: int = FIRST) -> int:
        return first


@pytest.fixture
def gateway(side: Side, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setattr(side.gateway, "pace", Steady())
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
