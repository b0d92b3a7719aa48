"""The steps of the main job on a server in memory: each may be run again, each says what it lacks."""

import contextlib
import io
import json
from dataclasses import replace

import pytest
from pycocotools.coco import COCO

from ls_propagate import clustering, pipeline
from ls_propagate.tables import quality_lines, quality_table
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.pages import config_of
from plugin.label_studio.regions import mask_of, regions_of
from propagation.calibrated import CalibratedStrategy
from propagation.errors import ConfigError, ImageError, InputError, Missing, SettingsError, StoreError

IMAGE = '<Image name="image" value="$image"/>'
CHOICES = '<Choices name="c" toName="{}"><Choice value="x"/></Choices>'
CONFIG = f"""<View>{IMAGE}<PolygonLabels name="label" toName="image"><Label value="x"/><Label value="Y"/>
</PolygonLabels></View>"""
BOXES = '<RectangleLabels name="r" toName="image"><Label value="x"/></RectangleLabels>'


def connect(office, wanted="cells"):
    return pipeline.connect(office.gateway, office.store, wanted)


def detect(office, **more):
    return pipeline.detect(office.gateway, office.store, more.pop("settings", office.settings), **more)


def cluster(office, settings=None):
    return clustering.cluster(office.gateway, office.store, settings or office.settings)


# connect


def test_a_project_is_connected_by_title_or_number(office):
    made = connect(office, "cells")
    assert (made.project, made.title, made.server) == (office.project, "cells", "http://fake")
    assert connect(office, str(office.project)) == made
    assert pipeline.connection_of(office.store) == made


def test_connecting_makes_the_projects_for_pages_and_crops_once(office):
    made = connect(office)
    titles = {project.id: project.title for project in office.gateway.projects()}
    assert titles == {
        office.project: "cells",
        made.pages: "cells · verify",
        made.crops: "cells · crops",
        made.board: "cells · clusters",
    }
    assert [tab["title"] for tab in office.gateway.tabs(made.board).values()] == [
        "Open clusters",
        "Accepted",
        "Rejected",
        "Stuck",
        "Split",
    ]
    connect(office)
    assert len(office.gateway.projects()) == 4
    assert len(office.gateway.tabs(made.board)) == 5
    assert 'name="wrong"' in office.gateway.project(made.pages).label_config


def test_connecting_lets_space_submit_a_page(office):
    connect(office)
    assert office.gateway.hotkeys["annotation:annotation:submit"]["key"] == "space"


@pytest.mark.parametrize("wanted", ["cell", "99"])
def test_a_project_that_is_not_there_is_missed(office, wanted):
    with pytest.raises(Missing, match=wanted):
        connect(office, wanted)
    assert office.gateway.calls.count("create_project") == 1


def test_the_titles_that_there_are_are_told(office):
    with pytest.raises(Missing, match="has no project 'cell'; it has 'cells'"):
        connect(office, "cell")


def test_two_projects_of_one_title_are_told_apart_by_number(office):
    other = office.gateway.create_project("cells", "<View/>", "", {}).id
    with pytest.raises(Missing, match=f"2 projects are called 'cells'; .*: {office.project}, {other}"):
        connect(office)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("<View/>", "no image with a control on it; add"),
        (f'<View><Text name="t" value="$t"/>{CHOICES.format("t")}</View>', "no image"),
        (f"<View>{IMAGE}{CHOICES.format('image')}</View>", "no labels for masks"),
        (f"<View>{IMAGE}{BOXES}</View>", "no labels"),
        ("<View", "cannot be read"),
    ],
)
def test_a_labeling_config_that_does_not_fit_is_refused_before_anything_is_made(make_office, config, said):
    office = make_office(config)
    with pytest.raises(ConfigError, match=f"project 'cells': .*{said}"):
        connect(office)
    assert len(office.gateway.projects()) == 1
    with pytest.raises(StoreError, match="run: ls-propagate connect"):
        pipeline.connection_of(office.store)


def test_another_project_in_the_same_data_folder_is_refused(office):
    connect(office)
    config = office.gateway.project(office.project).label_config
    other = office.gateway.create_project("other", config, "", {}).id
    with pytest.raises(StoreError, match=r"connected to project 1 \(cells\) at http://fake; set another data_dir"):
        connect(office, str(other))
    assert pipeline.connection_of(office.store).project == office.project


