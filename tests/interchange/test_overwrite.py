"""export replaces its own older output and nothing else, and never what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ramen_jax import export
from ramen_jax.console import UserError
from tests import exported

pytest.importorskip("torch", reason="needs PyTorch: pip install 'torch>=2.13,<3'")
exchange = pytest.importorskip("ramen_jax.interchange.exchange")


def check(*arguments: Any) -> None:
    """What the command refuses before it reads anything."""
    export._check(export.parse([str(argument) for argument in arguments]))


def test_the_output_is_compared_with_every_input(tmp_path: Path) -> None:
    workdir, results, official = tmp_path / "runs" / "base", tmp_path / "r.parity.json", tmp_path / "x.ckpt"
    workdir.mkdir(parents=True)
    results.write_text("{}")
    official.write_bytes(b"weights")
    for arguments, sentence in (
        (("--checkpoint", workdir, "--output", workdir), "is an --checkpoint"),
        (("--checkpoint", workdir, "--output", workdir.parent), "contains --checkpoint"),
        (("--import", official, "--output", official), "is an --import"),
        (("--checkpoint", workdir, "--output", results, "--results", results), "is an --results"),
        (("--checkpoint", workdir, "--output", tmp_path / "r.ckpt", "--results", results), "is an --results"),
        (
            ("--import", official, "--output", tmp_path / "y", "--licence", tmp_path / "y"),
            "no file|is an --licence",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            check(*arguments, "--overwrite")


def test_only_an_own_output_is_replaced(tmp_path: Path) -> None:
    """Catches a folder taken for ours by its name, and weights that somebody trained further in place."""
    source, folder, weights = exported.source("fixed"), tmp_path / "tiny", tmp_path / "tiny.safetensors"
    for output in (folder, weights):
        exchange.export(source, output)
        assert exchange.is_ours(output)
        exchange.export(source, output, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    for output in (folder, weights):
        with pytest.raises(UserError, match="not recognisably weights that export wrote"):
            exchange.export(source, output, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("[]")
    foreign = tmp_path / "foreign.parity.json"
    foreign.write_text('{"mine": 1}')
    for output in (mine, tmp_path / "foreign.ckpt"):
        with pytest.raises(UserError, match="not recognisably"):
            exchange.export(source, output, overwrite=True)
    assert foreign.read_text() == '{"mine": 1}'
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_artefact_is_known_by_what_it_takes(tmp_path: Path) -> None:
    output = tmp_path / "s2.jaxexport"
    exchange.write_artefact(exported.source("fixed"), output, ["place/s2=1x8x8"], 40.0)
    assert exchange.is_ours(output)
    output.write_bytes(b"mine")
    assert not exchange.is_ours(output)
