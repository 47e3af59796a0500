"""RAMEN base in bfloat16 on a TPU v5p slice of 512 chips (8x8x8), one row of each corpus per chip and step.

    python -m ramen_jax.train --config configs/pod_v5p_512.py --workdir gs://BUCKET/base --distributed

Rows hold several views: 512 of them are about 5,200 views of FLAIR-HUB, 3,400 of MMEarth and 2,400 of WorldStrat, where
the paper's steps have 64, 512 and 32 on 16 GPUs. A slice cannot be kept busy by less; the learning rate is still the
paper's. Rows are split over all axes of the torus, parameters and optimizer state over two of them. What a step costs:
docs/scaling.md. `--config configs/pod_v5p_512.py:quicktest` runs the same path in a few minutes.
"""

from ml_collections import ConfigDict

from ramen_jax.config import apply_size, default, paper_corpora


def get_config() -> ConfigDict:
    config = default()
    apply_size(config, "base")
    config.corpora = paper_corpora()
    config.model.dtype = "bfloat16"
    config.data.rows_per_step = 512
    config.data.workers = 8
    config.sharding.data = 8
    config.sharding.fsdp = 64
    return config
