"""The exported one-file model and ours on the same odd inputs: the same features, or refused by both."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ramen_jax as rj
from ramen_jax.console import UserError
from ramen_jax.sensors import Sensor
from tests import exported

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'torch>=2.13,<3'")
torch_ramen = pytest.importorskip("ramen_jax.interchange.torch_ramen")

BANDS, DATES, SIDE, TARGET_GSD = 2, 3, 12, 20.0
HIDDEN = -9999.0
SENSORS = {
    name: Sensor.from_dict(
        {"name": name, "gsd": gsd, "bands": {"red": 665, "nir": 842}, "nodata": nodata}
    ).with_statistics([1500.0, 2500.0], [700.0, 900.0])
    for name, gsd, nodata in (("series", 10.0, HIDDEN), ("zero", 10.0, 0.0), ("bare", 10.0, None))
}


class Pair:
    """Ours and theirs; hypothesis prints it in one line."""

    def __init__(self, ours: Any, theirs: Any) -> None:
        self.models = (ours, theirs)

    def __iter__(self) -> Any:
        return iter(self.models)

    def __getitem__(self, index: int) -> Any:
        return self.models[index]


@pytest.fixture(scope="module", params=["reference", "fixed"])
def models(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = exported.folder(tmp_path_factory.mktemp("agree") / "tiny", request.param)
    return Pair(rj.load(folder), torch_ramen.load(folder))


def run_ours(
    model: Any, name: str, values: np.ndarray, days: Any, gsd: float = TARGET_GSD
) -> np.ndarray | None:
    with contextlib.suppress(UserError):
        return model.encode({name: rj.Image(values, days, SENSORS[name])}, gsd).maps[name]
    return None


def run_theirs(
    model: Any, name: str, values: np.ndarray, days: Any, gsd: float = TARGET_GSD
) -> np.ndarray | None:
    dates = None if days is None else {name: torch.tensor([days], dtype=torch.float64)}
    with contextlib.suppress(ValueError), torch.no_grad():
        given = {name: torch.from_numpy(np.ascontiguousarray(values))[None]}
        found = model(given, gsd, dates, sensors={name: SENSORS[name].to_dict()})
        return found.maps[name][0].float().numpy()
    return None


def pixels(seed: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).uniform(200, 4000, (DATES, BANDS, SIDE, SIDE)).astype(dtype)


NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, HIDDEN, 0.0, 65504.0, 1e6])
# (value, date or all, band or all, first row, first column, size)
BLOTS = st.tuples(
    NUMBERS,
    st.integers(-1, DATES - 1),
    st.integers(-1, BANDS - 1),
    *[st.integers(0, SIDE - 1)] * 2,
    st.integers(1, SIDE),
)
ORDINARY = st.lists(st.integers(0, 366), min_size=DATES, max_size=DATES)
ODD = st.lists(st.sampled_from([5, 100, 366, -3, 367, 1_577_836_800, 5.5]), min_size=DATES, max_size=DATES)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 9),
    name=st.sampled_from(sorted(SENSORS)),
    dtype=st.sampled_from(["float32", "float32", "float64", "float16", "int16", "int32", "uint8", "uint16"]),
    blots=st.lists(BLOTS, min_size=1, max_size=3),
    days=st.one_of(ORDINARY, ORDINARY, ORDINARY, ODD),
)
def test_odd_inputs_give_the_same_features_or_are_refused_by_both(models, seed, name, dtype, blots, days):
    """Catches a check of NaN alone, frames without a measurement that count, and days that are none."""
    values = pixels(seed).astype(dtype)
    for number, date, band, row, column, size in blots:
        if np.dtype(dtype).kind != "f" and not np.can_cast(np.min_scalar_type(number), dtype):
            continue
        where = (slice(None) if date < 0 else date, slice(None) if band < 0 else band)
        with np.errstate(over="ignore"):
            values[*where, row : row + size, column : column + size] = np.asarray(number).astype(dtype)
    ours, theirs = (
        run(model, name, values, days) for run, model in zip((run_ours, run_theirs), models, strict=True)
    )
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(theirs, ours, atol=2e-3)


def test_a_frame_without_a_measurement_is_left_out_by_both(models):
    values = pixels(0)
    values[1] = np.nan
    ours, theirs = (
        run_ours(models[0], "bare", values, [5, 100, 300]),
        run_theirs(models[1], "bare", values, [5, 100, 300]),
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    without = run_theirs(models[1], "bare", values[[0, 2]], [5, 300])
    np.testing.assert_allclose(theirs, without, atol=1e-4)


@pytest.mark.parametrize("gsd", [0.0, -1.0, np.nan, np.inf, 1e-4, 1e-320, 500.0])
def test_impossible_target_gsds_are_refused_by_both(models, gsd):
    for run, model in zip((run_ours, run_theirs), models, strict=True):
        assert run(model, "bare", pixels(0), [5, 100, 300], gsd) is None


def test_images_of_other_extents_are_refused_by_both(models):
    small = pixels(0)[:1, :, :6, :6]
    with pytest.raises(UserError, match="same ground"):
        models[0].encode(
            {
                "a": rj.Image(pixels(0)[:1], None, SENSORS["bare"]),
                "b": rj.Image(small, None, SENSORS["bare"]),
            },
            20.0,
        )
    described = {"a": SENSORS["bare"].to_dict(), "b": SENSORS["bare"].to_dict()}
    with pytest.raises(ValueError, match="same ground"):
        models[1](
            {"a": torch.from_numpy(pixels(0)[None, :1]), "b": torch.from_numpy(small[None])},
            20.0,
            sensors=described,
        )


@pytest.mark.parametrize("precision", ["half", "bfloat16", "autocast", "double", "to"])
def test_lower_precision_gives_the_same_features_to_its_own_rounding(models, tmp_path, precision):
    ours, theirs = models
    values, days = pixels(3), [5, 100, 300]
    values[:, :, :4, :4] = np.nan
    wanted = run_ours(ours, "series", values, days)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    model = torch_ramen.RamenEncoder(theirs.config).eval()
    model.load_state_dict(state)
    context: Any = contextlib.nullcontext()
    if precision == "autocast":
        context = torch.autocast("cpu", dtype=torch.bfloat16)
    elif precision == "to":
        model.to(torch.bfloat16)
    else:
        getattr(model, precision)()
    with context:
        found = run_theirs(model, "series", values, days)
    assert np.isfinite(found).all()
    cosine = (found * wanted).sum(0) / np.linalg.norm(found, axis=0) / np.linalg.norm(wanted, axis=0)
    assert cosine.min() > (0.9999 if precision in ("half", "double") else 0.995)


def test_complex_pixels_are_refused_by_both(models):
    values = pixels(0).astype(np.complex64)
    assert run_ours(models[0], "bare", values, [1, 2, 3]) is None
    assert run_theirs(models[1], "bare", values, [1, 2, 3]) is None
