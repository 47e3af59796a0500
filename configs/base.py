"""The paper's pretraining: RAMEN base (131,459,658 parameters) on FLAIR-HUB, MMEarth64 and WorldStrat.

    python -m ramen_jax.prepare --corpus flairhub --source DIR --output data/flairhub --recipe reference
        (also mmearth and worldstrat)
    python -m ramen_jax.train --config configs/base.py --workdir runs/base
        --config.corpora.flairhub.prepared=data/flairhub --config.corpora.mmearth.prepared=data/mmearth
        --config.corpora.worldstrat.prepared=data/worldstrat

Expect: the first loss is above 1,000 (predictions are unscaled 512-wide products; the official code starts there
too) and falls below 10 within the first epoch. The paper trained 100 epochs on 16 H100, bfloat16; this is
float32, which runs anywhere: `--config.model.dtype=bfloat16` or configs/pod_*.py for accelerators. One step of one
FLAIR-HUB place with all modalities and 8 dates at 10 m: `python -m ramen_jax.bench --config configs/base.py --corpus
flairhub --target-gsd 10 --batch 1 --dates 8`. `--config configs/base.py:quicktest` runs the same path in a few minutes.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, default, paper_corpora


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "base")
    config.corpora = paper_corpora()
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_from = 1e-5
    config.optimizer.final_rate = 1e-6
    config.optimizer.warmup_share = 0.2  # 20 of 100 epochs
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.train.epochs = 100.0
    config.data.rows_per_step = 64
    config.data.workers = 8
    return config
