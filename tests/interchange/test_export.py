"""Weights out and in: verified, bit-identical, refusing what executes code, leaving nothing half written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import ramen_jax as rj
from ramen_jax import export
from ramen_jax.console import UserError
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.source import Source, describe, model_of
from ramen_jax.recipe import REFERENCE
from ramen_jax.training import checkpoint
from ramen_jax.training.weights import read_checkpoint
from tests import exported

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'torch>=2.13,<3'")
exchange = pytest.importorskip("ramen_jax.interchange.exchange")
torch_ramen = pytest.importorskip("ramen_jax.interchange.torch_ramen")

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "mae"


@pytest.fixture(scope="module")
def source() -> Source:
    return exported.source("fixed", sampling="area")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights, encoder and decoder, as an official checkpoint."""
    weights = np.load(GOLDEN / "weights.npz")
    path = tmp_path_factory.mktemp("official") / "ramen.ckpt"
    torch.save(
        {"epoch": 99, "state_dict": {key: torch.from_numpy(weights[key]) for key in weights.files}}, path
    )
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    return export.run()


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_holds_everything_and_agrees_with_jax(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    report = exchange.export(source, folder, results={"MADOS mIoU": 70.1})
    assert report["passed"]
    assert len(report["runs"]) == 3
    assert {"max", "mean", "relative", "cosine", "layer", "corpus"} <= report["runs"][0].keys()
    assert left_behind(folder) == [
        *("LICENSE", "README.md", "config.json", "model.safetensors", "parity.json", "results.json"),
        *("sensors.yaml", "torch_ramen.py"),
    ]
    assert left_behind(tmp_path) == ["tiny"]
    card = (folder / "README.md").read_text()
    assert "sampling area (official: reference)" in report["official_code_differs_in"]
    for fact in (
        "fixed",
        "missing excluded (official: zeros)",
        "`abc`",
        "B8A (865.0)",
        "MADOS mIoU",
        "20, 40 m",
    ):
        assert fact in card
    pixels = np.random.default_rng(0).integers(500, 3000, (2, 12, 16, 16)).astype(np.int16)
    ours = rj.load(folder).encode({"s2": rj.Image(pixels, [10, 200])}, 40).maps["s2"]
    theirs = torch_ramen.load(folder)
    with torch.inference_mode():
        tensor = torch.from_numpy(pixels.astype(np.float32))[None]
        maps = theirs({"s2": tensor}, 40.0, {"s2": torch.tensor([[10, 200]])}).maps["s2"][0].numpy()
    np.testing.assert_allclose(maps, ours, atol=exchange.TOLERANCE)
    with pytest.raises(UserError, match="exists"):
        exchange.export(source, folder)


def test_single_files_have_the_official_names(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "compare", lambda *_: {"passed": True})
    exchange.export(source, tmp_path / "ramen.ckpt")
    assert left_behind(tmp_path) == ["ramen.ckpt", "ramen.parity.json"]
    state = torch.load(tmp_path / "ramen.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {name.removeprefix("encoder.") for name in source.tensors}
    assert state["ltae.inconv.1.num_batches_tracked"].dtype == torch.int64
    assert state["resampler.temperature"].shape == ()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), source.tensors[f"encoder.{name}"])


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize(("part", "decoder"), [("encoder", False), ("mae", True)])
def test_official_classes_load_an_export_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, part: str, decoder: bool
) -> None:
    """A model of ours has every key and shape of the official state dicts, none missing and none besides."""
    monkeypatch.setattr(exchange, "compare", lambda *_: {"passed": True})
    sizes = json.loads((GOLDEN / "config.json").read_text())["hyperparameters"]
    description = describe({"mlp_ratio": 4.0, "block_eps": 1e-6, **sizes}, REFERENCE.to_dict(), {}, {})
    trees = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model_of(description).shapes)
    whole = Source(torch_weights.to_official(*trees), description)
    written = tmp_path / f"ramen.{suffix}"
    exchange.export(whole if decoder else Source(whole.encoder, description), written, decoder=decoder)
    expected = json.loads((GOLDEN.parent / "official_shapes.json").read_text())[part]
    assert {name: list(t.shape) for name, t in torch_ramen.read_weights(written).items()} == expected


