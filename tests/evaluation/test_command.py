"""`evaluate` end to end: tables and pictures, baselines beside the model, the curve, and what wrong words get."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

import ramen_jax as rj
import ramen_jax.evaluate
from ramen_jax import api
from ramen_jax.console import UserError
from ramen_jax.evaluate import parse
from ramen_jax.evaluation import command as evaluation
from ramen_jax.evaluation import report
from ramen_jax.evaluation.pangaea.tasks import load_task, shipped
from tests import exported

FEW = ["--epochs", "1", "--batch-size", "2", "--crop", "64", "--decoder", "seg_linear"]


def test_a_table_with_curve_and_pictures(floods, small_floods, tmp_path, capsys):
    model = exported.folder(tmp_path / "tiny", "fixed")
    out = tmp_path / "out"
    words = [
        *(
            "--config",
            str(small_floods),
            "--data",
            str(floods),
            "--checkpoint",
            str(model),
            "--workdir",
            str(out),
        ),
        *("--encoder", "checkpoint,raw", "--target-gsd", "40,80", "--seeds", "1,2", *FEW),
    ]
    assert evaluation.run(parse(words)) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results) == 2 * 2 * 2
    cost = {
        result["target_gsd"]: result["flops"]["encoder"] for result in results if result["encoder"] != "raw"
    }
    assert cost[40.0] > 3 * cost[80.0] > 0
    table = (out / "table.md").read_text()
    assert "±" in table
    assert "RAMEN (published)" in table
    assert table.strip() in capsys.readouterr().out
    drawn = {path.name for path in out.rglob("*.png")}
    assert drawn == {"predictions.png", "confusion.png", "sen1floods11_curve.png"}
    # Again: nothing is computed, the same comes out.
    assert evaluation.run(parse(words)) == 0
    assert json.loads((out / "results.json").read_text()) == results


def test_the_door_of_python_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no task 'sen1floods1'; did you mean \"sen1floods11\""):
        rj.evaluate("sen1floods1", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no encoder 'rw'"):
        rj.evaluate("sen1floods11", tmp_path, tmp_path / "out", encoders=["rw"])
    with pytest.raises(UserError, match="no protocol 'publishd'"):
        rj.evaluate("sen1floods11", tmp_path, tmp_path / "out", protocol="publishd")
    with pytest.raises(UserError, match=r"flood_train_data\.csv: no such split file"):
        rj.evaluate("sen1floods11", tmp_path, tmp_path / "out", encoders=["raw"])
    with pytest.raises(UserError, match="no such folder"):
        rj.evaluate("sen1floods11", tmp_path / "none", tmp_path / "out", encoders=["raw"])
    with pytest.raises(UserError, match="--target-gsd 20,forty: expected numbers"):
        evaluation.run(
            parse(
                [
                    *("--task", "mados", "--data", str(tmp_path), "--workdir", str(tmp_path)),
                    "--target-gsd",
                    "20,forty",
                ]
            )
        )


def a_result(value, metric="mIoU", expected=None, **changes):
    return {
        "task": "mine",
        "encoder": "raw",
        "decoder": "seg_linear",
        "target_gsd": 40.0,
        "labels": 1.0,
        "metric": metric,
        "expected": expected,
        "flops": {"encoder": 0.0, "decoder": 1e9},
        "scores": {"published": {metric: value}, "corrected": {metric: value + 1}},
        "protocol": {"name": "corrected", "encoder_statistics": "running"},
        **changes,
    }


def test_mean_and_spread_over_seeds():
    table = report.table([a_result(1.0), a_result(3.0)])
    assert "| 2.00 ± 1.41 | 3.00 ± 1.41 | 2 |" in table
    assert "(published)" not in table
    # A U-Net has no tokens.
    table = report.table([a_result(1.0, encoder="unet", decoder="seg_unet", target_gsd=None)])
    assert "| mine | unet | seg_unet |  | 100 % |" in table
    assert "| accuracy | 0.1250 | 1.1250 | 1 |" in report.table([a_result(0.125, "accuracy")])
    assert "| mine | RAMEN (published) | | | 100 % | mIoU | 50.00 |" in report.table(
        [a_result(1.0, expected=50.0)]
    )


def test_the_rows_beside_ours_are_those_of_the_papers_means():
    """The quoted U-Net's means are the published ones, and so is that of RAMEN's figures in the descriptions."""
    without = [score for name, score in report.UNET.items() if name != "fivebillionpixels"]
    assert np.mean(list(report.UNET.values())) == pytest.approx(57.58, abs=0.005)
    assert np.mean(without) == pytest.approx(57.22, abs=0.005)
    ramen = {name: load_task(name)["command"].get("expected") for name in shipped()}
    assert {name for name, score in ramen.items() if score is not None} == set(report.UNET) - {
        "fivebillionpixels"
    }
    assert np.mean([score for score in ramen.values() if score is not None]) == pytest.approx(
        60.03, abs=0.005
    )


def test_the_command_does_not_hide_the_function():
    """(Mutant: a package that lets the import bind the module.)"""
    assert rj.evaluate is ramen_jax.evaluate is api.evaluate
    assert importlib.import_module("ramen_jax.evaluate").parse is parse
