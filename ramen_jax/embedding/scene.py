"""From the options of `python -m ramen_jax.embed` to the finished file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re

import jax
import numpy as np

from ramen_jax import console, storage
from ramen_jax.console import USAGE, UserError
from ramen_jax.embedding import pca
from ramen_jax.embedding.feature_files import output_format
from ramen_jax.embedding.rasters import Layer, Place, doubts, open_place, overview
from ramen_jax.embedding.tiles import Embedder, embed
from ramen_jax.inference.encoder import Encoder
from ramen_jax.limits import refuse_beyond_memory
from ramen_jax.own_files import content_hash, refuse_beyond_disk, refuse_foreign, refuse_overlap
from ramen_jax.sensors import Sensor, load_sensors
from ramen_jax.training.weights import load

SETTINGS = ("target_gsd", "layer", "tile", "overlap", "statistics", "positions")
YAML = re.compile(r"\.ya?ml(:|$)")


def run(options: argparse.Namespace) -> int:
    """Embeds what the options name. Returns the exit status."""
    if len(options.image) != len(options.sensor):
        raise UserError(
            f"{len(options.image)} --image but {len(options.sensor)} --sensor; give one each", USAGE
        )
    if not 0 <= options.overlap < options.tile:
        raise UserError(
            f"--overlap is {options.overlap}, expected 0 or more tokens and fewer than --tile, {options.tile}",
            USAGE,
        )
    make_output = output_format(options.output)
    _check_paths(options)
    if not options.target_gsd > 0:
        raise UserError(f"--target-gsd is {options.target_gsd:g}, expected metres above 0", USAGE)
    model = load(options.checkpoint)
    if options.layer is not None and not 0 <= options.layer < model.depth:
        raise UserError(f"--layer is {options.layer}; the blocks are 0 to {model.depth - 1}", USAGE)
    own = options.statistics == "sensor"
    sensors = [choose_sensor(text, model, own) for text in options.sensor]
    names = [text.rpartition(":")[2].rpartition("/")[2] for text in options.sensor]
    names = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
    with contextlib.ExitStack() as stack:
        triples = list(zip(names, options.image, sensors, strict=True))
        place = open_place(triples, options.target_gsd, stack, max_step=max(options.overlap, 1))
        for layer in place.layers:
            place.notes.extend(doubts(layer))
            if not own:
                layer.sensor = with_image_statistics(layer)
        for note in place.notes:
            print(f"note: {note}")
        embedder = Embedder(model, place, options.layer, options.positions)
        _refuse_impossible(place, embedder.depth, options)
        stamps = _stamps(place)
        identity = identify(model, place, options)
        bands = [f"{layer.name} {channel}" for layer in place.layers for channel in range(model.width)]
        output = make_output(options.output, place, bands, identity, options.overwrite)
        if output.start:
            print(f"note: going on at row {output.start} of {place.rows}")
        embed(embedder, output, options.tile, options.overlap)
        if _stamps(place) != stamps:
            raise UserError("an --image was replaced or changed while it was read; start again")
        output.finish()
    print(
        f"wrote {options.output}: {place.columns} x {place.rows} cells of {options.target_gsd:g} m, {len(bands)} bands"
    )
    if options.pca:
        pca.pca_picture(options.output, options.pca)
        print(f"wrote {options.pca}")
    return 0


def identify(model: Encoder, place: Place, options: argparse.Namespace) -> str:
    """What the features follow from, by content: pixels, weights, sensors and settings, wherever they lie."""
    weights = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path((model.params, model.statistics)):
        array = np.asarray(leaf)
        weights.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        weights.update(np.ascontiguousarray(array).data)
    settings = {key: getattr(options, key) for key in SETTINGS}
    images = [
        (layer.name, layer.sensor.to_dict(), layer.days.tolist(), content_hash(layer.sources))
        for layer in place.layers
    ]
    facts = [settings, images, model.ramen.recipe.to_dict(), model.ramen.architecture.to_dict()]
    return hashlib.sha256((repr(facts) + weights.hexdigest()).encode()).hexdigest()


def _stamps(place: Place) -> list[tuple[int, int, int]]:
    """What changes when a file is replaced or written to, without reading it."""
    found = [path.stat() for layer in place.layers for path in layer.sources if path.is_file()]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]


def _check_paths(options: argparse.Namespace) -> None:
    """Every path to be written against every one that is read, before anything is done."""
    if options.pca and not options.pca.parent.is_dir():
        raise UserError(f"--pca {options.pca}: there is no folder {options.pca.parent}", USAGE)
    written = {"--output": options.output} | ({"--pca": options.pca} if options.pca else {})
    yaml_files = (text.partition(":")[0] for text in options.sensor if YAML.search(text))
    read = {
        "--image": options.image,
        "--sensor": [storage.local(text) for text in yaml_files],
        "--checkpoint": [options.checkpoint],
    }
    refuse_overlap(written, read)
    for option, path in written.items():
        for image in options.image:
            if image.is_dir() and image.resolve() in path.resolve().parents:
                raise UserError(
                    f"{option} {path} lies in --image {image}, whose rasters are a series; choose another folder",
                    USAGE,
                )
    if options.pca:
        refuse_foreign(options.pca, options.overwrite, pca.is_ours, "a picture that embed wrote")


def _refuse_impossible(place: Place, depth: int, options: argparse.Namespace) -> None:
    """A strip of tiles lies in memory, the whole on the disk."""
    cells = place.rows * place.columns
    what = (
        f"target GSD {options.target_gsd:g} m asks for {cells:,} cells, {place.rows:,} x {place.columns:,}, of {depth} "
        "features"
    )
    tall = min(place.rows, -(-options.tile // place.step) * place.step)
    strip = 8.0 * depth * tall * place.columns
    refuse_beyond_memory(f"{what}; a strip of tiles", strip, "use a coarser --target-gsd or a smaller --tile")
    refuse_beyond_disk(what, 4.0 * depth * cells, options.output)


def choose_sensor(text: str, model: Encoder, needs_statistics: bool) -> Sensor:
    """A sensor by the model's or the registry's name, or from FILE.yaml (its only sensor) or FILE.yaml:NAME."""
    file, _, name = text.partition(":")
    if not file.endswith((".yaml", ".yml")):
        return model.sensor(text, needs_statistics)
    sensors = load_sensors(file)
    if not name and len(sensors) > 1:
        raise UserError(f"{file} describes {len(sensors)} sensors; write {file}:{next(iter(sensors))}", USAGE)
    if name and name not in sensors:
        raise UserError(f"{file} has no sensor '{name}'; {console.close_names(name, sensors)}", USAGE)
    found = sensors[name or next(iter(sensors))]
    return model.sensor(found) if needs_statistics else found


def with_image_statistics(layer: Layer) -> Sensor:
    """The layer's sensor with the mean and standard deviation of its own pixels."""
    values_Cxn = overview(layer)
    mean, std = np.nanmean(values_Cxn, axis=1), np.nanstd(values_Cxn, axis=1)
    if not (np.isfinite(mean).all() and (std > 0).all()):
        raise UserError(f"{layer.files[0]}: a band is constant or empty, so the image gives no statistics")
    return layer.sensor.with_statistics(mean.tolist(), std.tolist())