def test_a_decoder_the_official_code_cannot_run_is_refused(tmp_path: Path) -> None:
    """The modality embedding has no official place. Every other trap is behaviour and no tensor."""
    loaded = {"encoder": {}, "decoder": {"modality_embedding": {"kernel": np.zeros((2, 2))}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", lambda path: checkpoint.Loaded(loaded, {}, {}, path))
        with pytest.raises(UserError, match="without --decoder"):
            read_checkpoint(tmp_path, decoder=True)


def test_import_then_export_gives_the_same_bits(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, back = tmp_path / "ours", tmp_path / "back.ckpt"
    assert run(monkeypatch, "--import", official, "--output", folder, "--num-heads", 4) == 0
    assert "201 tensors" in capsys.readouterr().out
    assert run(monkeypatch, "--checkpoint", folder, "--output", back, "--decoder") == 0
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (official, back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name])
    assert rj.load(folder).width == 64


class Harmful:
    """Unpickling it would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_a_pickle_that_executes_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Harmful()}, tmp_path / "harmful.ckpt")
    with pytest.raises(UserError, match=r"posix\.system"):
        run(monkeypatch, "--import", "harmful.ckpt", "--output", "ours")
    assert left_behind(tmp_path) == ["harmful.ckpt"]


def test_keys_that_do_not_fit_are_listed_and_nothing_is_written(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(official, weights_only=True)["state_dict"]
    del state["encoder.norm.bias"]
    state["encoder.surplus"] = torch.zeros(1)
    state["decoder.norm.weight"] = torch.zeros(5)
    torch.save({"state_dict": state}, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError) as caught:
        run(monkeypatch, "--import", tmp_path / "wrong.ckpt", "--output", tmp_path / "ours", "--num-heads", 4)
    for problem in (
        "missing key: encoder.norm.bias",
        "unknown key: encoder.surplus",
        "decoder.norm.weight is (5,)",
    ):
        assert problem in str(caught.value)
    assert left_behind(tmp_path) == ["wrong.ckpt"]


def test_what_cannot_be_read_is_told(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678{")
    torch.save({"state_dict": {"other.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"epoch": 99}, tmp_path / "number.ckpt")
    half = {key: value.bfloat16() for key, value in torch.load(official)["state_dict"].items()}
    torch.save(half, tmp_path / "half.ckpt")
    for name, sentence in (
        ("text.ckpt", r"text\.ckpt is not a checkpoint that can be read"),
        ("cut.safetensors", r"cut\.safetensors is not a checkpoint that can be read"),
        ("list.ckpt", "holds a list, not a state dict"),
        ("number.ckpt", "holds 'epoch', which is no tensor"),
        ("half.ckpt", r"is bfloat16.*no float32; convert them"),
        ("other.ckpt", "no cls_token"),
        ("absent.ckpt", "no file"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(monkeypatch, "--import", tmp_path / name, "--output", tmp_path / "ours")
    with pytest.raises(UserError, match="--num-heads"):
        run(monkeypatch, "--import", official, "--output", tmp_path / "ours")


def test_wrong_options_are_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").write_text("[1]")
    (tmp_path / "there").mkdir()
    (tmp_path / "weights.ckpt").write_text("any")
    absent = tmp_path / "absent"
    for output, options, sentence in (
        ("out", ("--num-heads", 4), "goes with --import"),
        ("out", ("--recipe", "fixed"), "goes with --import"),
        ("out.onnx", (), "to_onnx"),
        ("out.jaxexport", (), "needs --input and --target-gsd"),
        ("out", ("--licence", absent), "no file"),
        ("out", ("--results", absent), "no file"),
        ("there", (), "exists"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            run(monkeypatch, "--checkpoint", absent, "--output", tmp_path / output, *options)
        assert caught.value.code == 2
    with pytest.raises(UserError, match=r"is a file.*--import"):
        run(monkeypatch, "--checkpoint", tmp_path / "weights.ckpt", "--output", tmp_path / "out")
    with pytest.raises(UserError, match=r"is a file.*--import"):
        rj.load(tmp_path / "weights.ckpt")
    checkpoint_folder = exported.folder(tmp_path / "tiny")
    with pytest.raises(UserError, match="holds a list, expected task"):
        run(
            *(monkeypatch, "--checkpoint", checkpoint_folder, "--output", tmp_path / "out"),
            *("--results", tmp_path / "results.json"),
        )
    with pytest.raises(UserError, match="cannot write"):
        run(monkeypatch, "--checkpoint", checkpoint_folder, "--output", tmp_path / "weights.ckpt" / "out")
    assert not (tmp_path / "out").exists()


def test_a_disagreement_fails_and_leaves_nothing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [{"relative": 2e-4, "layer": 1, "corpus": "place", "cosine": 1.0}]
    monkeypatch.setattr(exchange, "compare", lambda *_: {"passed": False, "worst": 2e-4, "runs": runs})
    with pytest.raises(UserError, match=r"PyTorch and JAX differ by 2\.00e-04 after block 1"):
        exchange.export(source, tmp_path / "tiny")
    assert left_behind(tmp_path) == []


def test_a_full_disk_leaves_nothing(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exchange, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        exchange.export(source, tmp_path / "tiny")

    def torn(*_: Any) -> None:
        raise RuntimeError("file write failed")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(UserError, match="is the disk full"):
        exchange.export(source, tmp_path / "tiny.ckpt")
    assert left_behind(tmp_path) == []


def test_a_jax_export_artefact_runs_alone(source: Source, tmp_path: Path) -> None:
    exchange.write_artefact(source, tmp_path / "s2.jaxexport", ["place/s2=2x16x16"], 40.0)
    artefact = jax.export.deserialize((tmp_path / "s2.jaxexport").read_bytes())
    pixels = np.random.default_rng(0).uniform(500, 3000, (2, 12, 16, 16)).astype(np.float32)
    found = artefact.call({"place/s2": pixels}, {"place/s2": np.array([10, 200], np.float32)})
    expected = source.encoder_model().encode({"place/s2": rj.Image(pixels, [10, 200])}, 40).maps["place/s2"]
    np.testing.assert_allclose(found["place/s2"], expected, atol=1e-5)


SHARDED = """
import sys, pathlib, numpy, jax
from ramen_jax import config as configuration
from ramen_jax.interchange import torch_weights
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.training import checkpoint, experiment
from ramen_jax.training.program import Program
overrides = ["sharding.data=1", "sharding.fsdp=8", "data.rows_per_step=8"]
config = configuration.finish(configuration.load("configs/tiny.py", []), overrides)
state = Program(config, experiment.ramen(config), {}, make_mesh(config), 10, 10).create_state()
split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
assert len(jax.devices()) == 8 and len(split) > 10
workdir = pathlib.Path(sys.argv[1])
checkpoints = checkpoint.Checkpoints(workdir, print)
meta = {"step": 1, "config": configuration.plain(config), "sensors": {}, "fingerprints": {}}
checkpoints.save(1, state, meta, 1.0)
checkpoints.close()
whole = jax.device_get({"encoder": state.params["encoder"]})
tensors = torch_weights.to_official(whole, jax.device_get({"encoder": state.statistics["encoder"]}))
numpy.savez(workdir / "whole.npz", **tensors)
"""


def test_a_checkpoint_of_eight_devices_is_exported_on_one(repository: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    written = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "run")],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert written.returncode == 0, written.stderr[-3000:]
    source = read_checkpoint(tmp_path / "run", decoder=False)
    exchange.export(source, tmp_path / "ramen.safetensors")
    found, whole = load_file(tmp_path / "ramen.safetensors"), np.load(tmp_path / "run" / "whole.npz")
    assert {f"encoder.{name}" for name in found} == set(whole.files)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, whole[f"encoder.{name}"])
    report = json.loads((tmp_path / "ramen.parity.json").read_text())
    assert report["passed"]
