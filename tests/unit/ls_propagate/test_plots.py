"""Plots: files that are pictures, also where there is little to draw."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ls_propagate.plots import draw_ablation, draw_hours, draw_simulation
from ls_propagate.simulation import ROWS, Curve, trees_of
from propagation.calibrated import CalibratedStrategy
from propagation.paper import PaperStrategy
from propagation.simulate import World, simulate


@pytest.fixture
def world(table):
    made = table(np.linspace(0.4, 0.99, 60), categories=np.arange(60) % 2, names=("a", r"$\frac$"))
    return World(made, trees_of(made), np.where(np.arange(60) < 40, 0.9, 0.1).astype(np.float32))


def pictures(files):
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert image.format == "PNG"
            assert np.ptp(np.asarray(image.convert("L"))) > 100  # something is drawn
    return [file.name for file in files]


@pytest.mark.parametrize("budget", [40, 0])
def test_a_simulation_is_drawn_even_where_nothing_was_accepted(world, tmp_path, budget):
    runs = [simulate(world, PaperStrategy(samples=4, least_size=4, budget=budget), seed) for seed in range(2)]
    files = draw_simulation(world, runs, tmp_path / "new")
    assert pictures(files) == ["masks.png", "precision.png", "yield.png"]
    assert not list((tmp_path / "new").glob("*.part"))


def test_many_categories_are_not_drawn_as_bars(world, tmp_path):
    wide = replace(world.table, categories=tuple(f"c{number}" for number in range(31)))
    many = replace(world, table=wide)
    runs = [simulate(world, PaperStrategy(budget=0), 0)]
    assert [file.name for file in draw_simulation(many, runs, tmp_path)] == ["masks.png", "precision.png"]


def curve(row, name, masks):
    values = np.array(masks, dtype=float)
    steps = np.arange(1.0, len(values) + 1)
    quality = np.where(values > 0, 0.8, np.nan)
    return Curve(row, name, steps, steps * 15, values / 100, values, values * 0.9, quality)


@pytest.mark.parametrize("masks", [[0, 0], [0, 200, 300]])
def test_the_ablation_and_the_hours_are_drawn(tmp_path, masks):
    curves = [curve(row, name, masks) for row in ROWS for name in ("score", CalibratedStrategy.name)]
    files = [draw_ablation(curves, PaperStrategy(), tmp_path), draw_hours(curves, tmp_path)]
    assert pictures(files) == ["ablation.png", "hours.png"]
    with Image.open(files[0]) as image:
        assert image.width == 1600
