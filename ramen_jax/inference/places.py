"""Many places, of any sizes and lengths of series -> few batches of few shapes.

Places that a program can serve together share rows: those of the same sensors whose numbers of dates fall into the same
class. Their images are brought to the token grid first, so their sizes in pixels do not matter; every number that is
static for a compilation is rounded up to a few values, so that another size, another number of dates or of places
compiles nothing.

Numpy only. Shape letters as in `ramen_jax.rows.batch`, and K layers, P places of a batch, h, w tokens of a place.
"""

from __future__ import annotations

import bisect
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
LONGER_ROWS = (256, 512, 1024)  # tokens; places that are short against the row fill it better
MOST_PER_ROW = 16  # places
SHORTEST_SIDE = 8  # tokens along a side that a row has room for
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
    return grid_maps(layers_KxExD, tuple(place.sample.images), place.grid)


def grid_maps(layers_KxExD: Any, names: Sequence[str], grid: tuple[int, int]) -> dict[str, Any]:
    """`token_maps` of a place of these modalities and this grid."""
    cells = grid[0] * grid[1]
    tokens = layers_KxExD[:, 1 : 1 + len(names) * cells]
    maps = tokens.reshape(len(tokens), len(names), *grid, -1).transpose(1, 0, 4, 2, 3)
    return dict(zip(names, maps, strict=True))


def batches(places: Sequence[Place], recipe: Recipe, tokens: int = TOKENS) -> Iterator[Batch]:
    """The places, packed into batches of about `tokens` tokens; every place once.

    Raises:
        ValueError, UserError: an empty grid, a missing statistic.
    """
    for members in _groups(places):
        yield from _pack_group(places, members, recipe, tokens)


def _groups(places: Sequence[Place]) -> list[list[int]]:
    """Numbers of the places that a program serves together: those of the same bands, GSDs and classes of dates.

    Places that lack a modality join those that have it. What is larger than a batch goes by itself: rows of that length
    hold few of the others.
    """
    alike: dict[tuple[int, frozenset], list[int]] = defaultdict(list)
    for number, place in enumerate(places):
        size = place.tokens.bit_length() if place.tokens > TOKENS + 1 else 0
        alike[size, _looks(place)].append(number)
    groups: dict[tuple[int, frozenset], list[int]] = {}
    for size, looks in sorted(alike, key=lambda key: -len(key[1])):
        joined = (found for found in groups if found[0] == size and looks < found[1])
        groups.setdefault(next(joined, (size, looks)), []).extend(alike[size, looks])
    return [sorted(members) for members in groups.values()]


def _looks(place: Place) -> frozenset:
    """What a program depends on: what each image is, not how large it is nor how it is normalised."""
    images = place.sample.images.items()
    sensors = place.sensors
    return frozenset(
        (name, sensors[name].bands, sensors[name].gsd, _dates(len(image.values))) for name, image in images
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
    spec = _spec([places[number] for number in members])
    length, count, rows = _layout({number: places[number].tokens for number in members}, tokens)
    capacity = _capacity(spec, [[places[number] for number in row] for row in rows], length)
    for first in range(0, len(rows), count):
        part = rows[first : first + count]
        yield _pack(places, part + [[]] * (count - len(part)), spec, replace(capacity, rows=count), recipe)


def _layout(sizes: Mapping[int, int], tokens: int) -> tuple[int, int, list[list[int]]]:
    """(tokens of a row, rows of a batch, the rows): of a few lengths the one that wastes least, the shortest of equals.

    Attention costs what the places cost, not what the row would, so a row may be longer than its longest place.

    Args:
        sizes: tokens of each place, by its number.
        tokens: of a batch, about.
    """
    # A square grid of a power of two and its class token fill a row.
    shortest = max(SHORTEST_ROW, rounded(max(sizes.values()) - 1, 4) + 1)
    layouts = []
    for length in (shortest, *(length for length in LONGER_ROWS if length > shortest)):
        rows = _fit(sizes, length)
        # Batches of one size: as few as can be, and no larger than they need to be.
        most = max(1, tokens // length)
        batches = -(-len(rows) // most)
        count = min(most, rounded(-(-len(rows) // batches)))
        layouts.append((-(-len(rows) // count) * count * length, length, count, rows))
    return min(layouts)[1:]


def _fit(sizes: Mapping[int, int], length: int) -> list[list[int]]:
    """Rows of places, each place in the fullest one that has room, the largest first.

    No row has many more places than the others, since each takes a slot of every row.
    """
    most = min(MOST_PER_ROW, rounded(math.ceil(length * len(sizes) / sum(sizes.values()))))
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, row) of those that may take another place, ascending
    for number in sorted(sizes, key=lambda number: -sizes[number]):
        fitting = bisect.bisect_left(rooms, (sizes[number], 0))
        if fitting < len(rooms):
            room, r = rooms.pop(fitting)
        else:
            room, r = length, len(rows)
            rows.append([])
        rows[r].append(number)
        if len(rows[r]) < most:
            bisect.insort(rooms, (room - sizes[number], r))
    return rows


def _spec(places: Sequence[Place]) -> CorpusSpec:
    """The corpus that the places look like, its images on the token grid."""
    side = max(SHORTEST_SIDE, rounded(max(max(place.grid) for place in places)))
    modalities = {}
    for place in places:
        for name, image in place.sample.images.items():
            if name not in modalities:
                dates, sensor = _dates(len(image.values)), place.sensors[name]
                modalities[name] = ModalitySpec(name, sensor, side, side, dates > 1, dates, "float32")
    return CorpusSpec("places", tuple(modalities.values()))


def _capacity(spec: CorpusSpec, rows: Sequence[Sequence[Place]], length: int) -> Capacity:
    """What one of the rows needs at most."""
    names = spec.names
    if all(len(place.sample.images) == len(names) for row in rows for place in row):
        listed = [(length - 1) // len(names)] * len(names)
    else:
        cells = [
            max(sum(math.prod(place.grid) for place in row if name in place.sample.images) for row in rows)
            for name in names
        ]
        listed = [min(length - 1, rounded(most, 4)) for most in cells]
    views = rounded(max(len(row) for row in rows))
    count = len(names)
    return Capacity(
        rows=1,
        encoder_length=length,
        decoder_length=length,
        views=views,
        grid=spec.first.height,
        slots=(views,) * count,
        encoder_tokens=tuple(listed),
        decoder_tokens=tuple(listed),
        dates=tuple(modality.max_dates for modality in spec.modalities),
        pixels=((spec.first.height, spec.first.width),) * count,
    )


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
