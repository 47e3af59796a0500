"""What the values of a configuration may be: sizes, kinds; the sentence for each value that cannot work."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ramen_jax.console import USAGE, UserError, close_names

KINDS = ("synthetic", "flairhub", "mmearth", "worldstrat", "geofolder", "treesatai", "worldcereal")

_SIZE_KEYS = ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")
SIZES: dict[str, dict[str, int]] = {
    name: dict(zip(_SIZE_KEYS, values, strict=True))
    for name, values in {
        "tiny": (64, 3, 4, 32, 2, 4),
        "small": (384, 12, 6, 256, 4, 8),
        "base": (768, 12, 12, 512, 8, 16),
        "large": (1024, 24, 16, 512, 8, 16),
        "huge": (1280, 32, 16, 512, 8, 16),
    }.items()
}


# What a number may be where its kind alone does not tell; the upper ends are far beyond what anybody trains.
LIMITS: dict[str, tuple[int, int]] = {
    "seed": (0, 2**31 - 1),
    "model.embed_dim": (1, 1 << 16),
    "model.decoder_embed_dim": (1, 1 << 16),
    "model.depth": (1, 1000),
    "model.decoder_depth": (1, 1000),
    "model.mlp_ratio": (0, 64),
    "data.rows_per_step": (1, 1_000_000),
    "data.row_length": (0, 10_000_000),
    "data.views_per_sample": (1, 10_000),
    "data.workers": (0, 1024),
    "data.prefetch": (0, 1024),
    "optimizer.accumulate": (1, 1_000_000),
    "train.epochs": (0, 1_000_000_000),
    "train.steps": (0, 2**31 - 1),
    "train.stop_at": (0, 2**31 - 1),
    "validation.every": (0, 2**31 - 1),
    "validation.steps": (1, 1_000_000),
    "checkpoint.every": (1, 2**31 - 1),
    "checkpoint.keep_latest": (1, 1_000_000),
    "checkpoint.keep_best": (0, 1_000_000),
    "checkpoint.local_every": (1, 2**31 - 1),
    "sharding.slices": (0, 1_000_000),
    "logging.every": (1, 2**31 - 1),
    "compile_cache.min_seconds": (0, 1_000_000_000),
}


def usage(message: str) -> UserError:
    """A UserError of wrong usage (exit status 2)."""
    return UserError(message, USAGE)


def check_type(value: Any, default: Any, key: str) -> None:
    """UserError unless a value is of its default's type (None: of any)."""
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "True or False"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a text"),
        tuple: ((tuple, list), "numbers in a tuple"),
    }
    if type(default) not in kinds:
        return
    accepted, words = kinds[type(default)]
    wrong = not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted)
    if isinstance(value, tuple | list):
        wrong |= any(isinstance(entry, bool) or not isinstance(entry, int | float) for entry in value)
    if wrong:
        raise usage(f"{key} is {shortly(value)}, expected {words}")


def shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _check_finite(value: Any, key: str) -> None:
    """UserError for the first number, however deep, that is infinite or none."""
    if isinstance(value, ConfigDict | Mapping):
        for name in value:
            _check_finite(value[name], f"{key}.{name}")
    elif isinstance(value, tuple | list):
        for entry in value:
            named = isinstance(entry, ConfigDict | Mapping) and "name" in entry
            _check_finite(entry, f"{key}.{entry['name']}" if named else key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise usage(f"{key} is {value}, expected a finite number")


def validate(config: ConfigDict) -> None:
    """Raises UserError with one sentence for the first value that cannot work."""
    model, data, optimizer = config.model, config.data, config.optimizer
    for group in config:
        if group != "corpora":
            _check_finite(config[group], f"config.{group}")
    for entry in config.corpora:  # a nodata among the options may be NaN
        known = {name: entry[name] for name in entry if name != "options"}
        _check_finite(known, f"config.corpora.{entry.name}")
    for key, (least, most) in LIMITS.items():
        group, _, name = key.rpartition(".")
        found = config[group][name] if group else config[name]
        if not least <= found <= most:
            raise usage(f"config.{key} is {found!r}, expected {least:,} to {most:,}")

    def require(condition: Any, key: str, found: Any, expected: str) -> None:
        if not condition:
            raise usage(f"config.{key} is {found!r}, expected {expected}")

    # 16 L-TAE heads, each of an even width; the decoder splits its position encoding in four.
    require(
        model.embed_dim > 0 and model.embed_dim % 32 == 0,
        "model.embed_dim",
        model.embed_dim,
        f"a multiple of 32 (16 temporal heads of even width), e.g. {_nearest(model.embed_dim, 32)}",
    )
    require(
        model.decoder_embed_dim > 0 and model.decoder_embed_dim % 16 == 0,
        "model.decoder_embed_dim",
        model.decoder_embed_dim,
        f"a multiple of 16, e.g. {_nearest(model.decoder_embed_dim, 16)}",
    )
    for heads, width in (("num_heads", "embed_dim"), ("decoder_num_heads", "decoder_embed_dim")):
        divisors = [n for n in range(1, model[width] + 1) if model[width] % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - model[heads]))
        require(
            model[heads] in divisors,
            f"model.{heads}",
            model[heads],
            f"a divisor of config.model.{width} = {model[width]}, e.g. {nearest}",
        )
    for key in ("depth", "decoder_depth"):
        require(model[key] >= 1, f"model.{key}", model[key], "at least 1 block")
    require(
        min(model.embed_dim, model.decoder_embed_dim) * model.mlp_ratio >= 1,
        "model.mlp_ratio",
        model.mlp_ratio,
        "a ratio that leaves the MLPs a width",
    )
    require(0 < model.mask_ratio < 1, "model.mask_ratio", model.mask_ratio, "a share between 0 and 1")
    _require_choice("model.dtype", model.dtype, ("float32", "bfloat16"))
    _require_choice("model.remat", model.remat, ("none", "full", "dots"))

    _require_choice("data.draw", data.draw, ("per_sample", "per_step"))
    require(data.rows_per_step >= 1, "data.rows_per_step", data.rows_per_step, "at least 1 row")
    for key in ("row_length", "workers", "prefetch"):
        require(data[key] >= 0, f"data.{key}", data[key], "0 or more")
    require(data.views_per_sample >= 1, "data.views_per_sample", data.views_per_sample, "at least 1 view")
    require(0 <= data.max_bad_share <= 1, "data.max_bad_share", data.max_bad_share, "a share from 0 to 1")
    require(
        optimizer.accumulate >= 1 and data.rows_per_step % optimizer.accumulate == 0,
        "optimizer.accumulate",
        optimizer.accumulate,
        f"a divisor of config.data.rows_per_step = {data.rows_per_step}",
    )

    _require_choice("optimizer.per", optimizer.per, ("step", "epoch"))
    for key in ("learning_rate", "eps", "clip_norm"):
        require(optimizer[key] > 0, f"optimizer.{key}", optimizer[key], "a positive number")
    for key in ("warmup_from", "final_rate", "weight_decay"):
        require(optimizer[key] >= 0, f"optimizer.{key}", optimizer[key], "0 or more")
    for key in ("beta1", "beta2"):
        require(0 <= optimizer[key] < 1, f"optimizer.{key}", optimizer[key], "a number from 0 to below 1")
    require(
        0 <= optimizer.warmup_share <= 1,
        "optimizer.warmup_share",
        optimizer.warmup_share,
        "a share from 0 to 1",
    )
    require(
        config.train.steps > 0 or config.train.epochs > 0,
        "train.epochs",
        config.train.epochs,
        "a positive number",
    )
    require(config.checkpoint.every >= 1, "checkpoint.every", config.checkpoint.every, "at least 1 step")
    require(
        config.checkpoint.keep_latest >= 1,
        "checkpoint.keep_latest",
        config.checkpoint.keep_latest,
        "at least 1",
    )
    require(
        all(step >= 0 for step in config.train.skip_steps),
        "train.skip_steps",
        config.train.skip_steps,
        "numbers of steps",
    )
    profiled = re.fullmatch(r"(\d{1,9}):(\d{1,9})|", config.logging.profile_steps)
    require(
        profiled and int(profiled[1] or 0) < int(profiled[2] or 1),
        "logging.profile_steps",
        config.logging.profile_steps,
        "two steps FIRST:END",
    )
    require(config.logging.every >= 1, "logging.every", config.logging.every, "at least 1 step")

    axes = [config.sharding[axis] for axis in ("data", "fsdp", "tensor")]
    require(
        all(size == -1 or size >= 1 for size in axes) and axes.count(-1) <= 1,
        "sharding",
        dict(zip(("data", "fsdp", "tensor"), axes, strict=True)),
        "positive device counts for data, fsdp and tensor, one of them at most -1 (the rest)",
    )
    _require_choice("sharding.across_slices", config.sharding.across_slices, ("data", "fsdp"))
    # Rows are split over data and fsdp, so what a row needs cannot be: it may lie so between steps only.
    for mapping, targets in (("storage", ("", "data", "fsdp", "tensor")), ("compute", ("", "tensor"))):
        for axis, target in config.sharding[mapping].items():
            _require_choice(f"sharding.{mapping}.{axis}", target, targets)

    names = [entry.name for entry in config.corpora]
    require(len(set(names)) == len(names), "corpora", names, "different names")
    for entry in config.corpora:
        where = f"corpora.{entry.name}"
        _require_choice(f"{where}.kind", entry.kind, KINDS if not entry.spec else ("", *KINDS))
        for key, most in (("samples", 1 << 40), ("rows_per_step", 1_000_000), ("row_length", 10_000_000)):
            require(0 <= entry[key] <= most, f"{where}.{key}", entry[key], f"0 to {most:,}")
        for modality, dates in entry.max_dates.items():
            require(dates >= 1, f"{where}.max_dates.{modality}", dates, "at least 1 date")
        require(
            entry.rows_per_step % optimizer.accumulate == 0,
            f"{where}.rows_per_step",
            entry.rows_per_step,
            f"a multiple of config.optimizer.accumulate = {optimizer.accumulate}",
        )
        require(
            len(entry.target_gsds) > 0, f"{where}.target_gsds", entry.target_gsds, "at least one target GSD"
        )
        for gsd in entry.target_gsds:
            require(gsd > 0, f"{where}.target_gsds", gsd, "a positive number of metres per token")
        require(entry.weight > 0, f"{where}.weight", entry.weight, "a positive share")
        for modality, share in entry.temporal_dropout.items():
            require(
                0 <= share < 1, f"{where}.temporal_dropout.{modality}", share, "a share from 0 to below 1"
            )


def _nearest(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)


def _require_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise usage(
            f"config.{key} is {value!r}, expected one of {known}; {close_names(str(value), list(choices))}"
        )
