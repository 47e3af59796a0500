"""`python -m ramen_jax.checkpoint`: what lies there is told, damage is found, a copy goes on as the original would."""

import json
import shutil
from pathlib import Path

import pytest

from ramen_jax import checkpoint as command
from ramen_jax.console import UserError
from ramen_jax.training import checkpoint_files, loop, metrics
from tests.training import toy

OLD = Path(__file__).resolve().parents[1] / "golden" / "old" / "workdir"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with whole checkpoints of steps 5 and 10 of 15."""
    folder = tmp_path_factory.mktemp("trained")
    loop.run(toy.job(toy.config("train.stop_at=10"), steps=15), folder)
    return folder


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inspect_tells_steps_sizes_and_what_was_trained(trained, capsys):
    assert command.run(["inspect", str(trained)]) == 0
    told = capsys.readouterr().out
    assert "step 5: " in told
    assert "step 10: " in told
    assert told.count("complete") == 2
    assert "recipe reference" in told
    assert "corpus toy: s2 (sentinel2_l2a, 12 bands, 10.0 m); fingerprint abc" in told
    command.run(["inspect", str(trained / "checkpoints" / "5")])
    assert "step 10" not in capsys.readouterr().out
    command.run(["inspect", str(trained), "--step", "10"])
    assert "step 5" not in capsys.readouterr().out


def test_verify_reads_every_file(workdir, capsys):
    """(Mutant: only names and sizes are compared.)"""
    assert command.run(["verify", str(workdir)]) == 0
    assert capsys.readouterr().out == "step 5: whole\nstep 10: whole\n"
    file = next(path for path in (workdir / "checkpoints/10/params/d").iterdir())
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(
        UserError, match=r"1 of 2 checkpoints damaged \(step 10\); the newest whole one is step 5"
    ):
        command.run(["verify", str(workdir)])
    assert "step 10: damaged: params/d/" in capsys.readouterr().out
    assert command.run(["verify", str(workdir), "--step", "5"]) == 0
    assert command.run(["inspect", str(workdir)]) == 0  # which reads no arrays


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("meta/metadata", None, "cannot be read"),
        ("meta/metadata", "[]", "holds a list"),
        ("meta/metadata", '{"config": {}, "sensors": {}, "fingerprints": {}, "step": "ten"}', "has no step"),
        ("meta/metadata", '{"config": {}, "sensors": {"a": 3}, "fingerprints": {}, "step": 10}', "damaged: "),
        ("files.json", "{}", "its list of files, is not readable"),
        ("statistics/_METADATA", None, "statistics/_METADATA is missing"),
    ],
)
def test_damage_is_told_by_both(workdir, capsys, name, text, told):
    file = workdir / "checkpoints" / "10" / name
    file.unlink() if text is None else file.write_text(text)
    command.run(["inspect", str(workdir)])
    shown = capsys.readouterr().out
    assert told in shown
    assert "step 5: " in shown
    with pytest.raises(UserError, match="the newest whole one is step 5"):
        command.run(["verify", str(workdir)])
    before = content(workdir)
    with pytest.raises(UserError, match="nothing was copied"):
        command.run(["copy", str(workdir), "--output", str(workdir.parent / "copy")])
    assert not (workdir.parent / "copy").exists()
    assert content(workdir) == before


def test_a_folder_without_a_list_of_hashes_says_so(capsys):
    command.run(["inspect", str(OLD)])
    told = capsys.readouterr().out
    assert "nothing lists its hashes" in told
    assert "corpus tiny: aerial (flairhub_aerial, 4 bands, 0.2 m)" in told


@pytest.mark.parametrize("what", ["nothing", "empty", "foreign", "file"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, what):
    path = tmp_path / "there"
    if what in ("empty", "foreign"):
        path.mkdir()
    if what == "foreign":
        (path / "notes.txt").write_text("mine")
    if what == "file":
        path.write_text("mine")
    for arguments in (["inspect"], ["verify"], ["copy", "--output", str(tmp_path / "out")]):
        with pytest.raises(UserError, match=r"no checkpoint at .*expected a workdir"):
            command.run([arguments[0], str(path), *arguments[1:]])
    assert not (tmp_path / "out").exists()


def test_a_copy_goes_on_as_the_original_would(trained, tmp_path):
    """Bit for bit, from the older of two checkpoints. (Mutants: metrics of later steps copied; no config.json.)"""
    copy = tmp_path / "copy"
    command.run(["copy", str(trained), "--step", "5", "--output", str(copy)])
    assert checkpoint_files.compare(copy / "checkpoints" / "5") == ("", True)
    assert [line["step"] for line in metrics.read(copy)] == list(range(5))
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["5"]
    loop.run(toy.job(toy.config("train.stop_at=10"), steps=15), copy)
    kept = {"step", "loss"}
    assert [{key: line[key] for key in kept} for line in metrics.read(copy)] == [
        {key: line[key] for key in kept} for line in metrics.read(trained)
    ]
    assert json.loads((copy / "config.json").read_text()) == json.loads((trained / "config.json").read_text())


def test_a_checkpoint_alone_is_enough_to_copy(trained, tmp_path):
    shutil.copytree(trained / "checkpoints" / "10", tmp_path / "10")
    command.run(["copy", str(tmp_path / "10"), "--output", str(tmp_path / "run")])
    assert loop.run(toy.job(toy.config("train.stop_at=10"), steps=15), tmp_path / "run").step == 10


def test_a_copy_replaces_nothing(trained, tmp_path, capsys):
    """(Mutants: a foreign folder is filled; another run's config.json is kept beside our checkpoint.)"""
    output = tmp_path / "copy"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="neither empty nor a workdir"):
        command.run(["copy", str(trained), "--output", str(output)])
    (output / "notes.txt").unlink()
    command.run(["copy", str(trained), "--step", "5", "--output", str(output)])
    with pytest.raises(UserError, match=r"checkpoints/5 exists"):
        command.run(["copy", str(trained), "--step", "5", "--output", str(output)])
    command.run(["copy", str(trained), "--output", str(output)])  # beside it
    assert checkpoint_files.steps_in(output / "checkpoints") == [5, 10]
    shutil.rmtree(output / "checkpoints")
    (output / "config.json").write_text(
        (output / "config.json").read_text().replace('"seed": 42', '"seed": 43')
    )
    before = content(output)
    with pytest.raises(UserError, match=r"another configuration .*\n.*seed"):
        command.run(["copy", str(trained), "--output", str(output)])
    assert content(output) == before
    with pytest.raises(UserError, match=r"no checkpoint of step 7 in .*; there are those of 5, 10"):
        command.run(["copy", str(trained), "--step", "7", "--output", str(output)])
    with pytest.raises(UserError, match="contains existing checkpoint"):
        command.run(["copy", str(trained), "--output", str(trained)])


def test_to_safetensors_is_what_export_writes(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from ramen_jax import export

    written = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    command.run(["to-safetensors", str(OLD), "--output", str(written[0])])
    export.run(["--checkpoint", str(OLD), "--output", str(written[1])])
    assert written[0].read_bytes() == written[1].read_bytes()
    with pytest.raises(UserError, match="exists"):
        command.run(["to-safetensors", str(OLD), "--output", str(written[0])])
