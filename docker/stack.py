"""Starts the services of compose.yaml as processes, where no container engine runs.

``python docker/stack.py [--data FOLDER] [--env FILE] [--project FOLDER]``. Label Studio, PostgreSQL, the daemon
and the backend run on loopback, each on a free port, with the environments that compose.yaml gives them, until
Ctrl-C. Secrets that FILE lacks are made, and kept there.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from ls_propagate.demo.postgres import Postgres, postgres
from ls_propagate.demo.server import Server, free_port, label_studio, served
from propagation.errors import PropagateError, SettingsError

HERE = Path(__file__).parent
#: Our services: the words of their command, and where they say that they are well.
OURS = {"daemon": (["sync", "--wait"], "/health/live"), "backend": (["backend"], "/health")}
ENDS = (signal.SIGINT, signal.SIGTERM)
STOP_SECONDS = 120
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<how>[-?])(?P<said>[^}]*))?\})")


@dataclass(frozen=True)
class Stack:
    """The running services: Label Studio, where daemon and backend answer, and their environments."""

    server: Server
    addresses: Mapping[str, str]
    environments: Mapping[str, Mapping[str, str]]


def read_env(file: Path) -> dict[str, str]:
    """The variables of an environment file; secrets that have no value there are made and written to it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text((HERE / "example.env").read_text())
    lines = file.read_text().splitlines()
    made = [f"{line}{secrets.token_hex(20)}" if re.fullmatch(r"\w+=", line) else line for line in lines]
    if made != lines:
        file.write_text("\n".join(made) + "\n")
    return dict(line.split("=", 1) for line in made if "=" in line and not line.startswith("#"))


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """A value of a compose file with its variables filled in. Raises SettingsError for one that is not set."""

    def one(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        given = variables.get(found["name"], "")
        if not given and found["how"] == "?":
            raise SettingsError(f"{found['name']} is not set: {found['said']}; write it into the environment file")
        return given or (found["said"] if found["how"] == "-" else "")

    if isinstance(value, str):
        return VARIABLE.sub(one, value)
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    if isinstance(value, dict):
        return {name: filled(each, variables) for name, each in value.items()}
    return value


def read_services(variables: Mapping[str, str], file: Path = HERE / "compose.yaml") -> dict[str, Any]:
    """The services of a compose file, by name, their variables filled in."""
    services: dict[str, Any] = filled(yaml.safe_load(file.read_text()), variables)["services"]
    return services


@contextmanager
def stack(data: Path, variables: Mapping[str, str], project: Path) -> Iterator[Stack]:
    """Start all services, wait until they answer, and stop them in the end, the last one first.

    Raises PropagateError where one does not start; the message names its log.
    """
    services = {name: service["environment"] for name, service in read_services(variables).items()}
    with ExitStack() as running:
        _keep(data / "postgres" / "password", services["postgres"]["POSTGRES_PASSWORD"])
        database = running.enter_context(postgres(data / "postgres"))
        for name in (services["label-studio"]["POSTGRE_NAME"], services["postgres"]["POSTGRES_DB"]):
            _make(database, name)

        environment = services["label-studio"]
        _keep(data / "label-studio" / "password", environment["LABEL_STUDIO_PASSWORD"])
        _keep(data / "label-studio" / "token", environment["LABEL_STUDIO_USER_TOKEN"])
        place = {"POSTGRE_HOST": database.host, "POSTGRE_PORT": str(database.port)}
        server = running.enter_context(label_studio(data / "label-studio", {**environment, **place}))

        ports = {name: free_port() for name in OURS}
        addresses = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        moved = {"postgres:5432": f"{database.host}:{database.port}", "http://label-studio:8080": server.url}
        moved["http://daemon:9091"] = addresses["daemon"]
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("LS_PROPAGATE_", "LABEL_STUDIO_"))}
        environments = {}
        for name, (words, health) in OURS.items():
            environments[name] = {
                **{key: _moved(value, moved) for key, value in services[name].items()},
                "LS_PROPAGATE_DATA_DIR": str((data / "propagate").resolve()),
                f"LS_PROPAGATE_{name.upper()}_PORT": str(ports[name]),
            }
            command = [str(Path(sys.executable).parent / "ls-propagate"), *words]
            log, address = data / f"{name}.log", addresses[name] + health
            inside = {**outside, **environments[name]}
            running.enter_context(served(f"the {name}", command, project, inside, log, address, STOP_SECONDS))
        yield Stack(server, addresses, environments)


def _keep(file: Path, secret: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(secret)


def _make(database: Postgres, name: str) -> None:
    """A database, where there is none."""
    url = sa.URL.create(
        "postgresql+psycopg", database.user, database.password, database.host, database.port, "postgres"
    )
    engine = sa.create_engine(url)
    try:
        with closing(engine.connect()) as connection:
            there = connection.scalar(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name})
    except sa.exc.OperationalError as error:
        raise SettingsError(
            "POSTGRES_PASSWORD is not what it was when PostgreSQL first started; set it so"
        ) from error
    finally:
        engine.dispose()
    if not there:
        database.create(name)


def _moved(value: str, places: Mapping[str, str]) -> str:
    for before, now in places.items():
        value = value.replace(before, now)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("stack-data"))
    parser.add_argument("--env", type=Path, default=HERE / ".env")
    parser.add_argument("--project", type=Path, help="the folder with ls-propagate.toml")
    given = parser.parse_args()
    for number in ENDS:
        signal.signal(number, _end)
    try:
        variables = read_env(given.env)
        project = given.project or HERE / variables.get("PROJECT_FOLDER", "project")
        if not (project / "ls-propagate.toml").is_file():
            raise SettingsError(f"there is no {project / 'ls-propagate.toml'}; write the settings there")
        with stack(given.data, variables, project) as running:
            print(f"Label Studio      {running.server.url}  {running.server.email}")
            print(f"Progress board    {running.addresses['daemon']}/board")
            print(f"ML backend        {running.addresses['backend']}")
            print(f"Passwords are in  {given.env}. Ctrl-C stops all of it.", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("Stopped.")
    except PropagateError as error:
        raise SystemExit(f"error: {error}") from error


def _end(*_: object) -> None:
    """Ends the stack, whether it has started or not; a second signal does not cut off the end."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
