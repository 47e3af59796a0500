"""A pretraining to watch: a tiny model on a small synthetic Earth of five sensors from 0.2 to 10 metres.

    python -m ramen_jax.train --config configs/tiny.py --workdir runs/tiny

Expect, on 2 cores: renders 104 places and compiles (about a minute), then 400 steps in 3 to 5 minutes; the loss falls
from about 100 to 3, the one on held-out places to 2. Nothing is downloaded. `launch/quickstart.sh` runs it and makes
the pictures.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, corpus, default


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "tiny")
    config.recipe = (
        "fixed"  # so that a reconstruction is an image: the reference predicts differences of bands only
    )
    config.corpora = (
        corpus(
            "tiny",
            kind="synthetic",
            options={"geometry": "tiny", "places": 96},
            target_gsds=(4.0, 5.0, 6.0, 8.0, 10.0),
            row_length=800,
        ),
    )
    config.data.rows_per_step = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_from = 1e-4
    config.optimizer.warmup_share = 0.1
    config.train.steps = 400
    config.validation.every = 100
    config.validation.steps = 4
    config.checkpoint.every = 50
    return config
