"""Of `train`: values, configuration files, workdirs."""

from __future__ import annotations

from pathlib import Path

from tests.wrong_inputs.registry import TINY, case, file

# -- train: values -----------------------------------------------------------------------------------------------------

OVERRIDES = [
    *(
        f"optimizer.{key}={value}"
        for key in ("learning_rate", "eps", "clip_norm")
        for value in ("inf", "nan", "0", "-1")
    ),
    *(
        f"optimizer.{key}={value}"
        for key in ("warmup_from", "final_rate")
        for value in ("inf", "nan", "-1e-5")
    ),
    *(f"optimizer.{key}={value}" for key in ("beta1", "beta2") for value in ("1", "nan", "-0.1", "2")),
    *(f"optimizer.weight_decay={value}" for value in ("inf", "nan", "-1")),
    *(f"optimizer.warmup_share={value}" for value in ("inf", "nan", "-1", "1.5")),
    *(f"optimizer.accumulate={value}" for value in ("0", "-2", "3", "10000000000", "1.5")),
    *("optimizer.per=batch", "optimizer.per=", "optimizer=1", "optimizer.lr=1", "optimizer.learning_rate="),
    *(
        f"model.{key}={value}"
        for key in ("depth", "decoder_depth")
        for value in ("0", "-1", "1000000000000", "1.5")
    ),
    *(
        f"model.{key}={value}"
        for key in ("embed_dim", "decoder_embed_dim")
        for value in ("0", "-32", "33", "1e3")
    ),
    *(f"model.{key}=3200000000000" for key in ("embed_dim", "decoder_embed_dim")),
    *(
        f"model.{key}={value}"
        for key in ("num_heads", "decoder_num_heads")
        for value in ("0", "-2", "7", "99999")
    ),
    *(f"model.mlp_ratio={value}" for value in ("inf", "nan", "0", "-4", "1e-9", "1e12")),
    *(f"model.mask_ratio={value}" for value in ("0", "1", "nan", "inf", "-0.5")),
    *(
        "model.block_eps=nan",
        "model.block_eps=inf",
        "model.dtype=float64",
        "model.remat=yes",
        "model.depth=three",
    ),
    *(
        f"data.rows_per_step={value}"
        for value in ("0", "-1", "1000000000000", "two", "99999999999999999999999")
    ),
    *(f"data.row_length={value}" for value in ("-1", "1000000000000")),
    *(f"data.views_per_sample={value}" for value in ("0", "-1", "1000000000000")),
    *(f"data.{key}={value}" for key in ("workers", "prefetch") for value in ("-1", "1000000000")),
    *(f"data.max_bad_share={value}" for value in ("-0.1", "1.1", "nan", "inf")),
    *("data.draw=sometimes", "data.verify=maybe", "seed=-1", "seed=1e3", "seed=100000000000000000000"),
    *(f"train.steps={value}" for value in ("-1", "1e6", "nan", "99999999999999")),
    *(f"train.stop_at={value}" for value in ("-1", "x", "99999999999999")),
    *("train.skip_steps=-1", "train.skip_steps=a,b", "train.skip_steps=(", "train.from_scratch=perhaps"),
    *("validation.every=-1", "validation.steps=0", "validation.steps=-8", "validation.every=often"),
    *(
        f"checkpoint.{key}"
        for key in ("every=0", "every=-5", "keep_latest=0", "keep_latest=-1", "keep_best=-1")
    ),
    *("logging.every=0", "logging.every=-1", "logging.profile_steps=all", "logging.profile_steps=5:3"),
    *("logging.profile_steps=-1:4", "logging.tensorboard=on or off", "compile_cache.min_seconds=nan"),
    *(
        "compile_cache.min_seconds=-1",
        "sharding.data=0",
        "sharding.fsdp=-1",
        "sharding.tensor=-3",
        "sharding=8",
    ),
    *(
        "sharding.storage.embed=fsdb",
        "sharding.storage.width=fsdp",
        "recipe=best",
        "recipe=",
        "traps.sampling=best",
    ),
    *("traps.ltae_dropout=1.5", "traps.ltae_dropout=nan", "traps.ltae_dropout=lots", "traps.smapling=area"),
    *(
        "corpora=tiny",
        "corpora.tiny=1",
        "corpora.huge.weight=1",
        "corpora.tiny.wieght=1",
        "corpora.7.weight=1",
    ),
    *(f"corpora.tiny.weight={value}" for value in ("0", "-1", "nan", "inf")),
    *(
        f"corpora.tiny.target_gsds={value}"
        for value in ("0", "-5", "nan", "inf", "", "ten", "5,-1", "[[5]]", "1e400")
    ),
    *(f"corpora.tiny.samples={value}" for value in ("-1", "many", "99999999999999999999")),
    *(
        "corpora.tiny.rows_per_step=-1",
        "corpora.tiny.rows_per_step=1000000000000",
        "corpora.tiny.row_length=-4",
    ),
    *(f"corpora.tiny.temporal_dropout.s2={value}" for value in ("1", "-0.5", "nan", "half")),
    *(f"corpora.tiny.max_dates.s2={value}" for value in ("0", "-1", "few")),
    *(
        "corpora.tiny.kind=magic",
        "corpora.tiny.kind=",
        "model.depth",
        "=3",
        "model.depth.more=1",
        "modle.depth=3",
    ),
]
for override in OVERRIDES:
    # Printing the configuration is all that a value taken for right would cost.
    case("train", override, lambda place, o=override: ["--config", TINY, "--print-config", f"--config.{o}"])

