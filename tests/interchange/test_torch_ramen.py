"""The one-file PyTorch encoder: official numbers, masks, sensors, and life without JAX."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramen_jax import sampling

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'torch>=2.13,<3'")
torch_ramen = pytest.importorskip("ramen_jax.interchange.torch_ramen")
save_file = pytest.importorskip("safetensors.torch").save_file
TorchDispatchMode = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode
Band, FixedInput = torch_ramen.Band, torch_ramen.FixedInput
RamenEncoder, Sensor = torch_ramen.RamenEncoder, torch_ramen.Sensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 1e-4
SIZES = {"embed_dim": 64, "depth": 3, "num_heads": 4}
# Cases with stored BatchNorm statistics; the encoder never uses those of the batch.
RUNNING = ("case_1_flairhub_3m", "case_4_mmearth_70m", "case_6_worldstrat_7m")


def sensor(name: str, meanings: list[Any], gsd: float, **values: Any) -> Sensor:
    return Sensor(
        name, tuple(Band.of(f"band {i}", meaning) for i, meaning in enumerate(meanings)), gsd, **values
    )


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    weights = np.load(GOLDEN / "mae" / "weights.npz")
    return torch_ramen.encoder_state({key: torch.from_numpy(weights[key]) for key in weights.files})


@pytest.fixture(scope="module")
def model(state: dict[str, torch.Tensor]) -> RamenEncoder:
    encoder = RamenEncoder({"model": SIZES})
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


@pytest.fixture(scope="module")
def place() -> dict[str, Any]:
    """A rectangular place: one radar-and-elevation image, one series."""
    generator = torch.Generator().manual_seed(0)
    return {
        "images": {
            "mixed": torch.randn(2, 1, 3, 40, 20, generator=generator) * 3 + 5,
            "series": torch.randn(2, 3, 2, 8, 4, generator=generator),
        },
        "target_gsd": 20.0,
        "dates": {"series": torch.tensor([[10, 100, 200], [5, 6, 300]])},
        "sensors": {
            "mixed": sensor(
                "mixed", ["dsm", 665.0, "des_vh"], 2.0, mean=(5.0,) * 3, std=(3.0,) * 3, nodata=-9999.0
            ),
            "series": sensor("series", [490.0, 842.0], 10.0, mean=(0.0,) * 2, std=(1.0,) * 2),
        },
    }


@pytest.mark.parametrize("name", RUNNING)
def test_official_tokens(model: RamenEncoder, name: str) -> None:
    geometry = json.loads((GOLDEN / "mae" / "config.json").read_text())["geometry"]
    golden = np.load(GOLDEN / "mae" / f"{name}.npz")
    case = json.loads(str(golden["case"]))
    corpus = case["dataset"]
    sensors = {
        m: sensor(m, geometry["wavelengths"][corpus][m], geometry["modalities_res"][corpus][m])
        for m in case["modalities"]
    }
    scale = float(golden["input_scale"])
    images = {m: torch.from_numpy(golden[f"input/{m}"]).float() * scale for m in sensors}
    dates = {m: torch.from_numpy(golden[f"dates/{m}"]) for m in sensors}
    with torch.inference_mode():
        features = model(images, case["target_gsd"], dates, sensors=sensors, normalise=False)
    tokens = [features.cls[:, None], *(grid.flatten(2).transpose(1, 2) for grid in features.maps.values())]
    np.testing.assert_allclose(
        torch.cat(tokens, 1), golden["encoder_tokens_unmasked"], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", ["encoder_0", "encoder_1", "encoder_2"])
def test_official_pangaea_features(name: str) -> None:
    golden = np.load(GOLDEN / "pangaea" / f"{name}.npz")
    case = json.loads(str(golden["case"]))
    prefix = "weights/"
    state = {
        key[len(prefix) :]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith(prefix)
    }
    encoder = RamenEncoder({"model": {"num_heads": 4, **torch_ramen.sizes_of(state)}})
    encoder.load_state_dict(state, strict=True)
    sensors = {m: sensor(m, meanings, case["input_gsd"]) for m, meanings in case["wavelengths"].items()}
    images = {m: torch.from_numpy(golden[f"input/{m}"]).float().transpose(1, 2) / 8 for m in sensors}
    dates = {m: torch.from_numpy(golden[f"dates/{m}"]) for m in sensors}
    layers = case["output_layers"]
    with torch.inference_mode():
        features = encoder.eval()(
            images, case["target_gsd"], dates, sensors=sensors, layers=layers, normalise=False
        )
    for layer, maps in zip(layers, features.layers, strict=True):
        expected = golden[f"feature/{layer}"]
        np.testing.assert_allclose(torch.cat(list(maps.values()), 1), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("policy", sampling.POLICIES)
@pytest.mark.parametrize(
    ("pixels", "gsd", "target"), [(128, 0.8, 10.0), (10, 10.24, 3.0), (64, 10.0, 70.0), (39, 10.0, 7.0)]
)
def test_sampling_is_the_same_in_both_frameworks(policy: str, pixels: int, gsd: float, target: float) -> None:
    grid = sampling.grid_size(pixels, gsd, target)
    ours = sampling.down_matrix(pixels, gsd, target, grid, policy)
    theirs = torch_ramen.sampling_matrix(pixels, gsd, target, grid, policy)
    np.testing.assert_allclose(theirs, ours, atol=2e-6)


def test_rectangles_and_layers(model: RamenEncoder, place: dict[str, Any]) -> None:
    features = model(**place, layers=(2, 0))
    assert features.maps["mixed"].shape == (2, 64, 4, 2)
    assert features.maps["series"].shape == (2, 64, 4, 2)
    assert torch.equal(features.layers[0]["series"], features.maps["series"])
    assert not torch.equal(features.layers[1]["series"], features.maps["series"])


def test_a_masked_frame_changes_nothing(model: RamenEncoder, place: dict[str, Any]) -> None:
    frames = {"series": torch.tensor([[True, False, True], [True, True, True]])}
    expected = model(**place, frames=frames)
    spoilt = dict(place, images={name: image.clone() for name, image in place["images"].items()})
    spoilt["images"]["series"][0, 1] = 1e3
    spoilt["dates"] = {"series": torch.tensor([[10, 366, 200], [5, 6, 300]])}
    found = model(**spoilt, frames=frames)
    assert torch.equal(found.maps["series"], expected.maps["series"])
    alone = {
        "images": {"mixed": place["images"]["mixed"][:1], "series": place["images"]["series"][:1, [0, 2]]},
        "dates": {"series": place["dates"]["series"][:1, [0, 2]]},
    }
    np.testing.assert_allclose(
        model(**{**place, **alone}).maps["series"].detach(), expected.maps["series"][:1].detach(), atol=1e-5
    )


@pytest.mark.parametrize("missing", ["zeros", "excluded"])
def test_missing_pixels_do_not_matter(
    state: dict[str, torch.Tensor], place: dict[str, Any], missing: str
) -> None:
    encoder = RamenEncoder({"model": SIZES, "missing": missing})
    encoder.load_state_dict(state)
    results = []
    for value in (-9999.0, math.nan):
        images = {name: image.clone() for name, image in place["images"].items()}
        images["mixed"][:, :, 1, :10, :10] = value
        results.append(encoder(**dict(place, images=images)).maps["mixed"])
    assert torch.equal(*results)
    assert torch.isfinite(results[0]).all()
    untouched = encoder(**place).maps["mixed"]
    assert not torch.equal(results[0], untouched)


def test_nothing_of_full_width_exists_at_the_resolution_of_the_image(model: RamenEncoder) -> None:
    class Largest(TorchDispatchMode):
        values = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.values = max(self.values, result.numel())
            return result

    aerial = sensor("aerial", [640.0, 560.0, 480.0, 810.0], 0.2, mean=(0.0,) * 4, std=(1.0,) * 4)
    image = torch.zeros(1, 1, 4, 256, 256)
    with torch.inference_mode(), Largest() as largest:
        model({"aerial": image}, 10.0, sensors={"aerial": aerial})
    assert largest.values == image.numel()


def test_compiles_as_one_graph(model: RamenEncoder, place: dict[str, Any]) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        for target in (20.0, 40.0):
            asked = dict(place, target_gsd=target)
            np.testing.assert_allclose(compiled(**asked).cls, model(**asked).cls, atol=1e-5)


def test_onnx_with_any_batch(model: RamenEncoder, place: dict[str, Any], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx, onnxscript and onnxruntime: pip install them")
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install it")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install it")
    shapes = {"mixed": (1, 40, 20), "series": (3, 8, 4)}
    fixed = FixedInput(model, shapes, 20.0, place["sensors"], layers=(0, 2))
    torch_ramen.to_onnx(fixed, tmp_path / "ramen.onnx")
    graph = onnx.load(tmp_path / "ramen.onnx")
    onnx.checker.check_model(graph)
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [18]
    session = runtime.InferenceSession(str(tmp_path / "ramen.onnx"))
    names = [entry.name for entry in session.get_inputs()]
    assert names == ["mixed", "series", "series_dates"]
    assert [entry.name for entry in session.get_outputs()] == ["mixed_0", "series_0", "mixed_2", "series_2"]
    for batch in (1, 3):
        inputs = fixed.example(batch)
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        with torch.inference_mode():
            expected = fixed(*inputs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE)


def test_loads_where_there_is_no_jax(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The file alone, copied elsewhere, with jax, flax and ramen_jax out of reach."""
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    entry = {"name": "s2", "gsd": 10, "bands": {"B4": 665, "B8": 842}, "mean": [1, 2], "std": [3, 4]}
    (tmp_path / "config.json").write_text(json.dumps({"model": SIZES, "sensors": {"corpus/s2": entry}}))
    shutil.copyfile(torch_ramen.__file__, tmp_path / "torch_ramen.py")
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "flax", "ramen_jax", "orbax", "numpy_only"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from torch_ramen import load
model = load(".")
features = model({"s2": torch.ones(1, 2, 2, 32, 16)}, 40.0, {"s2": torch.tensor([[10, 200]])})
print(tuple(features.maps["s2"].shape), "jax" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 64, 8, 4) False"


