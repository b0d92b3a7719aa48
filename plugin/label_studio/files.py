"""Files by the addresses that tasks have for them: the server's own images, and hosts that the settings name."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import httpx

from plugin.label_studio import images
from plugin.label_studio.wire import LEADS_TO, STUMBLES, Passing, Wire, asked_to_wait, why
from propagation.errors import ImageError, SettingsError, Unreachable

LARGEST = 300_000_000  # bytes
SLOWEST = 180.0  # seconds
REDIRECTS = 5
PORTS = {"http": 80, "https": 443}
#: Below the server's address: uploads and local files, and what leads to a storage. Not its API, not its pages.
OWN = re.compile(r"data/.+|(?:tasks|projects)/\d+/resolve/?", re.DOTALL)
UNWANTED = re.compile(r"[\x00-\x1f\x7f]|^\s|\s$")
CREDENTIALS = re.compile(r"^([a-zA-Z][\w+.-]*:(?=/))?(/*)[^/?#]*@")


def shown(location: str) -> str:
    """A task's image value for a message, without what may be a secret: its query, a password."""
    return images.shown(CREDENTIALS.sub(r"\1\2", location))


class Addresses:
    """What may be read for images.

    base: the server's address, ending in a slash; path: that address's, from slash to slash. hosts: others, as
    ``host`` (its usual ports) or ``host:port``.
    Raises Unreachable for a base that is no address, SettingsError for a host that is none.
    """

    def __init__(self, base: str, hosts: Sequence[str]) -> None:
        try:
            self._base = httpx.URL(base)
            urlsplit(base)
        except (httpx.InvalidURL, ValueError) as error:
            raise Unreachable(f"{base.rstrip('/')} is no address ({error}); correct LABEL_STUDIO_URL") from error
        if self._base.userinfo:
            raise Unreachable(
                "LABEL_STUDIO_URL has a user name or a password in it, which would be shown; take them out"
            )
        self._origin = _origin(self._base)
        self.path = self._base.path
        self._hosts = {_named(host) for host in hosts}

    def of(self, location: str) -> httpx.URL:
        """The address of a task's image value. Raises ImageError where it may not be read, or is none."""
        told = f"image {shown(location)}"
        if location.startswith("/") and not location.startswith("//"):
            # a task's own path is the server's, with or without the sub-path that the server has
            below = location if location.startswith(self._base.path) else self._base.path + location[1:]
            return self._allowed(f"{told}:", f"{self._base.scheme}://{self._base.netloc.decode()}{below}")
        if images.STORED.match(location):
            raise ImageError(
                f"{told}: no storage of the project has it; add one in its settings, under Cloud Storage"
            )
        if not re.match(r"(?i)https?://", location):
            raise ImageError(
                f"{told}: only http(s) addresses and the server's own paths can be read; let Label Studio serve it"
            )
        return self._allowed(f"{told}:", location)

    def next(self, location: str, address: httpx.URL, target: str) -> httpx.URL:
        """The address that an address leads to. Raises ImageError where it may not be read, or is none."""
        told = f"image {shown(location)} leads elsewhere:"
        try:
            joined = str(address.join(target))
        except (httpx.InvalidURL, ValueError) as error:
            raise ImageError(f"{told} to what is no address; correct the task's data") from error
        if "\\" in target:
            raise ImageError(f"{told} to what is no address; correct the task's data")
        return self._allowed(told, joined)

    def is_own(self, address: httpx.URL) -> bool:
        """Whether an address is the server's, which alone gets the token."""
        return _origin(address) == self._origin

    def _allowed(self, told: str, text: str) -> httpx.URL:
        try:
            address = httpx.URL(text)
            origin = _origin(address)
        except (httpx.InvalidURL, ValueError) as error:  # whose own message may show what is not to be shown
            raise ImageError(f"{told} that is no address; correct the task's data") from error
        if UNWANTED.search(text) or "\\" in text.partition("?")[0] or not address.host:
            raise ImageError(f"{told} that is no address; correct the task's data")
        if address.scheme not in PORTS:
            raise ImageError(f"{told} only http(s) addresses can be read; let Label Studio serve the image")
        if address.userinfo:
            raise ImageError(f"{told} an address with a user name or a password is not read; take them out")
        if origin == self._origin:
            self._check_path(told, address)
        elif not self._hosts & {origin[1:], (origin[1], None if origin[2] == PORTS[origin[0]] else origin[2])}:
            raise ImageError(
                f"{told} its host {address.netloc.decode()} is not trusted; "
                "add it to image_hosts in the settings if it is yours"
            )
        return address

    def _check_path(self, told: str, address: httpx.URL) -> None:
        path = before = address.raw_path.decode().partition("?")[0]
        while (path := unquote(before)) != before:  # also what is encoded twice
            before = path
        steps = set(path.replace("\\", "/").split("/"))
        inside = path.startswith(self._base.path) and not {".", ".."} & steps
        if not inside or not OWN.fullmatch(path.removeprefix(self._base.path)):
            raise ImageError(
                f"{told} of the server's own addresses, only those below data/ and its storages' are read; "
                "correct the task's data"
            )


