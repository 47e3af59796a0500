"""Every trap changes something, in whatever way a corpus is named, and nothing else can contradict it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from ramen_jax import config as configuration
from ramen_jax import recipe as recipes
from ramen_jax.console import UserError
from ramen_jax.corpora import TRAP_OPTIONS, open_corpus, settings_of
from ramen_jax.corpora.preparation import describe, prepare
from ramen_jax.corpora.records import Prepared
from ramen_jax.earth.layouts import write_mmearth, write_worldstrat
from ramen_jax.interchange.source import departures
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import FIXED, FIXED_2, PREPARED, REFERENCE, TRAPS, Recipe
from ramen_jax.rows.batch import Rows
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.pipeline import StepSource
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.samples import Image
from tests.model.conftest import BANDS, SMALL, SPEC, build, make_view
from tests.rows.small_corpora import COASTS, COASTS_GSDS, SmallSource

BASE = REFERENCE.but(ltae_dropout=0.0, temporal="visible")


@pytest.fixture(scope="module")
def mmearth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MMEarth64 in its original layout."""
    folder = tmp_path_factory.mktemp("mmearth")
    write_mmearth(folder, places=12, seed=0)
    return folder


@pytest.fixture(scope="module")
def worldstrat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small WorldStrat in its original layout, with a place that is listed twice and one in two splits."""
    folder = tmp_path_factory.mktemp("worldstrat")
    write_worldstrat(folder, 5, seed=3, max_dates=2, pixels=214, quirks=True)
    return folder


def rows(recipe: Recipe) -> Rows:
    """Two views: a long series with an invalid half, a short one beside it."""
    long, short = make_view(1, 7.0, ("aerial", "s2"), dates=5), make_view(2, 7.0, ("aerial", "s2"), dates=2)
    image = long.sample.images["s2"]
    valid = np.ones((5, 6, 6), bool)
    valid[:, :, :3] = False
    long.sample.images["s2"] = Image(image.values, image.dates, image.present, valid)
    views = [[long], [short]]
    return pack(SPEC, views, exact_capacity(SPEC, views, recipe), recipe)


@cache
def arrays() -> tuple[Any, Any]:
    return build()[1:]


def loss(recipe: Recipe) -> float:
    """The training loss of the same rows with the same parameters, with a key for dropout."""
    ramen, (params, statistics), batch = Ramen(SMALL, recipe), arrays(), rows(BASE)

    def total(params: Any, statistics: Any) -> jax.Array:
        counts = ramen.counts(batch)
        key = jax.random.key(0)
        return ramen.loss(params, statistics, batch, BANDS, counts, train=True, key=key)[0]

    return float(jax.jit(total)(params, statistics))


def packed(recipe: Recipe) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(rows(recipe))]


def parameters(recipe: Recipe) -> list[str]:
    shapes = Ramen(SMALL, recipe).shapes[0]
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]


def step_rows(recipe: Recipe) -> list[bytes]:
    """A training step of a plan."""
    plan = Plan([PlannedCorpus(COASTS, 8, COASTS_GSDS)], seed=0, rows_per_step=1, recipe=recipe)
    batch = StepSource(plan, {"coasts": SmallSource(COASTS, 8)}).step(0)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(batch.rows)]


def begin(recipe: Recipe) -> list[float]:
    """What the last LayerNorms of a fresh decoder, of its tokens and of its bands, multiply by."""

    def scales() -> list[jax.Array]:
        decoder = Ramen(SMALL, recipe).init(jax.random.key(0))[0]["decoder"]
        norms = [decoder["norm"], decoder["temporal_norm"], decoder["projector"]["optical"]["norm"]]
        return [norm["scale"].mean() for norm in norms]

    return [float(scale) for scale in jax.jit(scales)()]


OBSERVED: dict[str, Callable[[Recipe], Any]] = {
    "target": loss,
    "time_mask": packed,
    "modality_embedding": parameters,
    "missing": loss,
    "encodings": loss,
    "sampling": packed,
    "positions": step_rows,
    "initialisation": begin,
    "temporal": packed,
    "ltae_dropout": loss,
}
OF_CORPORA = {  # what a prepared corpus shows of the others
    "statistics": lambda corpus: corpus.spec.modality("s2").sensor.std,
    "mmearth_wavelengths": lambda corpus: corpus.spec.modality("s2").sensor.bands,
    "mmearth_draw": lambda corpus: corpus.manifest["settings"]["draw"],
    "mmearth_zero_planes": lambda corpus: corpus.manifest["settings"]["zero_planes"],
}


OF_PLACES = {  # what the places that WorldStrat's reader lists show
    "worldstrat_repeats": lambda places: max(len(revisits) for revisits in places["train"].values()),
    "worldstrat_leaks": lambda places: sum(map(len, places.values())) - len(set().union(*places.values())),
}


def test_every_trap_is_observed_somewhere() -> None:
    assert OBSERVED.keys() | OF_CORPORA.keys() | OF_PLACES.keys() == TRAPS.keys()


@pytest.mark.parametrize("trap", OBSERVED)
def test_every_trap_of_model_and_packing_changes_something(trap: str) -> None:
    """(Mutant: any place that takes its own default instead of the recipe's value.)"""
    choices = [0.0, 0.5] if trap == "ltae_dropout" else [c for c in TRAPS[trap].choices if c is not float]
    found = [OBSERVED[trap](BASE.but(**{trap: choice})) for choice in choices]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert one != other, (trap, choices)


WAYS = ("kind", "spec", "yaml")
OPTIONS: dict[str, dict[str, Any]] = {
    "mmearth": {"modalities": ["dem", "s2", "s1"]},
    "worldstrat": {"spot_size": 214, "s2_size": 32, "splits": ["train", "val", "test"]},
}


def entry_of(kind: str, way: str, folder: Path, source: Path) -> dict[str, Any]:
    """The same corpus named by kind, by a shipped description, or by a YAML file of one's own in `folder`."""
    if way == "yaml":
        own = folder / "own.yaml"
        own.write_text(yaml.safe_dump({"kind": kind, "name": kind, **OPTIONS[kind]}))
        return {"name": kind, "source": str(source), "spec": str(own)}
    return {"name": kind, "source": str(source), way: kind, "options": OPTIONS[kind]}


@pytest.mark.parametrize("way", WAYS)
def test_every_trap_of_a_corpus_is_honoured_however_it_is_named(
    way: str, mmearth: Path, tmp_path: Path
) -> None:
    entry = entry_of("mmearth", way, tmp_path, mmearth)
    corpora = {
        recipe.mmearth_draw: Prepared(
            prepare(entry, tmp_path / recipe.mmearth_draw, recipe, workers=1), recipe=recipe
        )
        for recipe in (REFERENCE, FIXED)
    }
    for trap, shown in OF_CORPORA.items():
        reference, fixed = (shown(corpora[name]) for name in ("reference", "fixed"))
        assert reference != fixed, trap
    assert corpora["fixed"].manifest["settings"]["draw"] == "fixed"
    assert set(corpora["reference"].ids) & set(Prepared(tmp_path / "reference", "val").ids)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trap", OF_PLACES)
def test_the_traps_of_worldstrat_are_honoured_however_it_is_named(
    trap: str, way: str, worldstrat: Path, tmp_path: Path
) -> None:
    """(Mutant: descriptions by `spec` that keep the reader's own defaults.)"""
    entry = entry_of("worldstrat", way, tmp_path, worldstrat)
    found = {}
    for recipe in (REFERENCE, FIXED):
        for value in ("reference", "fixed"):
            description = describe(entry, recipe.but(**{trap: value}))
            found[recipe, value] = OF_PLACES[trap](open_corpus(description, worldstrat).places)
        assert found[recipe, "reference"] > found[recipe, "fixed"]


@pytest.mark.parametrize(("kind", "option"), [(k, o) for k, options in TRAP_OPTIONS.items() for o in options])
def test_no_other_knob_decides_a_trap(kind: str, option: str, tmp_path: Path) -> None:
    trap = TRAP_OPTIONS[kind][option]
    for value in ("reference", "fixed"):
        recipe = FIXED.but(**{trap: value})
        own = tmp_path / "own.yaml"
        own.write_text(f"kind: {kind}\n")
        for entry in ({"kind": kind}, {"spec": kind}, {"spec": str(own)}):
            assert settings_of(describe(entry, recipe))[option] == value
            contradicting = {**entry, "options": {option: "reference"}}
            with pytest.raises(
                UserError, match=rf"option {option} is decided by the recipe.*config\.traps\.{trap}"
            ):
                describe(contradicting, recipe)
        own.write_text(f"kind: {kind}\n{option}: {value}\n")
        with pytest.raises(UserError, match=f"option {option} is decided by the recipe"):
            describe({"spec": str(own)}, recipe)


@pytest.mark.parametrize("kind", TRAP_OPTIONS)
def test_a_folder_prepared_otherwise_is_refused_with_the_way_out(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    entry = entry_of(kind, "kind", tmp_path, request.getfixturevalue(kind))
    folder = prepare(entry, tmp_path / "prepared", FIXED, workers=1)
    for option, trap in TRAP_OPTIONS[kind].items():
        sentence = rf"\({option}: 'fixed' there, 'reference' asked for\).*\(config\.traps\.{trap}=fixed\)"
        with pytest.raises(UserError, match=sentence):
            prepare(entry, folder, FIXED.but(**{trap: "reference"}))
    told = REFERENCE.but(**dict.fromkeys(TRAP_OPTIONS[kind].values(), "fixed"))
    assert prepare(entry, folder, told) == folder


def test_the_traps_of_preparing_are_those_of_the_readers() -> None:
    assert sorted(PREPARED) == sorted(trap for options in TRAP_OPTIONS.values() for trap in options.values())


def test_a_recipe_comes_out_of_a_configuration_as_it_went_in() -> None:
    config = configuration.finish(configuration.default(), ["recipe=fixed", "traps.sampling=area"])
    assert configuration.recipe_of(config) == FIXED.but(sampling="area")
    assert Recipe.from_dict(FIXED.to_dict()) == FIXED
    assert hash(FIXED) != hash(REFERENCE)


def test_a_recipe_that_was_published_stays_as_it_was() -> None:
    """What later versions add has, in an earlier recipe, the value that leaves its numbers alone."""
    assert [trap.of("fixed-2") for trap in TRAPS.values()] == list(FIXED_2.to_dict().values())
    for recipe in (REFERENCE, FIXED):
        assert (recipe.positions, recipe.initialisation) == ("corner", "reference")
    differing = {key for key, value in FIXED_2.to_dict().items() if value != getattr(FIXED, key)}
    assert differing == {key for key, trap in TRAPS.items() if trap.fixed_2 is not None}
    older = {key: value for key, value in FIXED.to_dict().items() if key not in differing}
    assert Recipe.from_dict(older) == FIXED


def test_a_run_of_before_a_trap_was_named_goes_on_under_its_recipe() -> None:
    """(Mutant: a trap that an old config.json lacks counts as changed.)"""
    now = configuration.plain(configuration.finish(configuration.default(), ["recipe=fixed"]))
    then = {
        **now,
        "traps": {k: v for k, v in now["traps"].items() if k not in ("positions", "initialisation")},
    }
    assert configuration.differences(now, then) == []
    changed = configuration.plain(
        configuration.finish(configuration.default(), ["recipe=fixed", "traps.positions=random"])
    )
    assert configuration.differences(changed, then) == ["traps.positions: corner -> random"]


def test_random_positions_move_every_view_as_a_whole() -> None:
    """By whole metres, the tokens' distances unchanged. (Mutant: encoder and decoder moved apart.)"""
    corpora = [PlannedCorpus(COASTS, 8, COASTS_GSDS)]
    found = {}
    for positions in ("corner", "random"):
        recipe = FIXED.but(positions=positions)
        plan = Plan(corpora, seed=0, rows_per_step=1, recipe=recipe)
        found[positions] = StepSource(plan, {"coasts": SmallSource(COASTS, 8)}).step(0).rows
    corner, moved = found["corner"], found["random"]
    offsets = []
    for segment in range(1, int(corner.decoder_segment_RxL.max()) + 1):
        shifts = []
        for side, cls in (("encoder", corner.encoder_feature_RxE), ("decoder", corner.decoder_modality_RxL)):
            segments = getattr(corner, f"{side}_segment_Rx{'E' if side == 'encoder' else 'L'}")
            name = f"{side}_coords_Rx{'E' if side == 'encoder' else 'L'}x2"
            tokens = (segments == segment) & (cls >= 0)
            shifts.append((getattr(moved, name) - getattr(corner, name))[tokens])
        both = np.concatenate(shifts)
        np.testing.assert_allclose(both, np.broadcast_to(both[:1], both.shape), atol=2e-3)
        offsets.append(tuple(both[0]))
    assert len(set(offsets)) == len(offsets) > 1
    assert np.ptp(np.array(offsets)) > 100


def test_wrong_recipes_are_told() -> None:
    for make, sentence in (
        (
            lambda: Recipe.named("fixd"),
            "recipe is 'fixd', expected reference, fixed or fixed-2; did you mean \"fixed\"",
        ),
        (lambda: Recipe.named("fixed", samplng="area"), "no trap 'samplng'; did you mean \"sampling\""),
        (
            lambda: FIXED.but(sampling="aera"),
            "'aera', expected one of 'recipe', 'reference', 'metric', 'area'",
        ),
        (lambda: FIXED.but(ltae_dropout=1.0), "a share from 0 to below 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            make()


def test_the_readme_shows_the_table_of_traps(repository: Path) -> None:
    assert recipes.table() in (repository / "README.md").read_text()


def test_a_card_names_the_traps_that_differ_from_the_official_code() -> None:
    told = departures({"traps": FIXED.to_dict()}, decoder=True)
    assert told == [
        f"{trap} {getattr(FIXED, trap)} (official: {TRAPS[trap].reference})"
        for trap in ("sampling", "missing", "time_mask", "target")
    ]


def test_the_fields_of_a_recipe_are_the_traps() -> None:
    assert [field.name for field in dataclasses.fields(Recipe)] == list(TRAPS)