def test_the_same_server_at_another_address_is_known_again(office):
    made = connect(office)
    office.gateway.url = "http://moved"
    moved = connect(office)
    assert (moved.server, moved.pages, moved.crops) == ("http://moved", made.pages, made.crops)


def test_a_project_of_the_same_number_on_another_server_is_refused(office, make_office):
    connect(office)
    elsewhere = make_office()
    assert elsewhere.project == office.project
    with pytest.raises(StoreError, match="set another data_dir"):
        pipeline.connect(elsewhere.gateway, office.store, "cells")
    assert len(elsewhere.gateway.projects()) == 1


def test_a_campaign_connected_before_there_was_a_board_goes_on_without_one(office):
    office.prepared()
    known = office.store.fact("connection")
    board = known.pop("board")
    office.store.remember(connection=known)
    assert pipeline.connection_of(office.store).board is None
    assert pipeline.open_daemon(office.gateway, office.store, office.settings).step().pages
    assert not list(office.gateway.tasks(board, []))
    assert connect(office).board == board


# detect


def test_detection_finds_the_masks_of_the_pool(office):
    connect(office)
    table, unreadable = detect(office)
    assert (len(table), len(table.images), unreadable) == (24, 2, [])
    assert table.features["shape"].shape == (24, 6)
    assert table.model_version.startswith("precomputed-")
    stored = pipeline.load_table(office.store, office.settings)
    assert stored.ids.tolist() == table.ids.tolist()
    assert [task.image for task in office.store.source_tasks()] == table.images.tolist()


def test_detecting_again_changes_nothing(office):
    connect(office)
    detect(office)
    folder, tasks = office.store.fact("table"), office.store.source_tasks()
    detect(office)
    assert (office.store.fact("table"), office.store.source_tasks()) == (folder, tasks)
    assert len(list(office.settings.artefacts.iterdir())) == 1


def test_an_image_that_a_person_annotated_is_not_in_the_pool(office):
    connect(office)
    task, _ = office.gateway.tasks(office.project, ["data"])
    office.gateway.submit(task["id"], [])
    table, _ = detect(office)
    assert len(table.images) == 1
    assert len(table) == 12


def test_images_that_cannot_be_read_are_all_named_and_nothing_is_stored(make_office):
    office = make_office(images=("a.png", "b.png", "c.png", "d.png"), broken=("b.png", "d.png"))
    connect(office)
    with pytest.raises(ImageError, match=r"2 of 4 images.*--skip-unreadable:(\n.*)*-b\.png(.*\n.*)*-d\.png"):
        detect(office)
    assert office.store.source_tasks() == []
    assert not office.settings.artefacts.exists()
    with pytest.raises(StoreError, match="run: ls-propagate detect"):
        cluster(office)


def test_images_that_cannot_be_read_are_left_out_on_demand(make_office):
    office = make_office(broken=("b.png",))
    connect(office)
    table, unreadable = detect(office, skip_unreadable=True)
    assert [image.rsplit("-")[-1] for image in table.images] == ["a.png"]
    assert len(unreadable) == 1
    assert "b.png" in str(unreadable[0])


def test_an_empty_project_is_refused(make_office):
    office = make_office(images=())
    connect(office)
    with pytest.raises(ConfigError, match="none of its 0 tasks has an image in 'image'; import images first"):
        detect(office)


def test_a_category_without_a_label_is_refused_with_the_way_out(make_office):
    office = make_office(categories=("x", "y"))
    connect(office)
    with pytest.raises(ConfigError, match=r"no label for the predicted category 'y'; .*'Y', 'x'.*\[labels\]"):
        detect(office)
    assert office.store.fact("table") is None
    table, _ = detect(office, settings=office.changed(labels={"y": "Y"}))
    assert table.categories == ("x", "y")


def test_without_a_segmenter_there_is_nothing_to_detect_with(office):
    connect(office)
    with pytest.raises(SettingsError, match=r"no segmenter is set; add \[segmenter\]"):
        detect(office, settings=office.changed(segmenter=None))


def test_a_segmenter_whose_files_are_not_there_is_refused(office, tmp_path):
    connect(office)
    (tmp_path / "coco.json").unlink()
    with pytest.raises(SettingsError, match=r"setting segmenter\.images: there is no .*coco\.json"):
        detect(office)


@pytest.mark.parametrize("step", [detect, cluster])
def test_steps_before_connecting_say_to_connect(office, step):
    with pytest.raises(StoreError, match="no project is connected; run: ls-propagate connect PROJECT"):
        step(office)


# cluster