# -- train: configuration files ----------------------------------------------------------------------------------------

START = "from ramen_jax.config import corpus, default\ndef get_config():\n    config = default()\n"
FILES: dict[str, str | bytes] = {
    "empty": "",
    "syntax": "def get_config(:\n",
    "indent": "def get_config():\nreturn 1\n",
    "null byte": b"a = 1\x00\n",
    "not utf-8": b"# \xff\xfe\n",
    "no function": "config = 1\n",
    "function is none": "get_config = 5\n",
    "wants arguments": "def get_config(size):\n    return size\n",
    "raises": "def get_config():\n    raise RuntimeError('no\\nway')\n",
    "divides": "x = 1 / 0\n",
    "exits": "import sys\nsys.exit(0)\n",
    "imports": "import no_such_module\n",
    "name": "def get_config():\n    return defualt()\n",
    "recursion": "def get_config():\n    return get_config()\n",
    "long message": "raise ValueError('x' * 10_000_000)\n",
    "none": "def get_config():\n    pass\n",
    "a number": "def get_config():\n    return 3\n",
    "a dict": "def get_config():\n    return {'model': 1}\n",
    "empty tree": "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
    "unknown key": START + "    config.model.width = 3\n    return config\n",
    "unknown group": START + "    config.modle = 3\n    return config\n",
    "text for a number": START + "    config.model.depth = '3'\n    return config\n",
    "share for a number": START + "    config.model.depth = 1.5\n    return config\n",
    "no group": START + "    del config.model\n    config.model = 3\n    return config\n",
    "no model": START + "    del config.model\n    return config\n",
    "no key": START + "    del config.model.depth\n    return config\n",
    "list for a number": START + "    del config.seed\n    config.seed = [1]\n    return config\n",
    "none for a number": START + "    del config.seed\n    config.seed = None\n    return config\n",
    "bool for a number": START + "    del config.seed\n    config.seed = True\n    return config\n",
    "corpora is a number": START + "    del config.corpora\n    config.corpora = 3\n    return config\n",
    "corpora is a text": START + "    del config.corpora\n    config.corpora = 'tiny'\n    return config\n",
    "corpora of texts": START + "    config.corpora = ('tiny',)\n    return config\n",
    "corpora of dicts": START + "    config.corpora = ({'name': 'tiny'},)\n    return config\n",
    "corpus without a name": START + "    config.corpora = (corpus(''),)\n    return config\n",
    "corpus with a number": START + "    config.corpora = (corpus(3),)\n    return config\n",
    "corpus in a path": START
    + "    config.corpora = (corpus('../x', kind='synthetic'),)\n    return config\n",
    "corpus unknown key": START + "    config.corpora = (corpus('a', gsd=3),)\n    return config\n",
    "gsds are texts": START
    + "    config.corpora = (corpus('a', kind='synthetic', target_gsds=('5',)),)\n    return config\n",
    "gsds is a number": START
    + "    config.corpora = (corpus('a', kind='synthetic', target_gsds=5),)\n    return config\n",
    "two of a name": START + "    config.corpora = (corpus('a', kind='synthetic'),) * 2\n    return config\n",
    "dropout is a text": START
    + "    config.corpora = (corpus('a', kind='synthetic', temporal_dropout={'s2': 'x'}),)\n    return config\n",
    "trap is a list": START + "    config.traps.sampling = ['area']\n    return config\n",
}
for name, content in FILES.items():
    case(
        "train",
        f"file, {name}",
        lambda place, c=content: ["--config", file(place, "mine.py", c), "--print-config"],
    )

# -- train: places -----------------------------------------------------------------------------------------------------


def workdir(place: Path, content: str | bytes) -> list[str]:
    file(place, "run/config.json", content)
    return ["--config", TINY, "--workdir", str(place / "run")]


case("train", "no arguments", lambda place: [])
case("train", "no workdir", lambda place: ["--config", TINY])
case(
    "train", "no such file", lambda place: ["--config", str(place / "x.py"), "--workdir", str(place / "run")]
)
case("train", "a folder", lambda place: ["--config", str(place), "--workdir", str(place / "run")])
case("train", "no python", lambda place: ["--config", file(place, "a.yaml", "a: 1"), "--print-config"])
case("train", "unknown switch", lambda place: ["--config", "configs/tiny.py:fast", "--print-config"])
case("train", "unknown option", lambda place: ["--config", TINY, "--workdri", str(place)])
case("train", "workdir is a file", lambda place: ["--config", TINY, "--workdir", file(place, "run", "mine")])
case(
    "train",
    "workdir in a file",
    lambda place: ["--config", TINY, "--workdir", file(place, "run", "mine") + "/x"],
)
case("train", "workdir in no folder", lambda place: ["--config", TINY, "--workdir", "/proc/nowhere/run"])
case("train", "nobody's home", lambda place: ["--config", TINY, "--workdir", "~nobody_of_that_name/run"])
case(
    "train",
    "start from nothing",
    lambda place: ["--config", TINY, "--workdir", str(place / "run"), f"--config.train.start_from={place}"],
)
for name, content in {
    "no json": "{",
    "a list": "[1, 2]",
    "a number": "3",
    "not utf-8": b"\xff\xfe{}",
    "deep": "[" * 100_000,
    "another": '{"seed": 7}',
    "strange": '{"model": 3, "corpora": {"a": 1}, "seed": {"b": []}}',
    "corpora of numbers": '{"corpora": [1, 2]}',
}.items():
    case("train", f"config.json, {name}", lambda place, c=content: workdir(place, c))
