"""Damage of a prepared corpus, and items that cannot become samples: found, named, never silent."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ramen_jax.corpora import records, shards
from ramen_jax.corpora.preparation import prepare
from ramen_jax.corpora.records import Prepared
from ramen_jax.corpora.synthetic import Synthetic

ENTRY = {"name": "toy", "kind": "synthetic", "options": {"geometry": "tiny", "places": 6, "val_places": 2}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return prepare(ENTRY, tmp_path_factory.mktemp("prepared"), workers=1)


@pytest.fixture
def corpus(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "corpus")


def everything(folder):
    """All that training reads of a corpus."""
    source = Prepared(folder)
    return source.spec, [records.encode(sample) for sample in source], source.ids


def test_no_flipped_bit_is_loaded(corpus):
    """60 single bits over manifest, shards and id list. What the hashes find, and what reading finds without them.

    (Mutants: verify leaves the id list out; the id of a record is not compared.)
    """
    rng = np.random.default_rng(5)
    expected = everything(corpus)
    entry = json.loads((corpus / "manifest.json").read_text())["splits"]["train"]
    files = [corpus / name for name in ("manifest.json", entry["ids"]["file"])]
    files += [corpus / shard["file"] for shard in entry["shards"]]
    for number in range(60):
        path = files[number % len(files)]
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=path.name):
            Prepared(corpus).verify()
        told, found = "", None
        try:
            found = everything(corpus)
        except ValueError as error:
            told = str(error)
        assert path.name in told or found == expected  # a byte that nothing is read from
        path.write_bytes(content)
    Prepared(corpus).verify()


def test_a_shard_in_the_place_of_another_is_noticed_record_by_record(corpus):
    """Of equal size, so only content tells. (Mutant: the id list is for people only.)"""
    source = Prepared(corpus)
    first, second = (corpus / shard["file"] for shard in source.manifest["splits"]["train"]["shards"][:2])
    spare = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(spare)
    manifest = json.loads((corpus / "manifest.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        shard["bytes"] = (corpus / shard["file"]).stat().st_size
    manifest["fingerprint"] = records.fingerprint(manifest)
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    source = Prepared(corpus)
    with pytest.raises(ValueError, match=rf"{first.name}, record 0 \({source.ids[0]}\): holds the sample"):
        source.read(0)


def test_an_edited_id_list_is_refused(corpus):
    source = Prepared(corpus)
    path = corpus / source.manifest["splits"]["train"]["ids"]["file"]
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=rf"{path.name}: content differs from its sha256"):
        Prepared(corpus).read(0)


def test_a_damaged_record_is_told_with_shard_record_and_id(corpus):
    source = Prepared(corpus)
    place = source.place(3)
    content = bytearray(place.shard.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    place.shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{place.shard.name}, record {place.record} \({place.id}\): "):
        Prepared(corpus).read(3)


def nan_latitude(sample):
    sample.location = (3.0, float("nan"))


def unknown_extra(sample):
    sample.extra["when"] = np.datetime64("2020-01-01")


def huge_number(sample):
    sample.extra["area"] = 10**400


def no_dates(sample):
    next(iter(sample.images.values())).dates = np.zeros(0, np.int16)


def raising(error):
    def spoil(sample):
        raise error

    return spoil


SPOILERS = {
    "nan latitude": nan_latitude,
    "no JSON": unknown_extra,
    "no dates": no_dates,
    "short array": raising(IndexError("index 5 is out of bounds for axis 0 with size 3")),
    "text for a number": raising(TypeError("can't multiply sequence by non-int of type 'float'")),
    "overflow": raising(OverflowError("int too large to convert to float")),
    "division": raising(ZeroDivisionError("division by zero")),
    "attribute": raising(AttributeError("'str' object has no attribute 'shape'")),
    "memory": raising(MemoryError("Unable to allocate 3.8 TiB")),
}


@pytest.mark.parametrize("what", SPOILERS)
def test_one_bad_item_is_listed_and_the_others_are_prepared(tmp_path, monkeypatch, what):
    """Reading or encoding, whatever it raises. (Mutants: encode outside the quarantine; a list of exception types.)"""
    honest = Synthetic.read

    def read(self, item, split):
        samples = honest(self, item, split)
        if item == spoilt:
            SPOILERS[what](samples[0])
        return samples

    spoilt = Synthetic(tmp_path, {"name": "toy", "kind": "synthetic", **ENTRY["options"]}).items()[0][
        "train"
    ][2]
    monkeypatch.setattr(Synthetic, "read", read)
    shards._opened.cache_clear()
    folder = prepare(ENTRY, tmp_path / "prepared", workers=1)
    listed = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [line["item"] for line in listed] == [spoilt]
    assert listed[0]["cause"]
    assert len(Prepared(folder)) == 5
    Prepared(folder).verify()
