"""``train``: what is learned from, when nothing has changed, and that it never runs twice or in the server."""

import io
import json
import logging
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image as Picture

from ls_propagate import cli, clustering, models, pipeline, training
from ls_propagate.models import Newest, load_segmenter
from ls_propagate.settings import load_settings
from ls_propagate.training import Trained, Trainer, lessons, train
from ml_backend.segmenters import unet_training
from ml_backend.server import create_app
from plugin import web
from plugin.label_studio.fake import FakeGateway
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.regions import regions_of
from propagation.artefacts import read_artefact
from propagation.errors import InputError, SettingsError, StoreError
from propagation.rle import decode
from sync.store import Store

CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="bright"/><Label value="red"/></PolygonLabels></View>"""
STRATEGY = {"name": "paper", "samples": 6, "least_size": 3, "split_below": 0.0, "page_size": 8}
QUICK = partial(unet_training.Training, steps=50, batch=4, side=64, every=25, rate=0.01, decay=0.8)
ANNOTATED, IMAGES = 6, 10


@pytest.fixture
def studio(tmp_path, monkeypatch, scene):
    """A project of ten images, six of which a person has annotated whole, and settings that name the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unet_training, "Training", QUICK)
    monkeypatch.setattr(unet_training, "LATER", QUICK(steps=10, every=5, rate=1e-3))
    gateway = FakeGateway()
    project = gateway.create_project("discs", CONFIG, "", {}).id
    files = []
    for number in range(IMAGES):
        content = io.BytesIO()
        Picture.fromarray(scene(number).image.pixels).save(content, "PNG")
        files.append((f"{number}.png", content.getvalue()))
    gateway.import_tasks(project, [{"data": {"image": url}} for url in gateway.upload(project, files)])
    labeling = read_labeling(CONFIG, (), {}, "discs")
    tasks = [task["id"] for task in gateway.tasks(project, ["data"])]

    def annotate(number):
        drawn = []
        for place, (rle, category) in enumerate(zip(scene(number).rles, scene(number).categories, strict=True)):
            drawn += regions_of(f"{place:020x}", rle, ("bright", "red")[category], 1.0, {}, labeling)
        return gateway.submit(tasks[number], drawn)

    for number in range(ANNOTATED):
        annotate(number)
    settings = load_settings(
        data_dir=tmp_path / "data",
        segmenter={"name": "unet"},
        strategy=STRATEGY,
        gold_share=0.0,
        least_seconds=0.0,
    )
    store = Store(settings.store_url)
    pipeline.connect(gateway, store, str(project))
    yield SimpleNamespace(
        gateway=gateway, store=store, settings=settings, project=project, tasks=tasks, annotate=annotate
    )
    store.close()


def office_of(studio):
    return studio.gateway, studio.store, studio.settings


def test_the_whole_way_from_annotations_to_a_second_model(studio):
    with pytest.raises(StoreError, match="run: ls-propagate train"):
        pipeline.detect(*office_of(studio))
    bars = []
    first = train(
        *office_of(studio), progress=lambda what, total: bars.append((what, total)) or (lambda done: None)
    )
    assert (first.images, first.objects, first.accepted) == (ANNOTATED, 5 * ANNOTATED, 0)
    assert bars == [("read", ANNOTATED), ("train", 50)]
    assert first.held_out["right"] > 0
    assert studio.store.fact("model") == first.folder
    assert list(studio.settings.artefacts.glob(".draft*")) == []
    segmenter, version = load_segmenter(studio.settings, studio.store.fact("model"))
    assert version == first.version == f"unet-{first.folder.removeprefix('model-')[:8]}"
    assert segmenter.categories == ("bright", "red")

    again = train(*office_of(studio))
    assert not again.new
    assert replace(again, new=True) == first

    table, _ = pipeline.detect(*office_of(studio))
    assert table.model_version == version
    assert len(table.images) == IMAGES - ANNOTATED
    clustering.cluster(*office_of(studio))
    assert lessons(*office_of(studio)).accepted == []
    campaign = SimpleNamespace(
        table=table, accepted=lambda: np.arange(len(table)) % 3 > 0, is_taken=lambda key: key == table.images[0]
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "open_campaign", lambda store, settings: campaign)
        known = lessons(*office_of(studio))
        assert table.images[0] not in {picture.key for picture in known.accepted}
        second = train(*office_of(studio))
    assert second.new
    assert second.version != first.version
    assert second.accepted == sum(len(picture.objects) for picture in known.accepted) > 0
    assert second.accepted_images == len(known.accepted) == len(table.images) - 1
    assert studio.store.fact("model") == second.folder
    assert second.held_out["right"] >= first.held_out["right"] - 1  # it goes on from the first
    made = read_artefact(studio.settings.artefacts / second.folder, "model")
    assert read_artefact(studio.settings.artefacts / first.folder, "model").fingerprint in made.parents
    (studio.settings.artefacts / second.folder / "weights.pt").unlink()
    assert training._last(studio.store, studio.settings) is None  # so it would be made again


