"""DynamicEarthNet (Toker et al. 2022): monthly land cover of Planet images, here a series of six days of the month.

    dynnet_training_splits/{train,val,test}.txt     lines: image folder, label file, YYYY-MM
    {image folder}/{YYYY-MM}-{DD}.npy               [4, 1024, 1024]: blue, green, red, near infrared
    {label file, tif -> npy}                        [1024, 1024], 0..5, -1 = snow and ice

Folders in the lists start with a slash and say /reprocess-cropped/UTM-24000/ where the files lie in /planet/. The
`.npy` files are made from the published GeoTIFFs by the benchmark's users.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, day_of_year
from ramen_jax.evaluation.pangaea.tasks.reading import evenly, read_array, read_lines, whole_numbers
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Sample


class DynamicEarthNet(Task):
    """See the module's docstring. An item is a label file's name with its month."""

    @cached_property
    def _lines(self) -> dict[str, dict[str, tuple[Path, Path, str]]]:
        """Split -> item -> (image folder, label file, month)."""
        lines: dict[str, dict[str, tuple[Path, Path, str]]] = {}
        root = self.source.resolve()
        for split in SPLITS:
            path = self.source / "dynnet_training_splits" / f"{split}.txt"
            lines[split] = {}
            for text in read_lines(path):
                words = text.split()
                if len(words) != 3:
                    raise UserError(
                        f"{path}: found {text!r}, expected an image folder, a label file and a month"
                    )
                folder = words[0].replace("/reprocess-cropped/UTM-24000/", "/planet/").lstrip("/")
                label = words[1].replace("tif", "npy").lstrip("/")
                for part in (folder, label):
                    if not (root / part).resolve().is_relative_to(root):
                        raise UserError(f"{path}: {part} leads outside {self.source}")
                lines[split][f"{label.removesuffix('.npy')}"] = (
                    self.source / folder,
                    self.source / label,
                    words[2],
                )
        return lines

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split, lines in self._lines.items():
            splits[split] = []
            for item, (folder, label, month) in lines.items():
                if not label.is_file():
                    rejected[split].append(BadItem(label, "the label is missing"))
                elif not self._days(folder, month):
                    rejected[split].append(BadItem(folder, f"no file {month}-DD.npy"))
                else:
                    splits[split].append(item)
        return splits, rejected

    def _days(self, folder: Path, month: str) -> list[Path]:
        """The files of the chosen days: the first six of the month, or as many spread over it."""
        wanted = self.modalities[0].max_dates
        if self.protocol.dates == "sorted":
            found = sorted(folder.glob(f"{month}-[0-9][0-9].npy"))
            return [found[i] for i in evenly(len(found), wanted)]
        return [folder / f"{month}-{day:02d}.npy" for day in range(1, wanted + 1)]

    def _read(self, item: str, split: str, draw: int) -> Example:
        folder, label, month = self._lines[split][item]
        spec = self.modalities[0]
        paths = self._days(folder, month)
        frames = [read_array(path) for path in paths]
        shapes = {frame.shape for frame in frames}
        if len(shapes) != 1:
            raise BadItem(folder, f"the days of {month} differ in shape: {sorted(shapes)}")
        dates = [day_of_year(path.stem, path, "%Y-%m-%d") for path in paths]
        image = self.make_image(np.stack(frames).astype(spec.dtype), dates, spec.sensor.nodata, folder)
        return Example(Sample(item, {spec.name: image}), whole_numbers(read_array(label), label))
