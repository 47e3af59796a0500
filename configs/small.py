"""RAMEN small (about 25 million parameters) on the paper's three corpora: a first real run on one accelerator.

    python -m ramen_jax.train --config configs/small.py --workdir runs/small

Everything but the size is configs/base.py, the preparation of the corpora included; the paper has no figures for this
size. `--config configs/small.py:quicktest` runs the same path in a few minutes.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, default, paper_corpora


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "small")
    config.corpora = paper_corpora()
    config.model.dtype = "bfloat16"
    config.data.rows_per_step = 64
    config.data.workers = 8
    return config