def test_clustering_before_detecting_says_to_detect(office):
    connect(office)
    with pytest.raises(StoreError, match="no table yet; run: ls-propagate detect"):
        cluster(office)


def test_each_category_gets_a_tree_and_each_image_a_prediction(office):
    office.prepared()
    trees = pipeline.load_trees(office.store, office.settings)
    assert {tree.category: len(tree) for tree in trees} == {"x": 16, "Y": 8}
    for task in office.gateway.tasks(office.project, ["predictions"]):
        assert [len(prediction["result"]) for prediction in task["predictions"]] == [12]


def test_clustering_again_changes_nothing(office):
    office.prepared()
    events = office.store.events()
    trees, pushed = cluster(office)
    assert (len(trees), pushed) == (2, 0)
    assert office.store.events() == events
    assert len(list(office.settings.artefacts.iterdir())) == 2
    for task in office.gateway.tasks(office.project, ["predictions"]):
        assert len(task["predictions"]) == 1


def test_a_campaign_keeps_the_masks_that_it_began_with(office, tmp_path):
    office.prepared()
    (tmp_path / "predictions.json").write_text("[]")
    table, _ = detect(office)
    assert len(table) == 24


def test_images_without_any_mask_make_a_campaign_with_nothing_to_ask(make_office):
    office = make_office(masks=0).prepared()
    step = pipeline.open_daemon(office.gateway, office.store, office.settings).step()
    assert step.finished
    assert exported(office)["annotations"] == []


# the campaign


def test_syncing_before_clustering_says_to_cluster(office):
    connect(office)
    detect(office)
    with pytest.raises(StoreError, match="no trees yet; run: ls-propagate cluster"):
        pipeline.open_daemon(office.gateway, office.store, office.settings)


def test_another_strategy_than_the_campaign_began_with_is_refused(office):
    office.prepared()
    other = replace(office.settings.strategy, samples=7)
    with pytest.raises(SettingsError, match=r"began with the strategy .*'samples': 6.*another data_dir"):
        pipeline.open_campaign(office.store, office.changed(strategy=other))


def test_a_category_whose_label_was_taken_away_is_refused(office):
    office.prepared()
    held = office.gateway._projects[office.project]
    without = held.label_config.replace('<Label value="Y"/>', "")
    office.gateway._projects[office.project] = type(held)(held.id, held.title, without)
    with pytest.raises(ConfigError, match="no label for the predicted category 'Y'"):
        pipeline.open_daemon(office.gateway, office.store, office.settings)


def test_the_whole_job_leaves_one_annotation_an_image_with_the_right_masks(office):
    office.prepared().finished()
    for task in office.gateway.tasks(office.project, ["annotations", "result"]):
        (annotation,) = task["annotations"]
        labels = {label for region in annotation["result"] for label in region["value"]["polygonlabels"]}
        assert (len(annotation["result"]), labels) == (8, {"x"})


# export


def exported(office):
    """The export, read again; it says how much is in it."""
    file = io.StringIO()
    campaign = pipeline.open_campaign(office.store, office.settings)
    counts = pipeline.export_coco(campaign, office.store.source_tasks(), file)
    made = json.loads(file.getvalue())
    assert file.getvalue() == json.dumps(made)
    assert counts == (len(made["annotations"]), len(made["images"]))
    return made


def load_coco(tmp_path, made):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(made))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def test_the_export_holds_just_the_accepted_masks(office, tmp_path, recwarn):
    office.prepared().finished()
    campaign = pipeline.open_campaign(office.store, office.settings)
    dataset = exported(office)
    loaded = load_coco(tmp_path, dataset)
    made = loaded.loadAnns(loaded.getAnnIds())
    assert {one["attributes"]["mask_id"] for one in made} == set(campaign.table.ids[campaign.accepted()].tolist())
    assert [category["name"] for category in loaded.loadCats(loaded.getCatIds())] == ["x", "Y"]
    assert {one["category_id"] for one in made} == {1}
    assert sorted(image["file_name"].rsplit("-")[-1] for image in dataset["images"]) == ["a.png", "b.png"]
    written = {
        task["id"]: {mask_of(region) for region in task["annotations"][0]["result"]}
        for task in office.gateway.tasks(office.project, ["annotations", "result"])
    }
    for image in loaded.getImgIds():
        here = loaded.loadAnns(loaded.getAnnIds(imgIds=[image]))
        assert {one["attributes"]["mask_id"] for one in here} == written[image]
    for one in made:
        assert one["area"] == 25
        assert one["bbox"][2:] == [5, 5]
        assert one["attributes"]["cluster"].startswith("x/")
        assert one["attributes"]["decision"].partition("/")[0] in {"cluster", "page"}
        assert set(one["attributes"]) == {"mask_id", "campaign", "cluster", "decision", "verified", "estimate"}
        assert loaded.annToRLE(one)["size"] == [32, 32]


