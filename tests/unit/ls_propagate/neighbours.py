"""What other programs read of an export: ``make neighbours``, in an environment of their own.

It needs hundreds of megabytes that nothing else here does, so no test run collects it. FiftyOne's reader runs
without its database.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ls_propagate import pipeline

NAMES = ("train/a.png", "val/a.png", "val/größe 1%20.png", "val/x.y.png")
READ = {
    "pycocotools": """
from pycocotools.coco import COCO
from pycocotools import mask as coco
read = COCO(FILE)
categories = [one["name"] for one in read.loadCats(read.getCatIds())]
for one in read.anns.values():
    tell(read.imgs[one["image_id"]]["file_name"], categories, one["category_id"] - 1, read.annToMask(one),
         one["attributes"])
""",
    "datumaro": """
from datumaro import AnnotationType, Dataset
again = str(ROOT / "again")
Dataset.import_from(str(ROOT), "coco_instances").export(
    again, "coco_instances", save_media=True, segmentation_mode="mask")
for folder in (str(ROOT), again):
    dataset = Dataset.import_from(folder, "coco_instances")
    categories = [one.name for one in dataset.categories()[AnnotationType.label]]
    for item in dataset:
        for one in item.annotations:
            if one.type == AnnotationType.mask:
                tell(item.id + ".png", categories, one.label, one.image, one.attributes)
""",
    "fiftyone": """
import os
import numpy as np
from fiftyone.utils.coco import COCODetectionDatasetImporter
reader = COCODetectionDatasetImporter(
    data_path=str(ROOT / "images"), labels_path=FILE, label_types="segmentations")
with reader:
    categories = reader.get_dataset_info()["classes"]
    for path, size, found in reader:
        for one in found.detections:
            mask = np.zeros((size.height, size.width), bool)
            left, top = (round(share * side) for share, side in
                         zip(one.bounding_box[:2], (size.width, size.height)))
            mask[top:top + one.mask.shape[0], left:left + one.mask.shape[1]] = one.mask
            tell(os.path.relpath(path, ROOT / "images"), categories, categories.index(one.label), mask,
                 {name: one[name] for name in ("mask_id", "cluster", "decision", "verified", "estimate")})
""",
}
BEFORE = """
import json, pathlib, sys
import numpy as np
from pycocotools import mask as coco
OTHERS = ("score", "is_crowd", "campaign")
FILE, ROOT = sys.argv[1], pathlib.Path(sys.argv[2])
told = []
def tell(name, categories, category, mask, attributes):
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    told.append([name, categories, categories[category], rle["size"], rle["counts"].decode(),
                 {key: value for key, value in attributes.items() if key not in OTHERS}])
"""


@pytest.mark.parametrize("reader", READ)
def test_the_export_is_read_without_loss(make_office, tmp_path, reader):
    office = make_office(images=NAMES, storage="s3://bucket/set/").prepared().finished()
    root = tmp_path / "dataset"
    file = root / "annotations" / "instances_default.json"
    file.parent.mkdir(parents=True)
    with file.open("w", encoding="utf-8") as written:
        pipeline.export_coco(
            pipeline.open_campaign(office.store, office.settings), office.store.source_tasks(), written
        )
    exported = json.loads(file.read_text(encoding="utf-8"))
    for image in exported["images"]:
        path = root / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(office.gateway.files[image["key"]])
    program = f"{BEFORE}{READ[reader]}\nprint('told', json.dumps(told))"
    python = Path(os.environ["NEIGHBOURS_PYTHON"])
    run = subprocess.run(
        [python, "-W", "ignore", "-c", program, file, root], capture_output=True, text=True, check=True
    )
    told = json.loads(run.stdout.rpartition("told ")[2])
    names = {image["id"]: image["file_name"] for image in exported["images"]}
    expected = []
    for one in exported["annotations"]:
        behind = {key: value for key, value in one["attributes"].items() if key != "campaign"}
        category = ["x", "Y"][one["category_id"] - 1]
        outline = [one["segmentation"][part] for part in ("size", "counts")]
        expected.append([names[one["image_id"]], ["x", "Y"], category, *outline, behind])
    assert len(expected) == 32
    assert sorted(told, key=str) == sorted(expected * (len(told) // len(expected)), key=str)
    assert len(told) == len(expected) * (2 if reader == "datumaro" else 1)
