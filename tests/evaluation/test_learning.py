"""The learning suite: its numbers are those of the measures' definitions, and the command ends in tables and curves."""

from __future__ import annotations

import json
import runpy

import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.evaluation import command, learning, learning_report
from ramen_jax.evaluation.encoders import Raw
from tests import exported
from tests.conftest import REPOSITORY

parse = runpy.run_path(str(REPOSITORY / "ramen_jax" / "evaluate.py"))["parse"]


class Corner:
    """An encoder whose features are where a token lies in its tile, and one band."""

    name = "corner"

    def levels(self, samples, sensors, target_gsd, series):
        found = []
        for raw in Raw().levels(samples, sensors, target_gsd, series):
            where = np.stack(np.indices(raw.shape[1:3]), -1)[None] * 1.0
            found.append(np.concatenate([where, raw[-1:, ..., :1]], -1))
        return found


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A handful of places."""
    for name, count in (("FITTED", 8), ("ASKED", 4), ("WIDE_PLACES", 1)):
        monkeypatch.setattr(learning, name, count)
    for cached in (learning._rendered, learning._wide):
        cached.cache_clear()
    yield
    for cached in (learning._rendered, learning._wide):
        cached.cache_clear()


def test_raw_bands_are_the_same_in_two_tilings_and_a_tile_s_corner_is_not():
    """(Mutants: windows cut at the wrong pixel; the overlap taken from the wrong corner.)"""
    ground = learning.places(0, None)
    found = {}
    for encoder in (Raw(), Corner()):
        results = {r["measure"]: r for r in learning._without_labels(ground, encoder, 12.8)}
        found[encoder.name] = results["tilings"]["lowest"], results["position"]["share"]
    assert found["raw"][0] == pytest.approx(1, abs=1e-6)
    assert found["corner"][0] < 0.9
    assert found["corner"][1] > 0.5 > found["raw"][1]


def test_a_missing_sensor_is_filled_in_at_its_own_features():
    """A sensor that is nothing but its mean is missed by nobody. (Mutant: filled in at another sensor's place.)"""
    ground = learning.places(0, None)
    for sample in ground.samples:
        for name in ("s2", "dem"):
            sample.images[name].values[:] = 7
    whole = next(iter(learning._linear(ground, [Raw()], 12.8, (1.0,))))
    missing = {r["without"]: r["mIoU"] for r in learning._missing(ground, Raw(), 12.8)}
    assert set(missing) == set(ground.spec.declared)
    assert missing["s2"] == missing["dem"] == whole["mIoU"]
    assert missing["aerial"] != whole["mIoU"]


def test_seeds_are_other_places():
    first, second = (learning.places(seed, None) for seed in (0, 1))
    assert not set(first.numbers) & set(second.numbers)
    assert not np.array_equal(first.samples[0].images["dem"].values, second.samples[0].images["dem"].values)


def test_the_command_ends_in_tables_numbers_and_curves(tmp_path, capsys):
    """With a checkpoint beside the baselines, over labels."""
    model, out = exported.folder(tmp_path / "tiny", "fixed"), tmp_path / "out"
    words = ["--suite", "learning", "--checkpoint", str(model), "--workdir", str(out)]
    assert command.run(parse([*words, "--seeds", "0", "--target-gsd", "12.8", "--labels", "0.5,1"])) == 0
    results = json.loads((out / "results.json").read_text())
    linear = [r for r in results if r["measure"] == "linear"]
    assert {r["encoder"] for r in linear} == {"raw", "untrained", "tiny", "raw and untrained", "raw and tiny"}
    assert {(r["target_gsd"], r["places"]) for r in linear} == {(12.8, 4), (12.8, 8)}
    assert all(0 < r["mIoU"] < 1 and 0 < r["accuracy"] <= 1 for r in linear)
    assert {r["measure"] for r in results} == {"linear", "neighbours", "position", "missing", "tilings"}
    assert {path.name for path in out.iterdir()} == {"results.json", "table.md", "curves.png"}
    shown = capsys.readouterr().out
    assert (out / "table.md").read_text().strip() in shown
    assert "| 12.8 m | 8 |" in shown
    assert "| raw bands and untrained encoder | raw bands and pretrained (tiny) |" in shown


def test_a_table_gives_mean_and_spread_over_the_seeds():
    """(Mutant: the spread of the population.)"""
    of = {"measure": "linear", "encoder": "raw", "target_gsd": 6.4, "places": 70, "accuracy": 0.5}
    results = [{**of, "seed": seed, "mIoU": value} for seed, value in enumerate((0.1, 0.2, 0.3))]
    assert "| 6.4 m | 70 | 0.200 ± 0.100 |" in learning_report.table(results)
    assert "| 6.4 m | 70 | 0.100 |" in learning_report.table(results[:1])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--suite", "lerning"], "no suite 'lerning'; did you mean \"learning\""),
        (["--suite", "learning", "--target-gsd", "100"], "a place of 51.2 m has no token"),
        (["--suite", "learning", "--seeds", "x"], "--seeds x: expected numbers"),
        (["--suite", "learning", "--labels", "2"], "--labels holds 2"),
        (["--task", "mados"], "--data is missing"),
    ],
)
def test_what_wrong_words_get(words, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        command.run(parse([*words, "--workdir", str(tmp_path / "out")]))
