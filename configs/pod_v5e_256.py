"""RAMEN base in bfloat16 on a TPU v5e pod of 256 chips (16x16), one row of each corpus per chip and step.

    python -m ramen_jax.train --config configs/pod_v5e_256.py --workdir gs://BUCKET/base --distributed

Rows hold several views: 256 of them are about 2,600 views of FLAIR-HUB, 1,700 of MMEarth and 1,200 of WorldStrat, where
the paper's steps have 64, 512 and 32 on 16 GPUs. A pod cannot be kept busy by less; the learning rate is still the
paper's. Rows are split over both axes of the torus, parameters and optimizer state over one of them. What a step costs:
docs/scaling.md. `--config configs/pod_v5e_256.py:quicktest` runs the same path in a few minutes.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, default, paper_corpora


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "base")
    config.corpora = paper_corpora()
    config.model.dtype = "bfloat16"
    config.data.rows_per_step = 256
    config.data.workers = 8
    config.sharding.data = 16
    config.sharding.fsdp = 16
    return config
