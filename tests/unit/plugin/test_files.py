"""Which addresses are read for images, what they get to see, and what is said where there is no image."""

from __future__ import annotations

import time
import types

import httpx
import jwt
import pytest

from plugin.label_studio import files
from plugin.label_studio.files import Addresses, Files
from plugin.label_studio.wire import ATTEMPTS, Wire
from propagation.errors import ImageError, Refused, ServerError, SettingsError, Unreachable

URL = "http://label-studio.example/labels"
OWN = "/data/upload/1/a.png"
TRUSTED = "https://images.example/a.png"
SIGNED = f"{TRUSTED}?X-Amz-Signature=secret"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
HOSTS = ("images.example", "minio.example:9000", "[2001:db8::1]:8443", "bücher.example", "[2001:db8::2]")
PIXELS = httpx.Response(200, content=b"pixels")

Answer = httpx.Response | Exception


class Web:
    """Answers by address, or with the next of some answers, the last one again and again."""

    def __init__(
        self, *answers: Answer, url: str = URL, token: str = TOKEN, hosts: tuple[str, ...] = HOSTS
    ) -> None:
        self.answers = list(answers) or [PIXELS]
        self.sent: list[httpx.Request] = []
        self.seen: list[tuple[str, bool]] = []
        wire = Wire(
            url, token, 60, httpx.MockTransport(self), lambda name, seconds, ok: self.seen.append((name, ok))
        )
        self.files = Files(wire, Addresses(url.rstrip("/") + "/", hosts))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def failure(self, kind: type[Exception], location: str = OWN) -> str:
        """The message of the error of this kind that reading raises; it shows no secret."""
        with pytest.raises((ImageError, ServerError)) as raised:
            self.files.read(location)
        said = str(raised.value)
        assert type(raised.value) is kind
        assert TOKEN not in said
        assert "secret" not in said
        return said


