"""Simulations from files: what is read and refused, the ablation's curves, and the forecast of a campaign."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from ls_propagate import pipeline
from ls_propagate.simulation import (
    BLIND,
    ENOUGH_VERDICTS,
    ROWS,
    ablation,
    choose_strategy,
    forecast,
    measured_seconds,
    plausible,
    read_masks,
    trees_of,
)
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import UNASKED, Campaign
from propagation.errors import InputError, MaskError, SettingsError
from propagation.events import PageAnswered
from propagation.paper import PaperStrategy
from propagation.simulate import World, simulate


def as_coco(rle):
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.fixture
def prediction(box):
    """One entry of a results list; others on top."""

    def make(left=1, score=0.9, **given):
        entry = {
            "image_id": 7,
            "category_id": 2,
            "segmentation": as_coco(box(left, 1, 5, 5)),
            "score": score,
            "iou": 0.5,
        }
        return {key: value for key, value in {**entry, **given}.items() if value is not ...}

    return make


@pytest.fixture
def write(tmp_path):
    """A file of JSON, or of an array."""

    def make(name, content):
        path = tmp_path / name
        if name.endswith(".npy"):
            np.save(path, content)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(json.dumps(content).encode()))
        else:
            path.write_text(json.dumps(content))
        return path

    return make


@pytest.fixture
def truth(box):
    """A ground truth with one object and one crowd."""
    return {
        "images": [{"id": 7, "file_name": "seven.png", "height": 32, "width": 32}],
        "categories": [{"id": 2, "name": "cell"}, {"id": 1, "name": "dot"}],
        "annotations": [
            {"image_id": 7, "category_id": 2, "segmentation": as_coco(box(1, 1, 5, 5)), "iscrowd": 0},
            {"image_id": 7, "category_id": 2, "segmentation": as_coco(box(20, 1, 5, 5)), "iscrowd": 1},
        ],
    }


# reading


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_predictions_that_bear_iou_need_no_ground_truth(write, prediction, name):
    table, iou = read_masks(write(name, [prediction(1, iou=0.25), prediction(10, iou=1, category_id="x")]))
    assert table.categories == ("2", "x")
    assert table.images.tolist() == ["7"]
    assert iou.tolist() == [0.25, 1.0]
    assert {"shape", "mask"} <= set(table.features)


def test_categories_without_names_are_in_the_order_of_their_numbers(write, prediction):
    table, _ = read_masks(write("p.json", [prediction(4 * n, category_id=n) for n in (1, 5, 2)]))
    assert table.categories == ("1", "2", "5")


def test_the_ground_truth_names_images_and_categories_and_says_what_is_right(write, prediction, truth):
    entries = [prediction(1, iou=...), prediction(20, iou=...), prediction(1, iou=..., category_id=1)]
    table, iou = read_masks(write("p.json", entries), None, write("t.json", truth))
    assert table.categories == ("dot", "cell")
    assert table.images.tolist() == ["seven.png"]
    assert iou.tolist() == [1.0, 0.0, 0.0]  # a crowd and another category are no match


@pytest.mark.parametrize("counts", ["text", "list"])
def test_every_way_to_write_a_mask_is_the_same_mask(write, prediction, truth, counts):
    square = [1, 1, 6, 1, 6, 6, 1, 6]
    inside = [33] + [5, 27] * 4 + [5, 32 * 32 - 33 - 5 * 5 - 27 * 4]
    ways = {"text": prediction()["segmentation"], "list": {"size": [32, 32], "counts": inside}}
    entries = [prediction(segmentation=ways[counts]), prediction(segmentation=[square], score=0.8)]
    table, iou = read_masks(write("p.json", entries), None, write("t.json", truth))
    assert len(table) == 1
    assert iou.tolist() == [1.0]


def test_iou_and_features_stay_with_their_mask_where_one_is_found_twice(write, prediction):
    entries = [
        prediction(1, 0.5, iou=0.1),
        prediction(10, 0.6, iou=0.2),
        prediction(1, 0.9, iou=0.3),
        prediction(1, 0.9, iou=0.4),
        prediction(20, 0.4, iou=0.5, image_id=3),
        prediction(20, 0.7, iou=0.6),
    ]
    features = np.arange(6, dtype=np.float32)[:, None] * [1, 10]
    table, iou = read_masks(write("p.json", entries), write("f.npy", features))
    kept = {round(float(value), 1): int(row[0]) for value, row in zip(iou, table.features["deep"], strict=True)}
    assert kept == {0.2: 1, 0.3: 2, 0.5: 4, 0.6: 5}
    assert len(table) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_id": ...}, "prediction 1: it has no image_id"),
        ({"category_id": ...}, "prediction 1: it has no category_id"),
        ({"segmentation": ...}, "prediction 1: it has no segmentation"),
        ({"score": ...}, "prediction 1: it has no score"),
        ({"iou": ...}, 'prediction 1: it has no "iou"; add it to each prediction, or name a --ground-truth'),
        ({"image_id": [1]}, "prediction 1: image_id [1] is neither a number nor text"),
        ({"score": float("nan")}, "prediction 1: the score nan is not in [0, 1]"),
        ({"score": 1.5}, "prediction 1: the score 1.5 is not in [0, 1]"),
        ({"score": "0.5"}, "prediction 1: the score '0.5' is not in [0, 1]"),
        ({"iou": -1}, "prediction 1: the iou -1 is not in [0, 1]"),
        ({"segmentation": {"size": [32, 32], "counts": "1"}}, "prediction 1: the runs cover"),
        ({"segmentation": [[1, 1, 6, 1, 6, 6]]}, "polygons need the height and width"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 3]}}, "2 x 2 pixels, image 7 32 x 32"),
        ({"segmentation": {"size": [32, 32], "counts": [1024]}}, "prediction 1: the mask is empty"),
    ],
)
def test_a_prediction_that_cannot_be_used_is_named(write, prediction, wrong, said):
    file = write("p.json", [prediction(), prediction(10, **wrong)])
    with pytest.raises(MaskError) as error:
        read_masks(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [({"images": []}, "is not a list"), ([], "holds no predictions"), ([3], "prediction 0: it is not an object")],
)
def test_a_file_that_is_no_results_list_is_refused(write, content, said):
    with pytest.raises(MaskError, match=said):
        read_masks(write("p.json", content))


def test_missing_and_broken_files_are_named(tmp_path, write, prediction):
    with pytest.raises(MaskError, match=r"nowhere\.json is missing"):
        read_masks(tmp_path / "nowhere.json")
    (tmp_path / "half.json").write_text("[{")
    with pytest.raises(MaskError, match=r"half\.json cannot be read as JSON"):
        read_masks(tmp_path / "half.json")
    with pytest.raises(InputError, match=r"t\.json is missing"):
        read_masks(write("p.json", [prediction()]), None, tmp_path / "t.json")


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.zeros((3, 2), np.float32), "has 3 rows"),
        (np.array([[0.0, np.nan]]), "row 0"),
        (np.zeros(1), "one row of floats"),
    ],
)
def test_features_that_do_not_fit_are_refused(write, prediction, features, said):
    with pytest.raises(MaskError, match=said):
        read_masks(write("p.json", [prediction()]), write("f.npy", features))


@pytest.mark.parametrize("name", ["image_id", "category_id"])
def test_a_prediction_of_something_the_ground_truth_lacks_is_refused(write, prediction, truth, name):
    with pytest.raises(MaskError, match=rf"prediction 0: {name} 99 is not in .*t\.json"):
        read_masks(write("p.json", [prediction(**{name: 99})]), None, write("t.json", truth))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("annotations"), "is not a COCO ground truth"),
        (lambda t: t["images"].append({"id": 7, "file_name": "x"}), "two images"),
        (lambda t: t["categories"].append({"id": 9, "name": "cell"}), "two categories"),
        (lambda t: t["annotations"].append(3), "annotation 2: it is not an object"),
        (lambda t: t["annotations"][0].update(image_id=8), "annotation 0: image_id 8 is not among"),
        (lambda t: t["annotations"][0].update(category_id=8), "annotation 0: category_id 8 is not among"),
        (lambda t: t["annotations"][0].update(segmentation=None), "annotation 0 .*seven.png"),
        (lambda t: t["images"][0].update(height=16), "32 x 32 pixels, its image 16 x 32"),
    ],
)
def test_a_ground_truth_that_cannot_be_used_is_refused(write, prediction, truth, change, said):
    change(truth)
    with pytest.raises(InputError, match=said):
        read_masks(write("p.json", [prediction()]), None, write("t.json", truth))


# strategies


def test_the_paper_keeps_the_published_rule_unless_told_otherwise():
    rule = choose_strategy("paper", {"samples": "30"}, budget=10, target=0.9)
    assert (rule.whole_clusters, rule.queue, rule.clusters_a_round) == (True, "campaign", 1)
    assert (rule.samples, rule.budget, rule.accept_at) == (30, 10, 0.85)
    assert choose_strategy("paper", {"whole_clusters": "false", "queue": "category"}).whole_clusters is False


def test_what_is_set_wins_over_what_is_given():
    rule = choose_strategy("calibrated", {"target": "0.9", "budget": "none"}, target=0.8, budget=5)
    assert (rule.target, rule.budget) == (0.9, None)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("papr", {}, "no strategy 'papr'; there are calibrated, paper"),
        ("paper", {"sample": "3"}, "has no setting 'sample'; it has accept_at, .*samples"),
        ("paper", {"samples": "many"}, "samples=many: .*it has accept_at"),
        ("paper", {"split_below": "nan"}, "split_below=nan"),
        ("paper", {"seed": "3"}, "has no setting 'seed'"),
        ("calibrated", {"target": "2"}, "target is 2"),
    ],
)
def test_wrong_settings_are_named(name, given, said):
    with pytest.raises(SettingsError, match=said):
        choose_strategy(name, given)


# the ablation


@pytest.fixture(scope="module")
def world(table):
    """200 masks; those with a high score are mostly right."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0.3, 1.0, 200).astype(np.float32)
    made = table(score, features=np.column_stack([score, rng.random(200)]))
    iou = np.where(rng.random(200) < made.score**2, 0.9, 0.3).astype(np.float32)
    return World(made, trees_of(made, {"score": 1.0}), iou)


