"""The labeling config says where the image is and which controls take masks, or what it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import pytest

from plugin.label_studio.labeling import Labeling, read_labeling
from propagation.errors import ConfigError

IMAGE = '<Image name="image" value="$photo"/>'


def labels(kind: str, *names: str, control: str = "label", image: str = "image") -> str:
    inside = "".join(f'<Label value="{escape(name)}"/>' for name in names)
    return f'<{kind} name="{control}" toName="{image}">{inside}</{kind}>'


def read(*tags: str, categories: Iterable[str] = (), names: dict[str, str] | None = None) -> Labeling:
    return read_labeling(f"<View>{''.join(tags)}</View>", categories, names or {}, "cells")


def test_polygons_are_found_with_their_image() -> None:
    labeling = read(IMAGE, labels("PolygonLabels", "cell", "dust"), categories=["dust"])
    assert (labeling.image, labeling.field) == ("image", "photo")
    assert labeling.polygons == {"cell": "label", "dust": "label"}
    assert labeling.brushes == {}


def test_brushes_are_found() -> None:
    labeling = read(IMAGE, labels("BrushLabels", "cell"), categories=["cell"])
    assert labeling.brushes == {"cell": "label"}
    assert labeling.polygons == {}


def test_controls_of_both_kinds_share_the_categories() -> None:
    labeling = read(
        IMAGE,
        labels("PolygonLabels", "cell", control="outline"),
        labels("BrushLabels", "cell", "dust", control="paint"),
        categories=["cell", "dust"],
    )
    assert labeling.polygons == {"cell": "outline"}
    assert labeling.brushes == {"cell": "paint", "dust": "paint"}


def test_of_two_controls_with_a_label_the_first_takes_it() -> None:
    labeling = read(
        IMAGE,
        labels("PolygonLabels", "cell", control="first"),
        labels("PolygonLabels", "cell", "dust", control="second"),
    )
    assert labeling.polygons == {"cell": "first", "dust": "second"}


def test_of_several_images_the_one_with_the_control_counts() -> None:
    second = '<Image name="close" value="$close_up"/>'
    labeling = read(IMAGE, second, labels("PolygonLabels", "cell", image="close"))
    assert (labeling.image, labeling.field) == ("close", "close_up")


def test_of_several_images_with_controls_the_one_that_takes_masks_counts() -> None:
    second = '<Image name="close" value="$close_up"/>'
    quality = '<Choices name="quality" toName="image"><Choice value="good"/></Choices>'
    labeling = read(IMAGE, second, quality, labels("PolygonLabels", "cell", image="close"), categories=["cell"])
    assert (labeling.image, labeling.field) == ("close", "close_up")
    assert labeling.polygons == {"cell": "label"}


def test_other_controls_of_the_image_do_no_harm() -> None:
    choices = '<Choices name="quality" toName="image"><Choice value="good"/></Choices>'
    text = '<Text name="note" value="$note"/><TextArea name="remark" toName="note"/>'
    labeling = read(
        IMAGE, text, choices, labels("RectangleLabels", "cell", control="box"), labels("PolygonLabels", "c")
    )
    assert labeling.polygons == {"c": "label"}


def test_a_category_is_written_as_the_label_that_the_settings_name() -> None:
    labeling = read(IMAGE, labels("PolygonLabels", "Zelle"), categories=["cell"], names={"cell": "Zelle"})
    assert labeling.label("cell") == "Zelle"
    assert labeling.label("dust") == "dust"


@pytest.mark.parametrize("name", ['<b>"cell" & co</b>', "größe 細胞", "  a  b", "$cell"])
def test_a_label_is_known_as_it_is_shown(name: str) -> None:
    assert read(IMAGE, labels("PolygonLabels", name), categories=[name]).polygons == {name: "label"}


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ((), "no image with a control"),
        ((IMAGE,), "no image with a control"),
        (
            ('<Text name="t" value="$t"/>', '<Choices name="c" toName="t"><Choice value="a"/></Choices>'),
            "no image",
        ),
        ((labels("PolygonLabels", "cell"),), ""),
        ((IMAGE, labels("RectangleLabels", "cell")), "no labels for masks of 'image'; add <PolygonLabels"),
        ((IMAGE, labels("PolygonLabels")), "no labels for masks"),
        (('<Image name="image"/>', labels("PolygonLabels", "cell")), ""),
    ],
    ids=["nothing", "image alone", "text", "no image", "rectangles", "no labels", "no value"],
)
def test_a_config_that_takes_no_masks_is_refused(tags: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"project 'cells': .*{says}"):
        read(*tags)


@pytest.mark.parametrize("config", ["<View><Image", "", "no markup", "<View>&nothing;</View>"])
def test_a_config_that_cannot_be_read_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match="project 'cells'"):
        read_labeling(config, ["cell"], {}, "cells")


def test_a_category_without_a_label_is_named_beside_the_labels_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"predicted category 'dust'; its labels are 'cell', 'fibre'.*\[labels\]"
    ):
        read(IMAGE, labels("PolygonLabels", "fibre", "cell"), categories=["cell", "dust"])


def test_all_categories_without_a_label_are_named() -> None:
    with pytest.raises(ConfigError, match="predicted categories 'dust', 'hair'"):
        read(IMAGE, labels("PolygonLabels", "cell"), categories=["dust", "cell", "hair"])


def test_a_name_in_the_settings_that_is_no_label_is_named() -> None:
    with pytest.raises(ConfigError, match="'cell'"):
        read(IMAGE, labels("PolygonLabels", "cell"), categories=["cell"], names={"cell": "Zelle"})


def laughs() -> str:
    """Ten entities, each ten of the one before: a gigabyte of text."""
    entities = ['<!ENTITY a0 "ha">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))]
    return f"<!DOCTYPE View [{''.join(entities)}]><View>&a9;</View>"


TRAPS = {
    "laughs": laughs(),
    "a file": '<!DOCTYPE View [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>',
    "an address": '<!DOCTYPE View SYSTEM "http://127.0.0.1:9/x.dtd"><View/>',
    "a parameter": '<!DOCTYPE View [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x.dtd"> %x;]><View/>',
    "an entity of its own": f'<!DOCTYPE View [<!ENTITY x "y">]><View>{IMAGE}{labels("PolygonLabels", "x")}</View>',
}


@pytest.mark.parametrize("config", TRAPS.values(), ids=TRAPS)
def test_a_config_that_declares_a_document_type_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match="declares a document type; take that out"):
        read_labeling(config, (), {}, "cells")


@pytest.mark.parametrize("config", ["<View>" * 100_000, "<View " + "a" * 900_000, "\ud800", "x" * 1_000_001])
def test_a_config_that_is_deep_broken_or_huge_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match="labeling config cannot be read") as refused:
        read_labeling(config, (), {}, "cells")
    assert len(str(refused.value)) < 500


def test_a_list_of_images_is_no_image_for_masks() -> None:
    with pytest.raises(ConfigError, match="no image with a control"):
        read('<Image name="image" valueList="$photos"/>', labels("PolygonLabels", "cell"))


def test_labels_with_markup_are_told_apart() -> None:
    names = ["<script>alert(1)</script>", "a\"b'c", "a&amp;b", "a&b", "\u202eb", "ю"]
    labeling = read(IMAGE, labels("PolygonLabels", *names), categories=names)
    assert set(labeling.polygons) == set(names)
