"""What the product says of a server that does not let it in, does not answer, or is another one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import jwt
import pytest
import stamina

from ls_propagate.demo.server import Server, log_in
from plugin.label_studio.gateway import LabelStudioGateway, User
from plugin.label_studio.wire import ATTEMPTS
from propagation.errors import NotLabelStudio, Refused, ServerError, SettingsError, Unreachable

WRONG = "fedcba9876543210fedcba9876543210fedcba98"
PROJECT = {"id": 1, "title": "a", "label_config": "<View/>"}
ACCOUNT_PAGE = "Account & Settings page and set LABEL_STUDIO_API_KEY"


def personal_token(**claims: Any) -> str:
    """A token that looks as a personal access token does, but that no server has made."""
    return jwt.encode({"token_type": "refresh", "jti": "0" * 32, **claims}, "k" * 32)


FORGED = personal_token(exp=int(time.time()) + 3600)


def use(url: str, token: str) -> User:
    gateway = LabelStudioGateway(url, token, timeout=10)
    try:
        return gateway.user()
    finally:
        gateway.close()


def refusal(kind: type[ServerError], url: str, token: str) -> str:
    """The message of the error that a call raises; it never shows the token."""
    with pytest.raises(kind) as raised:
        use(url, token)
    error: BaseException | None = raised.value
    message = str(error)
    assert token not in message
    assert repr(token)[1:-1] not in message
    return message


@contextmanager
def serving(status: int, body: bytes, kind: str = "text/html") -> Iterator[str]:
    """A web server on loopback that answers everything alike; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """What may be sent again is so at once."""
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield


@pytest.fixture(scope="module")
def owner(label_studio: Server) -> Iterator[httpx.Client]:
    """The session of the account that owns the organization."""
    session = log_in(label_studio.url, label_studio.email, label_studio.password)
    yield session
    session.close()


@pytest.fixture
def without_legacy_tokens(owner: httpx.Client) -> Iterator[None]:
    """Legacy tokens are switched off, as they are in a new Label Studio."""
    path = "/api/jwt/settings"
    before = owner.get(path).raise_for_status().json()
    owner.post(path, json={**before, "legacy_api_tokens_enabled": False}).raise_for_status()
    yield
    owner.post(path, json=before).raise_for_status()


@pytest.fixture(scope="module")
def access_token(person: httpx.Client) -> str:
    """A personal access token of a person's account."""
    return str(person.post("/api/token/").raise_for_status().json()["token"])


def test_a_legacy_token_is_let_in(label_studio: Server) -> None:
    assert use(label_studio.url, label_studio.token).email == label_studio.email


def test_an_address_may_end_in_a_slash(label_studio: Server) -> None:
    assert use(label_studio.url + "/", label_studio.token).email == label_studio.email


def test_a_personal_access_token_is_let_in(
    label_studio: Server, person: httpx.Client, access_token: str, without_legacy_tokens: None
) -> None:
    user = use(label_studio.url, access_token)
    assert user.email == person.get("/api/current-user/whoami").json()["email"]


def test_a_personal_access_token_reads_images(label_studio: Server, access_token: str) -> None:
    gateway = LabelStudioGateway(label_studio.url, access_token)
    project = gateway.create_project("contract: token", '<View><Image name="i" value="$i"/></View>', "", {}).id
    assert gateway.read_file(gateway.upload(project, [("a.png", b"content")])[0]) == b"content"
    gateway.close()


@pytest.mark.parametrize("token", [WRONG, FORGED], ids=["legacy", "personal"])
def test_a_wrong_token_is_refused(label_studio: Server, token: str) -> None:
    message = refusal(Refused, label_studio.url, token)
    assert label_studio.url in message
    assert ACCOUNT_PAGE in message


def test_a_wrong_token_is_refused_an_image(label_studio: Server, real_gateway: LabelStudioGateway) -> None:
    config = '<View><Image name="i" value="$i"/></View>'
    project = real_gateway.create_project("contract: refused", config, "", {}).id
    (url,) = real_gateway.upload(project, [("a.png", b"content")])
    gateway = LabelStudioGateway(label_studio.url, WRONG)
    with pytest.raises(Refused, match=ACCOUNT_PAGE):
        gateway.read_file(url)
    gateway.close()


