"""Features of your own images in a few lines.

    import ramen_jax as rj

    model = rj.load("runs/base")                                  # a workdir, or a folder that export wrote
    print(rj.cost(model, {"s2": "sentinel2_l2a"}, size=2560, target_gsd=40))
    features = model.encode({"s2": rj.Image(pixels, dates=["2021-04-02", "2021-07-11"])}, target_gsd=40)
    features.maps["s2"]                                           # [D, rows, columns], one vector per 40 m x 40 m

Shape letters: T dates, C bands, H, W pixels, D width, R rows (places), E tokens and the class token.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ramen_jax import samples, sampling
from ramen_jax.attention.attention import BLOCK_SCORES, BLOCK_SCORES_ELSEWHERE
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.folder import is_folder, read_folder
from ramen_jax.model.encoder import RamenEncoder
from ramen_jax.model.resampler import EXPERTS
from ramen_jax.model.temporal import BatchStatistic
from ramen_jax.no_data import missing_pixels
from ramen_jax.rows import packing
from ramen_jax.rows.batch import Rows
from ramen_jax.samples import CorpusSpec, ModalitySpec, Sample
from ramen_jax.sensors import Sensor, registry

EXTENT_TOLERANCE = 0.1  # how much the extents of two images of one place may differ

Sensors = Mapping[str, Sensor | str] | Sequence[Sensor | str] | Sensor | str


class Image:
    """One modality of one place.

    Args:
        values: stored values [T, C, H, W], or [C, H, W] for one date. NaN is no measurement.
        dates: one per frame: day of year 1..366, a datetime.date or "2021-04-02". Needed when T > 1.
        sensor: a Sensor, or the name of one; default: the modality's name, looked up in the model.
        valid: bool [T, H, W] or [H, W], False where nothing was measured; besides NaN and the sensor's nodata.

    Raises:
        UserError: wrong shapes, dates missing or not one per frame.
    """

    def __init__(
        self,
        values: Any,
        dates: Iterable[Any] | None = None,
        sensor: Sensor | str | None = None,
        valid: Any = None,
    ) -> None:
        array = np.asarray(values)
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or 0 in array.shape:
            raise UserError(
                f"an image must be [T, C, H, W] or [C, H, W], none of them 0, found shape {array.shape}"
            )
        self.values = array
        frames, _, height, width = array.shape
        days = [0] * frames if dates is None else [day_of_year(date) for date in dates]
        if len(days) != frames:
            raise UserError(f"{len(days)} dates for {frames} frames; give one per frame")
        if frames > 1 and dates is None:
            raise UserError(f"an image of {frames} frames needs dates, one per frame")
        self.days = np.array(days, np.int16)
        self.sensor = sensor
        self.valid = None
        if valid is not None:
            self.valid = np.broadcast_to(np.asarray(valid, bool), (frames, height, width))


class Features(NamedTuple):
    """What `encode` returns, float32.

    `maps`: per modality [D, rows, columns] after the last block and LayerNorm. `cls`: the class token [D].
    `layers`: for each block asked for, in that order, the same dictionary after that block.
    """

    maps: dict[str, np.ndarray]
    cls: np.ndarray
    layers: tuple[dict[str, np.ndarray], ...]


class Cost(NamedTuple):
    """What encoding one place takes. `flops`: two per multiply-add, attention included. `memory`: bytes, estimated."""

    tokens: int
    rows: int
    columns: int
    flops: float
    memory: float

    def __str__(self) -> str:
        return (
            f"{self.rows} x {self.columns} grid, {self.tokens:,} tokens, {self.flops / 1e9:,.1f} GFLOP, "
            f"{self.memory / 2**20:,.0f} MiB"
        )


@dataclass
class Model:
    """A pretrained encoder with what it was trained on.

    Attributes:
        config: `config.model` of its training (widths, depth, heads).
        traps: `config.traps`: sampling policy, treatment of missing pixels and so on.
        sensors: by "corpus/modality", with their statistics.
        facts: recipe, step, data fingerprints: what a printed result should name.
        params, statistics: nested dictionaries {"encoder": ...} of arrays; a decoder given is left out.
    """

    config: ConfigDict
    traps: ConfigDict
    sensors: dict[str, Sensor]
    facts: dict[str, Any]
    params: dict[str, Any]
    statistics: dict[str, Any]

    def __post_init__(self) -> None:
        graph, params, statistics = split_encoder(self.config, self.traps)
        nnx.replace_by_pure_dict(params, _integer_keys(self.params["encoder"]))
        nnx.replace_by_pure_dict(statistics, _integer_keys(self.statistics["encoder"]))
        self._arrays = (params, statistics)
        # One copy of the weights is enough: what was given is released, and a decoder is not needed here.
        self.params = {"encoder": nnx.to_pure_dict(params)}
        self.statistics = {"encoder": nnx.to_pure_dict(statistics)}

        def run(
            arrays: Any, rows: Rows, sensors: tuple[tuple[str, Sensor], ...], every_layer: bool
        ) -> jax.Array:
            encoder = nnx.merge(graph, *arrays)
            if every_layer:
                return encoder.layers(rows, dict(sensors))
            return encoder(rows, dict(sensors))[None]

        self._run = jax.jit(run, static_argnums=(2, 3))

    @property
    def width(self) -> int:
        """Channels of a feature vector."""
        return int(self.config.embed_dim)

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        return int(self.config.depth)

    def sensor(self, given: Sensor | str) -> Sensor:
        """A sensor with statistics: one given whole, or one of the model by "corpus/modality", modality or name.

        Raises:
            UserError: unknown or ambiguous name, or no statistics.
        """
        if isinstance(given, Sensor):
            found = given
        else:
            matches = {
                full: sensor
                for full, sensor in self.sensors.items()
                if given in (full, full.partition("/")[2], sensor.name)
            }
            if len(set(matches.values())) > 1:
                raise UserError(
                    f"sensor '{given}' is ambiguous in this model: {', '.join(matches)}; use one of these",
                    USAGE,
                )
            known = registry()
            if not matches and given not in known:
                names = [*self.sensors, *(sensor.name for sensor in self.sensors.values()), *known]
                raise UserError(f"no sensor '{given}'; {close_names(given, dict.fromkeys(names))}", USAGE)
            found = next(iter(matches.values())) if matches else known[given]
        if found.mean is None or found.std is None:
            raise UserError(
                f"sensor '{found.name}' has no mean and std, and this model was trained with "
                f"{', '.join(self.sensors) or 'no named sensor'}; give it some with sensor.with_statistics(mean, std)"
            )
        return found

    def encode(
        self, images: Mapping[str, Image | np.ndarray], target_gsd: float, layers: Sequence[int] = ()
    ) -> Features:
        """Features of co-registered images of one place, on one grid of `target_gsd` metres per token.

        Args:
            images: modality -> Image, or an array [C, H, W]. The first one's extent defines the grid,
                int(H * gsd / target_gsd) rows. The modality's name selects the sensor unless the Image names one.
            target_gsd: metres per token.
            layers: 0-based blocks whose output is wanted too; the last one's has the final LayerNorm.

        Raises:
            UserError: no image, unknown sensor or none with statistics, band count, extents that differ, a grid of
                nothing, a block that does not exist.
        """
        given = {name: image if isinstance(image, Image) else Image(image) for name, image in images.items()}
        if not given:
            raise UserError("no image given", USAGE)
        for layer in layers:
            if not 0 <= layer < self.depth:
                raise UserError(f"there is no block {layer}; the blocks are 0 to {self.depth - 1}", USAGE)
        sensors = {name: self.sensor(image.sensor or name) for name, image in given.items()}
        spec, sample = describe_place(given, sensors, target_gsd)
        rows = self.pack(spec, [sample], target_gsd)
        encoded = np.asarray(self.run(rows, sensors, bool(layers)))[:, 0]
        grid = packing.view_grid(spec, target_gsd)
        maps = [token_maps(layer_ExD, list(given), grid) for layer_ExD in encoded]
        return Features(maps[-1], encoded[-1, 0], tuple(maps[layer] for layer in layers))

    def traceable(
        self, images: Mapping[str, Image], sensors: Mapping[str, Sensor], target_gsd: float
    ) -> tuple[Any, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """A function ({modality: [T, C, H, W]}, {modality: [T]}) -> {modality: [D, rows, columns]} and its example.

        Sizes, sensors and weights are fixed inside, so that it can be traced, exported and shipped.
        """
        spec, sample = describe_place(images, sensors, target_gsd)
        rows = self.pack(spec, [sample], target_gsd)
        grid = packing.view_grid(spec, target_gsd)

        def function(values: dict[str, jax.Array], days: dict[str, jax.Array]) -> dict[str, jax.Array]:
            given = {
                name: image._replace(
                    values_RxSxTxCxHxW=values[name][None, None], dates_RxSxT=days[name][None, None]
                )
                for name, image in rows.images.items()
            }
            return token_maps(self.run(rows._replace(images=given), sensors)[0, 0], list(images), grid)

        example = {name: image.values for name, image in images.items()}
        return function, (example, {name: image.days.astype(np.float32) for name, image in images.items()})

    def pack(self, spec: CorpusSpec, samples: Sequence[Sample], target_gsd: float) -> Rows:
        """Whole places as packed rows, one per row, every token visible; frames without a valid pixel are left out."""
        names = tuple(modality.name for modality in spec.modalities)
        rows, columns = packing.view_grid(spec, target_gsd)
        noise = np.arange(len(names) * rows * columns, dtype=np.float32)
        views = [
            [packing.PackedView(sample, target_gsd, names, noise, dates=_measured_frames(sample))]
            for sample in samples
        ]
        capacity = packing.exact_capacity(spec, views, mask_ratio=0.0)
        # The length of the series is the specification's, so that a frame left out changes no shape.
        capacity = dataclasses.replace(
            capacity, dates=tuple(modality.max_dates for modality in spec.modalities)
        )
        return packing.pack(
            spec, views, capacity, sampling=self.traps.sampling, time_mask="fixed", mask_ratio=0.0
        )

    def run(self, rows: Rows, sensors: Mapping[str, Sensor], every_layer: bool = False) -> jax.Array:
        """Encoded rows [layers, R, E, D] float32: the last layer, or every one."""
        return self._run(self._arrays, rows, tuple(sorted(sensors.items())), every_layer)


def split_encoder(config: Any, traps: Any) -> tuple[Any, Any, Any]:
    """An encoder's graph, parameters and statistics; shapes only."""
    model = nnx.eval_shape(lambda: RamenEncoder(config, traps, rngs=nnx.Rngs(0)))
    graph, *states = nnx.split(model, nnx.Param, BatchStatistic)
    return graph, states[0], states[1]


