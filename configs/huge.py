"""RAMEN huge (about 670 million parameters) on the paper's three corpora, its state sharded over all devices.

    python -m ramen_jax.train --config configs/huge.py --workdir runs/huge

Everything but the size is configs/base.py, the preparation of the corpora included; the paper has no figures for this
size. `--config configs/huge.py:quicktest` runs the same path in a few minutes.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, default, paper_corpora


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "huge")
    config.corpora = paper_corpora()
    config.model.dtype = "bfloat16"
    config.data.rows_per_step = 64
    config.sharding.data = 1
    config.sharding.fsdp = -1  # parameters and optimizer state split over all devices
    config.data.workers = 8
    return config
