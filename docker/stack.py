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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import yaml

from ls_propagate.demo.postgres import USER, Postgres, postgres
from ls_propagate.demo.server import Server, free_port, label_studio
from propagation.errors import PropagateError, ServerError, SettingsError

HERE = Path(__file__).parent
HEALTH = {"daemon": "/health/live", "backend": "/health"}
START_SECONDS = 120
STOP_SECONDS = 120
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<how>[-?])(?P<said>[^}]*))?\})")


@dataclass(frozen=True)
class Stack:
    """The running services: Label Studio, where daemon and backend answer, and the daemon's environment."""

    server: Server
    addresses: Mapping[str, str]
    environment: Mapping[str, str]


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
    services = read_services(variables)
    with ExitStack() as running:
        _keep(data / "postgres" / "password", variables["POSTGRES_PASSWORD"])
        if services["postgres"]["environment"]["POSTGRES_USER"] != USER:
            raise SettingsError(f"POSTGRES_USER: as a process PostgreSQL's user is {USER}; take the line out")
        database = running.enter_context(postgres(data / "postgres"))
        for name in ("labelstudio", services["postgres"]["environment"]["POSTGRES_DB"]):
            _make(database, name)
        moved = {"postgres:5432": f"{database.host}:{database.port}"}

        environment = services["label-studio"]["environment"]
        _keep(data / "label-studio" / "password", environment["LABEL_STUDIO_PASSWORD"])
        _keep(data / "label-studio" / "token", environment["LABEL_STUDIO_USER_TOKEN"])
        own = {"POSTGRE_HOST": database.host, "POSTGRE_PORT": str(database.port)}
        server = running.enter_context(label_studio(data / "label-studio", {**environment, **own}))
        moved["http://label-studio:8080"] = server.url

        ports = {name: free_port() for name in HEALTH}
        addresses = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        moved |= {"http://daemon:9091": addresses["daemon"], "http://backend:9090": addresses["backend"]}
        environments = {}
        for name, port in ports.items():
            environments[name] = {
                **{key: _moved(value, moved) for key, value in services[name]["environment"].items()},
                "LS_PROPAGATE_DATA_DIR": str((data / "daemon").resolve()),
                f"LS_PROPAGATE_{name.upper()}_PORT": str(port),
            }
            words = {"daemon": ["sync", "--wait"], "backend": ["backend"]}[name]
            running.enter_context(_process(name, words, environments[name], project, data / f"{name}.log"))
        for name, address in addresses.items():
            _wait(name, address + HEALTH[name], data / f"{name}.log")
        yield Stack(server, addresses, environments["daemon"])


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
    with closing(engine.connect()) as connection:
        there = connection.scalar(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name})
    engine.dispose()
    if not there:
        database.create(name)


def _moved(value: str, places: Mapping[str, str]) -> str:
    for before, now in places.items():
        value = value.replace(before, now)
    return value


@contextmanager
def _process(name: str, words: list[str], more: Mapping[str, str], folder: Path, log: Path) -> Iterator[None]:
    program = str(Path(sys.executable).parent / "ls-propagate")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LS_PROPAGATE_", "LABEL_STUDIO_"))}
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603
            [program, *words],
            cwd=folder,
            env={**environment, **more},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the stack's, which then stops what it started itself
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(name: str, address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if httpx.get(address, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise ServerError(f"the {name} does not answer after {START_SECONDS} s; its log is {log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("stack-data"))
    parser.add_argument("--env", type=Path, default=HERE / ".env")
    parser.add_argument("--project", type=Path, help="the folder with ls-propagate.toml")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
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
            stop.wait()
    except PropagateError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