class Files:
    """Reads files over the wire."""

    def __init__(self, wire: Wire, addresses: Addresses) -> None:
        self._wire = wire
        self._addresses = addresses

    def read(self, location: str) -> bytes:
        """The content of a task's image value. Raises ImageError where there is none to be had."""

        def attempt() -> bytes:
            with self._wire.observed("read_file"):
                return self._follow(location)

        return self._wire.repeated(attempt)

    def _follow(self, location: str) -> bytes:
        """Read an address, or what it leads to: each one on the way must be one that may be read."""
        address = self._addresses.of(location)
        deadline = time.monotonic() + SLOWEST
        for _ in range(REDIRECTS + 1):
            own = self._addresses.is_own(address)
            try:
                headers = {"Accept-Encoding": "identity", **(self._wire.headers() if own else {})}
                with self._wire.http.stream("GET", address, headers=headers) as answer:
                    target = answer.extensions.get(LEADS_TO)
                    if not answer.is_redirect or target is None:
                        return self._content(location, answer, own, deadline)
                    address = self._addresses.next(location, address, target)
            except httpx.HTTPError as error:
                raise Passing(
                    Unreachable(
                        f"image {shown(location)} cannot be read from {address.host} ({why(error)}); "
                        "run the command again when it answers"
                    )
                ) from error
        raise ImageError(f"image {shown(location)} leads from one address to the next; correct the task's data")

    def _content(self, location: str, answer: httpx.Response, own: bool, deadline: float) -> bytes:
        told = f"image {shown(location)}: {answer.url.host}"
        if answer.status_code != httpx.codes.OK:
            if own:
                answer.read()
                if (
                    answer.is_server_error and "has_permission" in answer.text
                ):  # how it says that there is no upload
                    raise ImageError(f"{told} has no such upload; restore the file, or delete the task")
                self._wire.refuse(answer)
            if answer.status_code in STUMBLES or answer.is_server_error:
                error = Unreachable(f"{told} answers {answer.status_code}; run the command again when it is well")
                raise Passing(error, after=asked_to_wait(answer))
            stored = own and images.LEADS.search(answer.url.path)
            remedy = "see to the project's cloud storage" if stored else "restore the file, or delete the task"
            raise ImageError(f"{told} answers {answer.status_code}; {remedy}")
        content = bytearray()
        for part in answer.iter_bytes():
            content += part
            if len(content) > LARGEST:
                raise ImageError(
                    f"image {shown(location)} has more than {LARGEST // 1_000_000} MB; "
                    "replace the file, or leave the image out"
                )
            if time.monotonic() > deadline:
                raise Passing(Unreachable(f"{told} sends it too slowly; run the command again when it is well"))
        return bytes(content)


def _origin(address: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port, each in one form only."""
    port = PORTS.get(address.scheme) if address.port is None else address.port
    return address.scheme, _host(address), port


def _host(address: httpx.URL) -> str:
    host = address.raw_host.decode().rstrip(".").lower()  # ASCII: other letters are in Punycode
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _named(host: str) -> tuple[str, int | None]:
    """A host and its port, or None for the usual ones, as the settings name it."""
    try:
        address, port = httpx.URL(f"http://{host}/"), urlsplit(f"//{host}").port
        if not address.host or re.search(r"[\s/\\@?#]", host):
            raise ValueError("it is more, or less, than that")
    except (httpx.InvalidURL, ValueError) as error:
        raise SettingsError(f"image_hosts: {host!r} is neither a host nor host:port; correct it") from error
    return _host(address), port