@pytest.fixture(scope="module")
def curves(world):
    small = PaperStrategy(samples=4, least_size=4, clusters_a_round=1, queue="campaign", whole_clusters=True)
    return ablation(world, replace(small, budget=80), CalibratedStrategy(budget=80), range(1))


def test_the_ablation_has_the_rows_of_the_paper_and_calibrated_in_each(curves):
    names = {row: [curve.name for curve in curves if curve.row == row] for row in ROWS}
    assert names["features"] == ["random", "score", "deep", "deep+score", "calibrated"]
    assert names["search"][:5] == ["threshold", "bfs", "dfs", "dfs+score", "score"]
    assert names["search"][5:] == ["dfs+score, true IoU", "score, true IoU", "calibrated"]
    assert names["K_pa"] == ["ask all", "0.5", "0.7", "0.9", "0.7, true IoU", "calibrated"]


def test_a_curve_never_exceeds_the_budget_and_counts_what_is_there(curves, world):
    for curve in curves:
        assert curve.questions.max() <= 80
        assert (np.diff(curve.clusters) >= 0).all()
        assert (curve.right <= curve.masks).all()
        assert curve.masks.max() <= len(world.table)
        assert np.isfinite(curve.quality).sum() == (curve.masks > 0).sum()


def test_the_row_of_k_pa_differs_from_the_base_in_nothing_but_k_pa(curves):
    named = {(curve.row, curve.name): curve for curve in curves}
    assert (named["K_pa", "0.7"].masks == named["search", "score"].masks).all()
    assert BLIND == {"split_below": 0.0}


