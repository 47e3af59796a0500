"""A pretrained encoder over places: one or many, on the host or on the device.

Shape letters as in `ramen_jax.inference.places`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.attention.attention import Attention, backend_for
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.inference.images import Image, to_sample
from ramen_jax.inference.places import TOKENS, Batch, Place, batches, grid_maps, token_maps
from ramen_jax.limits import machine_memory, refuse_beyond_memory
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import Recipe
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.views import PackedView
from ramen_jax.samples import CorpusSpec, ModalitySpec
from ramen_jax.sensors import Sensor, registry

ACCELERATOR_TOKENS = 1 << 16  # of a batch where an accelerator encodes


def device_memory() -> float:
    """Bytes that encoding may take: of the accelerator where it tells, else of this machine."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return float(max(statistics.get("bytes_limit", 0), machine_memory()))


class Features(NamedTuple):
    """What `encode` returns of one place, float32.

    `maps`: per modality [D, rows, columns] after the last block and LayerNorm. `cls`: the class token [D].
    `layers`: for each block asked for, in that order, the same dictionary after that block.
    """

    maps: dict[str, np.ndarray]
    cls: np.ndarray
    layers: tuple[dict[str, np.ndarray], ...]


@partial(jax.jit, static_argnums=(0, 4, 5))
def _encode(ramen: Ramen, params: Any, statistics: Any, rows: Any, bands: Any, layers: Any) -> jax.Array:
    return ramen.encode(params, statistics, rows, dict(bands), layers)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _encode_in_training(
    ramen: Ramen, params: Any, statistics: Any, rows: Any, bands: Any, layers: Any, key: Any
) -> tuple[jax.Array, Any]:
    return ramen.encode_in_training(params, statistics, rows, dict(bands), layers, key)


@partial(jax.jit, static_argnums=(2, 3))
def _maps(
    encoded_KxRxExD: jax.Array, first: tuple[int, int], names: tuple[str, ...], grid: tuple[int, int]
) -> dict[str, jax.Array]:
    """The maps of the place whose class token is the one at `first`, (row, token): one program per grid."""
    layers, _, _, width = encoded_KxRxExD.shape
    shape = (layers, 1, 1 + len(names) * grid[0] * grid[1], width)
    return grid_maps(jax.lax.dynamic_slice(encoded_KxRxExD, (0, *first, 0), shape)[:, 0], names, grid)


