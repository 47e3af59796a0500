"""Between JAX and PyTorch: official checkpoints in, verified files out.

What is written is read again and compared before it is reported done: PyTorch and JAX run the same inputs. Files
appear whole or not at all.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.inference.images import Image
from ramen_jax.interchange import model_card, torch_ramen, torch_weights
from ramen_jax.interchange.source import Source, decoder_sizes, departures, describe, model_of
from ramen_jax.limits import refuse_beyond_memory
from ramen_jax.own_files import SOFTWARE, content_hash, file_hash, only_holds, refuse_foreign
from ramen_jax.recipe import Recipe
from ramen_jax.sensors import Sensor, load_sensors

TOLERANCE = 1e-4
PARITY_TOKENS = 8  # per side of the grid that both models run
PARITY_DATES = 3
FOLDER_FILES = (
    *("config.json", "model.safetensors", "sensors.yaml", "torch_ramen.py", "results.json"),
    *("LICENSE", "README.md", "parity.json", "__pycache__"),
)
LICENCE_FILE = Path(__file__).resolve().parents[2] / "LICENSE"


def read_official(path: Path, sensors: Path | None, recipe: str, num_heads: int | None) -> Source:
    """An official checkpoint, of which no code is executed.

    Raises:
        UserError: not there, not a checkpoint, a pickle that wants to execute code (named), keys or shapes that do
            not fit (listed).
    """
    read = read_tensors(path)
    half = [name for name, tensor in read.items() if tensor.dtype not in (torch.float32, torch.int64)]
    if half:
        found = str(read[half[0]].dtype).removeprefix("torch.")
        raise UserError(
            f"{path}: {half[0]} is {found}, and {len(half)} of {len(read)} tensors are no float32; convert them "
            "first, so that they come out as they went in",
            DATA,
        )
    tensors = torch_weights.prefixed({name: tensor.numpy() for name, tensor in read.items()})
    encoder = {name.removeprefix("encoder."): torch.from_numpy(array) for name, array in tensors.items()}
    try:
        model = {"block_eps": 1e-6, **torch_ramen.sizes_of(encoder)}
        if any(name.startswith("decoder.") for name in tensors):
            model |= decoder_sizes(tensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}", DATA) from error
    if num_heads is not None:
        if num_heads < 1 or model["embed_dim"] % num_heads:
            raise UserError(
                f"--num-heads is {num_heads}, expected a divisor of the width of {path}, {model['embed_dim']}",
                USAGE,
            )
        model["num_heads"] = num_heads
    if "num_heads" not in model:
        raise UserError(
            f"the number of heads of a {model['embed_dim']}-wide encoder is not known; give --num-heads to "
            "python -m ramen_jax.export --import",
            USAGE,
        )
    traps = Recipe.named(recipe).to_dict()
    entries = {} if sensors is None else {name: s.to_dict() for name, s in load_sensors(sensors).items()}
    facts = {"recipe": recipe, "imported_from": path.name}
    source = Source(tensors, describe(model, traps, entries, facts))
    # Through our own parameters and back: a tensor that would not survive is found here, not by a user.
    try:
        back = torch_weights.to_official(
            *torch_weights.from_official(tensors, model_of(source.description).shapes)
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}", DATA) from error
    changed = [name for name, array in back.items() if array.tobytes() != tensors[name].tobytes()]
    if changed:
        raise UserError(f"{path}: {', '.join(changed[:3])} would change on the way through ramen_jax", DATA)
    return source


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a .ckpt, .pt or .safetensors file. Errors as in `read_official`."""
    if not path.is_file():
        raise UserError(f"no file {path}", USAGE)
    try:
        found = torch_ramen.read_weights(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise UserError(
                f"{path} is not a checkpoint that can be read without executing code", DATA
            ) from error
        raise UserError(
            f"{path} is refused: its pickle wants to load {named.group(1)}, which can execute code; "
            "only tensors are read. If you trust its origin, save its state_dict alone and import that",
            DATA,
        ) from error
    except Exception as error:  # torch raises many types on what is no checkpoint
        raise UserError(
            f"{path} is not a checkpoint that can be read ({_first_line(error)}); expected a .ckpt, .pt or "
            ".safetensors file of the official code",
            DATA,
        ) from error
    other = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise UserError(f"{path} holds {other[0]!r}, which is no tensor; expected a state dict", DATA)
    return dict(found)


def compare(source: Source, written: torch_ramen.RamenEncoder) -> dict[str, Any]:
    """Runs PyTorch and JAX on the same inputs, every layer, each corpus's sensors together.

    Without sensors in the description, an optical, a radar and an elevation modality stand in. Values are noise around
    each band's mean; the first sensor has one date, the others several, so that both paths are run.
    """
    model = source.encoder_model()
    groups: dict[str, dict[str, Sensor]] = {}
    for name, sensor in model.sensors.items():
        corpus, _, modality = name.rpartition("/")
        groups.setdefault(corpus, {})[modality] = sensor
    report: dict[str, Any] = {
        "tolerance": TOLERANCE,
        "measure": "max absolute difference / max(1, rms)",
        "runs": [],
    }
    layers = range(model.depth)
    for corpus, sensors in (groups or {"stand-in": stand_in_sensors()}).items():
        gsd = max(sensor.gsd for sensor in sensors.values())
        images, tensors, described = {}, {}, {}
        rng = np.random.default_rng(7)
        for index, (name, sensor) in enumerate(sensors.items()):
            shape = (
                PARITY_DATES if index else 1,
                len(sensor.bands),
                *(math.ceil(PARITY_TOKENS * gsd / sensor.gsd),) * 2,
            )
            mean, std = (np.array(values, np.float32)[:, None, None] for values in (sensor.mean, sensor.std))
            physical = mean + std * rng.standard_normal(shape, np.float32)
            values = ((physical - sensor.offset) / sensor.scale).astype(np.float32)
            days = np.arange(shape[0]) * 100 + 50
            images[name] = Image(values, days, sensor)
            tensors[name], described[name] = torch.from_numpy(values)[None], sensor.to_dict()
        ours = model.encode(images, gsd, layers)
        days_BxT = torch.from_numpy(np.arange(PARITY_DATES) * 100 + 50)[None]
        with torch.inference_mode():
            theirs = written(tensors, gsd, dict.fromkeys(tensors, days_BxT), None, described, layers)
        for layer in layers:
            a = np.stack([ours.layers[layer][name] for name in images])
            b = np.stack([theirs.layers[layer][name][0].numpy() for name in images])
            report["runs"].append({"corpus": corpus, "target_gsd": gsd, "layer": layer, **differences(a, b)})
    report["worst"] = max(run["relative"] for run in report["runs"])
    report["passed"] = bool(report["worst"] <= TOLERANCE)
    return report


def differences(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Maximal and mean absolute difference, the former relative to max(1, rms), and the cosine."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    gap = np.abs(a - b)
    rms = float(np.sqrt(np.mean(a**2)))
    cosine = float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return {
        "max": float(gap.max()),
        "mean": float(gap.mean()),
        "relative": float(gap.max()) / max(1.0, rms),
        "cosine": cosine,
    }


def stand_in_sensors() -> dict[str, Sensor]:
    """One modality of each kind of band, for weights that came without sensors."""
    described: dict[str, dict[str, Any]] = {
        "optical": {"blue": 490, "red": 665, "nir": 842},
        "radar": {"vv": "asc_vv", "vh": "des_vh"},
        "elevation": {"surface": "dsm"},
    }
    return {
        kind: Sensor.from_dict({"name": kind, "gsd": 10.0, "bands": bands}).with_statistics(
            [0.0] * len(bands), [1.0] * len(bands)
        )
        for kind, bands in described.items()
    }


def write_weights(tensors: Mapping[str, np.ndarray], path: Path, decoder: bool) -> None:
    """One file; encoder alone without prefix, as the published checkpoint, with decoder as the official MAE."""
    named = dict(tensors) if decoder else {name.removeprefix("encoder."): a for name, a in tensors.items()}
    try:
        if path.suffix == ".safetensors":
            arrays = {name: np.asarray(array, order="C") for name, array in named.items()}
            save_file(arrays, path, {"format": "pt"})
        else:
            state = {name: torch.from_numpy(np.array(array)) for name, array in named.items()}
            torch.save({"state_dict": state}, path)
    except (SafetensorError, RuntimeError) as error:  # what the two libraries make of a full disk
        raise OSError(f"{_first_line(error)} (is the disk full?)") from error


def write_folder(source: Source, folder: Path, decoder: bool, results: Mapping[str, Any] | None) -> None:
    """Everything of the hub folder except parity.json and the card, which quotes it."""
    write_weights(source.tensors, folder / "model.safetensors", decoder)
    description = {**source.description, "weights_sha256": file_hash(folder / "model.safetensors")}
    (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    sensors = {
        name: {key: value for key, value in entry.items() if key != "name"}
        for name, entry in source.description["sensors"].items()
    }
    (folder / "sensors.yaml").write_text(yaml.safe_dump(sensors, sort_keys=False))
    shutil.copyfile(torch_ramen.__file__, folder / "torch_ramen.py")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def export(
    source: Source,
    output: Path,
    *,
    decoder: bool = False,
    overwrite: bool = False,
    licence: Path = LICENCE_FILE,
    results: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a weight file (.safetensors, .ckpt, .pt) or a folder, verified; returns the parity report.

    Raises:
        UserError: the output exists, PyTorch and JAX disagree, the disk is full. Nothing is left behind then.
    """
    single = output.suffix in (".safetensors", ".ckpt", ".pt")
    parity = output.with_suffix(".parity.json") if single else output / "parity.json"
    if single:
        refuse_foreign(parity, overwrite, _is_report, "a report that export wrote")
    work = _work_folder(output, overwrite)
    try:
        if single:
            weights = work / output.name
            write_weights(source.tensors, weights, decoder)
            (work / "config.json").write_text(json.dumps(source.description))
        else:
            weights = work
            write_folder(source, work, decoder, results)
            if licence.is_file():
                shutil.copyfile(licence, work / "LICENSE")
        report = compare(source, torch_ramen.load(weights))
        if not report["passed"]:
            worst = max(report["runs"], key=lambda run: run["relative"])
            raise UserError(
                f"PyTorch and JAX differ by {worst['relative']:.2e} after block {worst['layer']} with the sensors of "
                f"{worst['corpus']}, more than {TOLERANCE:g}; nothing was written",
                DATA,
            )
        report["official_code_differs_in"] = departures(source.description, decoder)
        if single:
            report["sha256"] = content_hash([weights])
        text = json.dumps(report, indent=1) + "\n"
        if single:
            (work / "parity.json").write_text(text)
            weights.replace(output)
            (work / "parity.json").replace(parity)
        else:
            (work / "parity.json").write_text(text)
            (work / "README.md").write_text(
                model_card.render(source.description, report, results, output.name)
            )
            if output.is_dir():
                shutil.rmtree(output)
            output.unlink(missing_ok=True)
            work.chmod(0o755)
            work.rename(output)
    except OSError as error:
        raise _not_written(output, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _work_folder(output: Path, overwrite: bool) -> Path:
    """An empty folder beside the output, where it is made before it gets its name."""
    refuse_foreign(output, overwrite, is_ours, "weights that export wrote")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise _not_written(output, error) from error


def is_ours(output: Path) -> bool:
    """Whether a file or folder is what `export` or `write_artefact` wrote, unchanged, with nothing else in it."""
    if output.is_dir():
        try:
            description = json.loads((output / "config.json").read_text())
        except (OSError, ValueError):
            return False
        written = isinstance(description, dict) and str(description.get("written_by", "")).startswith(
            SOFTWARE
        )
        return written and only_holds(output, FOLDER_FILES)
    if output.suffix == ".jaxexport":
        try:
            program = jax.export.deserialize(bytearray(output.read_bytes()))
            arguments, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        except Exception:  # flatbuffers raise many types on what is none
            return False
        pixels_and_days = len(arguments) == 2 and all(isinstance(argument, dict) for argument in arguments)
        return pixels_and_days and arguments[0].keys() == arguments[1].keys()
    report = output.with_suffix(".parity.json")
    return _is_report(report) and json.loads(report.read_text()).get("sha256") == content_hash([output])


def _is_report(path: Path) -> bool:
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"tolerance", "measure", "runs", "worst"} <= set(report)


def _not_written(output: Path, error: Exception) -> UserError:
    told = (error.strerror if isinstance(error, OSError) else None) or _first_line(error)
    return UserError(f"cannot write {output}: {told}; nothing was left behind", DATA)


def write_artefact(
    source: Source, output: Path, inputs: Sequence[str], target_gsd: float, overwrite: bool = False
) -> None:
    """A jax.export artefact of the encoder, for images of given sizes, weights inside.

    `inputs`: "sensor=TxHxW" each. The function takes {sensor: values [T, C, H, W] float32} and {sensor: day of year
    [T]}, all pixels measured, and returns {sensor: [D, rows, columns]}.
    """
    model = source.encoder_model()
    images, sensors = {}, {}
    for text in inputs:
        name, _, sizes = text.partition("=")
        if not re.fullmatch(r"\d+x\d+x\d+", sizes):
            raise UserError(
                f"--input {text} is not understood; write sensor=TxHxW, flairhub/s2=3x64x64 say", USAGE
            )
        frames, height, width = (int(size) for size in sizes.split("x"))
        sensors[name] = model.sensor(name)
        pixels = frames * len(sensors[name].bands) * height * width
        refuse_beyond_memory(
            f"--input {text}", 16 * pixels, "give fewer dates or pixels"
        )  # float32, four times
        sensor = sensors[name]
        stored = (
            np.array(sensor.mean, np.float32) - sensor.offset
        ) / sensor.scale  # no value that means no data
        values = np.broadcast_to(stored[:, None, None], (frames, len(sensor.bands), height, width))
        images[name] = Image(values, np.ones(frames, int), sensors[name])
    function, example = model.traceable(model.place(images, target_gsd))
    program = jax.export.export(jax.jit(function))(*example).serialize()
    work = _work_folder(output, overwrite)
    try:
        (work / output.name).write_bytes(program)
        (work / output.name).replace(output)
    except OSError as error:
        raise _not_written(output, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
