"""RAMEN base in bfloat16 on 16 H100, the paper's hardware, with batches as near the paper's as whole rows allow.

    srun python -m ramen_jax.train --config configs/pod_h100_16.py --workdir /shared/base --distributed

A device needs at least one row of several views. The paper's steps have 64 views of FLAIR-HUB, 512 of MMEarth and 32 of
WorldStrat; 16, 80 and 16 rows have about 160, 540 and 75. With `--config.sharding.data=8 --config.sharding.tensor=2`,
8 rows of the first and the last are about 80 and 38 views. `--config configs/pod_h100_16.py:quicktest` runs the same
path in a few minutes.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, default, paper_corpora

ROWS = {"flairhub": 16, "mmearth": 80, "worldstrat": 16}


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "base")
    config.corpora = paper_corpora()
    for entry in config.corpora:
        entry.rows_per_step = ROWS[entry.name]
    config.model.dtype = "bfloat16"
    config.data.workers = 8
    config.sharding.data = 16
    return config
