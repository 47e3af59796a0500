"""Original files -> a prepared corpus: ArrayRecord shards, manifest with statistics and fingerprint.

Killed half-way and started again, it goes on where it was and ends with the same shards. Files that cannot be used
are listed with their cause in OUTPUT/rejected.jsonl.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ramen_jax import storage
from ramen_jax.console import USAGE, UserError
from ramen_jax.corpora import TRAP_OPTIONS, BadItem, load_description, records, settings_of, with_recipe
from ramen_jax.corpora.archives import find_archives, unpack
from ramen_jax.corpora.records import MANIFEST, Prepared
from ramen_jax.recipe import FIXED, Recipe


def prepare(
    entry: Mapping[str, Any],
    output: str | os.PathLike[str],
    recipe: Recipe = FIXED,
    workers: int | None = None,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
    unpack_to: str | os.PathLike[str] | None = None,
) -> Path:
    """Prepares a corpus unless `output` already holds it; returns the folder.

    Args:
      entry: `name`, `kind` or `spec` (YAML file or name of a shipped one), `source`, and under `options` what
        overrides the description. `source` may hold environment variables. Other keys are not looked at.
      output: folder for manifest.json and the shards.
      recipe: decides the readers' traps, see `ramen_jax.corpora.TRAP_OPTIONS`.
      workers: processes; None = one per processor.
      runner: name of an Apache Beam runner that does the work instead.
      beam_options: its pipeline options.
      unpack_to: folder to unpack the archives (zip, tar) of `source` into first; it then is the source.

    Errors: UserError when the description or the source is wrong, when no good sample is left, or when `output`
    holds this corpus prepared with other settings.
    """
    folder = storage.local(str(output))
    description = describe(entry, recipe)
    if _is_prepared(folder, description):
        return folder
    source = _source(entry, description)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}") from error
    with _alone(folder, made):
        # Another process may have done the work while this one waited for it.
        if _is_prepared(folder, description):
            return folder
        rejected: list[BadItem] = []
        if unpack_to is not None:
            unpacked = storage.local(str(unpack_to))
            rejected = unpack(find_archives(source), unpacked)
            for item in rejected:
                print(f"WARNING: {item}", file=sys.stderr)
            source = unpacked.absolute()
        _build(
            description, source, folder, rejected, workers or os.cpu_count() or 1, _beam(runner, beam_options)
        )
    for sentence in records.read_manifest(folder)["warnings"]:
        print(f"WARNING: {description['name']}: {sentence}", file=sys.stderr)
    return folder


@contextlib.contextmanager
def _alone(folder: Path, made: bool) -> Iterator[None]:
    """Waits until no other process prepares this folder. The lock falls with its process, however that ends.

    A folder that was `made` for this work and in which no shard was finished goes with an error.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        except UserError:
            if made and not any(folder.rglob("*.array_record*")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _build(
    description: Mapping[str, Any],
    source: Path,
    folder: Path,
    rejected: Sequence[BadItem],
    workers: int,
    beam: Mapping[str, Any],
) -> None:
    """Runs the TFDS builder in a folder below and moves its files up, the manifest last."""
    # Imported here: TFDS takes a second, and a run whose corpus is prepared never needs it.
    import tensorflow_datasets as tfds

    from ramen_jax.corpora.builder import builder_class

    build, parts = folder / ".build", folder / ".parts"
    shutil.rmtree(build, ignore_errors=True)
    tfds.disable_progress_bar()
    builder = builder_class(description["name"])(
        description=description,
        source=source,
        parts=parts,
        rejected=rejected,
        workers=workers,
        data_dir=build,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads that there are none of
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=source, **beam))
    for path in sorted(Path(builder.data_dir).iterdir(), key=lambda path: path.name == MANIFEST):
        os.replace(path, folder / path.name)
    shutil.rmtree(build)
    shutil.rmtree(parts)


def describe(entry: Mapping[str, Any], recipe: Recipe = FIXED) -> dict[str, Any]:
    """The full description of a corpus entry: spec, its own kind and name, options, then what the recipe says."""
    description = load_description(entry["spec"]) if entry.get("spec") else {}
    for key in ("kind", "name"):
        if entry.get(key):
            description[key] = entry[key]
    description.update(entry.get("options") or {})
    if "kind" not in description:
        raise UserError(f"corpus {entry.get('name')!r}: give kind, or spec with a YAML file", USAGE)
    return with_recipe({"name": description["kind"], **description}, recipe)


def _source(entry: Mapping[str, Any], description: Mapping[str, Any]) -> Path:
    text = os.path.expandvars(str(entry.get("source") or ""))
    if "$" in text:
        raise UserError(
            f"corpus {description['name']}: source {text} names an environment variable that is not set"
        )
    if not text and description["kind"] != "synthetic":
        raise UserError(
            f"corpus {description['name']}: source is missing, the folder of its original files", USAGE
        )
    return storage.local(text).absolute()


def _is_prepared(folder: Path, description: Mapping[str, Any]) -> bool:
    """Whether the folder holds this corpus. Errors: UserError when it holds another, or other settings."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = records.read_manifest(folder)
    found, expected = manifest["settings"], settings_of(description)
    found.pop("wavelengths", None)  # of older manifests: decided when the corpus is opened
    if manifest["name"] != description["name"]:
        found, expected = {"name": manifest["name"]}, {"name": description["name"]}
    differing = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    if differing:
        changes = ", ".join(
            f"{key}: {found.get(key)!r} there, {expected.get(key)!r} asked for" for key in differing
        )
        decided = TRAP_OPTIONS.get(description["kind"], {})
        traps = [
            f"config.traps.{decided[key]}={found[key]}"
            for key in differing
            if key in decided and key in found
        ]
        hint = f" ({' '.join(traps)})" if traps else ""
        raise UserError(
            f"{folder} holds corpus {manifest['name']} prepared with other settings ({changes}); ask for the same"
            f"{hint}, or prepare what is asked for into another folder (`ramen_jax.prepare --recipe, --trap, --set`)"
        )
    return True


def _beam(runner: str | None, options: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of tfds.download.DownloadConfig that hand the work to Apache Beam."""
    if runner is None:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise UserError("--runner needs Apache Beam: pip install apache-beam", USAGE) from error
    try:
        return {"beam_runner": create_runner(runner), "beam_options": PipelineOptions(list(options))}
    except (ValueError, ImportError) as error:
        raise UserError(f"--runner {runner}: {error}", USAGE) from error


def verify(folder: Path) -> None:
    """Hashes every file of every split against the manifest. Errors: ValueError naming the first that differs."""
    for split in records.read_manifest(folder)["splits"]:
        Prepared(folder, split).verify()


def report(folder: Path) -> str:
    """What a prepared folder holds, for a person."""
    manifest = records.read_manifest(folder)
    splits = ", ".join(f"{name} {entry['samples']:,}" for name, entry in manifest["splits"].items())
    rejected = (
        f"; {manifest['rejected']} rejected, see {folder / 'rejected.jsonl'}" if manifest["rejected"] else ""
    )
    return (
        f"{manifest['name']}: {splits} samples in {folder}{rejected}\nfingerprint {manifest['fingerprint']}"
    )
