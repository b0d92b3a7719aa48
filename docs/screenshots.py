"""Makes the screenshots of the docs from a running Label Studio.

python docs/screenshots.py --url http://127.0.0.1:8080 --user admin@example.com --password … \
    --verify 2 --source 1 --out docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ls_propagate.demo.browser import close_popups, log_in, open_browser, open_label_stream
from propagation.errors import Missing

if TYPE_CHECKING:
    from playwright.sync_api import Page


def shoot_page(page: Page, url: str, project: int, out: Path) -> None:
    """page.png, a page as it comes, and page-marked.png, with two crops marked wrong."""
    open_label_stream(page, url, project)
    page.screenshot(path=out / "page.png")
    for key in ("4", "s"):
        page.keyboard.press(key)
    page.wait_for_function("document.querySelectorAll('.grid input:checked').length === 2")
    page.screenshot(path=out / "page-marked.png")
    for key in ("4", "s"):  # a draft is kept for the next who opens the page
        page.keyboard.press(key)


def shoot_propagated(page: Page, url: str, project: int, out: Path) -> None:
    """propagated.png, the first image of the source project that has annotations."""
    page.goto(f"{url}/projects/{project}/data?task={first_annotated(page, url, project)}")
    page.wait_for_selector(".konvajs-content canvas")
    page.wait_for_load_state("networkidle")
    close_popups(page)
    page.screenshot(path=out / "propagated.png")


def first_annotated(page: Page, url: str, project: int) -> int:
    """The id of the first task with an annotation; raises Missing where there is none."""
    annotated = {
        "filter": "filter:tasks:total_annotations",
        "operator": "greater",
        "type": "Number",
        "value": 0,
    }
    query = {"filters": {"conjunction": "and", "items": [annotated]}, "ordering": ["tasks:id"]}
    answer = page.request.get(
        f"{url}/api/tasks/",
        params={"project": project, "page": 1, "page_size": 1, "query": json.dumps(query)},
    )
    tasks = answer.json()["tasks"]
    if not tasks:
        raise Missing(f"project {project} has no annotated task: let the campaign accept a cluster first")
    return int(tasks[0]["id"])


def main() -> None:
    """Read the command line, make the screenshots."""
    parser = argparse.ArgumentParser(description="Makes the screenshots of the docs.")
    parser.add_argument("--url", required=True, help="Label Studio's address")
    parser.add_argument("--user", required=True, help="e-mail of a user")
    parser.add_argument("--password", required=True, help="the user's password")
    parser.add_argument("--verify", required=True, type=int, help="id of the verify project, with an open page")
    parser.add_argument("--source", required=True, type=int, help="id of the source project")
    parser.add_argument("--out", required=True, type=Path, help="folder for the images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    url = options.url.rstrip("/")
    with open_browser() as page:
        log_in(page, url, options.user, options.password)
        shoot_page(page, url, options.verify, options.out)
        shoot_propagated(page, url, options.source, options.out)


if __name__ == "__main__":
    main()
