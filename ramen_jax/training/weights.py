"""Weights for use: of a training's checkpoint, or of an exported folder."""

from pathlib import Path

from ramen_jax import storage
from ramen_jax.console import DATA, UserError
from ramen_jax.inference.encoder import Encoder
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.folder import is_folder, read_folder
from ramen_jax.interchange.source import Source, describe, read_exported
from ramen_jax.model.architecture import Architecture
from ramen_jax.recipe import Recipe
from ramen_jax.sensors import Sensor
from ramen_jax.training import checkpoint


def load(path: str | Path) -> Encoder:
    """A model from a training's workdir (its newest checkpoint, or one of its steps) or from an exported folder.

    Raises:
        UserError: nothing there, a damaged checkpoint, or weights that do not fit; keys are listed.
    """
    path = storage.checkpoint(str(path))
    if is_folder(path):
        return read_exported(path)
    loaded = checkpoint.load(path)
    config = loaded.meta["config"]
    sensors = {
        f"{corpus}/{name}": Sensor.from_dict(entry)
        for corpus, entries in loaded.meta["sensors"].items()
        for name, entry in entries.items()
    }
    facts = {
        "recipe": config["recipe"],
        "step": loaded.meta["step"],
        "fingerprints": loaded.meta["fingerprints"],
        "source": str(path),
    }
    return Encoder.of(
        Architecture.from_dict(config["model"]),
        Recipe.from_dict(config["traps"]),
        sensors,
        facts,
        loaded.params,
        loaded.statistics,
    )


def read_checkpoint(path: Path, decoder: bool) -> Source:
    """A training's checkpoint, or a folder written by this command.

    Raises:
        UserError: no checkpoint, or a decoder that has no official form (`fixed` adds a modality embedding to it).
    """
    if is_folder(path):
        source = Source(*read_folder(path))
        if not decoder:
            source.tensors = source.encoder
        elif source.tensors.keys() == source.encoder.keys():
            raise UserError(f"{path} holds no decoder", DATA)
        return source
    loaded = checkpoint.load(path)
    if decoder and "modality_embedding" in loaded.params.get("decoder", {}):
        raise UserError(
            f"{path}: its decoder adds a learnt embedding of each modality (traps.modality_embedding is 'bands'), "
            "for which the official decoder has no place; export the encoder alone, without --decoder",
            DATA,
        )
    sides = ("encoder", "decoder") if decoder else ("encoder",)
    params = {side: loaded.params[side] for side in sides}
    try:
        tensors = torch_weights.to_official(params, loaded.statistics)
    except ValueError as error:
        raise UserError(f"{path}: {error}", DATA) from error
    meta, config = loaded.meta, loaded.meta["config"]
    sensors = {
        f"{corpus}/{name}": entry
        for corpus, entries in meta["sensors"].items()
        for name, entry in entries.items()
    }
    facts = {
        "recipe": config["recipe"],
        "step": meta["step"],
        "fingerprints": meta["fingerprints"],
        "target_gsds": {entry["name"]: list(entry["target_gsds"]) for entry in config["corpora"]},
    }
    return Source(tensors, describe(config["model"], config["traps"], sensors, facts))
