"""A Label Studio of one's own: started headless on loopback, on a free port, with its own data folder."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from plugin.label_studio.inspect import QUICK_IMPORTS
from plugin.label_studio.pages import KEYMAP
from propagation.errors import ServerError, SettingsError, Unreachable

START_SECONDS = 300
STOP_SECONDS = 20


@dataclass(frozen=True)
class Server:
    """A running Label Studio and its first account, which is the daemon's."""

    url: str
    email: str
    password: str
    token: str


@contextmanager
def label_studio(data: Path, extra: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start Label Studio in ``data``, wait until it answers, and stop it in the end.

    extra: environment variables of the server beside its own. Account and token are kept in ``data``, so
    that a second start finds them again. Raises SettingsError where Label Studio is not installed,
    ServerError where it does not start; the message names its log.
    """
    program = shutil.which("label-studio", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if program is None:
        raise SettingsError("Label Studio is not installed here; run: pip install label-studio-propagate[demo]")
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    password, token = _secret(data / "password"), _secret(data / "token")
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", "daemon@example.com", password, token)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LABEL_STUDIO_")},
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": server.email,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_USER_TOKEN": token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        QUICK_IMPORTS: "true",
        "EDITOR_KEYMAP": json.dumps(KEYMAP),
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        **(extra or {}),
    }
    command = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    with served("Label Studio", command, data, environment, data / "server.log", f"{server.url}/health"):
        yield server


@contextmanager
def served(
    name: str,
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    health: str,
    patience: float = STOP_SECONDS,
) -> Iterator[None]:
    """Run a server as a process in ``folder``, wait until the address ``health`` answers, and stop it in the end.

    patience: seconds that it has for its end. Raises ServerError where it ends as it starts, Unreachable where
    it does not answer; the message names its log.
    """
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours, who then stop the server
        )
    try:
        _wait(name, health, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def new_user(server: Server, email: str, password: str) -> httpx.Client:
    """An account of its own, made by the server's invitation; its client is logged in."""
    invitation = httpx.get(
        f"{server.url}/api/invite", headers={"Authorization": f"Token {server.token}"}, timeout=30
    )
    invitation.raise_for_status()
    client = httpx.Client(base_url=server.url, timeout=60, follow_redirects=True)
    path = invitation.json()["invite_url"]
    _post_form(client, path, {"email": email, "password": password, "allow_newsletters": "false"})
    if client.get("/api/current-user/whoami").status_code != httpx.codes.OK:
        client.close()
        return log_in(server.url, email, password)
    return client


def log_in(url: str, email: str, password: str) -> httpx.Client:
    """A client with the session of an account. Raises ServerError when the account is refused."""
    client = httpx.Client(base_url=url, timeout=60, follow_redirects=True)
    _post_form(client, "/user/login/", {"email": email, "password": password})
    if client.get("/api/current-user/whoami").status_code != httpx.codes.OK:
        client.close()
        raise ServerError(f"{url} refuses the account {email}; delete the demo's data folder and start it again")
    return client


def _post_form(client: httpx.Client, path: str, fields: Mapping[str, str]) -> None:
    page = client.get(path)
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    form = {**fields, "csrfmiddlewaretoken": found.group(1) if found else ""}
    client.post(path, data=form, headers={"Referer": str(client.base_url)})
    client.headers.update({"X-CSRFToken": client.cookies.get("csrftoken") or "", "Referer": str(client.base_url)})


def _secret(file: Path) -> str:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(20))
    return file.read_text().strip()


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(name: str, health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerError(f"{name} stopped with {process.returncode} as it started; its log is {log}")
        try:
            if httpx.get(health, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise Unreachable(f"{name} did not answer at {health} within {START_SECONDS} s; its log is {log}")
