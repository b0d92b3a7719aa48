"""An annotator in a real browser, from the click to the daemon's event log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ls_propagate import pipeline
from ls_propagate.demo.browser import log_in, open_browser, open_label_stream
from propagation.events import PageAnswered


def test_two_clicks_and_space_become_verdicts(connect: Callable[[str], Any]) -> None:
    site = connect("browser")
    pipeline.detect(site.gateway, site.store, site.settings)
    pipeline.cluster(site.gateway, site.store, site.settings)
    daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
    daemon.step()
    asked = min(daemon.campaign.waiting_pages, key=lambda page: page.task or 0)
    with open_browser() as page:
        log_in(page, site.server.url, site.server.email, site.server.password)
        open_label_stream(page, site.server.url, site.connection.pages)
        crops = page.locator(".crops img")
        assert crops.count() == len(asked.shown)
        for place in (1, 4):
            crops.nth(place).click()
        page.keyboard.press("Space")
        page.wait_for_function("document.querySelectorAll('.crops input:checked').length === 0")
    step = daemon.step()
    assert step.questions == len(asked.shown)
    (answer,) = [event for event in site.store.events() if isinstance(event, PageAnswered)]
    assert answer.page == asked.issued.page
    assert [place for place, verdict in enumerate(answer.verdicts) if verdict == "no"] == [1, 4]
    assert set(answer.verdicts) == {"yes", "no"}
    assert answer.seconds is not None
    assert answer.seconds > 0
