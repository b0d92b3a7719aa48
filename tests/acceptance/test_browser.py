"""An annotator in a real browser, from the click to the daemon's event log."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from ls_propagate import pipeline
from ls_propagate.demo.browser import log_in, open_browser, open_label_stream
from plugin.label_studio.pages import KEYMAP
from propagation.events import PageAnswered, PageIssued, PageReturned


def wait_for_marks(page: Any, count: int) -> None:
    """Wait until so many crops are marked wrong."""
    page.wait_for_function(f"document.querySelectorAll('.crops input:checked').length === {count}")


def wrong(answer: PageAnswered) -> list[int]:
    assert set(answer.verdicts) <= {"yes", "no"}
    assert answer.seconds is not None
    assert answer.seconds > 0
    return [place for place, verdict in enumerate(answer.verdicts) if verdict == "no"]


def test_an_answer_its_change_and_a_skip_reach_the_log(connect: Callable[[str], Any]) -> None:
    site = connect("browser")
    pipeline.detect(site.gateway, site.store, site.settings)
    pipeline.cluster(site.gateway, site.store, site.settings)
    daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
    daemon.step()
    first, second = sorted(daemon.campaign.waiting_pages, key=lambda page: page.task or 0)[:2]

    def log(kind: type) -> list[Any]:
        return [event for event in site.store.events() if isinstance(event, kind)]

    with open_browser() as page:
        log_in(page, site.server.url, site.server.email, site.server.password)
        open_label_stream(page, site.server.url, site.connection.pages)
        crops = page.locator(".crops img")
        assert crops.count() == len(first.shown)
        for place in (1, 4):
            crops.nth(place).click()
        wait_for_marks(page, 2)
        page.keyboard.press("Space")
        wait_for_marks(page, 0)
        assert daemon.step().questions == len(first.shown)
        (answer,) = log(PageAnswered)
        assert (answer.page, wrong(answer)) == (first.issued.page, [1, 4])

        page.locator(".lsf-bottombar button").first.click()  # back to the page before
        wait_for_marks(page, 2)
        crops.nth(4).click()
        wait_for_marks(page, 1)
        with page.expect_response(lambda told: "/annotations/" in told.url and told.request.method == "PATCH"):
            page.keyboard.press("Space")
        daemon.step()
        assert [wrong(answer) for answer in log(PageAnswered)] == [[1, 4], [1]]

        open_label_stream(page, site.server.url, site.connection.pages)
        with page.expect_response(lambda told: told.url.partition("?")[0].endswith("/annotations")):
            page.get_by_role("button", name="Skip").click()
        daemon.step()
        assert [returned.page for returned in log(PageReturned)] == [second.issued.page]
        again = [event.page for event in log(PageIssued) if event.questions == second.issued.questions]
        assert len(set(again)) == 2


def test_the_line_that_connect_prints_gives_a_server_our_keys(connect: Callable[[str], Any]) -> None:
    """That a server with these keys takes them from every account is what the tests of the page show."""
    site = connect("keys")
    assert site.command("connect", str(site.connection.project)).wait() == 0
    (line,) = [line.strip() for line in site.output.read_text().splitlines() if "EDITOR_KEYMAP" in line]
    told = subprocess.run(["sh", "-c", f"{line} printenv EDITOR_KEYMAP"], capture_output=True, check=True)
    assert json.loads(told.stdout) == KEYMAP