def test_images_of_one_name_in_two_folders_stay_two_in_the_export(make_office, tmp_path):
    names = ("train/a.png", "val/a.png", "val/größe 1%20.png")
    office = make_office(images=names, storage="s3://bucket/set/").prepared().finished()
    made = exported(office)
    assert [(image["file_name"], image["key"]) for image in made["images"]] == [
        (name, f"s3://bucket/set/{name}") for name in names
    ]
    loaded = load_coco(tmp_path, made)
    assert [len(loaded.getAnnIds(imgIds=[image])) for image in loaded.getImgIds()] == [8, 8, 8]


def test_a_campaign_that_accepted_nothing_exports_an_empty_dataset(office, tmp_path):
    office.prepared()
    loaded = load_coco(tmp_path, exported(office))
    assert (loaded.getAnnIds(), loaded.getImgIds()) == ([], [])


def test_predictions_of_other_images_are_refused(make_office, tmp_path):
    office = make_office()
    pipeline.connect(office.gateway, office.store, str(office.project))
    file = tmp_path / "coco.json"
    file.write_text(file.read_text().replace(".png", ".tif"))
    with pytest.raises(InputError, match=r"2 of 2 images of the project are not in .*coco\.json"):
        pipeline.detect(office.gateway, office.store, office.settings)
    assert office.store.fact("table") is None


def test_images_without_an_entry_are_told_and_get_no_masks(make_office, tmp_path, caplog):
    office = make_office()
    pipeline.connect(office.gateway, office.store, str(office.project))
    file = tmp_path / "coco.json"
    file.write_text(file.read_text().replace("b.png", "c.png"))
    table, _ = pipeline.detect(office.gateway, office.store, office.settings)
    assert len(table) == 12
    assert "1 of 2 images of the project are not in" in caplog.text


# the way to ask, and examples


def test_a_project_is_made_for_the_way_to_ask_and_the_way_stays(office):
    made = pipeline.connect(office.gateway, office.store, "cells", "context")
    assert made.ask == "context"
    project = office.gateway.project(made.pages)
    assert project.label_config == config_of("context")
    assert "verify_context" in project.description
    with pytest.raises(StoreError, match="asks by ask = 'context'"):
        connect(office)


def test_connecting_again_brings_the_pages_labeling_config_up_to_date(office):
    made = connect(office)
    office.gateway.set_label_config(made.pages, "<View>of an earlier version</View>")
    assert connect(office) == made
    assert office.gateway.project(made.pages).label_config == config_of("page")
    office.gateway.calls.clear()
    connect(office)
    assert "set_label_config" not in office.gateway.calls


def test_a_daemon_does_not_post_what_the_project_cannot_show(office):
    office.prepared()
    made = pipeline.connection_of(office.store)
    office.gateway.set_label_config(made.pages, "<View/>")
    with pytest.raises(SettingsError, match="run: ls-propagate connect 1"):
        pipeline.open_daemon(office.gateway, office.store, office.settings)


def test_a_daemon_asks_as_the_project_was_connected(office):
    office.prepared()
    with pytest.raises(SettingsError, match="asks by ask = 'page'"):
        pipeline.open_daemon(office.gateway, office.store, office.changed(ask="single"))


def test_an_expert_draws_a_sample_in_a_project_of_its_own(make_office):
    office = make_office().prepared().finished()
    with pytest.raises(InputError, match="--sample"):
        pipeline.quality(office.gateway, office.store, office.settings)
    first = pipeline.quality(office.gateway, office.store, office.settings, 5)
    assert (first["sample"], first["total"]["drawn"]) == (5, 0)
    project = int(first["address"].split("/projects/")[1].split("/")[0])
    tasks = list(office.gateway.tasks(project, ["data"]))
    assert len(tasks) == 5
    none = {"from_name": "none", "to_name": "image", "type": "choices", "value": {"choices": ["none"]}}
    office.gateway.submit(tasks[0]["id"], [none])
    again = pipeline.quality(office.gateway, office.store, office.settings)
    assert again["address"] == first["address"]
    assert (again["total"]["drawn"], again["total"]["sq"]) == (1, 0.0)
    assert len(list(office.gateway.tasks(project, ["data"]))) == 5
    with pytest.raises(InputError, match="--new"):
        pipeline.quality(office.gateway, office.store, office.settings, 6)
    other = pipeline.quality(office.gateway, office.store, office.settings, 6, new=True)
    assert other["address"] != first["address"]
    assert len(quality_lines(other)) == 2
    assert quality_table(other).row_count == 2


