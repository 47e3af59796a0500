"""Paths: local ones as ever, buckets by their scheme, and nothing that only looks like one of them."""

from __future__ import annotations

import http.server
import importlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ramen_jax import console, storage
from ramen_jax.storage import PathError
from tests.buckets import s3
from tests.wrong_inputs.registry import OLD, TINY

__all__ = ["s3"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gss://bucket/run", r'not with gss:; did you mean "gs://"'),
        ("GS://bucket/run", r'did you mean "gs://"'),
        ("s3a://bucket/run", r'did you mean "s3://"'),
        ("http://host/run", "begin with gs://, s3://, az://.*mount or copy it"),
        ("file:///data/run", "not with file:"),
        ("memory://run", "not with memory:"),
        ("gs:/bucket/run", r"expected gs://BUCKET/FOLDER"),
        ("gs://", r"expected gs://BUCKET/FOLDER"),
        ("s3:///", r"expected s3://BUCKET/FOLDER"),
    ],
)
def test_what_is_no_path_is_told_with_what_may_be_meant(text, told):
    for door in (storage.place, storage.local, storage.checkpoint):
        with pytest.raises(PathError, match=told) as raised:
            door(text)
        assert raised.value.code == console.USAGE


@pytest.mark.parametrize(
    "text", ["runs/a", "/data/x:/y", "a:b", "C:/data", "gs", "runs/gs://x", "x:y/z", "gs:"]
)
def test_local_paths_stay_local(text):
    assert storage.place(text) == storage.local(text) == Path(text)


def test_a_backend_that_is_missing_is_told_with_what_to_install(monkeypatch):
    for module in ("gcsfs", "s3fs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)
    loaded = importlib.import_module("fsspec.registry")._registry
    for scheme, package in storage.BACKENDS.items():
        monkeypatch.delitem(loaded, scheme, raising=False)
        with pytest.raises(PathError, match=rf"{scheme}:// needs {package}: pip install {package}"):
            storage.place(f"{scheme}://bucket/run")


GIVEN = {
    "train": ["--config", TINY, "--workdir", "{}"],
    "train start": ["--config", TINY, "--workdir", "run", "--config.train.start_from={}"],
    "evaluate workdir": ["--task", "mados", "--data", ".", "--workdir", "{}"],
    "evaluate checkpoint": ["--task", "mados", "--data", ".", "--workdir", "out", "--checkpoint", "{}"],
    "evaluate data": ["--task", "mados", "--data", "{}", "--workdir", "out"],
    "prepare output": ["--corpus", "worldstrat", "--source", ".", "--output", "{}"],
    "prepare source": ["--corpus", "worldstrat", "--source", "{}", "--output", "out"],
    "embed output": [
        *("--checkpoint", str(OLD / "exported"), "--image", "a.tif", "--sensor", "x", "--target-gsd", "10"),
        *("--output", "{}"),
    ],
    "export output": ["--checkpoint", str(OLD / "workdir"), "--output", "{}"],
    "export checkpoint": ["--checkpoint", "{}", "--output", "out"],
    "bench": ["--config", TINY, "--corpus", "tiny", "--data-only", "--workdir", "{}"],
    "pictures": ["--workdir", "{}"],
    "checkpoint": ["inspect", "{}"],
    "doctor": ["--workdir", "{}"],
}


@pytest.mark.parametrize("given", GIVEN)
def test_a_misspelt_scheme_makes_no_folder_in_any_command(given, repository, tmp_path, monkeypatch, capsys):
    """(Mutant: `gss://bucket/run` becomes ./gss:/bucket/run.)"""
    command = given.split()[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(repository / "configs")
    arguments = [text.replace("{}", "gss://bucket/run") for text in GIVEN[given]]
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit) as ended:
        console.main(importlib.import_module(f"ramen_jax.{command}").run)
    told = capsys.readouterr().err
    assert ended.value.code == console.USAGE, told
    assert 'did you mean "gs://"?' in told
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


@pytest.mark.parametrize(
    "given", ["evaluate workdir", "prepare output", "embed output", "export output", "pictures"]
)
def test_what_cannot_lie_in_a_bucket_says_how_to_copy_it(given, repository, tmp_path, monkeypatch, capsys):
    command = given.split()[0]
    monkeypatch.chdir(tmp_path)
    arguments = [text.replace("{}", "s3://bucket/run") for text in GIVEN[given]]
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit):
        console.main(importlib.import_module(f"ramen_jax.{command}").run)
    assert "aws s3 cp --recursive" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_gives_back_what_was_written(s3, tmp_path):
    bucket = storage.place(s3())
    assert (bucket.files(), bucket.read("a"), bucket.modified("a"), bucket.steps()) == ({}, None, None, [])
    bucket.write("a/b.txt", b"text")
    assert bucket.read("a/b.txt") == b"text"
    assert abs(bucket.modified("a/b.txt") - time.time()) < 60
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    bucket.upload([(tmp_path / "file", "checkpoints/7/d/0"), (tmp_path / "file", "checkpoints/7/files.json")])
    bucket.upload([(tmp_path / "file", "checkpoints/9/d/0")])
    assert bucket.files("checkpoints/9") == {"checkpoints/9/d/0": 256_000}
    assert bucket.steps() == [7]  # 9 has no list of hashes, so it is none
    bucket.download(["checkpoints/7/d/0", "a/b.txt"], tmp_path / "back")
    assert (tmp_path / "back/checkpoints/7/d/0").read_bytes() == (tmp_path / "file").read_bytes()
    assert sorted(path.name for path in (tmp_path / "back").rglob("*") if path.is_file()) == ["0", "b.txt"]
    with pytest.raises(OSError, match="leads outside"):
        bucket.download(["../x"], tmp_path / "back")
    bucket.remove(["a/b.txt", "never/was"])
    assert "a/b.txt" not in bucket.files()
    with pytest.raises(FileNotFoundError):
        bucket.upload([(tmp_path / "gone", "gone")])
    with pytest.raises(OSError, match=r"s3://no-such-bucket/run: x was not written \(.*does not exist"):
        storage.place("s3://no-such-bucket/run").write("x", b"")


def test_of_many_that_create_an_object_one_does(s3):
    """(Mutant: create looks first and writes then.)"""
    bucket = storage.place(s3())
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: bucket.create("lock", str(number).encode()), range(8)))
    assert made.count(True) == 1
    assert bucket.read("lock") == str(made.index(True)).encode()


def test_gcs_is_asked_to_create_only_where_nothing_is(monkeypatch):
    """What the lock stands on there. The server answers as Google does: 412 where there is an object."""
    pytest.importorskip("gcsfs")
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            self.send_response(200 if len(asked) == 1 else 412)
            self.end_headers()
            self.wfile.write(
                b'{"kind": "storage#object", "name": "run/lock", "bucket": "bucket", "size": "1"}'
            )

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        bucket = storage.place("gs://bucket/run")
        made = [bucket.create("lock", b"1"), bucket.create("lock", b"2")]
        server.shutdown()
    assert made == [True, False]
    assert all("ifGenerationMatch=0" in path for path in asked), asked
