"""The labeling config of the source project: where its image is, and which controls take masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

from propagation.errors import ConfigError

LARGEST = 1_000_000  # characters; of the labeling config


@dataclass(frozen=True)
class Labeling:
    """What the product needs to know of a labeling config.

    image: name of the Image tag; field: the task's data field with the image; polygons, brushes: label to
    the name of the control that has it. names: category of a model to the label that it is written as.
    """

    image: str
    field: str
    polygons: Mapping[str, str]
    brushes: Mapping[str, str]
    names: Mapping[str, str]

    def label(self, category: str) -> str:
        """The label that a category is written as."""
        return self.names.get(category, category)


def read_labeling(
    label_config: str, categories: Iterable[str], names: Mapping[str, str], project: str
) -> Labeling:
    """Find in a labeling config the image and the controls for every category.

    Raises ConfigError, naming the project and what to add, where the config has no image, no polygon or
    brush control on it, or lacks a label for a category.
    """
    try:
        _check(label_config)
        controls: dict[str, Any] = parse_config(label_config)
    except Exception as error:  # the SDK's parser raises whatever the XML library does
        raise ConfigError(f"project {project!r}: its labeling config cannot be read ({error})") from error
    images = [source for control in controls.values() for source in _images(control)]
    if not images:
        raise ConfigError(
            f"project {project!r}: its labeling config has no image with a control on it; add "
            '<Image name="image" value="$image"/> and <PolygonLabels name="label" toName="image">'
        )
    found: dict[str, dict[str, str]] = {"PolygonLabels": {}, "BrushLabels": {}}
    masked = [source for control in controls.values() if control["type"] in found for source in _images(control)]
    name, field = (masked or images)[0]
    for control_name, control in controls.items():
        if control["type"] in found and (name, field) in _images(control):
            for label in control["labels"]:
                found[control["type"]].setdefault(label, control_name)
    labeling = Labeling(name, field, found["PolygonLabels"], found["BrushLabels"], dict(names))
    labels = {*labeling.polygons, *labeling.brushes}
    if not labels:
        raise ConfigError(
            f"project {project!r}: its labeling config has no labels for masks of {name!r}; add "
            f'<PolygonLabels name="label" toName="{name}"> or <BrushLabels …> with a <Label> a category'
        )
    lacking = [category for category in categories if labeling.label(category) not in labels]
    if lacking:
        raise ConfigError(
            f"project {project!r}: no label for the predicted {'categories' if lacking[1:] else 'category'} "
            f"{', '.join(map(repr, lacking))}; its labels are {', '.join(map(repr, sorted(labels)))}. Add the "
            "labels, name the ones to use in the settings under [labels], or have a detector take fewer: "
            "segmenter.categories"
        )
    return labeling


def _check(label_config: str) -> None:
    """Refuse what no labeling config holds, and what an XML library may read files or fill the memory by."""
    if len(label_config) > LARGEST:
        raise ValueError(f"it has {len(label_config)} characters, more than {LARGEST}")
    if "<!DOCTYPE" in label_config:
        raise ValueError("it declares a document type; take that out")


def _images(control: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, source["value"])
        for name, source in zip(control["to_name"], control["inputs"], strict=False)
        if source["type"] == "Image" and source.get("value")
    ]
