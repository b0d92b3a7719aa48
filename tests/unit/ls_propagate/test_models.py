"""The segmenter that the settings name: loaded only then, with all that they say of it."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ls_propagate.models import load_segmenter
from ls_propagate.settings import Detectron2Settings, Settings, TorchvisionSettings
from propagation.errors import SettingsError

SEGMENTERS = Path(inspect.getfile(load_segmenter)).parents[1] / "ml_backend" / "segmenters"
CHOSEN = {
    "detectron2": Detectron2Settings(config="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"),
    "torchvision": TorchvisionSettings(),
}


@pytest.fixture
def loaded(monkeypatch):
    """What the settings' segmenter is loaded with, and its version, where a stand-in is in the library's place."""

    def load(chosen):
        asked = {}
        module = ModuleType(chosen.name)
        module.load = lambda **given: asked.update(given)
        monkeypatch.setitem(sys.modules, f"ml_backend.segmenters.{chosen.name}", module)
        _, version = load_segmenter(Settings(segmenter=chosen))
        return asked, version

    return load


@pytest.mark.parametrize("name", CHOSEN)
def test_a_library_that_is_not_there_is_named_with_the_way_to_install_it(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"ml_backend.segmenters.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=rf"segmenter\.name: {name} .*pip install '\.\[{name}\]'") as error:
        load_segmenter(Settings(segmenter=CHOSEN[name]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_detector_is_loaded_with_every_setting(name, loaded):
    tree = ast.parse((SEGMENTERS / f"{name}.py").read_text())
    (load,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "load")
    asked, _ = loaded(CHOSEN[name])
    assert set(asked) == {argument.arg for argument in load.args.args}
    assert asked == CHOSEN[name].model_dump(exclude={"name"})
    defaults = [ast.literal_eval(default) for default in load.args.defaults]
    for argument, default in zip(load.args.args[-len(defaults) :], defaults, strict=True):
        assert asked[argument.arg] == default, argument.arg


def test_the_version_changes_with_the_weights_and_not_with_their_place(loaded, tmp_path):
    versions = {}
    for place, content in (("here", b"one"), ("there", b"one"), ("other", b"two")):
        (tmp_path / place).write_bytes(content)
        chosen = CHOSEN["detectron2"].model_copy(update={"weights": str(tmp_path / place)})
        _, versions[place] = loaded(chosen)
    _, zoo = loaded(CHOSEN["detectron2"])
    assert versions["here"] == versions["there"]
    assert len({zoo, versions["here"], versions["other"]}) == 3
    assert zoo.startswith("detectron2-")