def test_accepted_masks_are_objects_and_all_others_doubtful(table):
    known = table([0.9] * 20, [0] * 16 + [1] * 4, ("x", "Y"))
    accepted = np.arange(20) % 2 == 0
    places = {key: f"at {key}" for key in known.images.tolist()}
    first, second = training.partly_known(known, accepted, ("Y", "x"), places)
    assert (first.location, len(first.objects), len(first.doubtful)) == (f"at {first.key}", 8, 8)
    assert {place for _, place in first.objects} == {1}
    assert {place for _, place in second.objects} == {0}
    assert (decode(first.objects[0][0]) == decode(known.rle(0))).all()
    (only,) = training.partly_known(known, accepted, ("x",), places)
    assert only.key == first.key


def test_the_command_tells_a_training_in_words_and_to_machines(studio, monkeypatch, capsys):
    made = Trained("unet-12345678", "model-1", 6, 30, 4, 12, {"images": 2, "objects": 10, "masks": 9, "right": 8})
    given = []
    monkeypatch.setattr(cli.training, "train", lambda *_: given.append(_[3]) or made)
    monkeypatch.setattr(cli.os, "nice", lambda by: given.append(by))
    monkeypatch.setattr(
        cli, "_connected", lambda config: nullcontext((studio.settings, studio.store, studio.gateway))
    )
    cli.train(again=True, as_json_=True)
    assert json.loads(capsys.readouterr().out) == asdict(made)
    cli.train()
    said = capsys.readouterr().out
    assert "30 objects in 6 annotated images, and 12 accepted masks in 4 others" in said
    assert "8 of 10 objects are found right" in said
    assert given == [10, True, 10, False]


def test_what_is_learned_from_has_a_fingerprint_that_changes_with_it(studio):
    before = lessons(*office_of(studio))
    assert lessons(*office_of(studio)).fingerprint == before.fingerprint
    studio.annotate(ANNOTATED)
    after = lessons(*office_of(studio))
    assert len(after.annotated) == ANNOTATED + 1
    assert after.fingerprint != before.fingerprint
    assert replace(after, categories=("red", "bright")).fingerprint != after.fingerprint


def test_an_image_of_the_seed_folder_that_the_project_has_annotated_is_learned_from_once(
    studio, scene, tmp_path, monkeypatch
):
    seed = tmp_path / "seed"
    (seed / "images").mkdir(parents=True)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "bright"}, {"id": 2, "name": "red"}],
    }
    for number in (0, 1, IMAGES + 1):
        made = scene(number)
        Picture.fromarray(made.image.pixels).save(seed / "images" / f"other {number}.png")
        truth["images"].append({"id": number, "file_name": f"other {number}.png"})
        for rle, category in zip(made.rles, made.categories.tolist(), strict=True):
            outline = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}
            truth["annotations"].append({"image_id": number, "category_id": category + 1, "segmentation": outline})
    (seed / "ground_truth.json").write_text(json.dumps(truth))
    given = []

    def learn(known, *_):
        given.append(known)
        raise InputError("enough")

    monkeypatch.setattr(unet_training, "train", learn)
    chosen = studio.settings.segmenter.model_copy(update={"seed": seed})
    studio.settings = studio.settings.model_copy(update={"segmenter": chosen})
    with pytest.raises(InputError, match="enough"):
        train(*office_of(studio))
    assert len(given[0].images) == ANNOTATED + 1
    assert sum(one.image.key.startswith("other") for one in given[0].images) == 1


