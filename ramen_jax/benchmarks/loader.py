"""`python -m ramen_jax.benchmarks.loader`: our pipeline against a plain PyTorch DataLoader, on the same files.

Both sides read the patches of one FLAIR-HUB folder, in turns, each in its own process on the same core. Seconds are
of processor time, so that a busy machine does not blur the comparison:

- torch: a DataLoader without workers whose dataset opens every GeoTIFF of a patch, converts to float32, drops the
  snowy and cloudy dates by the mask raster and normalises, as the official pretraining does; batches of 4, series
  padded to the longest. (Its label raster and date tables are not read.)
- ours: the prepared corpus through reading, decoding, planning and packing into batches ready for the device, which
  normalises there. Draws follow the paper's target GSDs, so only the modalities that a sample's view keeps are decoded.

The samples are asked for endlessly, so small folders serve too; all files are read once before the clock starts.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax import allocator, console
from ramen_jax.console import USAGE, UserError
from ramen_jax.corpora.flairhub import MASK, MODALITIES, PatchList, find_list
from ramen_jax.corpora.records import Prepared
from ramen_jax.recipe import REFERENCE
from ramen_jax.rows.pipeline import Source, StepSource, measure
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.samples import CorpusSpec, Sample

EXAMPLES = """  python -m ramen_jax.earth.layouts --corpus flairhub --output flairhub_files --places 24
  python -m ramen_jax.prepare --corpus flairhub --source flairhub_files --output runs/flairhub
  python -m ramen_jax.benchmarks.loader --source flairhub_files --prepared runs/flairhub"""

GSDS = tuple(float(gsd) for gsd in range(3, 21))  # of the paper, metres
ENDLESS = 100_000  # samples of the pretended corpus
BATCH = 4
MAX_COVERED = 0.05


class Repeated:
    """A small corpus that pretends to be large: sample i is sample i modulo its true length."""

    def __init__(self, source: Prepared) -> None:
        self.source = source
        self.spec: CorpusSpec = source.spec
        self.statistics = source.statistics

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sample:
        return self.source[index % len(self.source)]

    def read(self, index: int, modalities: Collection[str]) -> Sample:
        return self.source.read(index % len(self.source), modalities)


class GeoTiffs:
    """The patches of a FLAIR-HUB list as a torch dataset: read and normalise, as the official loader does."""

    def __init__(self, source: Path, spec: CorpusSpec) -> None:
        patches = PatchList(find_list(source, "train"))
        self.folder = patches.path.parent
        self.rows = [patches.row(patch) for patch in patches.lines]
        self.spec = spec

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        row = self.rows[index % len(self.rows)]
        images = {}
        for modality in self.spec.modalities:
            bands = len(modality.sensor.bands)
            data = self._read(row[MODALITIES[modality.name][0]])
            data = data.view(-1, bands, modality.height, modality.width)
            if modality.name == "s2":
                data = data[self._clear(row[MASK])]
            mean = torch.tensor(modality.sensor.mean)[None, :, None, None]
            std = torch.tensor(modality.sensor.std)[None, :, None, None]
            images[modality.name] = (data - mean) / std
        return images

    def _read(self, cell: str) -> Any:
        import rasterio
        import torch

        with rasterio.open(self.folder / cell) as file:
            return torch.from_numpy(file.read().astype(np.float32))

    def _clear(self, cell: str) -> Any:
        """The dates kept: at least 95 % of their pixels free of snow and cloud, or else of snow alone."""
        mask = self._read(cell)
        mask = mask.view(-1, 2, *mask.shape[1:])
        enough = (1 - MAX_COVERED) * mask[0, 0].numel()
        clear = ((mask[:, 0] <= 1) & (mask[:, 1] <= 1)).flatten(1).sum(1) >= enough
        return clear if clear.any() else (mask[:, 0] <= 1).flatten(1).sum(1) >= enough


def padded(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples, series padded with zero images to the longest of the batch."""
    import torch

    stacked = {}
    for name in samples[0]:
        longest = max(len(sample[name]) for sample in samples)
        images = [sample[name] for sample in samples]
        images = [torch.nn.functional.pad(i, (0, 0, 0, 0, 0, 0, 0, longest - len(i))) for i in images]
        stacked[name] = torch.stack(images)
    return stacked