# the forecast


@pytest.fixture
def begun(world):
    """A campaign with some rounds answered, and the truth that it was answered by."""

    def make(rounds, strategy=None, seconds=None):
        strategy = strategy or CalibratedStrategy(budget=120, least_size=4)
        campaign = Campaign(world.table, world.trees, strategy)
        for _ in range(rounds):
            for choice in campaign.decisions():
                campaign.apply(choice)
            for event in campaign.next_round():
                campaign.apply(event)
            for page in campaign.waiting_pages:
                verdicts = tuple("yes" if yes else "no" for yes in world.right[page.rows])
                campaign.apply(PageAnswered(page.issued.page, 1, "", 1, seconds, verdicts))
        return campaign

    return make


def test_before_any_verdict_the_scores_are_taken_for_probabilities(begun, world):
    campaign = begun(0)
    told = forecast(campaign, 2, processes=1)
    assert (told["learned_from"], told["verdicts"], told["questions_asked"]) == ("scores", 0, 0)
    assert [row["budget"] for row in told["budgets"]] == [60, 120, 240]
    right = np.mean(list(plausible(campaign, 40)), axis=0)
    assert np.corrcoef(right, world.table.score)[0, 1] > 0.6


def test_during_a_campaign_what_was_judged_stays_and_the_rest_is_learned(begun, world):
    campaign = begun(2)
    known = campaign.verdict != UNASKED
    assert known.sum() >= ENOUGH_VERDICTS
    for right in plausible(campaign, 3):
        assert (right[known] == world.right[known]).all()
    told = forecast(campaign, 2, processes=1)
    assert told["learned_from"] == "verdicts"
    for row in told["budgets"]:
        for span in (row["masks"], row["hours"]):
            assert 0 <= span["low"] <= span["high"]
        assert row["questions"]["high"] <= row["budget"]
    assert [row["questions_left"] is not None for row in told["budgets"]] == [False, True, False]
    assert told["budgets"][1]["questions_left"]["high"] <= 120 - campaign.questions_asked
    more = [row["questions"]["expected"] for row in told["budgets"]]
    assert more == sorted(more)


