"""The engine ray: the masks and trees of the local one, bit for bit, and what a worker that dies costs."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest
from pycocotools import mask as coco

from ls_propagate import engines
from ls_propagate.models import load_segmenter
from ls_propagate.settings import Settings, load_settings
from ml_backend.detect import Found, gather
from ml_backend.reading import BLOCK
from ml_backend.segmenters.base import Image, Segmenter
from propagation.artefacts import Artefact, write_artefact
from propagation.errors import EngineError, ImageError, MaskError, SettingsError
from propagation.masks import Detections, MaskTable, write_table
from propagation.tree import write_trees

TOKEN = "5ec2e7" * 6 + "beef"
COUNT = 2 * BLOCK + 9
KEYS = [f"/data/upload/1/{number:03}.png" for number in range(COUNT)]
BROKEN = KEYS[BLOCK + 1]
SIDE = 24


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Images behind the token, one of them broken; the server's address."""
    picture = png()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            let_in = self.headers["Authorization"] == f"Token {TOKEN}"
            self.send_response(200 if let_in else 403)
            self.end_headers()
            self.wfile.write(b"no image" if self.path == BROKEN else picture)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def let_in(patch: pytest.MonkeyPatch, server: str) -> None:
    """The environment with the server's address and the token."""
    patch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    patch.setenv("LABEL_STUDIO_URL", server)
    patch.setenv("LS_PROPAGATE_WEBHOOK_SECRET", f"webhook-{TOKEN}")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """Each test begins without what the module's environment has."""
    let_in(monkeypatch, server)


