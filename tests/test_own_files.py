"""No command writes what it reads, nor replaces what is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramen_jax import own_files, storage
from ramen_jax.console import UserError


def test_what_is_written_is_compared_with_everything_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    source = tmp_path / "a" / "source.tif"
    source.write_text("pixels")
    (tmp_path / "link.tif").symlink_to(source)
    (tmp_path / "hard.tif").hardlink_to(source)
    for path in (
        source,
        tmp_path / "link.tif",
        tmp_path / "hard.tif",
        tmp_path / "a" / ".." / "a" / "source.tif",
    ):
        with pytest.raises(UserError, match=r"--output .* is an --image"):
            own_files.refuse_overlap({"--output": path}, {"--image": [source]})
    with pytest.raises(UserError, match=r"--output .* contains --image"):
        own_files.refuse_overlap({"--output": tmp_path / "a"}, {"--image": [source]})
    for second in (tmp_path / "b.tif", tmp_path / "b.tif" / "inner.png"):
        with pytest.raises(UserError, match="in each other's way"):
            own_files.refuse_overlap({"--output": tmp_path / "b.tif", "--pca": second}, {})
    own_files.refuse_overlap(
        {"--output": tmp_path / "b.tif", "--pca": tmp_path / "b.png"}, {"--image": [source]}
    )


def test_only_an_own_output_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    own_files.refuse_foreign(path, False, lambda _: False, "ours")
    path.write_text("mine")
    with pytest.raises(UserError, match="exists; choose another name or give --overwrite"):
        own_files.refuse_foreign(path, False, lambda _: True, "ours")
    with pytest.raises(UserError, match="is not recognisably ours"):
        own_files.refuse_foreign(path, True, lambda _: False, "ours")
    own_files.refuse_foreign(path, True, lambda _: True, "ours")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not recognisably ours"):
        own_files.refuse_foreign(tmp_path / "dangling", True, lambda _: True, "ours")


def test_content_says_what_a_file_is(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(b"the same")
    assert own_files.content_hash([first]) == own_files.content_hash([second])
    second.write_bytes(b"the sama")
    assert own_files.content_hash([first]) != own_files.content_hash([second])
    assert own_files.content_hash([first, second]) != own_files.content_hash([second, first])


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path: Path) -> None:
    own_files.refuse_beyond_disk("this", 1.0, tmp_path / "not" / "there" / "yet.tif")
    with pytest.raises(UserError, match=r"this, 1e\+06 PiB; the disk of .* free"):
        own_files.refuse_beyond_disk("this", 1e6 * 2**50, tmp_path / "not" / "there" / "yet.tif")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.local("~/a") == tmp_path / "a"
    assert storage.local("a/~") == Path("a/~")
    with pytest.raises(UserError, match="nobody-of-this-name"):
        storage.local("~nobody-of-this-name/a")
