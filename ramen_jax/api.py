"""Features of your own images in a few lines.

import ramen_jax as rj

model = rj.load("runs/base")                                  # a workdir, or a folder that export wrote
print(rj.cost(model, {"s2": "sentinel2_l2a"}, size=2560, target_gsd=40))
features = model.encode({"s2": rj.Image(pixels, dates=["2021-04-02", "2021-07-11"])}, target_gsd=40)
features.maps["s2"]                                           # [D, rows, columns], one vector per 40 m x 40 m
many = model.encode([{"s2": image} for image in images], target_gsd=40)      # packed together: many times faster
results = rj.evaluate("sen1floods11", "floods", "runs/floods", checkpoint="runs/base")       # a task of PANGAEA
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from ramen_jax.evaluation.command import evaluate
from ramen_jax.evaluation.runs import Settings
from ramen_jax.inference.encoder import Encoder, Features
from ramen_jax.inference.images import Image
from ramen_jax.model import flops
from ramen_jax.rows.shapes import row_shapes
from ramen_jax.rows.views import Capacity, view_grid
from ramen_jax.samples import CorpusSpec, ModalitySpec
from ramen_jax.sensors import Sensor
from ramen_jax.training.weights import load

Sensors = Mapping[str, Sensor | str] | Sequence[Sensor | str] | Sensor | str


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


def cost(
    model: Encoder,
    sensors: Sensors,
    size: float | tuple[float, float],
    target_gsd: float,
    dates: Mapping[str, int] | int = 1,
) -> Cost:
    """Tokens, FLOPs and memory of `encode` of one place, without running it: counted in the traced model itself.

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
    found = {name: model.sensor(sensor, with_statistics=False) for name, sensor in named.items()}
    modalities = []
    for name, sensor in found.items():
        frames = dates if isinstance(dates, int) else dates.get(name, 1)
        sides = [max(round(side / sensor.gsd), 1) for side in (height, width)]
        modalities.append(ModalitySpec(name, sensor, sides[0], sides[1], frames > 1, frames, "float32"))
    spec = CorpusSpec("place", tuple(modalities))
    rows, columns = view_grid(spec, target_gsd)
    cells, count = rows * columns, len(modalities)
    capacity = Capacity(
        rows=1,
        encoder_length=1 + count * cells,
        decoder_length=1 + count * cells,
        views=1,
        grid=max(rows, columns),
        slots=(1,) * count,
        encoder_tokens=(cells,) * count,
        decoder_tokens=(cells,) * count,
        dates=tuple(modality.max_dates for modality in spec.modalities),
    )
    bands = {modality.name: modality.sensor.bands for modality in spec.modalities}
    packed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), row_shapes(spec, capacity))
    counted = flops.count(
        lambda params, statistics, rows: model.ramen.encode(params, statistics, rows, bands),
        *model.ramen.shapes,
        packed,
    )
    return Cost(count * cells, rows, columns, counted.flops, counted.memory)


__all__ = ["Cost", "Encoder", "Features", "Image", "Settings", "cost", "evaluate", "load"]
