"""Configurations: one tree of keys with its defaults, read from configs/*.py, changed from the command line.

A configuration file defines get_config() and starts from default(). load() executes it, applies `--config.key=value`
overrides (typed after the default they replace), expands `recipe` into `traps.*`, and validates. A key that does not
exist is an error that lists the close ones. This module imports neither jax nor flax.
"""

import argparse
import ast
import importlib.util
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ramen_jax.config_rules import SIZES, check_type, usage, validate
from ramen_jax.console import UserError, close_names, one_line
from ramen_jax.recipe import FOLLOW, PREPARED, TRAPS, Recipe

# Groups of a corpus whose keys are the user's, and an example of their values.
OPEN_GROUPS: dict[str, Any] = {"temporal_dropout": 0.0, "max_dates": 0, "options": None}

# Keys that change how a run is executed or watched, not what it computes: a workdir may be continued with others.
EXECUTION_KEYS = (
    *("checkpoint", "logging", "compile_cache", "sharding", "validation", "evaluators"),
    *("data.workers", "data.prefetch", "data.max_bad_share", "data.verify"),
    *("train.stop_at", "train.skip_steps", "train.from_scratch"),
)


def default() -> ConfigDict:
    """All keys with their defaults (the paper's base model on no corpus). Zero or "" means "decided by the program"."""
    config = ConfigDict()
    # "reference": the official code's numbers; "fixed": ours. Expands into traps.*
    config.recipe = "reference"
    # of initialisation, masks, draws, order and dropout
    config.seed = 42

    config.model = ConfigDict()
    # encoder width, channels; a multiple of 32
    config.model.embed_dim = 768
    # encoder blocks
    config.model.depth = 12
    config.model.num_heads = 12
    # hidden width of a block's MLP / its width
    config.model.mlp_ratio = 4.0
    # channels; a multiple of 16
    config.model.decoder_embed_dim = 512
    # decoder blocks, not counting the temporal one
    config.model.decoder_depth = 8
    config.model.decoder_num_heads = 16
    # share of a view's tokens that is hidden
    config.model.mask_ratio = 0.75
    # LayerNorm epsilon in the blocks
    config.model.block_eps = 1e-6
    # of activations and matmuls: "float32" or "bfloat16"; parameters stay float32
    config.model.dtype = "float32"
    # recomputed in the backward pass: "none", "full" (each block but its attention) or "dots"
    config.model.remat = "full"

    # see ramen_jax.recipe for the values
    config.traps = ConfigDict(dict.fromkeys(TRAPS, FOLLOW), type_safe=False)

    # of corpus(...); every step trains on one of them, drawn by weight
    config.corpora = ()

    config.data = ConfigDict()
    # packed token rows per step, over all devices and micro-batches
    config.data.rows_per_step = 16
    # decoder tokens per row; 0: the shortest row that is 95 % real tokens
    config.data.row_length = 0
    # target GSD and modalities are drawn "per_sample" or "per_step" (the paper)
    config.data.draw = "per_sample"
    # draws of one sample per epoch
    config.data.views_per_sample = 1
    # reading processes; 0: one thread in the training process
    config.data.workers = 0
    # steps prepared ahead
    config.data.prefetch = 2
    # share of unreadable samples above which the run stops, of all samples or clearly more of the newest 256
    config.data.max_bad_share = 0.01
    # hash the files of the prepared corpora before the first step
    config.data.verify = True

    # AdamW
    config.optimizer = ConfigDict()
    # at the end of the warm-up
    config.optimizer.learning_rate = 1.5e-4
    # share of the training that warms up linearly (paper: 20 of 100 epochs)
    config.optimizer.warmup_share = 0.2
    # learning rate of the first step
    config.optimizer.warmup_from = 1e-5
    # learning rate the cosine ends at
    config.optimizer.final_rate = 1e-6
    # the schedule moves each "step"; "epoch": once per epoch, as the official code
    config.optimizer.per = "step"
    # on every parameter, as the paper
    config.optimizer.weight_decay = 0.05
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.eps = 1e-8
    # global gradient norm
    config.optimizer.clip_norm = 1.0
    # micro-batches per step; must divide data.rows_per_step
    config.optimizer.accumulate = 1

    config.train = ConfigDict()
    # length in units of the steps that all corpora together take per pass; ignored when train.steps > 0. Each corpus
    # has its share of the steps by weight: with equal weights a small one is passed over more often than a large one
    config.train.epochs = 100.0
    # length of the training, steps; 0: from train.epochs
    config.train.steps = 0
    # stop (and save) at this step without changing the schedule; 0: at the end
    config.train.stop_at = 0
    # weights to begin with: a workdir or an exported folder; optimizer, step and data begin anew
    config.train.start_from = ""
    # steps to leave out, e.g. one whose loss was not finite
    config.train.skip_steps = ()
    # start at step 0 where an earlier run left something in the workdir, but no checkpoint to go on from
    config.train.from_scratch = False

    config.validation = ConfigDict()
    # steps; 0: never. Same draws each time, on the corpora's validation split
    config.validation.every = 0
    # batches per validation and corpus
    config.validation.steps = 8

    config.evaluators = ConfigDict()
    # steps between probes (k-NN, linear readout) on the procedural Earth; 0: never. They cannot change the training
    config.evaluators.every = 0
    # of its places: a synthetic geometry, metres per token, how many (half is learnt from, half is asked)
    config.evaluators.geometry = "tiny"
    config.evaluators.target_gsd = 8.0
    config.evaluators.places = 32
    # probes on segmentation tasks of PANGAEA: ("sen1floods11=FOLDER", ...), and steps between them
    config.evaluators.tasks = ()
    config.evaluators.tasks_every = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps; the last step is always saved
    config.checkpoint.keep_latest = 2
    config.checkpoint.keep_best = 1  # besides the latest: lowest validation loss, else lowest training loss
    # folder on the disk of every host, for saves between checkpoints: quick, and gone with the host; "": none
    config.checkpoint.local = ""
    config.checkpoint.local_every = 100  # steps
    config.checkpoint.allow = (
        ""  # pattern of what may differ from a checkpoint, e.g. "fingerprints .*|plan seed"
    )

    # data, fsdp, tensor: devices per mesh axis, -1: all that the other two leave. slices: groups of devices that only
    # the data-centre network joins (0: as many as TPUs tell; the number of processes is understood too); they divide
    # the axis across_slices, "data" or "fsdp", the others stay within one.
    config.sharding = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "slices": 0, "across_slices": "data"})
    # logical axis of the model -> mesh axis ("": replicated). storage: parameters and optimizer state between steps;
    # compute: parameters while a step uses them. Batch rows are always split over data x fsdp.
    config.sharding.storage = ConfigDict({"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "layers": ""})
    config.sharding.compute = ConfigDict({"embed": "", "mlp": "tensor", "heads": "tensor", "layers": ""})

    config.logging = ConfigDict()
    # steps between lines on the terminal and in TensorBoard; metrics.jsonl has every step
    config.logging.every = 10
    config.logging.tensorboard = True
    # keep the lowered step of each corpus in the workdir
    config.logging.stablehlo = True
    # "20:25": a profile of these steps (XProf, TensorBoard, Perfetto)
    config.logging.profile_steps = ""

    config.compile_cache = ConfigDict()
    # "": no cache. Must be shared by all hosts
    config.compile_cache.folder = "~/.cache/ramen_jax/xla"
    # programs that compile faster are not stored
    config.compile_cache.min_seconds = 1.0
    return config


def corpus(name: str, **changes: Any) -> ConfigDict:
    """One entry of config.corpora: `name` and the keys that differ from the defaults below."""
    entry = ConfigDict()
    entry.name = name
    # one of KINDS: which reader prepares it; "": the one named in `spec`
    entry.kind = ""
    # YAML that describes the corpus, or the name of one that ships; "": that of the kind
    entry.spec = ""
    # folder of the original files; environment variables are expanded
    entry.source = ""
    # reader option -> value, over those of the YAML
    entry.options = ConfigDict(type_safe=False)
    # folder of the prepared corpus; "": {workdir}/corpora/{name}, prepared on first use
    entry.prepared = ""
    # use only the first samples; 0: all
    entry.samples = 0
    # metres per token, drawn uniformly
    entry.target_gsds = (10.0,)
    # share of the steps, relative to the other corpora
    entry.weight = 1.0
    # packed rows of a step on this corpus; 0: data.rows_per_step
    entry.rows_per_step = 0
    # decoder tokens per row of this corpus; 0: data.row_length
    entry.row_length = 0
    # modality -> share of its dates dropped in training
    entry.temporal_dropout = ConfigDict()
    # modality -> longest series used; modalities not named keep all dates
    entry.max_dates = ConfigDict()
    for key, value in changes.items():
        if key not in entry:
            raise usage(f"corpus {name!r} has no key {key!r}; {close_names(key, list(entry))}")
        entry[key] = ConfigDict(value, type_safe=False) if isinstance(value, Mapping) else value
    return entry


def apply_size(config: ConfigDict, size: str) -> None:
    """Sets the model widths and depths of one of SIZES."""
    config.model.update(SIZES[size])


def paper_corpora() -> tuple[ConfigDict, ...]:
    """FLAIR-HUB, MMEarth64 and WorldStrat with the paper's target GSDs, equal weights and temporal dropout.

    Their folders: `--config.corpora.flairhub.prepared=DIR` (see ramen_jax.prepare), or the environment variables
    FLAIRHUB, MMEARTH and WORLDSTRAT naming the original files, which are then prepared in the workdir.
    """
    return (
        corpus(
            "flairhub",
            kind="flairhub",
            source="$FLAIRHUB",
            target_gsds=tuple(float(gsd) for gsd in range(3, 21)),
            temporal_dropout={"s2": 0.3, "s1_des": 0.3},
        ),
        corpus(
            "mmearth",
            kind="mmearth",
            source="$MMEARTH",
            target_gsds=tuple(float(gsd) for gsd in range(20, 101, 10)),
        ),
        corpus(
            "worldstrat",
            kind="worldstrat",
            source="$WORLDSTRAT",
            target_gsds=tuple(float(gsd) for gsd in range(5, 21)),
        ),
    )


def load(path: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """The complete, validated configuration of a file and of `key=value` overrides (with or without `--config.`).

    A path ending in `:quicktest` shrinks the run: tiny model, synthetic corpora of the same geometries, four steps.
    Raises UserError (code 2) with one sentence naming the file or key, what was found and what is accepted.
    """
    name, _, switch = str(path).partition(":")
    file = Path(name).expanduser()
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path("configs")
        choices = sorted(str(other) for other in folder.glob("*.py"))
        raise usage(f"no configuration file {name}; {close_names(name, choices)}")
    if switch not in ("", "quicktest"):
        raise usage(f"{path}: unknown switch {switch!r}, the one that exists is ':quicktest'")
    config = _execute(file, name)
    _check_keys(config, name)
    if switch == "quicktest":
        quicktest(config)
    return finish(config, overrides, origin=name)


def _execute(file: Path, name: str) -> Any:
    """What get_config() of a file returns. UserError naming the line of the file where it went wrong."""
    specification = importlib.util.spec_from_file_location(f"ramen_jax_config_{file.stem}", file)
    if specification is None or specification.loader is None:
        raise usage(f"{name} is not a Python file; a configuration is a .py file with a get_config()")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise usage(f"{name} defines no get_config(); a configuration file must")
        return module.get_config()
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise usage(f"{name}:{error.lineno or 0}: not valid Python: {error.msg}") from error
    except BaseException as error:  # whatever a file does, SystemExit included
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(str(specification.origin))]
        where = f"{name}:{lines[-1]}" if lines else name
        told = one_line(str(error))
        raise usage(f"{where}: {type(error).__name__}{': ' if told else ''}{told}") from error


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """sys.argv as (the parser's own arguments, the `--config.key=value` overrides)."""
    arguments, rest = parser.parse_known_args()
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    options = [option for action in parser._actions for option in action.option_strings]
    for argument in rest:
        if not argument.startswith("--config."):
            raise usage(f"unknown argument {argument}; {close_names(argument.partition('=')[0], options)}")
    return arguments, overrides


def finish(config: ConfigDict, overrides: Iterable[str] = (), origin: str = "configuration") -> ConfigDict:
    """Applies overrides, expands the recipe, validates and freezes a configuration built in Python."""
    _check_keys(config, origin)
    for override in overrides:
        _apply(config, override)
    recipe = Recipe.named(
        config.recipe, **{key: value for key, value in config.traps.items() if value != FOLLOW}
    )
    config.traps.update(recipe.to_dict())
    validate(config)
    return config.lock()


def recipe_of(config: ConfigDict) -> Recipe:
    """The traps of a finished configuration as one value."""
    return Recipe(**config.traps.to_dict())


def quicktest(config: ConfigDict) -> None:
    """Shrinks a configuration in place so that its whole path runs in about a minute on two cores."""
    apply_size(config, "tiny")
    small = {"flairhub": (5.0, 10.0), "mmearth": (40.0, 60.0), "worldstrat": (10.0, 20.0)}
    entries = []
    for entry in config.corpora:
        geometry = f"{entry.kind}_small" if entry.kind in small else "tiny"
        options = {"geometry": geometry, "places": 8, "val_places": 2}
        gsds = small.get(entry.kind, (5.0, 10.0))
        entries.append(corpus(entry.name, kind="synthetic", options=options, target_gsds=gsds))
    config.corpora = tuple(entries)
    config.data.rows_per_step = 2
    config.data.workers = 0
    config.model.remat = "none"
    config.optimizer.accumulate = 1
    config.sharding.update(data=-1, fsdp=1, tensor=1)
    config.train.steps = 4
    config.validation.every = 0
    config.checkpoint.every = 2


def plain(value: Any) -> Any:
    """A configuration as JSON-able dicts, lists and scalars."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Lines `key: OLD -> NEW` where two plain() configurations differ in a key that changes the numbers of a run.

    A key that did not exist yet when `theirs` was written had its default, a trap what `fixed` says. A newer trap of
    preparing shows in the fingerprint of the corpus, which a checkpoint is checked against.
    """
    known = {key: value for key, value in flat(plain(default())) if key != "corpora"}
    known |= {f"traps.{key}": "(absent)" if key in PREPARED else trap.fixed for key, trap in TRAPS.items()}
    old, new = {**known, **dict(flat(plain(theirs)))}, dict(flat(plain(ours)))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if any(key == ignored or key.startswith(ignored + ".") for ignored in EXECUTION_KEYS):
            continue
        if key.removeprefix("traps.") in PREPARED and old.get(key) == "(absent)":
            continue
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if before != after:
            lines.append(f"{key}: {before} -> {after}")
    return lines


def _check_keys(config: ConfigDict, origin: str) -> None:
    """Every key of `config` must exist in default() (corpora: in corpus())."""
    if not isinstance(config, ConfigDict):
        raise usage(
            f"{origin}: get_config() returned {type(config).__name__}, expected the result of default()"
        )
    known = default()

    def compare(found: Any, expected: Any, prefix: str) -> None:
        for key in found:
            if key not in expected:
                choices = [prefix + other for other in expected]
                raise usage(f"{origin}: no such key {prefix}{key}; {close_names(prefix + key, choices)}")
        for key, value in expected.items():
            if key not in found:
                raise usage(f"{origin}: key {prefix}{key} is missing; start from ramen_jax.config.default()")
            if isinstance(value, ConfigDict):
                if not isinstance(found[key], ConfigDict):
                    raise usage(f"{origin}: {prefix}{key} is {found[key]!r}, expected a group of keys")
                if not _is_open(prefix + key):
                    compare(found[key], value, f"{prefix}{key}.")
                    continue
                for name in found[key]:
                    check_type(found[key][name], OPEN_GROUPS[key], f"{origin}: {prefix}{key}.{name}")
            elif prefix != "config.traps." and key != "corpora":
                check_type(found[key], value, f"{origin}: {prefix}{key}")

    compare(config, known, "config.")
    if not isinstance(config.corpora, tuple | list):
        raise usage(f"{origin}: config.corpora is {config.corpora!r}, expected entries made by corpus(...)")
    for entry in config.corpora:
        if not isinstance(entry, ConfigDict):
            raise usage(f"{origin}: config.corpora holds {entry!r}, expected entries made by corpus(...)")
        name = entry.get("name", "")
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise usage(f"{origin}: a corpus is called {name!r}, expected a name without dots and slashes")
        compare(entry, corpus("any"), f"config.corpora.{name}.")


def _is_open(path: str) -> bool:
    """Groups whose keys are the user's: modality names, options of a reader."""
    return path.rpartition(".")[2] in OPEN_GROUPS


def _apply(config: ConfigDict, override: str) -> None:
    """Applies one `key=value`; corpora are addressed by name (corpora.flairhub.weight=2)."""
    text = override.removeprefix("--").removeprefix("config.")
    key, equals, value = text.partition("=")
    if not equals:
        raise usage(f"{override!r} has no value; write --config.{key}=VALUE")
    group: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        group = _member(group, part, parts, config)
        if not isinstance(group, ConfigDict | tuple | list):
            raise usage(
                f"config.{'.'.join(parts[: depth + 1])} is a single value and has no key {parts[depth + 1]}"
            )
    last = parts[-1]
    if isinstance(group, ConfigDict) and _is_open("." + ".".join(parts[:-1])):
        group[last] = _typed(f"config.{key}", value, OPEN_GROUPS[parts[-2]])
        return
    current = _member(group, last, parts, config)
    if isinstance(current, ConfigDict) or key == "corpora":
        raise usage(f"config.{key} is a group of keys, not a value; set one of its keys")
    if key == "traps.ltae_dropout":
        group[last] = value if value == FOLLOW else _typed(f"config.{key}", value, 0.0)
        return
    group[last] = _typed(f"config.{key}", value, current)


def _member(group: Any, part: str, path: Sequence[str], config: ConfigDict) -> Any:
    if isinstance(group, tuple | list):
        for index, entry in enumerate(group):
            if part in (entry.name, str(index)):
                return entry
        choices = [entry.name for entry in group]
        raise usage(f"no corpus {part!r} in this configuration; {close_names(part, choices)}")
    if part not in group:
        full = ".".join(path)
        choices = [key for key, _ in flat(config)]
        raise usage(f"no such key config.{full}; {close_names(full, choices)}")
    return group[part]


def _typed(key: str, text: str, current: Any) -> Any:
    """`text` as the type of `current`; None: a number or tuple if it looks like one, else text."""
    if current is None:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        if text.lower() in ("true", "false", "1", "0", "yes", "no"):
            return text.lower() in ("true", "1", "yes")
        raise usage(f"{key}={text!r}: expected true or false")
    if isinstance(current, int | float):
        kind = type(current)
        try:
            return kind(text)
        except ValueError:
            words = "a whole number" if kind is int else "a number"
            raise usage(f"{key}={text!r}: expected {words}") from None
    try:
        value = ast.literal_eval(text if text.startswith(("(", "[")) else f"({text},)" if text else "()")
        entries = tuple(value)
        number = float if key.endswith("target_gsds") else int
        return tuple(number(entry) for entry in entries)
    except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
        raise usage(f"{key}={text!r}: expected numbers separated by commas, e.g. 5,10,20") from None


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration as (dotted key, value), corpora by name."""
    if isinstance(value, Mapping | ConfigDict):
        for key in value:
            yield from flat(value[key], f"{prefix}{key}.")
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping | ConfigDict):
        for entry in value:
            yield from flat(entry, f"{prefix}{entry['name']}.")
    else:
        yield prefix.rstrip("."), value


def save_json(config: ConfigDict, path: Path) -> None:
    """Writes plain(config) as JSON."""
    path.write_text(json.dumps(plain(config), indent=1) + "\n")
