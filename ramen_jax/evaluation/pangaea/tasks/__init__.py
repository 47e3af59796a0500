"""The tasks of PANGAEA: readers of the original files, and what each is to be trained and scored with.

    task = open_task("sen1floods11", Path("sen1floods11"))      # or a YAML file of one's own, see `geotask`
    splits, rejected = task.items()
    example = task.example(splits["train"][0], "train")
    example.sample.images["optical"].values, example.target     # [T, C, H, W], [H, W] int32

A task is a corpus with a target (`task.Task`); its facts (classes, sensors, size, the paper's command) are a YAML file
in `descriptions/`. `regions` cuts and resizes examples, `selection` draws limited labels. Numpy only: data workers
import it.
"""

from __future__ import annotations

from ramen_jax.evaluation.pangaea.tasks.registry import KINDS, load_task, open_task, shipped
from ramen_jax.evaluation.pangaea.tasks.task import Command, Example, Task

__all__ = ["KINDS", "Command", "Example", "Task", "load_task", "open_task", "shipped"]
