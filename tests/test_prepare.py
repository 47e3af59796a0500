"""prepare: the same shards whatever the workers or interruptions, a manifest that says everything, TFDS and Beam."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from ramen_jax.console import UserError
from ramen_jax.corpora import records
from ramen_jax.corpora.preparation import prepare
from ramen_jax.corpora.records import Prepared
from ramen_jax.corpora.shards import ShardJob, run_all
from ramen_jax.corpora.synthetic import Synthetic
from ramen_jax.earth.places import corpus_spec, render_place
from ramen_jax.recipe import REFERENCE

SYNTHETIC = {
    "name": "earth",
    "kind": "synthetic",
    "options": {"geometry": "mmearth_small", "places": 20, "val_places": 3, "seed": 4},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def command(*arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ramen_jax.prepare", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return prepare(SYNTHETIC, tmp_path_factory.mktemp("prepared") / "earth", workers=1)


@pytest.fixture(scope="module")
def description(tmp_path_factory) -> Path:
    """The same corpus as a YAML file, for the command line."""
    path = tmp_path_factory.mktemp("described") / "earth.yaml"
    path.write_text(yaml.safe_dump({"kind": "synthetic", **SYNTHETIC["options"]}))
    return path


def test_samples_are_those_of_the_source(folder):
    spec = corpus_spec("mmearth_small")
    for split, first, count in (("train", 0, 20), ("val", 20, 3)):
        corpus = Prepared(folder, split)
        corpus.verify()
        assert len(corpus) == count
        assert corpus.ids == [corpus[index].id for index in range(count)]
        for index in range(0, count, 3):
            expected = render_place(4, first + index, spec)
            assert corpus[index].id == expected.id
            assert corpus[index].extra == expected.extra
            for name, image in expected.images.items():
                np.testing.assert_array_equal(corpus[index].images[name].values, image.values)


def test_manifest_describes_the_corpus(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 4
    assert manifest["rejected"] == 0
    assert manifest["splits"]["train"]["samples"] == 20
    assert list(manifest["statistics"]["s2"]) == ["all", "l1c", "l2a"]
    corpus = Prepared(folder)
    pixels = [
        image.values[:, 3][image.valid if image.valid is not None else ...]
        for image in (sample.images["s2"] for sample in corpus)
    ]
    pooled = np.concatenate([values.ravel() for values in pixels]).astype(np.float64)
    np.testing.assert_allclose(corpus.spec.modality("s2").sensor.mean[3], pooled.mean(), rtol=1e-12)
    np.testing.assert_allclose(corpus.spec.modality("s2").sensor.std[3], pooled.std(), rtol=1e-9)
    reference = Prepared(folder, recipe=REFERENCE).spec.modality("s2").sensor
    assert reference.std[3] < corpus.spec.modality("s2").sensor.std[3]
    assert corpus.spec.fingerprint == manifest["fingerprint"]


def test_reading_needs_no_jax_nor_tfds(folder):
    code = (
        "import sys; from ramen_jax.corpora.records import Prepared; "
        f"Prepared({str(folder)!r})[0]; "
        "print([m for m in ('jax', 'tensorflow', 'tensorflow_datasets', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_workers_do_not_change_a_byte(folder, tmp_path):
    prepare(SYNTHETIC, tmp_path / "again", workers=2)
    assert contents(tmp_path / "again") == contents(folder)


def test_a_killed_run_goes_on_where_it_was(folder, description, tmp_path):
    output = tmp_path / "killed"
    arguments = ("--corpus", description, "--output", output, "--workers", 2)
    process = command(*arguments)
    deadline = time.monotonic() + 60
    while len(list((output / ".parts").glob("*.array_record"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (output / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (output / ".parts").glob("*.array_record")}
    assert len(finished) >= 3
    kept = {path.name: path.stat().st_ino for path in finished}
    process = command(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "train 20, val 3 samples" in stdout
    assert contents(output) == contents(folder)
    # The shards of the first run were not written a second time: they are the same files.
    inodes = {path.stat().st_ino for path in output.iterdir()}
    assert set(kept.values()) <= inodes


def test_prepared_folders_are_not_prepared_again(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(SYNTHETIC, folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = {**SYNTHETIC, "options": {**SYNTHETIC["options"], "seed": 5}}
    with pytest.raises(UserError, match=r"other settings .seed: 4 there, 5 asked for"):
        prepare(other, folder)


def test_settings_survive_json(rasters, tmp_path):
    """Tuples, as a config file has them, and a nodata of NaN are the same settings when asked for again."""
    modalities = {
        "dem": {"sensor": "copernicus_dem", "pattern": "{id}.tif", "dtype": "float32", "nodata": float("nan")}
    }
    entry = {**rasters, "options": {"modalities": modalities, "split": {"val": ["p3"]}}}
    output = prepare(entry, tmp_path / "out", workers=1)
    assert Prepared(output).spec.modality("dem").sensor.nodata != 0
    assert prepare(entry, output) == output
    wanted = {"name": "earth", "kind": "synthetic", "options": {"places": 2, "modalities": ("dem", "spot")}}
    output = prepare(wanted, tmp_path / "tuples", workers=1)
    assert prepare(wanted, output) == output


def test_leftovers_of_other_work_are_not_mixed_in(tmp_path):
    output = tmp_path / "mixed"
    parts = output / ".parts"
    parts.mkdir(parents=True)
    (parts / "work.json").write_text('"something else"')
    (parts / "train-00000.array_record").write_bytes(b"stale")
    (parts / "train-00000.json").write_text("{}")
    entry = {**SYNTHETIC, "options": {**SYNTHETIC["options"], "places": 2, "val_places": 0}}
    prepare(entry, output, workers=1)
    assert len(Prepared(output)) == 2


def test_tfds_reads_it(folder):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == 20
    source = builder.as_data_source("train")
    corpus = Prepared(folder)
    for index in (0, 7, 19):
        sample = records.decode(source[index]["record"])
        assert sample.id == corpus[index].id
        np.testing.assert_array_equal(sample.images["s2"].values, corpus[index].images["s2"].values)


def test_tfds_build_works(real_data, tmp_path):
    import tensorflow_datasets as tfds

    # What `tfds build` runs; the `tfds` command itself also loads its other subcommands, which need TensorFlow.
    code = (
        "from absl import app; from tensorflow_datasets.scripts.cli import build, cli_utils; "
        "app.run(lambda args: args.execute(), flags_parser=cli_utils.make_flags_parser(build.Args, description=''))"
    )
    arguments = {
        "--imports": "ramen_jax.corpora.builder",
        "--manual_dir": real_data / "terramesh",
        "--data_dir": tmp_path / "tfds",
        "--file_format": "array_record",
    }
    flags = [str(text) for pair in arguments.items() for text in pair]
    done = subprocess.run([sys.executable, "-c", code, "terramesh", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prepare({"spec": "terramesh", "source": str(real_data / "terramesh")}, tmp_path / "own", workers=1)
    built, own = contents(tmp_path / "tfds/terramesh/1.0.0"), contents(tmp_path / "own")
    assert built == own
    source = tfds.data_source("terramesh", split="train", data_dir=tmp_path / "tfds")
    assert [records.decode(item["record"]).id for item in source] == Prepared(tmp_path / "own").ids


def test_beam_writes_the_same_samples(folder, tmp_path):
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install apache-beam")
    prepare(SYNTHETIC, tmp_path / "beam", workers=1, runner="DirectRunner")
    assert contents(tmp_path / "beam") == contents(folder)


def test_beam_missing_is_told(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "apache_beam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # importing it fails
    with pytest.raises(UserError, match="pip install apache-beam"):
        prepare(SYNTHETIC, tmp_path / "beam", runner="DirectRunner")


# -- wrong input -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rasters(tmp_path):
    """Four places, of which the middle two are damaged, and their description."""
    source = tmp_path / "rasters"
    source.mkdir()
    for place in range(4):
        values = np.random.default_rng(place).integers(1, 9, (1, 64, 64)).astype(np.uint16)
        path = source / f"p{place}.tif"
        options = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint16"}
        with rasterio.open(
            path, "w", crs="EPSG:32632", transform=rasterio.Affine(30, 0, 5e5, 0, -30, 5e6), **options
        ) as file:
            file.write(values)
    (source / "p1.tif").write_bytes((source / "p1.tif").read_bytes()[:4000])
    (source / "p2.tif").write_bytes(b"not a raster")
    path = tmp_path / "places.yaml"
    path.write_text(
        yaml.safe_dump(
            {"kind": "geofolder", "modalities": {"dem": {"sensor": "copernicus_dem", "pattern": "{id}.tif"}}}
        )
    )
    return {"spec": str(path), "source": str(source)}


def test_bad_files_are_quarantined_and_listed(rasters, tmp_path):
    output = prepare(rasters, tmp_path / "out", workers=1)
    assert Prepared(output).ids == ["p0", "p3"]
    lines = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [(line["split"], line["item"]) for line in lines] == [("train", "p1"), ("train", "p2")]
    for line in lines:
        assert line["file"].endswith(f"{line['item']}.tif")
        assert "cannot be" in line["cause"]
        assert "\n" not in line["cause"]
    assert records.read_manifest(output)["rejected"] == 2


def test_a_corpus_without_a_good_sample_is_an_error(rasters, tmp_path):
    source = Path(rasters["source"])
    for place in (0, 3):
        (source / f"p{place}.tif").write_bytes((source / f"p{place}.tif").read_bytes()[:4000])
    with pytest.raises(UserError, match=r"not a single good sample in .*; the first one rejected: .*p0\.tif"):
        prepare(rasters, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_constant_band_is_warned_of_and_normalised_to_0(rasters, tmp_path):
    source = Path(rasters["source"])
    for place in (0, 3):
        with rasterio.open(source / f"p{place}.tif", "r+") as file:
            file.write(np.full((1, 64, 64), 7, np.uint16))
    output = prepare(rasters, tmp_path / "out", workers=1)
    (sentence,) = records.read_manifest(output)["warnings"]
    assert "band dsm is 7 in every pixel" in sentence
    corpus = Prepared(output)
    mean, std = corpus.statistics(corpus[0], "dem")
    assert (mean.tolist(), std.tolist()) == ([7.0], [1.0])


def test_a_split_without_a_good_sample_is_left_out(rasters, tmp_path):
    entry = {**rasters, "options": {"split": {"val": ["p1"]}}}
    output = prepare(entry, tmp_path / "out", workers=1)
    manifest = records.read_manifest(output)
    assert list(manifest["splits"]) == ["train"]
    assert manifest["warnings"] == ["split val is left out: it has not a single good sample"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x"}, "'x': give kind"),
        ({"name": "x", "kind": "synthetic", "options": {"place": 3}}, "unknown option 'place'.*places"),
        ({"name": "x", "kind": "synthetic", "options": {"places": -1}}, "places is -1"),
        ({"name": "x", "kind": "mmearth"}, "source is missing"),
        ({"name": "x", "kind": "mmearth", "source": "$NO_SUCH_VARIABLE/a"}, "variable that is not set"),
        ({"name": "x", "kind": "mmearth", "source": "/no/such/folder"}, "no such folder"),
        ({"name": "a b", "kind": "synthetic", "options": {"places": 1}}, "letters, digits and _"),
    ],
)
def test_wrong_entries_are_told(tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        prepare(entry, tmp_path / "out", workers=1)


def test_the_command_speaks_in_one_line(folder, description, tmp_path):
    def outcome(*arguments):
        process = command(*arguments)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    status, _, stderr = outcome("--corpus", "flairhb", "--output", tmp_path / "x")
    assert status == 2
    assert stderr.startswith("error: corpus flairhb")
    assert "flairhub" in stderr
    assert stderr.count("\n") == 1
    status, stdout, _ = outcome("--verify", "--output", folder)
    assert status == 0
    assert "earth: train 20, val 3 samples" in stdout
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(folder).items():
        (copy / name).write_bytes(content)
    shard = next(copy.glob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    status, _, stderr = outcome("--verify", "--output", copy)
    assert status == 1
    assert "content differs from its sha256" in stderr
    assert stderr.count("\n") == 1


def test_implausible_values_are_warned_of(rasters, tmp_path, capsys):
    source = Path(rasters["source"])
    for place in (0, 3):
        with rasterio.open(source / f"p{place}.tif", "r+") as file:
            file.write(file.read() + np.uint16(20_000))
    output = prepare(rasters, tmp_path / "out", workers=1)
    (sentence,) = records.read_manifest(output)["warnings"]
    assert "band dsm has mean 20" in sentence
    assert "-500 to 9000 is plausible" in sentence
    assert f"WARNING: places: {sentence}\n" in capsys.readouterr().err


def test_two_processes_prepare_once(description, folder, tmp_path):
    output = tmp_path / "shared"
    both = [command("--corpus", description, "--output", output, "--workers", 1) for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    assert contents(output) == contents(folder)


# -- archives --------------------------------------------------------------------------------------------------------


def pack(folder: Path, archive: Path) -> None:
    """The rasters of a folder, and members that no archive should have."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, f"rasters/{path.name}")
            packed.writestr("../outside.tif", b"x")
            link = zipfile.ZipInfo("rasters/link.tif")
            link.external_attr = 0o120777 << 16
            packed.writestr(link, "/etc/hostname")
        return
    with tarfile.open(archive, "w:gz") as packed:
        for path in sorted(folder.iterdir()):
            packed.add(path, f"rasters/{path.name}")
        for name in ("../outside.tif", "/outside.tif"):
            packed.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("rasters/link.tif")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        packed.addfile(link)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archives_stay_inside(rasters, tmp_path, name, capsys):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    pack(Path(rasters["source"]), downloads / name)
    (downloads / "broken.zip").write_bytes(b"PK nothing")
    entry = {**rasters, "source": str(downloads)}
    described = yaml.safe_load(Path(rasters["spec"]).read_text())
    described["modalities"]["dem"]["pattern"] = "rasters/{id}.tif"
    Path(rasters["spec"]).write_text(yaml.safe_dump(described))
    output = prepare(entry, tmp_path / "out", workers=1, unpack_to=tmp_path / "unpacked")
    assert Prepared(output).ids == ["p0", "p3"]
    causes = [json.loads(line)["cause"] for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert any("member ../outside.tif leads outside" in cause for cause in causes)
    assert any("member rasters/link.tif is a link" in cause for cause in causes)
    assert any("cannot be unpacked" in cause for cause in causes)
    assert "leads outside the folder it is unpacked into" in capsys.readouterr().err
    assert not (tmp_path / "outside.tif").exists()
    assert sorted(path.name for path in (tmp_path / "unpacked").rglob("*") if path.is_file()) == [
        "p0.tif", "p1.tif", "p2.tif", "p3.tif",
    ]  # fmt: skip


# -- files that kill the process which reads them --------------------------------------------------------------------


class DeadlyCorpus(Synthetic):
    """Two places are not survived: one kills the process at once, one hangs it with the alarm pending."""

    def read(self, item, split):
        if item == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "5":
            os.kill(os.getpid(), signal.SIGALRM)
        return super().read(item, split)


class DeadlyJob(ShardJob):
    def corpus(self):
        return DeadlyCorpus(Path(), {"name": "earth", "kind": "synthetic", **SYNTHETIC["options"]})


def test_deadly_items_are_singled_out(tmp_path):
    jobs = [
        DeadlyJob({}, "", "train", items, str(tmp_path / f"train-{number}"))
        for number, items in enumerate([("0", "1", "2", "3"), ("4", "5", "6"), ("7",)])
    ]
    run_all(jobs, 2, "earth")
    parts = [json.loads((tmp_path / f"train-{number}.json").read_text()) for number in range(3)]
    assert [len(part["ids"]) for part in parts] == [3, 2, 1]
    assert [line["item"] for part in parts for line in part["rejected"]] == ["2", "5"]
    assert "killed or hung the process" in parts[0]["rejected"][0]["cause"]
