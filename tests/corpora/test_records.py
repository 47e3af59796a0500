"""Records are lossless, and a prepared corpus refuses whatever differs from its manifest."""

import json
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module

from ramen_jax.console import UserError
from ramen_jax.corpora import records
from ramen_jax.corpora.records import Prepared
from ramen_jax.samples import DTYPES, CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor

SENSOR = Sensor("probe", (Band("red", wavelength_nm=665.0), Band("nir", wavelength_nm=842.0)), gsd=10.0)


def make_sample(index: int, dtype: str = "uint16", valid: bool = True) -> Sample:
    rng = np.random.default_rng(index)
    if dtype == "float32":
        values = rng.normal(size=(3, 2, 5, 7)).astype(np.float32)
    else:
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, (3, 2, 5, 7), dtype=dtype, endpoint=True)
    image = Image(
        values,
        np.array([3, 0, 366], np.int16),
        np.array([True, False]),
        rng.random((3, 5, 7)) > 0.3 if valid else None,
    )
    return Sample(f"place {index}/ä", {"s2": image}, (2.5, -41.25), {"variant": {"s2": "l2a"}, "year": 2019})


def assert_same(found: Sample, expected: Sample) -> None:
    assert (found.id, found.location, found.extra) == (expected.id, expected.location, expected.extra)
    assert list(found.images) == list(expected.images)
    for name, image in expected.images.items():
        other = found.images[name]
        assert other.values.dtype == image.values.dtype
        for field in ("values", "dates", "present"):
            np.testing.assert_array_equal(getattr(other, field), getattr(image, field))
        assert (other.valid is None) == (image.valid is None)
        if image.valid is not None:
            np.testing.assert_array_equal(other.valid, image.valid)