def test_the_same_answers_bring_the_same_campaign(begun, world):
    """The forecast goes on from where the campaign is, since the same seed asks the same questions."""
    campaign = begun(2)
    asked = []

    def look(simulated):
        asked.append({page.issued.questions for page in simulated.pages.values()})

    simulate(world, campaign.strategy, campaign.strategy.seed, look)
    assert {page.issued.questions for page in campaign.pages.values()} == asked[2]


def test_measured_seconds_win_over_those_given(begun):
    quick = PaperStrategy(samples=4, least_size=4, budget=40)
    campaign = begun(1, quick, seconds=60.0)
    answer = next(iter(campaign.pages.values())).answer
    assert measured_seconds(campaign) == pytest.approx(60 / len(answer.verdicts))
    told = forecast(campaign, 1, seconds=99.0, processes=1)
    assert told["seconds_measured"]
    assert told["seconds_a_question"] < 60
    assert not forecast(begun(1, quick), 1, seconds=99.0, processes=1)["seconds_measured"]


def test_without_a_budget_the_strategys_own_end_is_told_first(begun):
    told = forecast(begun(0, PaperStrategy(samples=4, least_size=4)), 2, processes=1)
    budgets = [row["budget"] for row in told["budgets"]]
    assert budgets[0] is None
    assert budgets[1] > budgets[2]
    assert told["claim"] == "estimate"


def test_the_forecast_of_a_connected_campaign(office):
    campaign = pipeline.open_campaign(office.prepared().store, office.settings)
    told = forecast(campaign, 2, processes=1)
    assert told["budgets"][0]["masks"]["high"] <= 24
