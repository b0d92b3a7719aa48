"""A browser that looks at Label Studio as an annotator does: for the browser tests and the docs' screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from propagation.errors import InputError, Refused, SettingsError

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM_VARIABLE = "LS_PROPAGATE_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a sandbox it starts in a container; the rest keeps it from calling home.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_CROPS_SHOWN = """() => {
    const crops = [...document.querySelectorAll('.crops img')];
    return crops.length > 0 && crops.every(crop => crop.complete && crop.naturalWidth > 0);
}"""
_PICTURE_SHOWN = """() => {
    const picture = document.querySelector('.picture img');
    return picture !== null && picture.complete && picture.naturalWidth > 0;
}"""


def find_chromium() -> str | None:
    """The path of a Chromium: the environment's LS_PROPAGATE_CHROMIUM, else one on the PATH, else None.

    Raises SettingsError when the variable names no file.
    """
    named = os.environ.get(CHROMIUM_VARIABLE)
    if named and not Path(named).is_file():
        raise SettingsError(
            f"{CHROMIUM_VARIABLE} is {named!r}, which is no file: set it to a Chromium, or unset it"
        )
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def open_browser(width: int = 1280, height: int = 800) -> Iterator[Page]:
    """An empty page of a headless Chromium of its own, closed at the end; width and height in CSS pixels.

    Without a Chromium of the system, Playwright's own is taken. Raises InputError where Playwright is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise InputError("opening a browser needs Playwright: pip install label-studio-propagate[dev]") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(_ARGUMENTS))
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def log_in(page: Page, url: str, user: str, password: str) -> None:
    """Log in to the Label Studio at ``url``; raises Refused where it does not accept the password."""
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", user)
    page.fill("input[name=password]", password)
    with page.expect_navigation():
        page.click("button[type=submit]")
    if "/user/login" in page.url:
        raise Refused(f"{url} did not accept the password of {user}: check both")


def open_label_stream(page: Page, url: str, project: int) -> None:
    """Open a verify project's label stream, as "Label All Tasks" does, and wait until all crops are seen."""
    page.goto(f"{url}/projects/{project}/data?labeling=1")
    wait_for_crops(page)


def wait_for_crops(page: Page) -> None:
    """Wait until every crop of the page is loaded; a popup that covers them is closed."""
    page.wait_for_function(_CROPS_SHOWN)
    close_popups(page)


def wait_for_picture(page: Page) -> None:
    """Wait until the picture that is asked about by itself is loaded; a popup that covers it is closed."""
    page.wait_for_function(_PICTURE_SHOWN)
    close_popups(page)


def close_popups(page: Page) -> None:
    """Close what lies over the page, such as a project's instructions; keys don't reach the page before."""
    popups = page.locator(".lsf-modal-ls_visible")
    while popups.count():
        page.keyboard.press("Escape")
        popups.first.wait_for(state="hidden")
