"""Configurations: what loads, what is refused and with which sentence."""

import json
import subprocess
import sys

import pytest

from ramen_jax.config import corpus, default, differences, finish, load, plain
from ramen_jax.console import UserError
from ramen_jax.recipe import TRAPS

FILES = (
    *("tiny", "small", "base", "large", "huge", "terramesh", "mixture_real"),
    *("pod_v5e_256", "pod_v5p_512", "pod_h100_16"),
)


def complete(*overrides: str):
    config = default()
    config.corpora = (corpus("flairhub", kind="flairhub", temporal_dropout={"s2": 0.3}),)
    return finish(config, overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        complete(*overrides)
    assert caught.value.code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("switch", ["", ":quicktest"])
def test_every_shipped_configuration_loads(repository, name, switch):
    path = repository / "configs" / f"{name}.py"
    config = load(f"{path}{switch}")
    assert json.loads(json.dumps(plain(config))) == plain(config)
    source = path.read_text()
    assert source.startswith('"""')
    assert f"--config configs/{name}.py" in source


def test_base_is_the_paper(repository):
    config = load(repository / "configs" / "base.py")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_from, optimizer.final_rate) == (1.5e-4, 1e-5, 1e-6)
    assert (optimizer.weight_decay, optimizer.beta1, optimizer.beta2, optimizer.clip_norm) == (
        0.05,
        0.9,
        0.999,
        1.0,
    )
    assert config.train.epochs == 100
    assert optimizer.warmup_share * config.train.epochs == 20
    assert [(entry.name, len(entry.target_gsds)) for entry in config.corpora] == [
        ("flairhub", 18),
        ("mmearth", 9),
        ("worldstrat", 16),
    ]
    assert len({entry.weight for entry in config.corpora}) == 1
    assert config.recipe == "reference"


def test_overrides_take_the_type_of_the_default():
    config = complete(
        "--config.model.depth=2",
        "optimizer.learning_rate=3",
        "logging.tensorboard=false",
        "corpora.flairhub.target_gsds=5,10",
        "corpora.0.weight=2",
        "corpora.flairhub.temporal_dropout.s1_des=0.5",
        "corpora.flairhub.options.years=(2018, 2019)",
        "corpora.flairhub.max_dates.s2=4",
        "train.skip_steps=17",
        "traps.ltae_dropout=0.2",
    )
    assert config.model.depth == 2
    assert config.optimizer.learning_rate == 3.0
    assert config.logging.tensorboard is False
    entry = config.corpora[0]
    assert entry.target_gsds == (5.0, 10.0)
    assert entry.weight == 2.0
    assert entry.temporal_dropout.to_dict() == {"s2": 0.3, "s1_des": 0.5}
    assert entry.options.to_dict() == {"years": (2018, 2019)}
    assert entry.max_dates.to_dict() == {"s2": 4}
    assert config.train.skip_steps == (17,)
    assert config.traps.ltae_dropout == 0.2


def test_a_recipe_sets_every_trap_that_is_not_set():
    reference, fixed = complete(), complete("recipe=fixed", "traps.sampling=area")
    for key, trap in TRAPS.items():
        old, new = trap.reference, trap.fixed
        assert reference.traps[key] == old
        assert fixed.traps[key] == ("area" if key == "sampling" else new)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rat=1", ["config.optimizer.learning_rat;", "optimizer.learning_rate"]),
        ("modell.depth=1", ["config.modell.depth", "model.depth"]),
        ("model.depth", ["no value"]),
        ("model.depth=deep", ["'deep'", "whole number"]),
        ("model.depth.x=1", ["config.model.depth is a single value"]),
        ("model=1", ["group of keys"]),
        ("logging.tensorboard=maybe", ["true or false"]),
        ("corpora.flairhup.weight=1", ["flairhup", "flairhub"]),
        ("corpora.flairhub.wieght=1", ["wieght", "weight"]),
        ("corpora.flairhub.target_gsds=0", ["target_gsds is 0", "positive"]),
        ("corpora.flairhub.target_gsds=-3,5", ["-3", "positive"]),
        ("corpora.flairhub.target_gsds=ten", ["separated by commas"]),
        ("corpora.flairhub.kind=flair", ["'flair'", "flairhub"]),
        ("corpora.flairhub.weight=0", ["weight is 0", "positive"]),
        ("corpora.flairhub.temporal_dropout.s2=1", ["temporal_dropout.s2"]),
        ("model.embed_dim=100", ["100", "multiple of 32", "96"]),
        ("model.num_heads=5", ["5", "divisor", "768"]),
        ("model.dtype=float16", ["float16", "bfloat16"]),
        ("model.mask_ratio=1", ["mask_ratio"]),
        ("traps.sampling=metrik", ["metrik", "metric"]),
        ("traps.ltae_dropout=1.5", ["1.5"]),
        ("recipe=referense", ["referense", "reference"]),
        ("optimizer.accumulate=3", ["3", "divisor", "16"]),
        ("optimizer.per=batch", ["batch", "step"]),
        ("sharding.fsdp=0", ["device counts"]),
        ("sharding.storage.embed=fsdb", ["fsdb", "fsdp"]),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(override, words):
    sentence = refused(f"--config.{override}")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_a_configuration_file_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ramen_jax.config import default\n"
        "def get_config():\n    config = default()\n    config.model.embed_dims = 64\n    return config\n"
    )
    with pytest.raises(UserError, match=r"config\.model\.embed_dims; did you mean .config\.model\.embed_dim"):
        load(path)


def test_a_missing_file_lists_close_ones(repository):
    with pytest.raises(UserError, match=r"configs/bsae\.py.*base\.py"):
        load(repository / "configs" / "bsae.py")
    with pytest.raises(UserError, match="quicktest"):
        load(f"{repository / 'configs' / 'base.py'}:fast")


def test_differences_name_the_keys_and_leave_out_how_a_run_is_executed():
    old = plain(complete())
    assert differences(plain(complete("checkpoint.every=7", "data.workers=3", "train.stop_at=4")), old) == []
    assert differences(plain(complete("model.depth=3", "corpora.flairhub.weight=2")), old) == [
        "corpora.flairhub.weight: 1.0 -> 2.0",
        "model.depth: 12 -> 3",
    ]


def test_reading_a_configuration_imports_no_jax(repository):
    code = (
        "import sys; from ramen_jax.config import load; load('configs/base.py'); "
        "print([m for m in ('jax', 'flax', 'torch', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