def leads(to: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"location": to})


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have been waited between attempts."""
    seconds: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", types.SimpleNamespace(sleep=seconds.append))
    return seconds


# the server's own


@pytest.mark.parametrize(
    ("location", "address"),
    [
        (OWN, f"{URL}{OWN}"),
        (f"/labels{OWN}", f"{URL}{OWN}"),
        (f"{URL}{OWN}", f"{URL}{OWN}"),
        ("http://LABEL-STUDIO.example:80/labels/data/a.png", "http://label-studio.example/labels/data/a.png"),
        ("http://label-studio.example./labels/data/a.png", "http://label-studio.example./labels/data/a.png"),
        ("/data/local-files/?d=a/b%20c.png", f"{URL}/data/local-files/?d=a/b%20c.png"),
        ("/tasks/5/resolve/?fileuri=czM6Ly9h", f"{URL}/tasks/5/resolve/?fileuri=czM6Ly9h"),
        ("/projects/5/resolve?fileuri=czM6Ly9h", f"{URL}/projects/5/resolve?fileuri=czM6Ly9h"),
        ("/data/upload/1/a b.png", f"{URL}/data/upload/1/a%20b.png"),
    ],
)
def test_the_servers_own_images_are_read_with_the_token(location: str, address: str) -> None:
    web = Web()
    assert web.files.read(location) == b"pixels"
    assert str(web.sent[0].url) == address
    assert web.sent[0].headers["authorization"] == f"Token {TOKEN}"
    assert web.seen == [("read_file", True)]


@pytest.mark.parametrize(
    "location",
    [
        "/api/current-user/token",
        "/data/../api/current-user/token",
        "/data/%2e%2e/api/current-user/token",
        "/data/%252e%252e/api/current-user/token",
        "/data/..%2fapi/current-user/token",
        "/data/..%5capi/current-user/token",
        "/data/",
        "/user/logout",
        "/tasks/5/resolve/../../../api/version",
        f"{URL}/api/version",
        "http://label-studio.example/data/a.png",
        "http://label-studio.example/labelsdata/a.png",
    ],
)
def test_of_the_servers_own_addresses_only_images_are_read(location: str) -> None:
    web = Web()
    said = web.failure(ImageError, location)
    assert "only those below data/ and its storages' are read; correct the task's data" in said
    assert web.sent == []


@pytest.mark.parametrize("status", [500, 503])
def test_an_upload_that_is_gone_is_said_to_be_gone(status: int) -> None:
    page = httpx.Response(status, json={"detail": "'NoneType' object has no attribute 'has_permission'"})
    web = Web(page)
    said = web.failure(ImageError)
    assert f"image '{OWN}': label-studio.example has no such upload; restore the file, or delete the task" in said
    assert len(web.sent) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_an_image_that_is_not_there_is_said_not_to_be(status: int) -> None:
    for location in (OWN, SIGNED):
        web = Web(httpx.Response(status, text="secret"))
        assert f"answers {status}; restore the file, or delete the task" in web.failure(ImageError, location)
        assert len(web.sent) == 1


@pytest.mark.parametrize("status", [403, 404, 424])
def test_what_a_storage_does_not_give_is_no_fault_of_the_task(status: int) -> None:
    said = Web(httpx.Response(status)).failure(ImageError, "/tasks/5/resolve/?fileuri=czM6Ly9iL2EucG5n")
    assert (
        f"image 's3://b/a.png': label-studio.example answers {status}; see to the project's cloud storage" in said
    )


def test_a_token_that_is_refused_is_no_fault_of_the_image() -> None:
    web = Web(httpx.Response(401, json={"detail": "Invalid token."}))
    assert "LABEL_STUDIO_API_KEY" in web.failure(Refused)


def test_a_trusted_hosts_refusal_is_no_fault_of_the_token() -> None:
    assert "answers 401" in Web(httpx.Response(401, json={"detail": "no"})).failure(ImageError, TRUSTED)


# other hosts


@pytest.mark.parametrize(
    "location",
    [
        TRUSTED,
        SIGNED,
        "http://images.example/a.png",
        "https://images.example:443/a.png",
        "HTTPS://Images.Example./a.png",
        "http://minio.example:9000/a.png",
        "https://[2001:db8::1]:8443/a.png",
        "https://[2001:0db8:0:0::1]:8443/a.png",
        "http://[2001:db8::2]/a.png",
        "https://bücher.example/a.png",
        "https://xn--bcher-kva.example/a.png",
        "https://images.example/..%2f/a.png?next=\\",
    ],
)
def test_a_trusted_hosts_images_are_read_without_the_token(location: str) -> None:
    web = Web()
    assert web.files.read(location) == b"pixels"
    assert "authorization" not in web.sent[0].headers
    assert len(web.sent) == 1


@pytest.mark.parametrize(
    "location",
    [
        "http://evil.example/a.png",
        "http://label-studio.example.evil.example/a.png",
        "http://label-studio.example:81/labels/data/a.png",
        "https://label-studio.example/labels/data/a.png",
        "https://images.example:8443/a.png",
        "https://images.example:80/a.png",
        "http://minio.example/a.png",
        "https://[2001:db8::1]/a.png",
        "https://[2001:db8::2]:8443/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        "http://2130706433/a.png",
        "http://169.254.169.254/latest/meta-data",
        "https://bucher.example/a.png",
        "https://[broken/a.png",
        "https://images.example:99999999/a.png",
        "https://images.example.evil/a.png?X-Amz-Signature=secret",
    ],
)
def test_nothing_is_sent_to_a_host_that_is_not_trusted(location: str) -> None:
    web = Web()
    said = web.failure(ImageError, location)
    assert "is not trusted; add it to image_hosts in the settings if it is yours" in said
    assert web.sent == []


@pytest.mark.parametrize(
    ("location", "remedy"),
    [
        ("file://label-studio.example/etc/passwd", "let Label Studio serve it"),
        ("s3://bucket/a.png", "add one in its settings, under Cloud Storage"),
        ("gs://bucket/a.png", "add one in its settings, under Cloud Storage"),
        ("azure-blob://container/a.png", "add one in its settings, under Cloud Storage"),
        ("//evil.example/a.png", "let Label Studio serve it"),
        ("https:images.example/a.png", "let Label Studio serve it"),
        ("images.example/a.png", "let Label Studio serve it"),
        ("data:image/png;base64,AAAA", "let Label Studio serve it"),
        ("", "let Label Studio serve it"),
        (" https://images.example/a.png", "let Label Studio serve it"),
        ("http://me:secret@label-studio.example/labels/data/a.png", "take them out"),
        ("https://label-studio.example@images.example/a.png", "take them out"),
        ("https://secret@images.example/a.png", "take them out"),
        ("https://images.example\\@evil.example/a.png", "correct the task's data"),
        ("https://evil.example\\@images.example/a.png", "correct the task's data"),
        ("https:\\\\images.example/a.png", "let Label Studio serve it"),
        ("/\\evil.example/a.png", "correct the task's data"),
        ("/data\\..\\api/version", "correct the task's data"),
        ("https://images.example/a.png\n", "correct the task's data"),
        ("https://images.example/a\r\nHost: evil.example", "correct the task's data"),
        ("https://images.example\x00.evil.example/a.png", "correct the task's data"),
        ("https://bu\u0308cher.example/a.png", "correct the task's data"),
        ("https://images.example:port/a.png", "correct the task's data"),
        ("https:///a.png", "correct the task's data"),
        ("https://xn--\u00df\u2025.example/a.png", "correct the task's data"),
    ],
)
def test_what_is_no_address_that_can_be_read_is_named_with_the_remedy(location: str, remedy: str) -> None:
    web = Web()
    said = web.failure(ImageError, location)
    assert said.startswith("image ")
    assert said.endswith(remedy)
    assert web.sent == []


@pytest.mark.parametrize(
    "host",
    ["", "http://images.example", "images.example/bucket", "images.example:port", "me@images.example", "::1",
     "a b", "images.example\n", "images.example\\", "[broken", "images.example?a", "images.example:99999"],
)  # fmt: skip
def test_an_image_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(SettingsError, match="is neither a host nor host:port; correct it") as raised:
        Addresses(f"{URL}/", [host])
    assert repr(host) in str(raised.value)


@pytest.mark.parametrize("url", ["http://[broken/", "http://label-studio.example:port/"])
def test_a_servers_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(Unreachable, match="correct LABEL_STUDIO_URL"):
        Addresses(url, [])


def test_a_servers_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(Unreachable, match="take them out") as raised:
        Addresses("http://me:secret@label-studio.example/", [])
    assert "secret" not in str(raised.value)


# from one address to the next


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_trusted_storage_that_the_server_leads_to_does_not_get_the_token(status: int) -> None:
    web = Web(leads(SIGNED, status), PIXELS)
    assert web.files.read(OWN) == b"pixels"
    assert str(web.sent[1].url) == SIGNED
    assert "authorization" in web.sent[0].headers
    assert "authorization" not in web.sent[1].headers


def test_the_server_gets_the_token_again_where_a_storage_leads_back() -> None:
    web = Web(leads(TRUSTED), leads(f"{URL}/data/b.png"), PIXELS)
    assert web.files.read(OWN) == b"pixels"
    assert ["authorization" in request.headers for request in web.sent] == [True, False, True]


def test_a_lead_may_name_the_path_alone() -> None:
    web = Web(leads("../2/b.png"), PIXELS)
    assert web.files.read(OWN) == b"pixels"
    assert str(web.sent[1].url) == f"{URL}/data/upload/2/b.png"


@pytest.mark.parametrize("location", [OWN, TRUSTED, "/tasks/5/resolve/?fileuri=czM6Ly9h"])
@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data?secret",
        "https://evil.example/a.png?X-Amz-Signature=secret",
        "//evil.example/a.png",
        "https://me:secret@images.example/a.png",
        "https://images.example:22/",
        "file:///etc/passwd",
        "ftp://images.example/a.png",
        f"{URL}/api/current-user/token",
        f"{URL}/data/../api/current-user/token",
        f"{URL}/data/%2e%2e/api/current-user/token",
        "/\\evil.example/a.png",
        "\\\\evil.example/a.png",
        "http://[broken/",
    ],
)
def test_a_lead_to_what_may_not_be_read_is_not_followed(location: str, target: str) -> None:
    web = Web(leads(target), PIXELS)
    assert "leads elsewhere" in web.failure(ImageError, location)
    assert len(web.sent) == 1


def test_a_later_lead_is_checked_as_the_first_is() -> None:
    web = Web(leads(TRUSTED), leads(f"{TRUSTED}?2"), leads("http://127.0.0.1/"), PIXELS)
    assert "127.0.0.1 is not trusted" in web.failure(ImageError)
    assert len(web.sent) == 3


def test_leads_without_end_are_given_up() -> None:
    web = Web(leads(TRUSTED))
    assert "leads from one address to the next; correct the task's data" in web.failure(ImageError)
    assert len(web.sent) == files.REDIRECTS + 1


# what comes, and how


@pytest.mark.parametrize("location", [OWN, SIGNED])
@pytest.mark.parametrize(
    "failure",
    [httpx.Response(500), httpx.Response(503), httpx.Response(429), httpx.ConnectTimeout("")],
    ids=["500", "503", "429", "timeout"],
)
def test_a_read_that_stumbles_is_made_again(location: str, failure: Answer, waits: list[float]) -> None:
    web = Web(failure, failure, PIXELS)
    assert web.files.read(location) == b"pixels"
    assert len(waits) == 2
    assert web.seen == [("read_file", False)] * 2 + [("read_file", True)]
    web = Web(failure)
    said = web.failure(Unreachable, location)
    assert location.partition("?")[0] in said
    assert "run the command again" in said
    assert len(web.sent) == ATTEMPTS


def test_an_image_host_that_asks_to_wait_is_left_alone_so_long(waits: list[float]) -> None:
    Web(httpx.Response(503, headers={"retry-after": "9"}), PIXELS).files.read(TRUSTED)
    assert waits == [9.0]


def test_a_file_that_breaks_off_is_read_again() -> None:
    assert Web(httpx.RemoteProtocolError("peer closed"), PIXELS).files.read(OWN) == b"pixels"


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.RemoteProtocolError("peer closed")])
def test_an_exchange_of_the_token_that_breaks_off_is_made_again(failure: Exception) -> None:
    token = jwt.encode({"exp": int(time.time()) + 3600, "token_type": "refresh"}, "k" * 32)
    access = httpx.Response(200, json={"access": jwt.encode({"exp": int(time.time()) + 300}, "k" * 32)})
    assert Web(failure, access, PIXELS, token=token).files.read(OWN) == b"pixels"
    assert "cannot be read from label-studio.example" in Web(failure, token=token).failure(Unreachable)


def test_a_file_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 5)
    web = Web(httpx.Response(200, content=b"pixel"), PIXELS)
    assert web.files.read(TRUSTED) == b"pixel"
    assert "replace the file, or leave the image out" in web.failure(ImageError, SIGNED)


def test_a_file_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SLOWEST", -1.0)
    assert "sends it too slowly; run the command again" in Web().failure(Unreachable, SIGNED)


def test_a_file_is_asked_for_as_it_is_stored() -> None:
    web = Web()
    web.files.read(OWN)
    assert web.sent[0].headers["accept-encoding"] == "identity"
