"""Training that begins with given weights: another run's, or those of an official checkpoint turned into a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ramen_jax import config as configuration
from ramen_jax import train
from ramen_jax.console import UserError
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.source import Source, describe
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.parallel.rules import flat_names
from ramen_jax.recipe import REFERENCE
from ramen_jax.training import checkpoint, experiment, initial, loop, metrics
from ramen_jax.training.program import Program
from ramen_jax.training.step import make_evaluation
from ramen_jax.training.weights import read_checkpoint
from tests.training import toy

MAE = Path(__file__).parents[1] / "golden" / "mae"


def weights() -> dict[str, np.ndarray]:
    with np.load(MAE / "weights.npz") as archive:
        return {name: archive[name] for name in archive.files}


def imported(folder: Path, decoder: bool = True, **facts: str) -> Path:
    """The golden weights as the folder that `export --import` writes."""
    from safetensors.numpy import save_file

    sizes = json.loads((MAE / "config.json").read_text())["hyperparameters"]
    kept = {key: value for key, value in sizes.items() if decoder or not key.startswith("decoder")}
    facts = {"recipe": "reference", "imported_from": "ramen.ckpt", **facts}
    source = Source(
        weights(), describe({"mlp_ratio": 4.0, "block_eps": 1e-6, **kept}, REFERENCE.to_dict(), {}, facts)
    )
    folder.mkdir(parents=True)
    save_file(source.tensors if decoder else source.encoder, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(source.description))
    return folder


def config(start_from: Path, *overrides: str, recipe: str = "reference"):
    """A run of the golden model's size on small places without dates: no dropout, no BatchNorm."""
    value = configuration.default()
    value.model.update(json.loads((MAE / "config.json").read_text())["hyperparameters"])
    value.recipe = recipe
    options = {"geometry": "mmearth_small", "places": 4}
    value.corpora = (configuration.corpus("mmearth", kind="synthetic", options=options, target_gsds=(60.0,)),)
    value.data.rows_per_step = 2
    value.train.steps = 2
    value.logging.tensorboard = False
    return configuration.finish(value, [f"train.start_from={start_from}", *overrides])


def fresh(settings):
    """A state before anything was taken: not drawn, since an initialisation would be compiled first."""
    shapes = Program(settings, experiment.ramen(settings), {}, make_mesh(settings), 10, 10).abstract
    return jax.tree.map(
        lambda leaf: jax.device_put(np.full(leaf.shape, 0.01, leaf.dtype), leaf.sharding), shapes
    )


def evaluated(state, job, rows) -> float:
    """The loss of the rows, as the evaluation of a model that was never trained gives it."""
    bands = job.program.inputs["step"]["mmearth"].bands
    sums, counts = make_evaluation(job.program.model, bands)(state.params, state.statistics, rows)
    return sum(float(sums[name] / counts[name]) for name in sums)


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_official_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = imported(tmp_path / "official")
    settings = config(folder)
    job = experiment.build(settings, tmp_path / "run")
    assert loop.run(job, tmp_path / "run").complete
    told = capsys.readouterr()
    assert "(imported from ramen.ckpt), with a fresh optimizer" in told.out + told.err
    first = next(line["loss"] for line in metrics.read(tmp_path / "run") if line.get("step") == 0)
    rows = next(iter(job.batches(0))).rows
    state = fresh(settings)
    began, _ = initial.begin_with(state, folder, settings)
    assert first == pytest.approx(evaluated(began, job, rows), rel=1e-5)
    assert first != pytest.approx(evaluated(state, job, rows), rel=0.1)
    # Unchanged weights go out as they came in, and the run's own checkpoint is what it resumes from.
    given = weights()
    returned = torch_weights.to_official(*jax.device_get((began.params, began.statistics)))
    for name, array in returned.items():
        assert array.tobytes() == given[name].tobytes(), name
    changed = read_checkpoint(tmp_path / "run", decoder=True).tensors
    assert not np.array_equal(changed["decoder.mask_token"], given["decoder.mask_token"])
    shutil.rmtree(folder)
    assert loop.run(job, tmp_path / "run").complete


def test_another_run_is_a_start_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run(toy.job(), tmp_path / "first")
    last = checkpoint.load(tmp_path / "first").params
    begun = toy.config(f"train.start_from={tmp_path / 'first'}", "train.stop_at=1")
    outcome = loop.run(toy.job(begun), tmp_path / "second")
    assert outcome.step == 1
    told = capsys.readouterr()
    assert "(recipe reference, step 30), with a fresh optimizer" in told.out + told.err
    step = checkpoint.load(tmp_path / "second").params
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), last, step)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-2
    with pytest.raises(UserError, match=r"train\.start_from"):
        loop.run(toy.job(), tmp_path / "second")


def test_what_the_weights_lack_starts_fresh_and_is_told(tmp_path: Path) -> None:
    alone = imported(tmp_path / "encoder", decoder=False)
    settings = config(alone, recipe="fixed")
    state = fresh(settings)
    began, told = initial.begin_with(state, alone, settings)
    assert told.endswith("they hold no decoder, which starts at random")
    before, after = (flat_names(tree.params) for tree in (state, began))
    for name in after:
        assert np.array_equal(before[name], after[name]) == name.startswith("decoder/"), name
    whole = imported(tmp_path / "whole")
    began, told = initial.begin_with(state, whole, settings)
    assert told.endswith("they hold no modality embedding, which starts at zero")
    assert not np.any(began.params["decoder"]["modality_embedding"]["kernel"])


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = imported(tmp_path / "official")
    other = config(folder, "model.num_heads=8", "model.decoder_embed_dim=64")
    with pytest.raises(UserError, match="does not fit this model") as caught:
        initial.begin_with(fresh(other), folder, other)
    told = str(caught.value)
    assert "config.model.num_heads: 4 there, 8 here" in told
    assert "params/decoder/mask_token: (32,) there, expected (64,)" in told
    (tmp_path / "ramen.ckpt").write_text("any")
    for path, sentence in (
        (tmp_path / "ramen.ckpt", r"is a file.*ramen_jax\.export --import"),
        (tmp_path / "nothing", "no checkpoint at"),
    ):
        settings = config(path)
        with pytest.raises(UserError, match=sentence):
            initial.begin_with(fresh(settings), path, settings)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="lacks model, traps, sensors"):
        initial.begin_with(fresh(config(folder)), folder, config(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        initial.begin_with(fresh(config(folder)), folder, config(folder))


def test_a_wrong_start_is_told_before_anything_is_written(tmp_path, repository, monkeypatch):
    tiny, workdir = f"{repository}/configs/tiny.py:quicktest", tmp_path / "run"
    (tmp_path / "ramen.ckpt").touch()
    for name, sentence in (("nothing", "no checkpoint at"), ("ramen.ckpt", "ramen.ckpt is a file")):
        start = f"--config.train.start_from={tmp_path / name}"
        monkeypatch.setattr("sys.argv", ["train", "--config", tiny, "--workdir", str(workdir), start])
        with pytest.raises(UserError, match=sentence):
            train.run()
    assert not workdir.exists()
