"""Many places, of any sizes and lengths of series -> few batches of few shapes.

Places that a program can serve together share rows: those of the same sensors whose numbers of dates fall into the same
class. Their images are brought to the token grid first, so their sizes in pixels do not matter; every number that is
static for a compilation is rounded up to a few values, so that another size, another number of dates or of places
compiles nothing.

Numpy only. Shape letters as in `ramen_jax.rows.batch`, and K layers, P places of a batch, h, w tokens of a place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ramen_jax import sampling
from ramen_jax.inference.on_grid import on_grid
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import Rows
from ramen_jax.rows.packing import pack
from ramen_jax.rows.views import Capacity, PackedView
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor

TOKENS = 4096  # of a batch, about; what keeps a processor's cores busy
SHORTEST_ROW = 128  # tokens
MOST_PER_ROW = 16  # places
FEW_DATES = 8  # up to so many dates, and then within a factor of two, series share a program


class Place(NamedTuple):
    """Images of one place to be encoded.

    Attributes:
        sample: the images; the first one's extent defines the grid.
        sensors: of its images, with statistics.
        target_gsd: metres per token.
        origin: (x, y) metres that the tokens' positions are counted from.
    """

    sample: Sample
    sensors: Mapping[str, Sensor]
    target_gsd: float
    origin: tuple[float, float] = (0.0, 0.0)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (down, across)."""
        name, image = next(iter(self.sample.images.items()))
        height, width = image.values.shape[2:]
        gsd = self.sensors[name].gsd
        return (
            sampling.grid_size(height, gsd, self.target_gsd),
            sampling.grid_size(width, gsd, self.target_gsd),
        )

    @property
    def tokens(self) -> int:
        """Of all modalities, with the class token."""
        rows, columns = self.grid
        return 1 + len(self.sample.images) * rows * columns


class Where(NamedTuple):
    """A place in a batch: its number among the places given, its row and the first token of its modalities."""

    place: int
    row: int
    start: int


@dataclass(frozen=True)
class Batch:
    """Packed places.

    Attributes:
        rows: numpy.
        bands: of each modality, in sorted order: hashable, static for a compilation.
        found: where each place is.
        places: the places, in the order of `found`.
    """

    rows: Rows
    bands: tuple[tuple[str, tuple[Band, ...]], ...]
    found: tuple[Where, ...]
    places: tuple[Place, ...]

    def maps(self, layers_KxRxExD: np.ndarray) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """(number of the place, class token [K, D], {modality: [K, D, h, w]}) of every place."""
        for where, place in zip(self.found, self.places, strict=True):
            yield (
                where.place,
                layers_KxRxExD[:, where.row, where.start],
                token_maps(layers_KxRxExD[:, where.row, where.start :], place),
            )


def token_maps(layers_KxExD: Any, place: Place) -> dict[str, Any]:
    """{modality: [K, D, h, w]} of the tokens of one place, class token first; numpy or a traced array."""
    grid, names = place.grid, list(place.sample.images)
    cells = grid[0] * grid[1]
    tokens = layers_KxExD[:, 1 : 1 + len(names) * cells]
    maps = tokens.reshape(len(tokens), len(names), *grid, -1).transpose(1, 0, 4, 2, 3)
    return dict(zip(names, maps, strict=True))


