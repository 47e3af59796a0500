"""Prepared corpora in a bucket (S3 of this machine): copied once, whole, and compared with their hashes."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ramen_jax import config as configuration
from ramen_jax import storage
from ramen_jax.console import DATA, UserError
from ramen_jax.corpora import buckets
from ramen_jax.corpora.preparation import prepare
from ramen_jax.corpora.records import MANIFEST, Prepared
from ramen_jax.training import experiment, health
from tests.buckets import s3

__all__ = ["s3"]

ENTRY = {"name": "toy", "kind": "synthetic", "options": {"geometry": "tiny", "places": 6, "val_places": 2}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return prepare(ENTRY, tmp_path_factory.mktemp("prepared"), workers=1)


@pytest.fixture
def there(s3, whole, tmp_path, monkeypatch):
    """Address of the corpus; the disk of this host is empty."""
    monkeypatch.setenv(storage.SCRATCH, str(tmp_path / "scratch"))
    url = s3()
    storage.place(url).upload((path, path.name) for path in whole.iterdir() if path.is_file())
    return url


@pytest.fixture
def copied(monkeypatch):
    """Names of the files that are copied from here on."""
    names, download = [], storage.Bucket.download

    def noting(bucket, wanted, folder):
        names.extend(wanted := list(wanted))
        download(bucket, wanted, folder)

    monkeypatch.setattr(storage.Bucket, "download", noting)
    return names


def shard_of(folder):
    return json.loads((folder / MANIFEST).read_text())["splits"]["train"]["shards"][0]["file"]


def test_a_corpus_in_a_bucket_is_read_as_a_local_one(there, whole, copied):
    """And copied once, by one of those that ask. (Mutants: each copies for itself; the manifest is not compared.)"""
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(buckets.local_folder, [there] * 3))
    (folder,) = folders
    assert [sample.id for sample in Prepared(folder)] == [sample.id for sample in Prepared(whole)]
    assert len(Prepared(folder, "val")) == 2
    assert len(copied) == len(set(copied))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*copied, MANIFEST])
    del copied[:]
    assert buckets.local_folder(there) == folder
    assert copied == []
    assert buckets.local_folder(str(whole)) == whole


def test_a_copy_that_was_interrupted_goes_on(there, whole, copied):
    """One file had come, one half. (Mutants: all are copied anew; what has the right size is taken for whole.)"""
    folder = buckets.local_folder(there)
    shard = folder / shard_of(folder)
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    (folder / MANIFEST).unlink()
    del copied[:]
    buckets.local_folder(there)
    assert copied == [shard.name]
    Prepared(folder).verify()


def test_another_corpus_at_the_address_is_copied_again(there, tmp_path, copied):
    """(Mutant: whatever is here is used: a training goes on with yesterday's samples.)"""
    folder = buckets.local_folder(there)
    before = Prepared(folder).ids
    other = prepare({**ENTRY, "options": {**ENTRY["options"], "places": 4}}, tmp_path / "other", workers=1)
    bucket = storage.place(there)
    bucket.remove(bucket.files())
    bucket.upload((path, path.name) for path in other.iterdir() if path.is_file())
    assert buckets.local_folder(there) == folder
    assert len(Prepared(folder)) == 4 != len(before)
    Prepared(folder).verify()


def test_what_cannot_be_used_is_told_in_one_line_and_leaves_no_corpus(there, whole, s3, monkeypatch):
    """(Mutants: a damaged file is taken; the manifest comes first; a disk that is too small is filled.)"""
    bucket, name = storage.place(there), shard_of(whole)
    with monkeypatch.context() as patched:
        patched.setattr("ramen_jax.own_files.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(UserError, match=r"the files of s3://.* the disk of .* has 100 .*free"):
            buckets.local_folder(there)
    content = bytearray((whole / name).read_bytes())
    content[100] ^= 1
    bucket.write(name, bytes(content))
    with pytest.raises(UserError, match=f"{there}/{name} is not what its manifest.json says") as told:
        buckets.local_folder(there)
    assert told.value.code == DATA
    assert not (buckets.folder_of(there) / MANIFEST).exists()
    bucket.remove([name])
    with pytest.raises(UserError, match=f"{there}/{name} is missing, which its manifest.json names"):
        buckets.local_folder(there)
    with pytest.raises(UserError, match=r"holds no manifest.json, expected a prepared corpus"):
        buckets.local_folder(s3())


def test_a_training_and_the_doctor_find_it(there, repository, tmp_path):
    """(Mutant: `prepared` is taken for a local path, a folder ./s3:.)"""
    settings = configuration.load(
        f"{repository}/configs/tiny.py", [f"--config.corpora.tiny.prepared={there}"]
    )
    (entry,) = settings.corpora
    (found,) = health.corpora(settings, None)
    assert not found.wrong, found
    assert f"a training first copies to {buckets.folder_of(there)}" in found.found
    entry.name = "toy"
    entry.options.places, entry.options.val_places = 6, 2
    source = experiment.open_corpus(settings, entry, tmp_path)
    assert len(source) == 6
    assert source.folder == buckets.folder_of(there)
    (found,) = health.corpora(settings, None)
    assert "train 6, val 2 samples" in found.found