def load(path: str | Path) -> Model:
    """A model from a training's workdir (its newest checkpoint, or one of its steps) or from an exported folder.

    Raises:
        UserError: nothing there, a damaged checkpoint, or weights that do not fit; keys are listed.
    """
    path = Path(path)
    if is_folder(path):
        return _load_exported(path)
    # Orbax is slow to import and an exported folder does not need it.
    from ramen_jax.training import checkpoint

    loaded = checkpoint.load(path)
    config = ConfigDict(loaded.meta["config"])
    sensors = {
        f"{corpus}/{name}": Sensor.from_dict(entry)
        for corpus, entries in loaded.meta["sensors"].items()
        for name, entry in entries.items()
    }
    facts = {
        "recipe": config.recipe,
        "step": loaded.meta["step"],
        "fingerprints": loaded.meta["fingerprints"],
        "source": str(path),
    }
    return Model(config.model, config.traps, sensors, facts, loaded.params, loaded.statistics)


def _load_exported(folder: Path) -> Model:
    tensors, description = read_folder(folder)
    config, traps = ConfigDict(description["model"]), ConfigDict(description["traps"])
    tensors = {name: array for name, array in tensors.items() if name.startswith("encoder.")}
    _, params, statistics = split_encoder(config, traps)
    template = ({"encoder": nnx.to_pure_dict(params)}, {"encoder": nnx.to_pure_dict(statistics)})
    try:
        params, statistics = torch_weights.from_official(tensors, template)
    except ValueError as error:
        raise UserError(f"{folder / 'model.safetensors'}: {error}") from error
    sensors = {name: Sensor.from_dict(entry) for name, entry in description["sensors"].items()}
    facts: dict[str, Any] = {
        key: description[key] for key in ("recipe", "step", "fingerprints") if key in description
    }
    return Model(config, traps, sensors, {**facts, "source": str(folder)}, params, statistics)