def test_images_that_cannot_be_used_are_left_out_and_too_few_are_refused(studio, caplog):
    keys = list(studio.gateway.files)
    for key in keys[: ANNOTATED - 1]:
        studio.gateway.files[key] = b"no image"
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="two or more images are needed"):
        train(*office_of(studio))
    assert caplog.text.count("nothing is learned from") == ANNOTATED - 1
    assert studio.store.fact("model") is None


def test_only_one_training_runs_at_a_time(studio):
    with training._alone(studio.settings), pytest.raises(StoreError, match="another training runs"):
        train(*office_of(studio))
    with pytest.raises(SettingsError, match='name = "unet"'):
        lessons(studio.gateway, studio.store, studio.settings.model_copy(update={"segmenter": None}))


def test_without_pytorch_one_line_says_how_to_get_it(studio, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    model = studio.store.fact("model")
    for use in (lambda: load_segmenter(studio.settings, model), lambda: train(*office_of(studio))):
        with pytest.raises(SettingsError, match=r"pip install 'label-studio-propagate\[unet\]'$"):
            use()


BUSY = """
import numpy as np
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled, SeedSet
from ml_backend.segmenters.unet_training import train
from pycocotools import mask as coco
random = np.random.default_rng(0)
image = Image("a", random.integers(0, 255, (400, 400, 3)).astype(np.uint8))
disc = np.zeros((400, 400), np.uint8, order="F")
disc[100:200, 100:200] = 1
labeled = Labeled(image, [coco.encode(disc)], np.zeros(1, np.int64))
train(SeedSet(("x",), [labeled] * 4), told=lambda step, loss: print(step, flush=True))
"""


class Plain:
    categories = ("x",)

    def segment(self, images):
        raise AssertionError("nobody asks")


def test_the_server_answers_while_a_training_runs_and_starts_no_second_one(studio, monkeypatch):
    """The training is a real one, in the process that a start begins; only what it learns from is made up."""
    begun = []

    def popen(command, **more):
        assert command[0] == sys.executable
        assert command[3:] == ["train", "--config", "my.toml"]
        begun.append(subprocess.Popen([command[0], "-c", BUSY], stdout=subprocess.PIPE, **more))
        return begun[-1]

    monkeypatch.setattr(training, "subprocess", SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL))
    trainer = Trainer(studio.settings, studio.store, "my.toml")
    app = create_app(lambda: (Plain(), "unet-1"), lambda location: None, {}, "secret", trainer.start)
    served = web.serve(app, "127.0.0.1", 0, "backend")
    wish = {"action": "START_TRAINING", "project": {"id": studio.project}}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", auth=("", "secret")) as client:
            assert client.post("/webhook", json=wish).json() == {"status": "training started"}
            assert begun[0].stdout.readline() == b"1\n"
            seconds = []
            for _ in range(30):
                begin = time.monotonic()
                assert client.get("/health").json()["status"] == "UP"
                seconds.append(time.monotonic() - begin)
            assert sorted(seconds)[15] < 0.1
            assert client.post("/webhook", json=wish).json() == {"status": "already training"}
            wish["project"]["id"] += 1
            assert client.post("/webhook", json=wish).status_code == 400
        assert begun[0].poll() is None
    finally:
        served.close()
        trainer.close()
        begun[0].stdout.close()
    assert len(begun) == 1
    assert not trainer.running()


def test_a_training_that_the_command_line_runs_is_known_too(studio):
    trainer = Trainer(studio.settings, studio.store, None)
    with training._alone(studio.settings):
        assert trainer.start(None) == "already training"
    assert not trainer.running()


def test_a_newer_model_is_served_as_soon_as_it_is_there(studio, monkeypatch):
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.02)
    made = {"one": ("first", "unet-1"), "two": ("second", "unet-2")}

    def load(settings, folder):
        if folder not in made:
            raise InputError(f"{folder} holds no model that can be read")
        return made[folder]

    monkeypatch.setattr(models, "_load_unet", load)
    studio.store.remember(model="one")
    newest = Newest(studio.settings, studio.store)
    try:
        assert newest() == made["one"]
        studio.store.remember(model="broken")
        time.sleep(0.1)
        assert newest() == made["one"]
        studio.store.remember(model="two")
        deadline = time.monotonic() + 10
        while newest() != made["two"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert newest() == made["two"]
    finally:
        newest.close()
