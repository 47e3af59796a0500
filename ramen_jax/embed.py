"""Features of any raster as a georeferenced raster: one vector per target-GSD cell.

A scene is embedded tile by tile. Tiles begin and end exactly on the token grid, so a token reads the same pixels as in
a run on the whole image; what differs from tile to tile is which other tokens it can attend to. Neighbouring tiles
overlap and are blended there with weights that rise linearly, so features change smoothly from tile to tile.

Memory holds one row of tiles. The output is written as its rows are finished; an interrupted run goes on where it was.

Shape letters: D features, modality after modality; h, w tokens of a tile.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from ramen_jax import api, console, sampling
from ramen_jax.console import USAGE, UserError, progress
from ramen_jax.embedding.feature_files import Output, output_format
from ramen_jax.embedding.rasters import Layer, Place, doubts, open_place, overview
from ramen_jax.rows.batch import Rows
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Sensor, load_sensors

PCA_SAMPLES = 50_000

EXAMPLES = """  python -m ramen_jax.embed --checkpoint runs/base --image scene.tif --sensor sentinel2_l2a \\
      --target-gsd 40 --output features.tif --pca features.png
  python -m ramen_jax.embed --checkpoint ramen_base --target-gsd 20 --output features.tif \\
      --image s2_folder --sensor s2 --image radar.tif --sensor s1            # a folder: one dated raster per frame
  python -m ramen_jax.embed --checkpoint ramen_base --image drone.tif --sensor mine.yaml:drone \\
      --statistics image --target-gsd 2 --output features.zarr              # read it with xarray, or GDAL
"""


@dataclass(frozen=True)
class Tiling:
    """Starts and ends of tiles along one axis, in tokens. `step` divides all of them but the grid's end."""

    tokens: int
    size: int
    overlap: int
    step: int

    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of every tile; the last one ends with the grid and is as long as the others if it can be."""
        if self.tokens <= self.size:
            return [(0, self.tokens)]
        stride = self.size - self.overlap
        starts = list(range(0, self.tokens - self.size, stride))
        last = (self.tokens - self.size) // self.step * self.step
        return [(start, start + self.size) for start in starts if start < last] + [(last, self.tokens)]

    @staticmethod
    def weight(
        span: tuple[int, int], before: tuple[int, int] | None, after: tuple[int, int] | None
    ) -> np.ndarray:
        """[end - start] blending weights of a tile between its neighbours: 1, rising linearly where they overlap."""
        weight = np.ones(span[1] - span[0], np.float32)
        if before is not None and before[1] > span[0]:
            rise = before[1] - span[0]
            weight[:rise] *= (np.arange(rise) + 0.5) / rise
        if after is not None and after[0] < span[1]:
            fall = span[1] - after[0]
            weight[-fall:] *= (np.arange(fall)[::-1] + 0.5) / fall
        return weight


class Embedder:
    """Features of the windows of a place."""

    def __init__(
        self, model: api.Model, place: Place, layer: int | None = None, positions: str = "tile"
    ) -> None:
        self.model, self.place, self.layer, self.positions = model, place, layer, positions
        self.sensors = {item.name: item.sensor for item in place.layers}
        self.depth = model.width * len(place.layers)

    def window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """[D, h, w] features of a window of tokens; NaN where no pixel of any layer was measured."""
        images = {layer.name: layer.read((top, bottom, left, right)) for layer in self.place.layers}
        height, width = bottom - top, right - left
        measured = np.zeros((height, width), bool)
        for layer in self.place.layers:
            measured |= footprint(images[layer.name], layer, self.place.target_gsd, (height, width))
        if not measured.any():
            return np.full((self.depth, height, width), np.nan, np.float32)
        spec = CorpusSpec(
            "window", tuple(self._modality(layer, images[layer.name]) for layer in self.place.layers)
        )
        rows = self.model.pack(spec, [Sample("window", images)], self.place.target_gsd)
        if self.positions == "scene":
            rows = rows._replace(encoder_coords_RxEx2=self._moved(rows, left, top))
        encoded = np.asarray(self.model.run(rows, self.sensors, self.layer is not None))
        tokens_ExD = encoded[-1 if self.layer is None else self.layer, 0]
        maps = api.token_maps(tokens_ExD, list(images), (height, width))
        features = np.concatenate(list(maps.values()))
        features[:, ~measured] = np.nan
        return features

    def _moved(self, rows: Rows, left: int, top: int) -> np.ndarray:
        """Positions counted from the scene's origin; the class token has none."""
        offset = np.array([left, top], np.float32) * np.float32(self.place.target_gsd)
        tokens_RxEx1 = (rows.encoder_feature_RxE >= 0)[..., None]
        return np.asarray(rows.encoder_coords_RxEx2 + np.where(tokens_RxEx1, offset, np.float32(0)))

    def _modality(self, layer: Layer, image: Image) -> ModalitySpec:
        frames, _, height, width = image.values.shape
        return ModalitySpec(
            layer.name, layer.sensor, height, width, frames > 1, frames, str(image.values.dtype), True
        )