def test_keys_that_do_not_fit_are_listed(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wrong = {key: value.contiguous() for key, value in state.items() if key != "norm.bias"}
    wrong["surplus"] = torch.zeros(1)
    wrong["in_norm.weight"] = torch.zeros(3)
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"missing norm\.bias") as caught:
        torch_ramen.load(tmp_path / "wrong.safetensors", num_heads=4)
    assert "unexpected surplus" in str(caught.value)
    assert "in_norm.weight has shape (3,), expected (64,)" in str(caught.value)


def test_wrong_inputs_are_told(model: RamenEncoder, place: dict[str, Any]) -> None:
    image, sensors = place["images"]["mixed"], place["sensors"]
    with pytest.raises(ValueError, match="not in the model's config"):
        model({"mixed": image}, 20.0)
    with pytest.raises(ValueError, match="C = 2"):
        model({"series": image}, 20.0, sensors=sensors)
    with pytest.raises(ValueError, match="larger than the image"):
        model({"mixed": image}, 200.0, sensors=sensors)
    with pytest.raises(ValueError, match="days of year"):
        model({"series": place["images"]["series"]}, 20.0, sensors=sensors)
    with pytest.raises(ValueError, match="no mean and std"):
        model({"bare": image}, 20.0, sensors={"bare": sensor("bare", ["dsm", "dtm", "slope"], 2.0)})
    with pytest.raises(ValueError, match="no block 3"):
        model(**place, layers=(3,))
    with pytest.raises(ValueError, match="known are asc_vv"):
        Band.of("vv", "ascending_vv")
