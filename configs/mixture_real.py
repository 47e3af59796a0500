"""Real imagery of three kinds in one training: single dates, year-long series, 0.2 m aerial beside 10 m satellites.

    RAMEN_JAX_REAL_DATA=DIR python -m ramen_jax.train --config configs/mixture_real.py --workdir runs/mixture

DIR holds terramesh/, worldcereal/ and treesatai_ts/ in their original layouts. Each step trains on one corpus, drawn by
weight; each corpus has its own compiled step. Expect, on 2 cores: a minute of compilation, then a loss that falls for
every corpus within 10 minutes. A demonstration of mixing, not a useful model: the three folders hold few places.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, corpus, default


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "tiny")
    config.recipe = "fixed"  # elevation has one band, which the reference target cannot be computed for
    config.corpora = (
        corpus(
            "terramesh",
            spec="terramesh",
            source="$RAMEN_JAX_REAL_DATA/terramesh",
            target_gsds=(20.0, 30.0, 40.0, 60.0, 80.0),
            weight=2.0,
        ),
        corpus(
            "worldcereal",
            kind="worldcereal",
            source="$RAMEN_JAX_REAL_DATA/worldcereal",
            target_gsds=(20.0, 40.0, 80.0),
            temporal_dropout={"s2_10m": 0.3, "s2_20m": 0.3, "s1": 0.3},
            max_dates={"s2_10m": 8, "s2_20m": 8, "s1": 8},
            rows_per_step=1,
        ),
        corpus(
            "treesatai",
            kind="treesatai",
            source="$RAMEN_JAX_REAL_DATA/treesatai_ts",
            target_gsds=(3.0, 5.0, 6.0, 10.0),
            temporal_dropout={"s2": 0.3, "s1_asc": 0.3, "s1_des": 0.3},
            max_dates={"s2": 8, "s1_asc": 8, "s1_des": 8},
            rows_per_step=1,
        ),
    )
    config.data.rows_per_step = 1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_from = 1e-4
    config.optimizer.warmup_share = 0.1
    config.train.steps = 300
    config.checkpoint.every = 100
    return config