def footprint(image: Image, layer: Layer, target_gsd: float, grid: tuple[int, int]) -> np.ndarray:
    """Bool [h, w]: tokens with a measured pixel under them, in any frame."""
    valid = np.ones(image.values.shape[2:], bool) if image.valid is None else image.valid.any(axis=0)
    down, across = (
        sampling.down_matrix(pixels, layer.sensor.gsd, target_gsd, tokens, "area")
        for pixels, tokens in zip(valid.shape, grid, strict=True)
    )
    return np.asarray((down @ valid.astype(np.float32)) @ across.T > 1e-6)


def embed(embedder: Embedder, output: Output, tile: int, overlap: int) -> None:
    """Embeds the whole place into the output; tile and overlap are rounded up to multiples of the place's step."""
    place, step = embedder.place, embedder.place.step
    tile, overlap = (-(-tokens // step) * step for tokens in (tile, overlap))
    row_spans = Tiling(place.rows, tile, overlap, step).spans()
    column_spans = Tiling(place.columns, tile, overlap, step).spans()
    # A strip is finished where the next row of tiles begins. Going on needs the tiles that reach into the first
    # unwritten strip: those of the row before it, and of one more where the last row of tiles is moved up.
    first = max((i for i, span in enumerate(row_spans) if span[0] <= output.start), default=0)
    first = max(first - 2, 0)
    tallest = max(end - start for start, end in row_spans)
    sums = np.zeros((embedder.depth, tallest, place.columns), np.float32)
    weights = np.zeros((tallest, place.columns), np.float32)
    total = len(row_spans) * len(column_spans)
    with progress(total, "embedding", "tiles", start=first * len(column_spans)) as bar:
        for i in range(first, len(row_spans)):
            top, bottom = row_spans[i]
            before, after = (
                row_spans[i - 1] if i else None,
                row_spans[i + 1] if i + 1 < len(row_spans) else None,
            )
            down = Tiling.weight((top, bottom), before, after)
            for j, (left, right) in enumerate(column_spans):
                neighbours = [column_spans[k] if 0 <= k < len(column_spans) else None for k in (j - 1, j + 1)]
                weight = down[:, None] * Tiling.weight((left, right), *neighbours)[None]
                features = embedder.window(top, bottom, left, right)
                weight = np.where(np.isnan(features[0]), 0.0, weight)
                np.nan_to_num(features, copy=False)
                sums[:, : bottom - top, left:right] += features * weight
                weights[: bottom - top, left:right] += weight
                bar.advance()
            finished = (after[0] if after else bottom) - top
            if top + finished > output.start:
                strip = sums[:, :finished]
                strip /= np.maximum(weights[:finished], 1e-12)
                strip[:, weights[:finished] == 0] = np.nan
                output.write(top, strip)
            for array in (sums, weights):
                kept = array.shape[-2] - finished
                array[..., :kept, :] = array[..., finished:, :].copy()
                array[..., kept:, :] = 0.0


def pca_picture(features: Path, picture: Path) -> None:
    """The first three principal components of a feature raster as red, green and blue; transparent where nodata."""
    with rasterio.open(features) as source:
        stride = max(1, int(np.ceil(np.sqrt(source.height * source.width / PCA_SAMPLES))))
        shape = (source.count, -(-source.height // stride), -(-source.width // stride))
        sample = source.read(out_shape=shape).reshape(source.count, -1).T.astype(np.float64)
        sample = sample[np.isfinite(sample).all(axis=1)]
        if len(sample) < 4:
            raise UserError(f"{features} has {len(sample)} tokens with data, too few for a picture")
        mean = sample.mean(axis=0)
        axes_Dx3 = np.linalg.svd(np.cov((sample - mean).T), hermitian=True)[0][:, :3]
        axes_Dx3 *= np.sign(axes_Dx3[np.abs(axes_Dx3).argmax(axis=0), np.arange(3)])
        low, high = np.percentile((sample - mean) @ axes_Dx3, (1, 99), axis=0)
        image = np.zeros((4, source.height, source.width), np.uint8)
        for top in range(0, source.height, 64):
            height = min(64, source.height - top)
            block = source.read(window=Window(0, top, source.width, height))
            shown = np.einsum("dhw,dc->chw", block - mean[:, None, None].astype(np.float32), axes_Dx3)
            shown = (shown - low[:, None, None]) / np.maximum(high - low, 1e-9)[:, None, None]
            known = np.isfinite(block).all(axis=0)
            image[:3, top : top + height] = np.where(known, np.clip(shown, 0, 1) * 255, 0)
            image[3, top : top + height] = known * 255
    profile = {
        "driver": "PNG",
        "dtype": "uint8",
        "count": 4,
        "height": image.shape[1],
        "width": image.shape[2],
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", rasterio.errors.NotGeoreferencedWarning
        )  # a picture needs no coordinates
        try:
            with rasterio.open(picture, "w", **profile) as target:
                target.write(image)
        except (OSError, rasterio.errors.RasterioError) as error:
            picture.unlink(missing_ok=True)
            raise UserError(f"cannot write {picture}: {error.__cause__ or error}") from error


def choose_sensor(text: str, model: api.Model, needs_statistics: bool) -> Sensor:
    """A sensor by the model's or the registry's name, or from FILE.yaml (its only sensor) or FILE.yaml:NAME."""
    file, _, name = text.partition(":")
    if not file.endswith((".yaml", ".yml")):
        return model.sensor(text) if needs_statistics else api.find_sensor(model, text)
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = console.parser("embed", __doc__ or "", EXAMPLES)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a workdir, or a folder that export wrote"
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        required=True,
        help="raster, or folder of dated rasters; repeat per sensor",
    )
    parser.add_argument(
        "--sensor",
        action="append",
        required=True,
        help="sensor of that image: a name, FILE.yaml or FILE.yaml:NAME",
    )
    parser.add_argument("--target-gsd", type=float, required=True, help="metres per output cell")
    parser.add_argument("--output", type=Path, required=True, help="NAME.tif (GeoTIFF) or NAME.zarr to write")
    parser.add_argument("--pca", type=Path, help="also a picture: the first three principal components (PNG)")
    parser.add_argument("--layer", type=int, help="0-based block whose output to write; default: the last")
    parser.add_argument("--tile", type=int, default=48, help="tokens per side of a tile (default 48)")
    parser.add_argument(
        "--overlap", type=int, default=16, help="tokens shared by neighbouring tiles (default 16)"
    )
    parser.add_argument(
        "--statistics",
        choices=("sensor", "image"),
        default="sensor",
        help="normalise with the sensor's mean and std (default), or with those of the image itself",
    )
    parser.add_argument(
        "--positions",
        choices=("tile", "scene"),
        default="tile",
        help="tokens know their place in the tile, as in training (default), or in the whole scene",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
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
    model = api.load(options.checkpoint)
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


if __name__ == "__main__":
    console.main(run)
