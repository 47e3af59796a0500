"""Replays a folder of golden values of the official code and prints the worst error of each kind.

    python tests/golden/replay.py tests/golden/mae

A folder holds `config.json` (hyperparameters and geometry), `weights.npz` (the official state dict), `case_*.npz`
and optionally `trajectory.json`; the arrays are described in `tests/golden/README.md`. Exit status 1 above a
tolerance, 2 for a folder that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

# A checkout that is not installed is enough to run this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ramen_jax.interchange.torch_weights import from_official, to_official
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.encoder import RamenEncoder
from ramen_jax.model.projector import ELEVATION, RADAR
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import Rows
from ramen_jax.rows.packing import exact_capacity, pack
from ramen_jax.rows.views import PackedView
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor

# Relative for losses, gradient norms and the trajectory; absolute for tokens and reconstructions.
TOLERANCES = {
    "loss": 2e-5,
    "gradient norm": 1e-3,
    "tokens": 5e-4,
    "projected": 5e-4,
    "reconstruction": 1e-3,
    "trajectory, first four": 5e-5,
    "trajectory, last two": 5e-3,
}
# A bias that feeds a normalisation by batch statistics has a true gradient of zero: both codes hold rounding noise.
ZERO_GRADIENT = tuple(f"encoder.ltae.{name}.bias" for name in ("inconv.0", "mlp.0", "mlp.3", "mlp.6"))
# Gradients below this share of the total norm are rounding noise too (the key bias, the GroupNorm bias).
NOISE_FLOOR = 1e-6
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.05, 1.0
RECIPE = Recipe.named("reference", ltae_dropout=0.0)


@dataclass
class Worst:
    """The worst error of each kind, and where it was."""

    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)
    errors: dict[str, tuple[float, str]] = field(default_factory=dict)

    def add(self, kind: str, error: float, where: str) -> None:
        # A NaN must never pass as small.
        error = float("inf") if np.isnan(error) else float(error)
        if error >= self.errors.get(kind, (-1.0, ""))[0]:
            self.errors[kind] = (error, where)

    def failures(self) -> list[str]:
        return [kind for kind, (error, _) in self.errors.items() if error > self.tolerances[kind]]

    def table(self) -> str:
        lines = [f"{'quantity':<24}{'worst error':>14}{'tolerance':>12}  where"]
        for kind, (error, where) in self.errors.items():
            tolerance = self.tolerances[kind]
            mark = "" if error <= tolerance else "  TOO LARGE"
            lines.append(f"{kind:<24}{error:>14.2e}{tolerance:>12.0e}  {where}{mark}")
        return "\n".join(lines)


class Folder:
    """The model and the cases of one folder of golden values."""

    def __init__(self, path: Path):
        self.path = path
        description = json.loads((path / "config.json").read_text())
        self.hyperparameters, self.geometry = description["hyperparameters"], description["geometry"]
        with np.load(path / "weights.npz") as archive:
            self.weights = {name: archive[name] for name in archive.files}

    @cached_property
    def ramen(self) -> Ramen:
        """The reference recipe, without the attention dropout that the golden runs switched off."""
        architecture = Architecture.from_dict({**self.hyperparameters, "remat": "none"})
        return Ramen(architecture, RECIPE)

    def arrays(self) -> tuple[Any, Any]:
        """Parameters and statistics, every value from the official weights."""
        return from_official(self.weights, self.ramen.shapes)

    def corpus(self, name: str, arrays: Mapping[str, np.ndarray], scale: float) -> CorpusSpec:
        modalities = []
        for modality in self.geometry["modalities"][name]:
            bands = tuple(_band(b) for b in self.geometry["wavelengths"][name][modality])
            values = arrays.get(f"input/{modality}")
            size = self.geometry["modalities_input_size"][name][modality]
            dates = 1 if values is None else values.shape[1]
            sensor = Sensor(
                name=f"{name}_{modality}",
                bands=bands,
                gsd=self.geometry["modalities_res"][name][modality],
                units="golden integers",
                mean=(0.0,) * len(bands),
                std=(1.0 / scale,) * len(bands),
            )
            modalities.append(ModalitySpec(modality, sensor, size, size, dates > 1, dates, "int8", False))
        return CorpusSpec(name, tuple(modalities), "golden")

    def cases(self) -> Iterator[Case]:
        for path in sorted(self.path.glob("case_*.npz")):
            with np.load(path) as archive:
                yield Case(self, path.stem, {name: archive[name] for name in archive.files})


class Case:
    """One batch of the official code, packed one view per row."""

    def __init__(self, folder: Folder, name: str, arrays: dict[str, np.ndarray]):
        self.name, self.arrays = name, arrays
        self.facts = json.loads(str(arrays["case"]))
        self.spec = folder.corpus(self.facts["dataset"], arrays, float(arrays["input_scale"]))
        self.bands = {m.name: m.sensor.bands for m in self.spec.modalities}
        self.train = self.facts["batchnorm"] == "batch"

    def rows(self, mask_ratio: float) -> Rows:
        views = [[self._view(b)] for b in range(self.facts["batch"])]
        capacity = exact_capacity(self.spec, views, RECIPE, mask_ratio)
        return pack(self.spec, views, capacity, RECIPE, mask_ratio)

    def _view(self, b: int) -> PackedView:
        images = {}
        for modality in self.facts["modalities"]:
            values = self.arrays[f"input/{modality}"][b]
            dates = np.broadcast_to(self.arrays[f"dates/{modality}"][b], values.shape[:1]).astype(np.int16)
            images[modality] = Image(values, dates, np.ones(values.shape[1], bool))
        return PackedView(
            sample=Sample(f"{self.name}/{b}", images),
            target_gsd=self.facts["target_gsd"],
            modalities=tuple(self.facts["modalities"]),
            noise=self.arrays["noise"][b],
        )


def _band(code: float | str) -> Band:
    if code in RADAR:
        return Band(name=str(code), radar=str(code))
    if code in ELEVATION:
        return Band(name=str(code), elevation=str(code))
    return Band(name=f"{code} nm", wavelength_nm=float(code))


def relative(found: float, expected: float, floor: float = 1e-12) -> float:
    return abs(float(found) - float(expected)) / max(abs(float(expected)), floor)


def replay_case(folder: Folder, case: Case, worst: Worst) -> None:
    """Losses, gradients, tokens and reconstructions of one case, in one compiled program."""
    rows = case.rows(folder.hyperparameters["mask_ratio"])
    unmasked = case.rows(mask_ratio=0.0)
    ramen, (params, statistics) = folder.ramen, folder.arrays()

    @jax.jit
    def everything(params: Any, statistics: Any, rows: Rows, unmasked: Rows) -> tuple:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            counts = ramen.counts(rows)
            return ramen.loss(params, statistics, rows, case.bands, counts, train=case.train)

        def encoder() -> RamenEncoder:
            return ramen.encoder(params, statistics)

        (total, (losses, _)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        projected = {
            name: encoder().features(rows.images[name], case.bands[name], train=case.train)
            for name in case.facts["modalities"]
        }
        encoded = encoder()(unmasked, case.bands, train=case.train)
        visible = encoder()(rows, case.bands, train=case.train)
        predictions = ramen.decode(params, visible, rows, case.bands)
        return total, losses, gradients, projected, encoded, predictions

    total, losses, gradients, projected, encoded, predictions = everything(params, statistics, rows, unmasked)
    worst.add("loss", relative(total, case.arrays["total_loss"]), f"{case.name} total")
    for modality in case.facts["modalities"]:
        expected = case.arrays[f"loss/{modality}"]
        worst.add("loss", relative(losses[f"loss/{modality}"], expected), f"{case.name} {modality}")
        found = projected[modality]
        worst.add(
            "projected", _largest(found, case.arrays[f"projected/{modality}"]), f"{case.name} {modality}"
        )
        stride = int(case.arrays[f"reconstruction_stride/{modality}"])
        found = jnp.moveaxis(predictions[modality][:, 0, :, :, ::stride, ::stride], 2, -1)
        expected = case.arrays[f"reconstruction_strided/{modality}"]
        worst.add("reconstruction", _largest(found, expected), f"{case.name} {modality}")
    _compare_gradients(gradients, statistics, case, worst)
    _compare_tokens(np.asarray(encoded), unmasked, case, worst)


def _compare_gradients(gradients: Any, statistics: Any, case: Case, worst: Worst) -> None:
    named = to_official(gradients, statistics)
    expected = json.loads(str(case.arrays["grad_norms"]))
    floor = NOISE_FLOOR * np.sqrt(sum(value**2 for value in expected.values()))
    for name, norm in expected.items():
        if name not in ZERO_GRADIENT:
            error = relative(np.linalg.norm(named[name]), norm, floor)
            worst.add("gradient norm", error, f"{case.name} {name}")


def _compare_tokens(encoded_RxExD: np.ndarray, unmasked: Rows, case: Case, worst: Worst) -> None:
    """The tokens of the same views with nothing hidden, put into the official modality order."""
    modality_RxE = np.take_along_axis(unmasked.decoder_modality_RxL, _decoder_places(unmasked), axis=1)
    names = list(unmasked.images)
    rank = np.full(len(names) + 1, -1)  # the last entry, index -1, is the CLS token: it comes first
    rank[[names.index(name) for name in case.facts["modalities"]]] = np.arange(len(case.facts["modalities"]))
    order = np.argsort(rank[modality_RxE], axis=1, kind="stable")
    ordered = np.take_along_axis(encoded_RxExD, order[:, :, None], axis=1)
    worst.add("tokens", _largest(ordered, case.arrays["encoder_tokens_unmasked"]), case.name)


def _decoder_places(rows: Rows) -> np.ndarray:
    """The decoder place of each encoder token, when no token is hidden."""
    return np.argsort(rows.decoder_encoder_RxL, axis=1, kind="stable")


def _largest(found: Any, expected: np.ndarray) -> float:
    found = np.asarray(found)
    if found.shape != expected.shape:
        raise ValueError(f"found shape {found.shape}, the golden value has {expected.shape}")
    return float(np.max(np.abs(found - expected)))


def replay_trajectory(folder: Folder, worst: Worst) -> None:
    """The official optimiser's steps: AdamW, decay on every parameter, clipped by the global norm."""
    description = json.loads((folder.path / "trajectory.json").read_text())
    case = list(folder.cases())[description["case"]]
    rows = case.rows(folder.hyperparameters["mask_ratio"])
    ramen, (params, statistics) = folder.ramen, folder.arrays()
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(LEARNING_RATE, b1=0.9, b2=0.999, eps=1e-8, weight_decay=WEIGHT_DECAY),
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, statistics: Any, state: Any, rows: Rows) -> tuple:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            return ramen.loss(params, statistics, rows, case.bands, ramen.counts(rows), train=True)

        (total, (_, new_statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, new_state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), new_statistics, new_state, total

    steps = description["loss_and_gradnorm_before_each_step"]
    for number, (expected, _) in enumerate(steps):
        params, statistics, state, total = step(params, statistics, state, rows)
        kind = "trajectory, first four" if number < 4 else "trajectory, last two"
        worst.add(kind, relative(total, expected), f"step {number}")


def replay(path: Path) -> Worst:
    """Every case of a folder and its trajectory, if there is one."""
    folder = Folder(path)
    worst = Worst()
    for case in folder.cases():
        replay_case(folder, case, worst)
        print(
            f"{case.name}: {len(case.facts['modalities'])} modalities at {case.facts['target_gsd']:g} m",
            flush=True,
        )
    if (path / "trajectory.json").exists():
        replay_trajectory(folder, worst)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare with golden values of the official code.")
    parser.add_argument("folder", type=Path, help="folder with config.json, weights.npz and case_*.npz")
    arguments = parser.parse_args()
    if not list(arguments.folder.glob("case_*.npz")):
        print(
            f"{arguments.folder} holds no case_*.npz; expected the format of tests/golden/mae",
            file=sys.stderr,
        )
        return 2
    worst = replay(arguments.folder)
    print(worst.table())
    return 1 if worst.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