def batches(places: Sequence[Place], recipe: Recipe, tokens: int = TOKENS) -> Iterator[Batch]:
    """The places, packed into batches of about `tokens` tokens; every place once.

    Raises:
        ValueError, UserError: an empty grid, a missing statistic.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for number, place in enumerate(places):
        groups[_group(place)].append(number)
    for members in groups.values():
        yield from _pack_group(places, members, recipe, tokens)


def _group(place: Place) -> tuple:
    """Places with the same value share a program."""
    return tuple(
        (name, place.sensors[name], _dates(len(image.values))) for name, image in place.sample.images.items()
    )


def _dates(number: int) -> int:
    """The length that a series is padded to. One date is no series, and has a program of its own."""
    return 1 if number == 1 else max(FEW_DATES, 1 << (number - 1).bit_length())


def rounded(number: int, steps: int = 2) -> int:
    """`number` rounded up to one of `steps` values per octave: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... with two."""
    octave = 1 << max(number - 1, 0).bit_length() >> 1  # the power of two below
    step = max(octave // steps, 1)
    return -(-number // step) * step


def _pack_group(places: Sequence[Place], members: list[int], recipe: Recipe, tokens: int) -> Iterator[Batch]:
    spec, capacity = _shapes([places[number] for number in members])
    rows = _fit(places, members, capacity)
    # Batches of one size: as few as can be, and no larger than they need to be.
    most = max(1, tokens // capacity.encoder_length)
    count = min(most, rounded(-(-len(rows) // -(-len(rows) // most))))
    for first in range(0, len(rows), count):
        part = rows[first : first + count]
        yield _pack(places, part + [[]] * (count - len(part)), spec, replace(capacity, rows=count), recipe)


def _shapes(places: list[Place]) -> tuple[CorpusSpec, Capacity]:
    """The corpus that the places look like, and the capacity of one of their rows."""
    names = list(places[0].sample.images)
    side = rounded(max(max(place.grid) for place in places))
    modalities = []
    for name in names:
        dates = _dates(max(len(place.sample.images[name].values) for place in places))
        sensor = places[0].sensors[name]
        modalities.append(ModalitySpec(name, sensor, side, side, dates > 1, dates, "float32"))
    spec = CorpusSpec("places", tuple(modalities))
    longest_place = max(place.tokens for place in places)
    mean_tokens = sum(place.tokens for place in places) / len(places)
    length = max(SHORTEST_ROW, rounded(longest_place, 4))
    per_row = min(MOST_PER_ROW, rounded(math.ceil(length / mean_tokens)))
    listed = (length - 1) // len(names)
    capacity = Capacity(
        rows=1,
        encoder_length=length,
        decoder_length=length,
        views=per_row,
        grid=side,
        slots=(per_row,) * len(names),
        encoder_tokens=(listed,) * len(names),
        decoder_tokens=(listed,) * len(names),
        dates=tuple(modality.max_dates for modality in spec.modalities),
        pixels=((side, side),) * len(names),
    )
    return spec, capacity


def _fit(places: Sequence[Place], members: list[int], capacity: Capacity) -> list[list[int]]:
    """Rows of places, filled in order of falling size."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(members, key=lambda number: -places[number].tokens):
        tokens = places[number].tokens
        for r, row in enumerate(rows):
            if room[r] >= tokens and len(row) < capacity.views:
                break
        else:
            r, row = len(rows), []
            rows.append(row)
            room.append(capacity.encoder_length)
        row.append(number)
        room[r] -= tokens
    return rows


def _pack(
    places: Sequence[Place], rows: list[list[int]], spec: CorpusSpec, capacity: Capacity, recipe: Recipe
) -> Batch:
    """Every token visible; frames without a valid pixel are left out."""
    views, found = [], []
    for r, row in enumerate(rows):
        views.append([_view(places[number], recipe) for number in row])
        start = 0
        for number in row:
            found.append(Where(number, r, start))
            start += places[number].tokens
    packed = pack(spec, views, capacity, recipe.but(time_mask="fixed"), mask_ratio=0.0)
    bands = tuple((modality.name, modality.sensor.bands) for modality in spec.modalities)
    return Batch(packed, bands, tuple(found), tuple(places[where.place] for where in found))


def _view(place: Place, recipe: Recipe) -> PackedView:
    """The place with its images on the token grid."""
    grid = place.grid
    images = {
        name: on_grid(measured_frames(image), place.sensors[name], place.target_gsd, grid, recipe)
        for name, image in place.sample.images.items()
    }
    return PackedView(
        sample=Sample(place.sample.id, images),
        target_gsd=place.target_gsd,
        modalities=tuple(images),
        noise=np.arange(place.tokens - 1, dtype=np.float32),
        grid=grid,
        origin=place.origin,
        on_grid=True,
    )


def measured_frames(image: Image) -> Image:
    """The image without the frames that have no valid pixel; with its first one where none has."""
    if image.valid is None or image.valid.any(axis=(1, 2)).all():
        return image
    kept = np.flatnonzero(image.valid.any(axis=(1, 2)))
    kept = kept if kept.size else np.zeros(1, int)
    return Image(image.values[kept], image.dates[kept], image.present, image.valid[kept])
