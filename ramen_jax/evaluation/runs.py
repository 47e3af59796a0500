"""One run of the benchmark: a decoder trained on one task with one seed, the best epoch tested.

    run = Run(task, encoder, Settings(), folder, cache, note)
    result = run.result()                       # at once where the run is complete, else from its last epoch on

Every order and draw is a function of seed and epoch, and the state is kept after each epoch: a run that was killed goes
on from the last complete epoch to the same result.

Shape letters: B places, H, W pixels, C classes, S side of a tile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.corpora import BadItem
from ramen_jax.counter_rng import combine, permute
from ramen_jax.evaluation import closed_form
from ramen_jax.evaluation.cache import Cache
from ramen_jax.evaluation.encoders import MapEncoder
from ramen_jax.evaluation.features import Features, decoder_name
from ramen_jax.evaluation.fitting import Fit, State, read_facts, restore, save
from ramen_jax.evaluation.pangaea import decoders, losses, metrics
from ramen_jax.evaluation.pangaea.optimization import optimizer
from ramen_jax.evaluation.pangaea.tasks import Example, Task
from ramen_jax.evaluation.pangaea.tasks.regions import crop, resize, training_region
from ramen_jax.evaluation.pangaea.tasks.selection import copies, limited
from ramen_jax.evaluation.pangaea.tiling import Tiles

DEFINITIONS = (metrics.PUBLISHED, metrics.CORRECTED)
POOLED = closed_form.PLACES


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a person may choose; None: what the protocol and the task say.

    Attributes:
        target_gsd: metres per token. `decoder`: of `decoders.KINDS` or `closed_form.NAMES`. `labels`: share of training
            places. `channels`: width of a UPerNet. `dropout`: of the decoder.
    """

    seed: int | None = None
    target_gsd: float | None = None
    decoder: str | None = None
    labels: float = 1.0
    epochs: int | None = None
    batch_size: int | None = None
    replicate: int | None = None
    crop: int | None = None
    channels: int = 512
    dropout: bool = True