def test_a_legacy_token_where_they_are_off_is_told_to_make_a_personal_one(
    label_studio: Server, without_legacy_tokens: None
) -> None:
    message = refusal(Refused, label_studio.url, label_studio.token)
    assert "legacy tokens switched off; make a personal access token" in message
    assert ACCOUNT_PAGE in message


@pytest.mark.parametrize("claims", [{"exp": 1}, {}], ids=["expired", "without end"])
def test_a_token_that_cannot_be_valid_is_refused_without_asking(claims: dict[str, int]) -> None:
    assert ACCOUNT_PAGE in refusal(Refused, "http://127.0.0.1:9", personal_token(**claims))


@pytest.mark.parametrize("token", [f"{WRONG}\n", f" {WRONG}", f"{WRONG}\0", "schlüssel", "two words"])
def test_a_token_with_strange_characters_is_refused_without_showing_it(token: str) -> None:
    assert ACCOUNT_PAGE in refusal(Refused, "http://127.0.0.1:9", token)


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(Refused, match=ACCOUNT_PAGE):
        use("http://127.0.0.1:9", "")


@pytest.mark.parametrize("token", [WRONG, FORGED], ids=["legacy", "personal"])
def test_a_server_that_is_down_is_named(token: str) -> None:
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = refusal(Unreachable, url, token)
    assert url in message
    assert "LABEL_STUDIO_URL" in message


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://[broken"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(Unreachable, match="LABEL_STUDIO_URL") as raised:
        use(url, WRONG)
    assert url in str(raised.value)


@pytest.mark.parametrize("token", [WRONG, FORGED], ids=["legacy", "personal"])
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>Welcome</html>", "text/html"),
        (404, b"<html>Nothing here</html>", "text/html"),
        (404, b'{"detail": "Not Found"}', "application/json"),
        (200, b'{"status": "UP"}', "application/json"),
        (200, b'["UP"]', "application/json"),
        (200, b"", "text/plain"),
    ],
    ids=["page", "no page", "no api", "other api", "list", "empty"],
)
def test_what_is_not_label_studio_is_said_to_be_another_server(
    status: int, body: bytes, kind: str, token: str
) -> None:
    with serving(status, body, kind) as url:
        message = refusal(NotLabelStudio, url, token)
    assert url in message
    assert "LABEL_STUDIO_URL" in message


@pytest.mark.parametrize("ask", [LabelStudioGateway.projects, lambda gateway: gateway.project(1)])
def test_another_server_is_noticed_whatever_is_asked(ask: Callable[[Any], object]) -> None:
    with serving(404, b"<html>Nothing here</html>") as url:
        gateway = LabelStudioGateway(url, WRONG)
        with pytest.raises(NotLabelStudio, match="LABEL_STUDIO_URL"):
            ask(gateway)
        gateway.close()


def test_a_server_that_fails_while_it_renews_a_token_does_not_refuse_the_token() -> None:
    with serving(503, b'{"detail": "maintenance"}', "application/json") as url:
        assert "503" in refusal(ServerError, url, FORGED)


def test_a_server_that_sends_nothing_to_an_address_is_told_from_one_that_refuses_the_token() -> None:
    def banned(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=[])
        return httpx.Response(403, json={"detail": "URL resolves to a reserved network address"})

    gateway = LabelStudioGateway("http://label-studio.example", WRONG, transport=httpx.MockTransport(banned))
    with pytest.raises(SettingsError, match=r"reserved network address.*USE_DEFAULT_BANNED_SUBNETS") as raised:
        gateway.ensure_webhook(1, "http://user:password@127.0.0.1:9/webhook?key=hidden", {"X-Secret": "hidden"})
    assert "http://127.0.0.1:9/webhook " in str(raised.value)
    assert "hidden" not in str(raised.value)
    assert "password" not in str(raised.value)
    gateway.close()


def test_a_proxys_own_pages_do_not_say_that_something_is_missing() -> None:
    pages = iter([httpx.Response(200, json=PROJECT), *[httpx.Response(404, html="<title>404</title>")] * ATTEMPTS])
    gateway = LabelStudioGateway(
        "http://label-studio.example", WRONG, transport=httpx.MockTransport(lambda request: next(pages))
    )
    assert gateway.project(1).title == "a"
    with pytest.raises(ServerError, match="proxy") as raised:
        gateway.project(1)
    assert type(raised.value) is ServerError
    gateway.close()