def cost(
    model: Model,
    sensors: Sensors,
    size: float | tuple[float, float],
    target_gsd: float,
    dates: Mapping[str, int] | int = 1,
) -> Cost:
    """Tokens, FLOPs and memory of `encode`, without running it.

    Args:
        model: a loaded model.
        sensors: modality -> sensor or its name; or one sensor, or a list.
        size: metres that the place measures, one side or (height, width).
        target_gsd: metres per token.
        dates: frames per modality, or of all.

    Raises:
        UserError: an unknown sensor, or a target GSD larger than the place.
    """
    height, width = (size, size) if isinstance(size, int | float) else size
    if isinstance(sensors, Sensor | str):
        sensors = [sensors]
    named = sensors if isinstance(sensors, Mapping) else {str(i): sensor for i, sensor in enumerate(sensors)}
    found = {name: find_sensor(model, sensor) for name, sensor in named.items()}
    first = next(iter(found.values()))
    sides = [max(round(side / first.gsd), 1) for side in (height, width)]
    try:
        rows, columns = (sampling.grid_size(side, first.gsd, target_gsd) for side in sides)
    except ValueError as error:
        raise UserError(str(error), USAGE) from error

    width_d, depth, tokens = model.width, model.depth, rows * columns
    flops, pixels, series = 0.0, 0, 0
    for name, sensor in found.items():
        frames = dates if isinstance(dates, int) else dates.get(name, 1)
        bands, h, w = len(sensor.bands), round(height / sensor.gsd), round(width / sensor.gsd)
        inputs = (EXPERTS + 1) * bands + EXPERTS
        flops += 2 * frames * bands * (rows * h * w + rows * w * columns)
        flops += 2 * frames * tokens * inputs * width_d
        pixels += frames * bands * h * w
        if frames > 1:
            flops += 2 * tokens * (frames * 17 * width_d + 5 * width_d**2)
            series = max(series, frames)
    length = 1 + len(found) * tokens
    hidden = int(width_d * model.config.mlp_ratio)
    flops += depth * (2 * length * (4 * width_d**2 + 2 * width_d * hidden) + 4 * length**2 * width_d)

    weights = sum(leaf.size for leaf in jax.tree.leaves(model._arrays))
    block = BLOCK_SCORES.get(jax.default_backend(), BLOCK_SCORES_ELSEWHERE)
    scores = min(model.config.num_heads * length**2, max(block, model.config.num_heads * length))
    activations = length * (6 * width_d + hidden) + 2 * scores + 3 * tokens * series * width_d + 3 * pixels
    return Cost(len(found) * tokens, rows, columns, flops, 4.0 * (weights + activations))