def example(record: bytes) -> bytes:
    """A tf.train.Example with an id and a record, as TFDS writes it, spelled out byte by byte."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length >= 128:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    def entry(key: bytes, value: bytes) -> bytes:
        return field(1, field(1, key) + field(2, field(1, field(1, value))))

    return field(1, entry(b"id", b"x") + entry(b"record", record))


def write_prepared(folder, count=5):
    """A prepared folder written by hand, so that reading is tested apart from writing."""
    shards, start = [], 0
    for number, size in enumerate((count - 2, 2)):
        path = folder / f"probe-{number}"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for index in range(start, start + size):
            writer.write(example(records.encode(make_sample(index))))
        writer.close()
        start += size
        shards.append(
            {
                "file": path.name,
                "samples": size,
                "bytes": path.stat().st_size,
                "sha256": records.file_hash(path),
            }
        )
    ids = folder / "train.ids.jsonl"
    ids.write_text("".join(json.dumps(make_sample(index).id) + "\n" for index in range(count)))
    statistics = {"mean": [10.0, None], "std": [2.0, None]}
    manifest = {
        "format": records.FORMAT,
        "name": "probe",
        "modalities": [ModalitySpec("s2", SENSOR, 5, 7, True, 3, "uint16", True).to_dict()],
        "splits": {
            "train": {"shards": shards, "ids": {"file": ids.name, "sha256": records.file_hash(ids)}},
        },
        "statistics": {
            "s2": {
                "all": {"pooled": statistics, "reference": statistics},
                "l2a": {"pooled": {"mean": [5.0, 6.0], "std": [1.0, 2.0]}, "reference": statistics},
            }
        },
    }
    manifest["fingerprint"] = records.fingerprint(manifest)
    records.write_json(folder / records.MANIFEST, manifest)
    return manifest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("valid", [True, False])
def test_round_trip_is_exact(dtype, valid):
    sample = make_sample(1, dtype, valid)
    assert_same(records.decode(records.encode(sample)), sample)


def test_big_endian_values_are_stored_by_value():
    sample = make_sample(1)
    sample.images["s2"].values = sample.images["s2"].values.astype(">u2")
    found = records.decode(records.encode(sample)).images["s2"].values
    np.testing.assert_array_equal(found, sample.images["s2"].values)


def test_unpacking_some_modalities_only():
    sample = make_sample(1)
    sample.images = {
        "a": make_sample(2, "float32").images["s2"],
        **sample.images,
        "z": make_sample(3).images["s2"],
    }
    found = records.decode(records.encode(sample), ["s2", "z"])
    del sample.images["a"]
    assert_same(found, sample)


def test_encode_refuses_non_finite_pixels():
    sample = make_sample(1, "float32")
    sample.images["s2"].values[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"place 1.*s2.*NaN or infinite"):
        records.encode(sample)


def test_decode_names_what_is_wrong():
    record = records.encode(make_sample(1))
    with pytest.raises(ValueError, match="not a ramen_jax record"):
        records.decode(b"PNG!" + record)
    with pytest.raises(ValueError, match="cut off"):
        records.decode(record[:-200])
    with pytest.raises(ValueError, match="record"):
        records.record_of_example(b"\x0a\x00")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((2, 5, 7), np.uint16)}, r"\[T, C, H, W\]"),
        ({"values": np.zeros((3, 2, 5, 7), np.float64)}, "float64"),
        ({"dates": np.zeros(2, np.int16)}, "dates"),
        ({"present": np.ones(3, bool)}, "present"),
        ({"valid": np.ones((3, 7, 5), bool)}, "valid"),
    ],
)
def test_image_refuses_inconsistent_arrays(change, message):
    arrays = {
        "values": np.zeros((3, 2, 5, 7), np.uint16),
        "dates": np.zeros(3, np.int16),
        "present": np.ones(2, bool),
        "valid": None,
    }
    with pytest.raises(ValueError, match=message):
        Image(**{**arrays, **change})


def test_prepared_reads_every_sample(tmp_path):
    manifest = write_prepared(tmp_path)
    corpus = Prepared(tmp_path)
    assert len(corpus) == 5
    for index in range(5):
        assert_same(corpus[index], make_sample(index))
    assert_same(corpus[-1], make_sample(4))
    assert corpus.read(2, []).images == {}
    assert corpus.ids == [make_sample(index).id for index in range(5)]
    assert corpus.spec.fingerprint == manifest["fingerprint"]
    assert corpus.spec.modality("s2").sensor.mean == (10.0, 0.0)
    corpus.verify()
    with pytest.raises(IndexError):
        corpus[5]


def test_prepared_travels_to_workers(tmp_path):
    write_prepared(tmp_path)
    corpus = Prepared(tmp_path)
    assert_same(corpus[0], make_sample(0))
    assert_same(pickle.loads(pickle.dumps(corpus))[4], make_sample(4))


def test_statistics_follow_the_variant(tmp_path):
    write_prepared(tmp_path)
    corpus = Prepared(tmp_path)
    mean, std = corpus.statistics(corpus[0], "s2")
    assert (mean.tolist(), std.tolist()) == ([5.0, 6.0], [1.0, 2.0])
    mean, std = corpus.statistics(Sample("x", {}), "s2")
    assert (mean.tolist(), std.tolist()) == ([10.0, 0.0], [2.0, 1.0])


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json: missing"):
        Prepared(tmp_path)
    write_prepared(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        Prepared(tmp_path, split="test")


def test_edited_manifest_is_refused(tmp_path):
    manifest = write_prepared(tmp_path)
    manifest["statistics"]["s2"]["all"]["pooled"]["mean"][0] = 11.0
    records.write_json(tmp_path / records.MANIFEST, manifest)
    with pytest.raises(UserError, match="fingerprint no longer matches"):
        Prepared(tmp_path)
    (tmp_path / records.MANIFEST).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Prepared(tmp_path)


def test_changed_shards_are_refused(tmp_path):
    manifest = write_prepared(tmp_path)
    path = tmp_path / manifest["splits"]["train"]["shards"][0]["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="probe-0: content differs"):
        Prepared(tmp_path).verify()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"probe-0: .* bytes, the manifest says"):
        Prepared(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="probe-0: missing"):
        Prepared(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "link/outside"])
def test_manifest_paths_stay_inside(tmp_path, name):
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    manifest = write_prepared(folder)
    manifest["splits"]["train"]["shards"][0]["file"] = name
    manifest["fingerprint"] = records.fingerprint(manifest)
    records.write_json(folder / records.MANIFEST, manifest)
    with pytest.raises(ValueError, match="leads outside"):
        Prepared(folder)


def test_spec_round_trip_and_unknown_modality():
    spec = ModalitySpec("s2", SENSOR, 5, 7, True, 3, "uint16", True)
    assert ModalitySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValueError, match="no modality 's1'; it has s2"):
        CorpusSpec("probe", (spec,)).modality("s1")
