"""A pretraining to watch: a tiny model on a small synthetic Earth of five sensors from 0.2 to 10 metres.

    python -m ramen_jax.train --config configs/tiny.py --workdir runs/tiny

Expect, on 2 idle cores: renders 1,008 places (half a minute), compiles (a minute), then takes 1,000 steps (0.33 s each
on one idle core). The loss begins at about 7 and is below 4 after 200. Nothing is downloaded. `launch/quickstart.sh`
runs it, makes the pictures and measures what was learnt. Places matter more than steps: see docs/learning.md.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, corpus, default


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "tiny")
    # So that a reconstruction is an image: the reference predicts differences of bands only.
    config.recipe = "fixed-2"
    config.corpora = (
        corpus(
            "tiny",
            kind="synthetic",
            options={"geometry": "tiny", "places": 1000},
            target_gsds=(4.0, 5.0, 6.0, 8.0, 10.0),
            row_length=800,
        ),
    )
    config.data.rows_per_step = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_from = 1e-4
    config.optimizer.warmup_share = 0.1
    config.train.steps = 1000
    config.validation.every = 250
    config.validation.steps = 4
    config.checkpoint.every = 50
    return config
