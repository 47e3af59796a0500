"""Which places of a split are used: limited labels, stratified by what they show, and copies of each per epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.counter_rng import combine, permute
from ramen_jax.evaluation.pangaea.tasks.task import Task

STRATEGIES = ("stratified", "random", "oversampled")


def limited(task: Task, split: str, share: float) -> list[str]:
    """The items of a split that keep their labels, in the split's order, the same at every call.

    `stratified` (the protocol's `label_strategy`): places are grouped by what they show (`strata`), and of every group
    max(1, floor(share x its size)) are drawn, so that rare groups lift the kept share above `share`. `random`: that
    share of all. `oversampled`: the first share in the order of the groups' names.

    Args:
      share: 0 < share <= 1. At 1 no label is read.

    Errors: UserError for a share outside of that.
    """
    items = task.split(split)
    if not 0 < share <= 1:
        raise UserError(f"the share of labels is {share:g}, expected a number above 0 and at most 1", USAGE)
    if share == 1 or not items:
        return items
    strategy = task.protocol.label_strategy
    if strategy not in STRATEGIES:
        raise UserError(f"label strategy {strategy!r} is unknown; {close_names(strategy, STRATEGIES)}", USAGE)
    key = combine(task.protocol.seed, "limited labels", task.name, split)
    if strategy == "random" or task.family == "multi_label":
        kept = permute(np.arange(int(len(items) * share)), len(items), key)
        return [items[i] for i in sorted(kept.tolist())]
    groups = strata(task, split, items)
    if strategy == "oversampled":
        order = sorted(range(len(items)), key=lambda i: groups[i])
        return [items[i] for i in sorted(order[: int(len(items) * share)])]
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    chosen: list[int] = []
    for group, indices in members.items():
        wanted = max(1, int(share * len(indices)))
        drawn = permute(np.arange(wanted), len(indices), combine(key, group))
        chosen += [indices[i] for i in drawn]
    return [items[i] for i in sorted(chosen)]


def strata(task: Task, split: str, items: Sequence[str]) -> list[str]:
    """The group of each item, by the protocol's `label_bins`; reads every target once.

    Maps of classes: the share of each class among the labelled pixels, in bins that are open below (-1 absent, 0 up to
    1 / bins, ...); of tasks with one logit only the first class counts. Regression: the mean, in equal bins between
    the lowest and the highest of the split. Classification: the class.
    """
    bins = task.protocol.label_bins
    targets = (task.example(item, split).target for item in items)
    if task.family == "classification":
        return [str(int(target)) for target in targets]
    if task.family == "regression":
        means = np.array([target.mean() for target in targets], np.float64)
        edges = np.linspace(means.min(), means.max(), bins + 1)
        return [str(min(int(place), bins - 1)) for place in np.digitize(means, edges) - 1]
    groups = []
    for target in targets:
        known = target[target != task.ignore_index]
        counts = np.bincount(known, minlength=len(task.classes))[: task.outputs]
        shares = counts / max(known.size, 1)
        groups.append(" ".join(map(str, np.ceil(shares * bins - 1e-12).astype(int) - 1)))
    return groups


def copies(items: Sequence[str], replicate: int) -> list[tuple[str, int]]:
    """Every item `replicate` times in a row with the number of the copy: (item, 0), (item, 1), (next, 0), ..."""
    return [(item, copy) for item in items for copy in range(replicate)]
