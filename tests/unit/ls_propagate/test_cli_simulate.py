"""The commands simulate, simulate ablation and plan."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from typer.testing import CliRunner

from ls_propagate import cli


@pytest.fixture
def run():
    """Run the command line; what it said, and its error where it raised one."""

    def main(*arguments):
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    return main


@pytest.fixture
def files(tmp_path, box):
    """Predictions with IoU and features: 96 masks of two categories in 6 images, most of them right."""
    rng = np.random.default_rng(0)
    results = []
    for number in range(96):
        rle = box(number % 4 * 8 + 1, number // 4 % 4 * 8 + 1, 5, 5)
        score = float(rng.uniform(0.5, 1))
        results.append(
            {
                "image_id": number // 16,
                "category_id": number % 3 // 2,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "score": score,
                "iou": 0.9 if score > 0.6 else 0.2,
            }
        )
    (tmp_path / "p.json").write_text(json.dumps(results))
    np.save(tmp_path / "f.npy", rng.standard_normal((96, 4)).astype(np.float32))
    return tmp_path


SMALL = ["--set", "samples=4", "--set", "least_size=4"]


def test_a_simulation_tells_writes_and_draws(run, files):
    done = run(
        *("simulate", "--predictions", files / "p.json", "--features", files / "f.npy", "--strategy", "paper"),
        *("--budget", 60, "--seeds", 1, "--json", files / "new" / "out.json", "--plots", files / "drawn", *SMALL),
    )
    assert done.exit_code == 0, done.output
    told = json.loads((files / "new" / "out.json").read_text())
    assert set(told) >= {
        *("strategy", "settings", "predictions", "runs", "right_total", "yield", "masks_per_question"),
        *("promise_kept_rate", "accepted_nothing_rate", "seconds"),
    }
    assert (told["strategy"], told["predictions"], told["claim"]) == ("paper", 96, "estimate")
    assert told["settings"]["samples"] == 4
    assert told["settings"]["whole_clusters"]
    figures = {"questions", "accepted", "rejected", "right", "wrong_ever", "precision", "sq"}
    (only,) = told["runs"]
    assert set(only) >= {"seed", "categories", *figures}
    assert only["questions"] <= 60
    assert set(only["categories"]) == {"0", "1"}
    assert all(set(one) == figures for one in only["categories"].values())
    assert only["accepted"] == sum(one["accepted"] for one in only["categories"].values())
    assert {file.name for file in (files / "drawn").iterdir()} == {"masks.png", "precision.png", "yield.png"}
    assert not list((files / "new").glob("*.part"))
    said = " ".join(done.output.split())
    for words in ("total", "masks a question", "of 1 campaigns", "estimates", "1.4 s a question", "80 s each"):
        assert words in said


def test_options_reach_the_strategy_and_the_annotators(run, files):
    done = run(
        *("simulate", "--predictions", files / "p.json", "--budget", 50, "--seeds", 1, "--json", files / "o.json"),
        *("--target", 0.8, "--confidence", 0.9, "--scope", "category", "--gold", 0.2, "--miss", 0.1),
    )
    assert done.exit_code == 0, done.output
    settings = json.loads((files / "o.json").read_text())["settings"]
    chosen = {name: settings[name] for name in ("target", "confidence", "scope", "rates", "budget")}
    assert chosen == {"target": 0.8, "confidence": 0.9, "scope": "category", "rates": "gold", "budget": 50}


def test_a_strategy_that_takes_annotators_for_perfect_is_pointed_out(run, files):
    arguments = ["simulate", "--predictions", files / "p.json", "--budget", 20, "--seeds", 1, "--miss", 0.1]
    assert "takes them not to" in " ".join(run(*arguments).output.split())
    assert "takes them not to" not in " ".join(run(*arguments, "--set", "miss=0.1").output.split())


def test_the_ablation_draws_two_figures(run, files):
    done = run(
        *("simulate", "ablation", "--predictions", files / "p.json", "--features", files / "f.npy"),
        *("--plots", files / "drawn", "--seeds", 1, "--budget", 40, *SMALL),
    )
    assert done.exit_code == 0, done.output
    assert {file.name for file in (files / "drawn").iterdir()} == {"ablation.png", "hours.png"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate"], "--predictions"),
        (["simulate", "ablation", "--plots", "x"], "--predictions"),
        (["simulate", "--predictions", "p.json", "ablation", "--plots", "x"], "put the options after ablation"),
        (["simulate", "--predictions", "p.json", "--seeds", "0"], "--seeds"),
        (["simulate", "--predictions", "p.json", "--gold", "1"], "--gold"),
    ],
)
def test_a_wrong_call_is_exit_code_2(run, arguments, said):
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "samples"], "--set samples: write it as KEY=VALUE"),
        (["--set", "sample=3"], "no setting 'sample'"),
        (["--strategy", "best"], "no strategy 'best'"),
        (["--target", "1"], "strategy.target is 1"),
        (["--scope", "image"], "scope=image"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_read(run, given, said):
    done = run("simulate", "--predictions", "nowhere.json", *given)
    assert said in str(done.exception)


def test_every_option_of_the_ablation_is_explained(run):
    done = run("simulate", "ablation", "--help")
    assert done.exit_code == 0
    for option in cli.simulations.registered_commands[0].callback.__annotations__:
        assert option in done.output.replace("-", "_") or option in ("setting", "return")


# plan


@pytest.fixture
def configured(office, tmp_path):
    """The office's settings as a file, its campaign clustered."""
    office.prepared()
    segmenter = office.settings.segmenter
    strategy = {name: value for name, value in asdict(office.settings.strategy).items() if value is not None}
    lines = [
        f"data_dir = {json.dumps(str(office.settings.data_dir))}",
        "[segmenter]",
        'name = "precomputed"',
        f"predictions = {json.dumps(str(segmenter.predictions))}",
        f"images = {json.dumps(str(segmenter.images))}",
        "[strategy]",
        *(f"{name} = {json.dumps(value)}" for name, value in strategy.items()),
    ]
    (tmp_path / "ls-propagate.toml").write_text("\n".join(lines))
    return office


def test_before_anybody_is_asked_the_plan_says_that_it_only_has_the_scores(run, configured):
    done = run("plan", "--seeds", 1, "--seconds", 3)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    for words in (
        "Forecast",
        "mask scores are taken for probabilities",
        "3 s a question, as given",
        "not a promise",
    ):
        assert words in said


def test_the_plan_for_machines_is_json(run, configured):
    configured.finished()
    done = run("plan", "--seeds", 1, "--json")
    told = json.loads(done.stdout)
    assert told["kind"] == "forecast"
    assert told["accepted"] == 16
    for row in told["budgets"]:
        assert set(row) == {"budget", "masks", "right", "questions", "hours", "questions_left", "hours_left"}
        assert set(row["masks"]) == {"low", "expected", "high"}
    assert [row["questions_left"] is None for row in told["budgets"]] == [False, True, True]


def test_a_plan_without_a_campaign_says_what_to_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run: ls-propagate detect" in str(run("plan").exception)