def find_sensor(model: Model, given: Sensor | str) -> Sensor:
    """Like Model.sensor, statistics or not: costs need none."""
    if isinstance(given, str) and given in registry():
        return registry()[given]
    return model.sensor(given)


def day_of_year(date: Any) -> int:
    """1..366 of a number, a datetime.date (or datetime) or an ISO text."""
    if isinstance(date, str):
        try:
            date = datetime.date.fromisoformat(date[:10])
        except ValueError as error:
            raise UserError(f"{date!r} is not a date; write 2021-04-02") from error
    if isinstance(date, datetime.date):
        return date.timetuple().tm_yday
    day = int(date)
    if not 0 <= day <= 366:
        raise UserError(f"a date is a day of year from 1 to 366 (0: unknown), found {date}")
    return day


def describe_place(
    images: Mapping[str, Image], sensors: Mapping[str, Sensor], target_gsd: float
) -> tuple[CorpusSpec, Sample]:
    """A place as a corpus of one sample. Errors as in `Model.encode`."""
    if not target_gsd > 0:
        raise UserError(f"the target GSD is {target_gsd}, expected metres per token above 0", USAGE)
    stored = {name: _record(name, image, sensors[name]) for name, image in images.items()}
    masked = any(image.valid is not None for image in stored.values())
    modalities = []
    first: tuple[float, float] | None = None
    for name, image in stored.items():
        height, width = image.values.shape[2:]
        extent = (height * sensors[name].gsd, width * sensors[name].gsd)
        first = first or extent
        for ours, theirs in zip(extent, first, strict=True):
            if abs(ours - theirs) > max(EXTENT_TOLERANCE * theirs, target_gsd):
                raise UserError(
                    f"'{name}' covers {extent[0]:g} x {extent[1]:g} m but the first image {first[0]:g} x "
                    f"{first[1]:g} m; images of one place must cover the same ground (is the GSD of '{name}', "
                    f"{sensors[name].gsd:g} m, right?)"
                )
        modalities.append(
            ModalitySpec(
                name=name,
                sensor=sensors[name],
                height=height,
                width=width,
                series=len(image.values) > 1,
                max_dates=len(image.values),
                dtype=str(image.values.dtype),
                has_valid=masked,
            )
        )
    spec = CorpusSpec("place", tuple(modalities))
    try:
        packing.view_grid(spec, target_gsd)
    except ValueError as error:
        raise UserError(str(error), USAGE) from error
    return spec, Sample("place", stored)


