"""From the options of `python -m ramen_jax.embed` to the finished file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib

import numpy as np

from ramen_jax import console
from ramen_jax.console import USAGE, UserError
from ramen_jax.embedding.feature_files import output_format
from ramen_jax.embedding.pca import pca_picture
from ramen_jax.embedding.rasters import Layer, doubts, open_place, overview
from ramen_jax.embedding.tiles import Embedder, embed
from ramen_jax.inference.encoder import Encoder
from ramen_jax.sensors import Sensor, load_sensors
from ramen_jax.training.weights import load


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
    for image in options.image:
        if options.output.exists() and image.exists() and options.output.samefile(image):
            raise UserError(f"--output {options.output} is an --image; choose another name", USAGE)
    if options.pca and not options.pca.parent.is_dir():
        raise UserError(f"--pca {options.pca}: there is no folder {options.pca.parent}", USAGE)
    if not options.target_gsd > 0:
        raise UserError(f"--target-gsd is {options.target_gsd:g}, expected metres above 0", USAGE)
    make_output = output_format(options.output)
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
        asked = {
            key: value for key, value in vars(options).items() if key not in ("pca", "overwrite", "debug")
        }
        facts = [asked, [layer.sensor for layer in place.layers], model.facts]
        identity = hashlib.sha256(repr(facts).encode()).hexdigest()
        bands = [f"{layer.name} {channel}" for layer in place.layers for channel in range(model.width)]
        output = make_output(options.output, place, bands, identity, options.overwrite)
        if output.start:
            print(f"note: going on at row {output.start} of {place.rows}")
        embed(embedder, output, options.tile, options.overlap)
        output.finish()
    print(
        f"wrote {options.output}: {place.columns} x {place.rows} cells of {options.target_gsd:g} m, {len(bands)} bands"
    )
    if options.pca:
        pca_picture(options.output, options.pca)
        print(f"wrote {options.pca}")
    return 0


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