class Run:
    """See the module. `folder` is the run's own."""

    def __init__(
        self,
        task: Task,
        encoder: MapEncoder,
        settings: Settings,
        folder: Path,
        cache: Cache,
        note: Callable[[str], None],
    ) -> None:
        command, protocol = task.command, task.protocol
        self.folder, self.note, self.encoder = folder, note, encoder
        self.task = task
        task.command = dataclasses.replace(command, crop=settings.crop or command.crop)
        self.seed = protocol.seed if settings.seed is None else settings.seed
        self.target_gsd = settings.target_gsd or command.target_gsd
        self.batch_size = settings.batch_size or protocol.batch_size
        self.replicate = settings.replicate or command.replicate
        pooled = task.family in POOLED
        self.epochs = settings.epochs or (protocol.classification_epochs if pooled else protocol.epochs)
        self.items = {split: task.split(split) for split in ("train", "val", "test")}
        self.items["train"] = limited(task, "train", settings.labels)
        self.settings = settings
        self.closed = settings.decoder in closed_form.NAMES
        asked = settings.decoder or command.decoder
        self.name = asked if self.closed else decoder_name(asked, encoder)
        merge = decoders.KINDS[command.decoder if self.closed else self.name].merge
        # A readout compares two dates as the task's decoder does; any other series is the encoder's to merge.
        self.compare = decoders.COMPARISONS.get(merge) if self.closed else None
        series = self.compare is not None if self.closed else merge != "single"
        self.features = Features(task, encoder, self.target_gsd, series, cache, trains=not self.closed)
        self.side = task.command.crop
        self.features.check(self.side, max(self.batch_size, protocol.tile_batch))
        self.key = command.select or protocol.selection(task.family)
        if self.closed:
            self._prepare_readout()
        else:
            self._prepare(settings)

    def _prepare(self, settings: Settings) -> None:
        task, protocol = self.task, self.task.protocol
        drawn = len(self.items["train"]) * self.replicate
        self.per_epoch = drawn // self.batch_size
        if not self.per_epoch:
            raise UserError(
                f"task {task.name}: {drawn} training places are less than one batch of {self.batch_size}; "
                f"use a smaller --batch-size or --replicate {-(-self.batch_size // max(drawn, 1))}",
                DATA,
            )
        self.decoder = decoders.build(
            self.name,
            self.features.widths,
            task.outputs,
            dates=self.features.dates,
            channels=settings.channels,
        )
        loss = losses.build(
            task.command.loss,
            ignore_index=task.ignore_index,
            distribution=task.distribution,
            mask_probabilities=protocol.dice == "corrected",
        )
        self.fit = Fit(
            self.decoder,
            loss,
            optimizer(protocol, self.per_epoch * self.epochs),
            self.batch_size,
            self.seed,
            settings.dropout,
        )

    def _prepare_readout(self) -> None:
        task = self.task
        if not self.encoder.frozen:
            raise UserError(
                f"{self.name} reads maps of a frozen encoder, and {self.encoder.name} is trained", USAGE
            )
        if not self.items["train"]:
            raise UserError(f"task {task.name}: no place to learn from", DATA)
        first = task.modalities[0]
        places = len(self.items["train"])
        tiles = len(Tiles.of(max(first.height, self.side), max(first.width, self.side), self.side))
        cells = int(self.side * first.sensor.gsd / self.target_gsd) ** 2
        samples = places if task.family in POOLED else places * tiles * cells
        self.readout = closed_form.build(
            self.name, task.family, len(task.classes), task.ignore_index, samples, self.compare
        )

    @property
    def told_gsd(self) -> float | None:
        """Metres per token as results tell it; None for the U-Net, which has pixels and no tokens."""
        return self.target_gsd if self.encoder.frozen else None

    @property
    def units(self) -> int:
        """Steps and validations, for a progress bar."""
        if self.closed:
            return len(self.items["train"])
        validations = sum(self.task.protocol.validates(epoch) for epoch in range(self.epochs)) + 1
        return self.per_epoch * self.epochs + (validations if self.items["val"] else 0)

    def units_done(self) -> int:
        """Those that an earlier, interrupted call has done."""
        if (self.folder / "result.json").is_file():
            return self.units
        path = self.folder / "state.safetensors"
        facts = read_facts(path) if path.is_file() else {"losses": [], "history": []}
        return len(facts["losses"]) + len(facts["history"])

    # -- data --------------------------------------------------------------------------------------------------------

    def epoch(self, epoch: int) -> Iterator[list[Example]]:
        """The batches of an epoch: every place once per copy in a drawn order, an incomplete last batch left out."""
        drawn = copies(self.items["train"], self.replicate)
        order = permute(np.arange(len(drawn)), len(drawn), combine(self.seed, "order", epoch))
        for first in range(0, self.per_epoch * self.batch_size, self.batch_size):
            batch = []
            for place in order[first : first + self.batch_size]:
                item, copy = drawn[int(place)]
                number = epoch * self.replicate + copy
                example = self._example(item, "train", number)
                batch.append(training_region(self.task, example, number, self.seed))
            yield batch

    def fixed(self, split: str) -> Iterator[tuple[str, Example, Tiles, list[Example]]]:
        """(item, example, tiles, the examples of its tiles) of a split, the same at every call."""
        for item in self.items[split]:
            example = self._example(item, split)
            if self.task.command.region == "resize":
                example = resize(example, self.side)
            height, width = next(iter(example.sample.images.values())).values.shape[2:]
            tiles = Tiles.of(height, width, self.side)
            if example.target.ndim != 2 and len(tiles) > 1:
                raise UserError(f"task {self.task.name}: a place has one class, but {len(tiles)} tiles", DATA)
            cut = [crop(example, y, x, self.side) for y, x in tiles.corners] if len(tiles) > 1 else [example]
            yield item, example, tiles, cut

    def _example(self, item: str, split: str, draw: int = 0) -> Example:
        """One place of a split. UserError, naming the file, where it is not what the task declares."""
        try:
            return self.task.example(item, split, draw)
        except BadItem as error:
            raise UserError(
                f"task {self.task.name}, split {split}: {error}; mend or remove it and run again: what is done is kept",
                DATA,
            ) from error

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """What a kept state must have been made by."""
        parts = {
            "features": self.features.identity,
            "settings": dataclasses.asdict(self.settings),
            "command": dataclasses.asdict(self.task.command),
            "items": self.items,
            "task": self.task.settings(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def result(self, progress: Callable[[str], None] = lambda info: None) -> dict[str, Any]:
        """The scores and everything that should stand beside them. `progress` is called after each step."""
        done = self.folder / "result.json"
        if done.is_file():
            try:
                kept = json.loads(done.read_text())
                same = kept["identity"] == self.identity
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{done} is damaged ({type(error).__name__}); remove it to do this run again", DATA
                ) from error
            if same:
                return kept
            raise UserError(
                f"{self.folder} holds the result of other settings, data or weights; use another --workdir",
                USAGE,
            )
        began = time.monotonic()
        unseen = self.encoder.unseen(self.features.sensors)
        if unseen:
            self.note(
                f"{self.encoder.name}: its weights have seen no band like {', '.join(unseen)}; encoded all the same, "
                "from wavelength, polarisation or kind"
            )
        outcome = self._read_out(progress) if self.closed else self._train(progress)
        _, rejected = self.task.items()
        result = {
            "identity": self.identity,
            "task": self.task.name,
            "encoder": self.encoder.name,
            "weights": self.encoder.identity,
            "protocol": self.task.protocol.as_dict(),
            "decoder": self.name,
            "seed": self.seed,
            "target_gsd": self.told_gsd,
            "labels": self.settings.labels,
            "places": {split: len(items) for split, items in self.items.items()},
            "unseen_bands": unseen,
            "left_out": [str(item) for item in rejected],
            "classes": list(self.task.classes),
            **outcome,
            "seconds": time.monotonic() - began,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = done.with_suffix(".part")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(done)
        return result

    def _train(self, progress: Callable[[str], None]) -> dict[str, Any]:
        path = self.folder / "state.safetensors"
        state = self.fit.init(self.features.initial())
        best: State = jax.tree.map(jnp.copy, state)
        facts: dict[str, Any] = {
            "identity": self.identity,
            "epoch": 0,
            "best": None,
            "history": [],
            "losses": [],
        }
        kept = restore(path, {"state": state, "best": best})
        if kept is not None:
            if kept[1]["identity"] != self.identity:
                raise UserError(
                    f"{path} is of other settings, data or weights; use another --workdir, or remove it",
                    USAGE,
                )
            state, best, facts = self.fit.place(kept[0]["state"]), kept[0]["best"], kept[1]
            self.note(f"{self.folder.name}: goes on after epoch {facts['epoch']} of {self.epochs}")
        else:
            self._announce()
        for epoch in range(facts["epoch"], self.epochs + 1):
            last = epoch == self.epochs
            if (last or self.task.protocol.validates(epoch)) and self.items["val"]:
                scores = self.scores(state, "val")[self.task.protocol.metrics]
                value = metrics.selection_value(scores, self.key, self.task.outputs)
                facts["history"].append([epoch, value])
                if metrics.is_better(value, facts["best"], self.key):
                    facts["best"], facts["best_epoch"] = value, epoch
                    best = jax.tree.map(jnp.copy, state)
                progress(f"epoch {epoch}: {self.key} {value:.4g}")
            if last:
                break
            for number, batch in enumerate(self.epoch(epoch), epoch * self.per_epoch):
                state, loss = self.step(state, batch, number)
                facts["losses"].append(loss)
                progress(f"loss {loss:.4f}")
            facts["epoch"] = epoch + 1
            save(path, {"state": state, "best": best}, facts)
        by_validation = self.task.command.checkpoint == "best" and facts["best"] is not None
        tested = best if by_validation else state
        scores = self.scores(self.fit.place(tested), "test", keep_examples=True)
        path.unlink(missing_ok=True)
        save(
            self.folder / "decoder.safetensors",
            {"params": tested.params, "statistics": tested.statistics, "encoder": tested.encoder},
            {},
        )
        return {
            "selected_by": self.key if by_validation else "the last epoch",
            "best_epoch": facts.get("best_epoch") if by_validation else self.epochs,
            "history": facts["history"],
            "losses": facts["losses"],
            "steps": len(facts["losses"]),
            "parameters": decoders.count(tested.params),
            "compiled": {**self.fit.traced, "encoder": len(self.features.encoder.programs)},
            "scores": {name: scores[name] for name in DEFINITIONS},
            "confusion": scores.get("confusion"),
        }

    def _read_out(self, progress: Callable[[str], None]) -> dict[str, Any]:
        """A readout in closed form: the fixed tiles of the training places are learnt from, those of test asked."""
        state = State({}, {}, {}, self.features.initial())
        self._announce()
        for item, _, _, cut in self.fixed("train"):
            for group in self._chunks(cut):
                levels = self.features.of(group, keep=True, statistics=state.encoder)
                self.readout.learn(levels, np.stack([example.target for example in group]))
            progress(item)
        scores = self.scores(state, "test", keep_examples=True)
        return {
            "steps": 0,
            "parameters": 0,
            "scores": {name: scores[name] for name in DEFINITIONS},
            "confusion": scores.get("confusion"),
        }

    def step(self, state: State, batch: list[Example], number: int) -> tuple[State, float]:
        names = [example.sample.id for example in batch]
        labels = np.stack([example.target for example in batch])
        if self.task.family != "regression" and not (labels != self.task.ignore_index).any():
            raise UserError(
                f"task {self.task.name}, step {number}: every pixel of the batch is ignored ({', '.join(names)}); "
                "use region focus_crop in the task's command, or a larger batch",
                DATA,
            )
        levels, moved = self.features.in_training(
            batch, self._whole(), state.encoder, self.fit.encoder_key(number)
        )
        return self.fit.step(state._replace(encoder=moved), levels, labels, number, names)

    def _whole(self) -> bool:
        """Whether the training crop is the whole image, so that it comes again in every epoch."""
        return self.task.command.region == "resize" or all(
            spec.height == self.side for spec in self.task.modalities
        )

    def _announce(self) -> None:
        tiles = 0
        for split in ("train" if self.closed else "val", "test"):
            spec = self.task.modalities[0]
            each = len(Tiles.of(max(spec.height, self.side), max(spec.width, self.side), self.side))
            tiles += each * len(self.items[split])
        crops = len(self.items["train"]) if self._whole() and not self.closed else 0
        self.features.announce(tiles + crops, self.side)

    # -- scores ------------------------------------------------------------------------------------------------------

    def logits(self, state: State, tiles: Tiles, cut: list[Example]) -> np.ndarray:
        """Of one place: [H, W, C], or [C] for a classification. Tiles are decoded in chunks of one size."""
        size = cut[0].target.shape if cut[0].target.ndim == 2 else (1, 1)
        chunk = min(self.task.protocol.tile_batch, len(cut))
        decode = self.readout.decode if self.closed else self.fit.decode
        parts = []
        for group in self._chunks(cut):
            levels = self.features.of(group, keep=True, statistics=state.encoder)
            short = chunk - len(group)
            if short:
                levels = tuple(np.concatenate([level, np.repeat(level[-1:], short, 0)]) for level in levels)
            parts.append(np.asarray(decode(state, levels, size))[: len(group)])
        decoded = np.concatenate(parts)
        if len(tiles) == 1:
            return decoded[0]
        published = self.task.protocol.tiles == "published"
        return np.asarray(tiles.merge(jnp.asarray(decoded)[:, None], published=published))[0]

    def _chunks(self, cut: list[Example]) -> list[list[Example]]:
        size = self.task.protocol.tile_batch
        return [cut[first : first + size] for first in range(0, len(cut), size)]

    def scores(self, state: State, split: str, keep_examples: bool = False) -> dict[str, Any]:
        """{definition: scores} of a split, and its confusion matrix (rows truth) where there is one."""
        classes = len(self.task.classes)
        matrix = np.zeros((classes, classes), np.int64)
        sums, outputs, targets = [], [], []
        for number, (_, example, tiles, cut) in enumerate(self.fixed(split)):
            logits = self.logits(state, tiles, cut)
            outputs.append(logits) if self.task.family in POOLED else None
            targets.append(example.target) if self.task.family in POOLED else None
            if self.task.family == "regression":
                prediction = logits[..., 0]
                sums.append(
                    metrics.regression_sums(jnp.asarray(prediction)[None], jnp.asarray(example.target)[None])
                )
            elif self.task.family not in POOLED:
                prediction = np.asarray(metrics.predict(jnp.asarray(logits)))
                matrix += np.asarray(
                    metrics.confusion(
                        jnp.asarray(prediction), jnp.asarray(example.target), classes, self.task.ignore_index
                    )
                )
            if keep_examples and number < 3 and self.task.family not in POOLED:
                self._keep(number, example, prediction)
        return self._defined(matrix, sums, outputs, targets)

    def _defined(
        self, matrix: np.ndarray, sums: list[Any], outputs: list[np.ndarray], targets: list[np.ndarray]
    ) -> dict[str, Any]:
        family = self.task.family
        if family == "regression":
            return {name: metrics.regression(sums, name) for name in DEFINITIONS}
        if family == "classification":
            found, truth = np.stack(outputs), np.stack(targets)
            np.add.at(matrix, (truth, found.argmax(1)), 1)
            scored = {name: metrics.classification(found, truth, name) for name in DEFINITIONS}
            return {**scored, "confusion": matrix.tolist()}
        if family == "multi_label":
            scores = metrics.multi_label(np.stack(outputs) > 0, np.stack(targets))
            return dict.fromkeys(DEFINITIONS, scores)
        scored = {name: metrics.segmentation(matrix, name, self.task.ignore_index) for name in DEFINITIONS}
        return {**scored, "confusion": matrix.tolist()}

    def _keep(self, number: int, example: Example, prediction: np.ndarray) -> None:
        """What the pictures of predictions are drawn from."""
        specs = self.task.modalities
        spec = next((s for s in specs if s.sensor.bands[0].kind == "optical"), specs[0])
        image = example.sample.images[spec.name]
        values = image.values[len(image.values) // 2].astype(np.float32)
        save(
            self.folder / f"example_{number}.safetensors",
            {
                "image": values * spec.sensor.scale + spec.sensor.offset,
                "truth": example.target,
                "prediction": prediction,
            },
            {"id": example.sample.id, "modality": spec.name},
        )