def _record(name: str, image: Image, sensor: Sensor) -> samples.Image:
    """Values in a stored dtype, with what was not measured marked and set to 0."""
    values = image.values
    if values.shape[1] != len(sensor.bands):
        raise UserError(
            f"'{name}' has {values.shape[1]} bands, sensor '{sensor.name}' has {len(sensor.bands)}: "
            f"{', '.join(band.name for band in sensor.bands)}"
        )
    if values.dtype.name not in samples.DTYPES:
        values = values.astype(np.float32)
    valid = ~missing_pixels(values, sensor.nodata)
    if image.valid is not None:
        valid &= image.valid
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    present = np.ones(values.shape[1], bool)
    return samples.Image(values, image.days, present, None if valid.all() else valid)


def token_maps(layer_ExD: Any, names: Sequence[str], grid: tuple[int, int]) -> dict[str, Any]:
    """One place's tokens, class token first, as {modality: [D, rows, columns]}."""
    tokens = layer_ExD[1:].reshape(len(names), *grid, -1).transpose(0, 3, 1, 2)
    return dict(zip(names, tokens, strict=True))


def _measured_frames(sample: Sample) -> dict[str, np.ndarray]:
    """Per modality the frames with a valid pixel; the first one where there is none."""
    kept = {}
    for name, image in sample.images.items():
        if image.valid is not None:
            measured = np.flatnonzero(image.valid.any(axis=(1, 2)))
            kept[name] = measured if measured.size else np.zeros(1, int)
    return kept


def _integer_keys(tree: Any) -> Any:
    """Layer lists have integer keys in a model and text keys in a restored checkpoint."""
    if not isinstance(tree, Mapping):
        return jnp.asarray(tree)
    return {int(key) if str(key).isdigit() else key: _integer_keys(value) for key, value in tree.items()}


__all__ = ["Cost", "Features", "Image", "Model", "cost", "load"]