# gold


@pytest.fixture
def with_gold(make_office, box):
    """An office in whose project two images are annotated: half of what is predicted there is right."""
    office = make_office(images=("a.png", "b.png", "c.png", "d.png"))
    office = replace(office, settings=office.changed(gold_share=0.25))
    labeling = read_labeling(CONFIG, ("x", "Y"), {}, "cells")
    for task in list(office.gateway.tasks(office.project, ["data"]))[2:]:
        drawn = []
        for place in range(0, 12, 2):
            rle = box(place % 4 * 8 + 1, place // 4 * 8 + 1, 5, 5)
            drawn += regions_of(f"{place:020x}", rle, "x" if place < 8 else "Y", 1.0, {}, labeling)
        drawn = [{name: value for name, value in region.items() if name != "meta"} for region in drawn]
        office.gateway.submit(task["id"], drawn)
    return office


def test_gold_is_made_of_what_people_annotated(with_gold):
    office = with_gold.prepared()
    known = pipeline.load_gold(office.store, office.settings)
    table = pipeline.load_table(office.store, office.settings)
    assert not set(known.table.ids.tolist()) & set(table.ids.tolist())
    assert set(known.table.images.tolist()) & set(table.images.tolist()) == set()
    predicted = known.table.score != 0.5
    assert (predicted & known.right).sum() == 12
    assert (predicted & ~known.right).sum() == 12
    made = {
        (str(c), bool(r)) for c, r in zip(known.table.category[~predicted], known.right[~predicted], strict=True)
    }
    assert ("0", False) in made
    started = next(iter(office.store.stream()))
    assert started.gold == known.fingerprint


def test_nothing_in_a_task_tells_gold_from_the_rest(with_gold):
    office = with_gold.prepared()
    daemon = pipeline.open_daemon(office.gateway, office.store, office.settings)
    daemon.step()
    known = pipeline.load_gold(office.store, office.settings).truth
    pages = pipeline.connection_of(office.store).pages
    tasks = list(office.gateway.tasks(pages, ["data"]))
    seen = 0
    for task in tasks:
        assert set(task["data"]) == {"question", "page", "crops", "examples"}
        for crop in task["data"]["crops"]:
            seen += crop["alias"] in known
            assert set(crop) == {"value", "alias", "hotkey", "html"}
            assert len(crop["alias"]) == 20
            assert crop["html"].startswith('<img src="/data/upload/')
        pictures = {crop["html"].partition(" style=")[0] for crop in task["data"]["crops"]}
        assert len(pictures) == 1
        assert f"{task['data']['page']}.jpg" in pictures.pop()
        assert "gold" not in str(task)
    assert seen == sum(len(page.issued.gold) for page in daemon.campaign.pages.values()) > 0


def test_a_campaign_with_gold_runs_to_its_end_counts_it_and_replays(with_gold):
    office = with_gold.prepared().finished()
    campaign = pipeline.open_campaign(office.store, office.settings)
    assert campaign.measured
    assert campaign.team[2].shown.wrong > 0
    assert campaign.gold.right + campaign.gold.wrong == sum(len(p.issued.gold) for p in campaign.pages.values())


def test_without_annotated_images_there_is_no_gold(office):
    assert pipeline.load_gold(office.prepared().store, office.settings) is None
    assert not pipeline.open_campaign(office.store, office.settings).measured
    with pytest.raises(SettingsError, match=r"annotate some images in the project, set gold_share"):
        rates_of_gold(office)


def rates_of_gold(office):
    strategy = CalibratedStrategy(rates="gold")
    with pipeline.writing(office.store):
        other = replace(office, settings=office.changed(strategy=strategy))
    other.store.begun = lambda: False
    cluster(other)


def test_without_a_share_there_is_no_gold(with_gold):
    bare = replace(with_gold, settings=with_gold.changed(gold_share=0.0)).prepared()
    assert pipeline.load_gold(bare.store, bare.settings) is None
    assert not pipeline.open_campaign(bare.store, bare.settings).measured
