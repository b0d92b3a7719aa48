"""Dataset folders: what is read, and what is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ls_propagate.demo.dataset import read_dataset
from ls_propagate.demo.run import Demo, run_demo
from propagation.errors import InputError
from propagation.rle import decode


def write_part(folder: Path, **changed: Any) -> None:
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "images" / "a.png")
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
        "categories": [{"id": 5, "name": "cell"}],
        "annotations": [{"image_id": 1, "category_id": 5, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}],
    }
    (folder / "ground_truth.json").write_text(json.dumps({**truth, **changed}))


def test_a_dataset_has_its_pool_its_seed_set_and_its_predictions(tmp_path: Path) -> None:
    write_part(tmp_path / "pool")
    write_part(tmp_path / "seed")
    (tmp_path / "pool" / "predictions.json").write_text("[]")
    dataset = read_dataset(tmp_path)
    assert dataset.categories == ["cell"]
    assert [path.name for path in dataset.pool.images] == ["a.png"]
    ((category, rle),) = dataset.seed.objects["a.png"]
    assert (category, int(decode(rle).sum())) == ("cell", 6)
    assert dataset.predictions == tmp_path / "pool" / "predictions.json"
    assert dataset.features is None


def test_a_dataset_may_be_without_a_seed_set_if_it_has_predictions(tmp_path: Path) -> None:
    write_part(tmp_path / "pool")
    with pytest.raises(InputError, match=r"neither pool/predictions\.json nor a seed set"):
        read_dataset(tmp_path)
    (tmp_path / "pool" / "predictions.json").write_text("[]")
    assert read_dataset(tmp_path).seed.images == []


@pytest.mark.parametrize(
    "changed",
    [
        {"images": 3},
        {"categories": [{"id": 6, "name": "cell"}]},
        {"annotations": [{"image_id": 2, "category_id": 5, "segmentation": []}]},
        {"annotations": [{"image_id": 1, "category_id": 5, "segmentation": {"size": [4, 6], "counts": "!"}}]},
    ],
)
def test_a_broken_ground_truth_is_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_part(tmp_path / "pool", **changed)
    with pytest.raises(InputError, match=r"pool/ground_truth\.json is no COCO ground truth"):
        read_dataset(tmp_path)


def test_a_missing_folder_or_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ground_truth\.json"):
        read_dataset(tmp_path / "nowhere")
    write_part(tmp_path / "pool")
    (tmp_path / "pool" / "images" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png, which does not exist"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(("dataset", "images"), [(Path("mine"), 420), (None, 50)])
def test_the_demo_of_other_images_is_not_gone_on_with(tmp_path: Path, dataset: Path | None, images: int) -> None:
    (tmp_path / "project.json").write_text('{"project": 1, "files": {}, "dataset": "scenes-420-0"}')
    with pytest.raises(InputError, match="scenes-420-0; give another folder with --data"):
        run_demo(Demo(tmp_path, dataset, images), None, Console(), lambda *_: None)  # type: ignore[arg-type,return-value]
    assert [path.name for path in tmp_path.iterdir()] == ["project.json"]