def torch_speed(source: Path, prepared: Path, seconds: float) -> float:
    """Samples per second of a plain DataLoader over GeoTIFFs."""
    import torch

    torch.set_num_threads(1)
    corpus = Prepared(prepared)
    patches: Any = GeoTiffs(source, corpus.spec)
    loader: Any = torch.utils.data.DataLoader(patches, batch_size=BATCH, num_workers=0, collate_fn=padded)
    batches = iter(loader)
    for _ in range(-(-len(corpus) // BATCH)):
        next(batches)
    began, used, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    return count / (time.process_time() - used)


def our_speed(prepared: Path, seconds: float) -> dict[str, Any]:
    """What `measure` returns, for the prepared corpus with the paper's draws."""
    corpus = Prepared(prepared)
    spec = corpus.spec
    dropout = {m.name: 0.3 for m in spec.modalities if m.series}
    plan = Plan(
        [PlannedCorpus(spec, ENDLESS, GSDS, temporal_dropout=dropout)],
        seed=0,
        rows_per_step=BATCH,
        recipe=REFERENCE,
    )
    sources: dict[str, Source] = {spec.name: Repeated(corpus)}
    steps = StepSource(plan, sources)
    while steps.samples_read < len(corpus):
        steps.step(steps.samples_read)
    return measure(plan, sources, seconds)


def compare(
    source: Path, prepared: Path, seconds: float, turns: int
) -> Iterator[tuple[float, dict[str, Any]]]:
    """(samples per second of torch, what `measure` returns) for each turn."""
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, initializer=pin) as theirs,
        ProcessPoolExecutor(1, spawn, initializer=pin) as ours,
    ):
        for _ in range(turns):
            speed = theirs.submit(torch_speed, source, prepared, seconds).result()
            yield speed, ours.submit(our_speed, prepared, seconds).result()


def pin() -> None:
    """Keeps this process on the first core it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def run() -> int:
    """The command."""
    allocator.keep_memory()  # as the commands do
    parser = console.parser(
        "benchmarks.loader",
        "Samples per second on one core: a plain PyTorch DataLoader on GeoTIFFs, and our pipeline.",
        EXAMPLES,
    )
    parser.add_argument(
        "--source", required=True, type=Path, metavar="DIR", help="FLAIR-HUB in its original layout"
    )
    parser.add_argument("--prepared", required=True, type=Path, metavar="DIR", help="the same, prepared")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (5)")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each side, in turns (3)")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.turns < 1:
        raise UserError("--seconds must be positive and --turns at least 1", USAGE)
    turns = []
    try:
        for theirs, ours in compare(arguments.source, arguments.prepared, arguments.seconds, arguments.turns):
            turns.append((theirs, ours["samples_per_cpu_s"]))
            ratio = turns[-1][1] / theirs
            print(f"torch {theirs:7.1f} samples/s   ours {turns[-1][1]:7.1f} samples/s   {ratio:.1f} x")
    except ValueError as error:
        raise UserError(str(error)) from error
    medians = np.median(turns, axis=0)
    print(f"median: {medians[1] / medians[0]:.1f} x the samples/s of the DataLoader, on one core")
    print(
        f"ours: {ours['megabytes_per_s']:.0f} MB/s of pixels; time {ours['share_read']:.0%} reading, "
        f"{ours['share_plan']:.0%} planning, {ours['share_pack']:.0%} packing; "
        f"real tokens {ours['real_encoder']:.1%} encoder, {ours['real_decoder']:.1%} decoder"
    )
    return 0


if __name__ == "__main__":
    console.main(run)