@dataclass
class Encoder:
    """A pretrained encoder with what it was trained on.

    Attributes:
        ramen: the model without arrays, an encoder alone.
        sensors: by "corpus/modality", with their statistics.
        facts: recipe, step, data fingerprints: what a printed result should name.
        params, statistics: nested dictionaries {"encoder": ...} of arrays.
    """

    ramen: Ramen
    sensors: dict[str, Sensor]
    facts: dict[str, Any]
    params: dict[str, Any]
    statistics: dict[str, Any]

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        recipe: Recipe,
        sensors: dict[str, Sensor],
        facts: dict[str, Any],
        params: Mapping[str, Any],
        statistics: Mapping[str, Any],
    ) -> Encoder:
        """The encoder of a whole model's arrays: a decoder is not needed here, and not kept."""
        arrays = [
            {"encoder": jax.tree.map(jnp.asarray, dict(tree["encoder"]))} for tree in (params, statistics)
        ]
        attention = Attention(backend_for(jax.local_devices()[0].platform))
        ramen = Ramen(architecture, recipe, with_decoder=False, attention=attention)
        return cls(ramen, sensors, facts, arrays[0], arrays[1])

    @property
    def width(self) -> int:
        """Channels of a feature vector."""
        return self.ramen.architecture.embed_dim

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        return self.ramen.architecture.depth

    def sensor(self, given: Sensor | str, with_statistics: bool = True) -> Sensor:
        """A sensor: one given whole, or one of the model by "corpus/modality", modality or name, or a shipped one.

        Raises:
            UserError: unknown or ambiguous name, or no statistics although `with_statistics`.
        """
        if isinstance(given, Sensor):
            found = given
        elif not with_statistics and given in registry():
            found = registry()[given]
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
        if with_statistics and (found.mean is None or found.std is None):
            raise UserError(
                f"sensor '{found.name}' has no mean and std, and this model was trained with "
                f"{', '.join(self.sensors) or 'no named sensor'}; give it some with sensor.with_statistics(mean, std)"
            )
        return found

    def encode(
        self,
        images: Mapping[str, Image | np.ndarray] | Sequence[Mapping[str, Image | np.ndarray]],
        target_gsd: float,
        layers: Sequence[int] = (),
    ) -> Any:
        """Features of co-registered images of one place or of many, on a grid of `target_gsd` metres per token.

        Places are packed together: sizes, numbers of dates and of places may differ, and few programs serve them all.

        Args:
            images: modality -> Image, or an array [C, H, W]; or a list of these, one per place. The first one's extent
                defines the grid, int(H * gsd / target_gsd) rows. The modality's name selects the sensor unless the
                Image names one.
            target_gsd: metres per token.
            layers: 0-based blocks whose output is wanted too; the last one's has the final LayerNorm.

        Returns:
            Features, or a list of them where a list was given.

        Raises:
            UserError: no image, unknown sensor or none with statistics, band count, extents that differ, a grid of
                nothing, a block that does not exist.
        """
        many = [images] if isinstance(images, Mapping) else list(images)
        for layer in layers:
            if not 0 <= layer < self.depth:
                raise UserError(f"there is no block {layer}; the blocks are 0 to {self.depth - 1}", USAGE)
        places = [self.place(given, target_gsd) for given in many]
        results: list[Features | None] = [None] * len(places)
        wanted = None if not layers else (*layers, self.depth - 1)
        for batch in self.batches(places):
            encoded = np.asarray(self.run(batch, wanted))
            for number, cls_KxD, maps in batch.maps(encoded):
                each = [{name: array[k] for name, array in maps.items()} for k in range(len(cls_KxD))]
                results[number] = Features(each[-1], cls_KxD[-1], tuple(each[:-1]))
        return results[0] if isinstance(images, Mapping) else results

    def place(self, images: Mapping[str, Image | np.ndarray], target_gsd: float) -> Place:
        """The images as a place to be encoded. Errors as in `encode`."""
        given = {name: image if isinstance(image, Image) else Image(image) for name, image in images.items()}
        if not given:
            raise UserError("no image given", USAGE)
        sensors = {name: self.sensor(image.sensor or name) for name, image in given.items()}
        place = Place(to_sample(given, sensors, target_gsd), sensors, target_gsd)
        name, first = next(iter(given.items()))
        rows, columns = (side * (sensors[name].gsd / target_gsd) for side in first.values.shape[2:])
        tokens = len(given) * rows * columns
        refuse_beyond_memory(
            f"target GSD {target_gsd:g} m asks for {rows:,.0f} x {columns:,.0f} cells of {len(given)} "
            f"{'modality' if len(given) == 1 else 'modalities'}, {tokens:,.0f} tokens, which",
            4.0 * tokens * self.width * (6 + self.ramen.architecture.mlp_ratio),
            "use a coarser target GSD, or `python -m ramen_jax.embed`, which goes tile by tile",
            device_memory(),
        )
        return place

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch that suit this machine."""
        return TOKENS if jax.default_backend() == "cpu" else ACCELERATOR_TOKENS

    def batches(self, places: Sequence[Place]) -> Iterator[Batch]:
        """The places, packed into batches of `batch_tokens`."""
        return batches(places, self.ramen.recipe, self.batch_tokens)

    def run(self, batch: Batch, layers: Sequence[int] | None = None) -> jax.Array:
        """Encoded rows [K, R, E, D] float32 on the device, K = 1 (the last block) where no layers are named."""
        chosen = None if layers is None else tuple(layers)
        encoded = _encode(self.ramen, self.params, self.statistics, batch.rows, batch.bands, chosen)
        return encoded[None] if chosen is None else encoded

    def run_in_training(
        self, batch: Batch, layers: Sequence[int], key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """`run` with BatchNorm by the batch, dropout where `key` is given; and the statistics after it."""
        return _encode_in_training(
            self.ramen, self.params, self.statistics, batch.rows, batch.bands, tuple(layers), key
        )

    def device_maps(
        self, places: Sequence[Place], layers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, dict[str, jax.Array]]]:
        """(number of the place, {modality: [K, D, h, w]}) of every place, on the device, for a decoder to train on."""
        for batch in self.batches(places):
            encoded_KxRxExD = self.run(batch, layers)
            for where, place in zip(batch.found, batch.places, strict=True):
                names = tuple(place.sample.images)
                yield where.place, _maps(encoded_KxRxExD, (where.row, where.start), names, place.grid)

    def traceable(self, place: Place) -> tuple[Any, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """A function ({modality: [T, C, H, W]}, {modality: [T]}) -> {modality: [D, rows, columns]} and its example.

        Sizes, sensors and weights are fixed inside, so that it can be traced, differentiated, exported and shipped.
        """
        images, grid, gsd = place.sample.images, place.grid, place.target_gsd
        spec = CorpusSpec(
            "place",
            tuple(
                ModalitySpec(
                    name,
                    place.sensors[name],
                    image.values.shape[2],
                    image.values.shape[3],
                    len(image.values) > 1,
                    len(image.values),
                    str(image.values.dtype),
                    image.valid is not None,
                )
                for name, image in images.items()
            ),
        )
        noise = np.arange(place.tokens - 1, dtype=np.float32)
        view = PackedView(place.sample, gsd, tuple(images), noise, grid=grid, origin=place.origin)
        recipe = self.ramen.recipe.but(time_mask="fixed")
        rows = pack(spec, [[view]], exact_capacity(spec, [[view]], recipe, 0.0), recipe, 0.0)
        bands = tuple((modality.name, modality.sensor.bands) for modality in spec.modalities)

        def function(values: dict[str, jax.Array], days: dict[str, jax.Array]) -> dict[str, jax.Array]:
            given = {
                name: packed._replace(
                    values_RxSxTxCxHxW=values[name][None, None], dates_RxSxT=days[name][None, None]
                )
                for name, packed in rows.images.items()
            }
            changed = rows._replace(images=given)
            encoded = _encode(self.ramen, self.params, self.statistics, changed, bands, None)
            return {name: array[0] for name, array in token_maps(encoded[:1], place).items()}

        example = {name: image.values for name, image in images.items()}
        return function, (example, {name: image.dates.astype(np.float32) for name, image in images.items()})