@pytest.fixture(scope="module")
def settings(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that name masks found earlier, three an image, whose features are wide."""
    folder = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    results = []
    for image in range(COUNT):
        for _ in range(3):
            left, top, width, height = (*rng.integers(0, SIDE // 2, 2), *rng.integers(2, SIDE // 2, 2))
            painted = np.zeros((SIDE, SIDE), np.uint8, order="F")
            painted[top : top + height, left : left + width] = 1
            rle = coco.encode(painted)
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            found = {"image_id": image, "category_id": int(rng.integers(1, 3)), "score": float(rng.random())}
            results.append({**found, "segmentation": segmentation})
    names = [{"id": image, "file_name": key} for image, key in enumerate(KEYS)]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}, {"id": 3, "name": "never"}]
    (folder / "predictions.json").write_text(json.dumps(results))
    (folder / "images.json").write_text(json.dumps({"images": names, "categories": categories}))
    np.save(folder / "features.npy", rng.standard_normal((len(results), 100)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        let_in(patch, server)
        yield load_settings(
            segmenter={
                "name": "precomputed",
                "predictions": "predictions.json",
                "images": "images.json",
                "features": "features.npy",
            },
            tree={"exact_below": 100},
            workers=2,
        )


@pytest.fixture(scope="module")
def ray(settings: Settings) -> Iterator[Any]:
    """Ray on this machine with two workers."""
    with warnings.catch_warnings():
        with engines.running(2):
            import ray

            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            yield ray
        warnings.simplefilter("ignore", ResourceWarning)  # of its processes, which it does not wait for
        gc.collect()


def detected(settings: Settings, engine: str, skip: bool = True) -> tuple[MaskTable, list[ImageError], list[int]]:
    """The table, the images left out, and what the progress bar was told."""
    settings = settings.model_copy(update={"engine": engine})
    segmenter, version = load_segmenter(settings)
    read = engines._open(engines.portable(settings))[1]
    told: list[int] = []
    batches = engines.segment(settings, segmenter, {key: key for key in KEYS}, read, skip)
    table, left_out = gather(KEYS, batches, segmenter.categories, version, skip, told.append)
    return table, left_out, told


def stored(table: MaskTable, folder: Path) -> Artefact:
    return write_artefact(folder, "masks", {}, [], partial(write_table, table))


@pytest.mark.usefixtures("ray")
def test_masks_and_trees_are_those_of_the_local_engine(settings: Settings, tmp_path: Path) -> None:
    fingerprints = {}
    for engine in ("local", "ray"):
        table, left_out, told = detected(settings, engine)
        assert ([str(error).split()[1] for error in left_out], sum(told)) == ([repr(BROKEN)], COUNT)
        masks = stored(table, tmp_path / engine)
        advanced: list[int] = []
        weights = {"deep": 1.0, "score": 1.0, "mask": 1.0}
        given = settings.model_copy(update={"engine": engine})
        trees = engines.build_trees(given, table, masks.folder, weights, advanced.append)
        assert ([tree.category for tree in trees], sum(advanced)) == (["cell", "dust"], 3)
        made = write_artefact(tmp_path / engine, "trees", {}, [], partial(write_trees, trees))
        fingerprints[engine] = (masks.fingerprint, made.fingerprint)
    assert fingerprints["ray"] == fingerprints["local"]
    assert len(table) > 2 * COUNT


@pytest.mark.usefixtures("ray")
def test_images_that_cannot_be_read_are_named_as_by_the_local_engine(settings: Settings) -> None:
    said = []
    for engine in ("local", "ray"):
        with pytest.raises(ImageError) as raised:
            detected(settings, engine, skip=False)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert BROKEN in said[0]


class Dying:
    """A mask an image, and a note of each; the first worker that comes to one of them dies."""

    categories = ("cell",)

    def __init__(self, folder: Path, deadly: str, again: bool) -> None:
        self.folder, self.deadly, self.again = folder, deadly, again

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Detections:
        with (self.folder / "segmented").open("a") as file:
            file.write(f"{os.getpid()} {image.key}\n")
        if image.key == self.deadly and (self.again or not (self.folder / "died").exists()):
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        mask = np.zeros(image.pixels.shape[:2], np.uint8, order="F")
        mask[: 1 + int(image.key.split(".")[0][-2:]) % SIDE] = 1
        return Detections([coco.encode(mask)], np.array([0.5], np.float32), np.array([0]))


def dying(folder: Path, again: bool) -> Callable[[], tuple[Segmenter, engines.Read]]:
    picture = png()
    deadly = KEYS[BLOCK + 20]
    return lambda: (Dying(folder, deadly, again), lambda location: picture)


def flat(batches: Iterator[Sequence[Found]]) -> list[bytes]:
    return [item.rles[0]["counts"] for batch in batches for item in batch if isinstance(item, Detections)]


@pytest.mark.usefixtures("ray")
def test_a_worker_that_is_killed_costs_its_own_block_of_images(tmp_path: Path) -> None:
    locations = {key: key for key in KEYS}
    found = flat(engines.segment_on_ray(dying(tmp_path, False), locations, False, 2))
    assert (tmp_path / "died").exists()
    notes = [line.split() for line in (tmp_path / "segmented").read_text().splitlines()]
    times = Counter(key for _, key in notes)
    twice = [key for key, count in times.items() if count == 2]
    assert (set(times), max(times.values())) == (set(KEYS), 2)
    assert set(twice) == set(KEYS[BLOCK : BLOCK + 21])
    assert len({worker for worker, key in notes if key == KEYS[BLOCK]}) == 2
    segmenter, read = dying(tmp_path, False)()
    assert found == flat(engines.segment(Settings(), segmenter, locations, read, False))


@pytest.mark.usefixtures("ray")
def test_images_on_which_workers_die_again_and_again_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TRIES", 2)
    with pytest.raises(EngineError, match=f"worker after worker died on the images from {KEYS[BLOCK]} on"):
        flat(engines.segment_on_ray(dying(tmp_path, True), {key: key for key in KEYS}, False, 2))


@pytest.mark.usefixtures("ray")
def test_an_error_of_the_segmenter_is_raised_as_by_the_local_engine() -> None:
    def wrong() -> tuple[Segmenter, engines.Read]:
        raise MaskError("the masks are of another size")

    with pytest.raises(MaskError, match="the masks are of another size"):
        flat(engines.segment_on_ray(wrong, {"a": "a"}, False, 1))


def test_what_goes_to_workers_holds_no_secret_and_whole_paths(settings: Settings) -> None:
    given = engines.portable(settings)
    assert "5ec2e7" not in repr(given)
    assert Path(given["segmenter"]["predictions"]).is_absolute()
    assert Settings(**given).segmenter == load_settings(**given).segmenter
    assert Settings(**{**given, "label_studio_url": "http://other"}).label_studio_url == "http://other"


def test_ray_keeps_no_secret_and_answers_this_machine_alone(ray: Any) -> None:
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    own = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {at.laddr.ip for process in own for at in process.net_connections("inet") if at.status == "LISTEN"}
    assert listening == {"127.0.0.1", "::ffff:127.0.0.1"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.usefixtures("ray")
def test_more_workers_than_there_are_cores_are_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="setting workers: 99 are more than Ray's 2 cores"):
        detected(settings.model_copy(update={"workers": 99}), "ray")


def test_without_ray_it_says_what_to_install(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"install label-studio-propagate\[ray\]"):
        detected(settings, "ray")
