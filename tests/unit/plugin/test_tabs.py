"""The tabs of a source project."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from plugin.label_studio.tabs import source_tabs


def pattern(partly: list[str]) -> str:
    found = source_tabs("propagate-1", "propagated-1", "photo", partly, len(partly))[1]["filters"]["items"][1]
    assert found["filter"] == "filter:tasks:data.photo"
    return str(found["value"])


@given(
    st.lists(st.text(st.sampled_from("ab.(+ ?ß/-"), min_size=1), max_size=12),
    st.lists(st.text(st.sampled_from("ab.(+ ?ß/-"), min_size=1), max_size=12),
)
def test_partly_decided_images_are_found_and_no_others(partly: list[str], others: list[str]) -> None:
    found = re.compile(pattern(partly))
    assert all(found.search(image) for image in partly)
    assert not any(found.search(image) for image in others if image not in partly)


def test_many_images_make_a_short_pattern() -> None:
    images = [f"s3://bucket/2026/11/23/photograph-{number:06}.jpg" for number in range(0, 54_000, 27)]
    assert len(pattern(images)) < sum(map(len, images)) / 4


def test_the_title_says_how_many_are_left_out() -> None:
    assert source_tabs("p", "q", "image", ["a"], 1)[1]["title"] == "Partly decided"
    assert source_tabs("p", "q", "image", ["a"], 12_345)[1]["title"] == "Partly decided, 1 of 12,345"
