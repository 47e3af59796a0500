"""The plan: full rows, O(1) steps, every sample exactly once on any number of hosts, mixtures, refusals."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax import counter_rng
from ramen_jax.console import UserError
from ramen_jax.recipe import FIXED, REFERENCE
from ramen_jax.rows import row_template
from ramen_jax.rows.plan import MIXTURE_BLOCK, Plan, PlannedCorpus, View, kept_dates, noise
from ramen_jax.rows.views import view_grid, visible_count
from tests.rows.small_corpora import COASTS, COASTS_GSDS, FIELDS, FIELDS_GSDS, PAPER

MILLION = 1_000_000


def fields(samples: int = 1100, **changes) -> PlannedCorpus:
    return PlannedCorpus(FIELDS, samples, FIELDS_GSDS, **changes)


def coasts(samples: int = 1200, **changes) -> PlannedCorpus:
    return PlannedCorpus(COASTS, samples, COASTS_GSDS, **changes)


def rows_of_epoch(plan: Plan, corpus: str, epoch: int) -> list[list[View]]:
    """The rows of one epoch of the only corpus, cut out of the steps that hold it."""
    per_step = plan.capacity(corpus).rows
    per_epoch = round(plan.steps_per_epoch(corpus) * per_step)
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    steps = range(first // per_step, -(-last // per_step))
    rows = [row for step in steps for row in plan.rows(step)]
    offset = first - steps[0] * per_step
    return rows[offset : offset + per_epoch]


def assert_within(plan: Plan, corpus: str, rows: list[list[View]]) -> None:
    """Every row keeps the capacity."""
    spec, capacity = plan.corpora[corpus].spec, plan.capacity(corpus)
    for row in rows:
        cells = [np.prod(view_grid(spec, view.target_gsd)) for view in row]
        lengths = [count * len(view.modalities) for count, view in zip(cells, row, strict=True)]
        assert sum(1 + n for n in lengths) <= capacity.decoder_length
        assert sum(1 + visible_count(n, plan.mask_ratio) for n in lengths) <= capacity.encoder_length
        assert len(row) <= capacity.views
        for i, m in enumerate(spec.modalities):
            kept = [count for count, view in zip(cells, row, strict=True) if m.name in view.modalities]
            assert len(kept) <= capacity.slots[i]
            assert sum(kept) <= capacity.decoder_tokens[i]
            assert capacity.encoder_tokens[i] <= capacity.decoder_tokens[i]


# -- counter-based randomness ---------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    image = counter_rng.permute(np.arange(size), size, key)
    assert (np.sort(image) == np.arange(size)).all()
    assert counter_rng.permute(size - 1, size, key)[0] == image[-1]


def test_permutations_differ_by_key_and_look_random() -> None:
    size = 10_000
    images = [counter_rng.permute(np.arange(size), size, key) for key in range(4)]
    for i, image in enumerate(images):
        assert abs(np.corrcoef(image, np.arange(size))[0, 1]) < 0.05
        for other in images[:i]:
            assert (image == other).mean() < 0.01
    orders = Counter(tuple(counter_rng.permute(np.arange(4), 4, key)) for key in range(4800))
    assert len(orders) == 24
    assert min(orders.values()) > 120  # 200 expected


def test_the_numbers_never_change() -> None:
    """A checkpoint's future batches depend on these bits: another NumPy or CPU must give the same ones."""
    assert counter_rng.combine(1, "flairhub", 2) == COMBINED
    np.testing.assert_array_equal(counter_rng.permute(np.arange(6), 1000, 7), PERMUTED)
    np.testing.assert_array_equal(counter_rng.below(counter_rng.raw_bits(5, 6), 100), BELOW)


COMBINED = 2063174584118731162
PERMUTED = [207, 245, 181, 363, 510, 171]
BELOW = [73, 59, 20, 44, 24, 67]


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_a_million_samples_are_planned_quickly_into_full_rows(name: str) -> None:
    spec, gsds = PAPER[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    plan = Plan([PlannedCorpus(spec, MILLION, gsds)], seed=1, rows_per_step=8, recipe=FIXED)
    seconds = time.process_time() - began
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    share = plan.real_token_share(name)
    print(f"{name}: {seconds:.2f} s, {megabytes:.0f} MB, real tokens {share}, {plan.capacity(name)}")
    assert seconds < 5
    assert megabytes < 200
    assert min(share.values()) >= 0.95
    rows = [row for step in range(40) for row in plan.rows(step * 997)]
    assert_within(plan, name, rows)
    tokens = [
        1 + len(view.modalities) * np.prod(view_grid(spec, view.target_gsd)) for row in rows for view in row
    ]
    assert sum(tokens) / (len(rows) * plan.capacity(name).decoder_length) >= 0.94  # of these few rows
    per_modality = sum(plan.capacity(name).decoder_tokens) / plan.capacity(name).decoder_length
    assert per_modality < 1.5  # the lists that follow the tokens stay short


def test_rows_keep_the_capacity_and_cover_every_sample_once() -> None:
    plan = Plan([fields(2 * row_template.BLOCK + 777)], seed=3, rows_per_step=6, recipe=REFERENCE)
    rows = rows_of_epoch(plan, "fields", 1)
    assert_within(plan, "fields", rows)
    assert sorted(view.sample for row in rows for view in row) == list(range(2 * row_template.BLOCK + 777))
    assert all(view.epoch == 1 for row in rows for view in row)


def test_draws_are_uniform_and_orders_random() -> None:
    plan = Plan([fields(row_template.BLOCK)], seed=5, rows_per_step=4, recipe=REFERENCE)
    views = [view for row in rows_of_epoch(plan, "fields", 0) for view in row]
    expected = len(views) / len(FIELDS_GSDS)
    assert all(abs(n - expected) < 5 * expected**0.5 for n in Counter(v.target_gsd for v in views).values())
    by_count = Counter(len(v.modalities) for v in views)
    assert all(abs(by_count[k] - len(views) / 4) < 250 for k in (1, 2, 3, 4))
    orders = Counter(v.modalities for v in views if len(v.modalities) == 4)
    assert len(orders) == 24  # the kept modalities come in random order, as in the reference
    firsts = Counter(v.modalities[0] for v in views)
    assert all(abs(n - len(views) / 4) < 250 for n in firsts.values())


def test_epochs_differ() -> None:
    plan = Plan([fields()], seed=1, rows_per_step=4, recipe=REFERENCE)
    first, second = (rows_of_epoch(plan, "fields", epoch) for epoch in (0, 1))
    assert [[v.sample for v in row] for row in first] != [[v.sample for v in row] for row in second]
    assert len({v.key for row in first + second for v in row}) == 2200


def test_views_per_sample_share_a_row() -> None:
    plan = Plan([fields()], seed=1, rows_per_step=4, recipe=REFERENCE, views_per_sample=3)
    rows = rows_of_epoch(plan, "fields", 0)
    assert_within(plan, "fields", rows)
    count = Counter(view.sample for row in rows for view in row)
    assert len(count) == 1100
    assert set(count.values()) == {3}
    assert all(n == 3 for row in rows for n in Counter(view.sample for view in row).values())
    assert len({view.key for row in rows for view in row}) == 3300
    draws = {(view.sample, view.target_gsd, view.modalities) for row in rows for view in row}
    assert len(draws) > 2200  # the three views are different draws


def test_any_step_is_found_without_the_steps_before() -> None:
    plan = Plan([fields(MILLION), coasts(MILLION, weight=2.0)], seed=9, rows_per_step=2, recipe=REFERENCE)
    for step in (0, 10**6, 10**9):
        began = time.process_time()
        again = Plan(
            [fields(MILLION), coasts(MILLION, weight=2.0)], seed=9, rows_per_step=2, recipe=REFERENCE
        )
        built = time.process_time() - began
        assert again.rows(step) == plan.rows(step)
        began = time.process_time()
        plan.rows(step + 1)
        assert time.process_time() - began < 0.2, built


def test_a_row_is_the_same_in_another_process() -> None:
    program = (
        "import sys\n"
        "from tests.rows.test_plan import REFERENCE, Plan, coasts, fields\n"
        "plan = Plan([fields(), coasts()], seed=9, rows_per_step=4, recipe=REFERENCE)\n"
        "print([plan.rows(step) for step in (3, 777, 123456)])\n"
        "assert not {'jax', 'torch', 'tensorflow', 'flax'} & set(sys.modules), 'imports too much'\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    plan = Plan([fields(), coasts()], seed=9, rows_per_step=4, recipe=REFERENCE)
    assert found.stdout.strip() == str([plan.rows(step) for step in (3, 777, 123456)])


# -- hosts ----------------------------------------------------------------------------------------------------------


def host_share(plan: Plan, step: int, host: int, hosts: int) -> list[View]:
    each = plan.capacity(plan.corpus(step)).rows // hosts
    return [view for row in plan.rows(step, range(host * each, (host + 1) * each)) for view in row]


@pytest.mark.parametrize("hosts", [[1], [2], [4], [8], [4, 2, 8, 1]])
def test_hosts_cover_an_epoch_exactly_once(hosts: list[int]) -> None:
    """Also when the number of hosts changes from step to step."""
    plan = Plan([fields(1500)], seed=2, rows_per_step=8, recipe=REFERENCE)
    views = []
    for step in range(int(np.ceil(2 * plan.steps_per_epoch("fields"))) + 1):
        count = hosts[step % len(hosts)]
        for host in range(count):
            views += host_share(plan, step, host, count)
    for epoch in (0, 1):
        assert sorted(v.sample for v in views if v.epoch == epoch) == list(range(1500))


# -- mixture --------------------------------------------------------------------------------------------------------


def test_a_mixture_keeps_its_weights_in_every_block() -> None:
    plan = Plan([fields(weight=1.0), coasts(weight=3.0)], seed=4, rows_per_step=4, recipe=REFERENCE)
    names = [plan.corpus(step) for step in range(2 * MIXTURE_BLOCK)]
    for block in (names[:MIXTURE_BLOCK], names[MIXTURE_BLOCK:]):
        assert Counter(block) == {"fields": 256, "coasts": 768}
    assert names[:MIXTURE_BLOCK] != names[MIXTURE_BLOCK:]
    longest = max(len(run) for run in "".join(name[0] for name in names).split("f"))
    assert 3 < longest <= 8  # neither alternating nor in long runs


@pytest.mark.parametrize("seed", range(5))
def test_a_mixture_meets_every_corpus_at_once(seed: int) -> None:
    shores = PlannedCorpus(dataclasses.replace(COASTS, name="shores"), 1200, COASTS_GSDS)
    plan = Plan([fields(), coasts(), shores], seed=seed, rows_per_step=4, recipe=REFERENCE)
    names = [plan.corpus(step) for step in range(2 * MIXTURE_BLOCK)]
    assert set(names[:4]) == {"fields", "coasts", "shores"}
    assert all(len(set(names[at : at + 7])) == 3 for at in range(len(names) - 7))


def test_a_mixture_covers_each_corpus_once_per_epoch() -> None:
    plan = Plan([fields(), coasts(weight=2.5)], seed=4, rows_per_step=20, recipe=REFERENCE)
    found: dict[tuple[str, int], list[int]] = {}
    enough = 3.5 * max(plan.steps_per_epoch("fields"), plan.steps_per_epoch("coasts") / 2.5)
    for step in range(int(1.2 * enough)):
        rows = plan.rows(step)
        assert plan.epoch(step) == rows[0][0].epoch
        for view in (view for row in rows for view in row):
            assert view.corpus == plan.corpus(step)
            found.setdefault((view.corpus, view.epoch), []).append(view.sample)
    assert sorted(found["fields", 0]) == list(range(1100))
    assert sorted(found["coasts", 0]) == list(range(1200))


def test_a_corpus_can_have_its_own_rows_per_step() -> None:
    plan = Plan([fields(), coasts(rows_per_step=2)], seed=4, rows_per_step=4, recipe=REFERENCE)
    assert {len(plan.rows(step)) for step in range(30) if plan.corpus(step) == "coasts"} == {2}
    assert plan.capacity("fields").rows == 4
    assert set(plan.summary()["corpora"]) == {"fields", "coasts"}


# -- the paper's draw -----------------------------------------------------------------------------------------------


def test_per_step_draws_share_gsd_and_modalities() -> None:
    plan = Plan([fields(101, row_length=2 * 257)], seed=6, rows_per_step=4, recipe=REFERENCE, draw="per_step")
    capacity = plan.capacity("fields")
    assert capacity.views == 2
    assert set(capacity.slots) == {2}
    seen = []
    draws = set()
    for step in range(50):
        rows = plan.rows(step)
        assert_within(plan, "fields", rows)
        assert {len(row) for row in rows} == {2}
        assert len({(v.target_gsd, v.modalities) for row in rows for v in row}) == 1
        draws.add((rows[0][0].target_gsd, rows[0][0].modalities))
        seen += [(v.epoch, v.sample) for row in rows for v in row]
    for epoch in (0, 1, 2):
        assert sorted(sample for e, sample in seen if e == epoch) == list(range(101))
    assert len(draws) > 30
    assert 0 < plan.real_token_share("fields")["decoder"] < 0.7


def test_per_step_lists_are_shorter_when_only_visible_tokens_are_projected() -> None:
    spec, gsds = PAPER["flairhub"]
    corpus = PlannedCorpus(spec, 1000, gsds)
    every, visible = (
        Plan([corpus], seed=6, rows_per_step=4, recipe=recipe, draw="per_step").capacity("flairhub")
        for recipe in (REFERENCE, FIXED)
    )
    assert every.encoder_tokens == (1156,) * 4
    assert max(visible.encoder_tokens) < 400
    assert min(visible.encoder_tokens) >= visible_count(1156, 0.75)


# -- what a view's key decides --------------------------------------------------------------------------------------


def test_noise_and_dates_follow_the_key_alone() -> None:
    plan = Plan([fields()], seed=1, rows_per_step=4, recipe=REFERENCE)
    one, other = plan.rows(0)[0][:2]
    np.testing.assert_array_equal(noise(one, 50)[:20], noise(one, 20))
    assert (noise(one, 50) != noise(other, 50)).all()
    dates = kept_dates(one, "s2", 20, 0.3, 100)
    assert len(dates) == 14  # int(20 * 0.7)
    assert (np.diff(dates) > 0).all()  # chronological
    assert kept_dates(one, "s2", 20, 0.3, 5).tolist() == kept_dates(one, "s2", 20, 0.3, 5).tolist()
    assert len(kept_dates(one, "s2", 20, 0.3, 5)) == 5
    assert kept_dates(one, "s2", 1, 0.9, 5).tolist() == [0]  # at least one
    assert kept_dates(one, "s2", 3, 0.0, 5).tolist() == [0, 1, 2]
    counts = np.bincount(
        np.concatenate(
            [kept_dates(v, "s2", 10, 0.5, 10) for s in range(40) for row in plan.rows(s) for v in row]
        ),
        minlength=10,
    )
    assert counts.min() > 0.8 * counts.mean()  # every date is kept as often


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corpora", "options", "sentence"),
    [
        (
            [fields(row_length=200)],
            {},
            "corpus fields: a sample at target GSD 2 m takes 257 tokens, the row length is 200; use row_length 320",
        ),
        (
            [fields(row_length=200)],
            {"draw": "per_step"},
            "takes 257 tokens, the row length is 200; use row_length 257",
        ),
        ([fields(row_length=400)], {"views_per_sample": 2}, "takes 514 tokens"),
        ([fields(), fields()], {}, "different names"),
        ([], {}, "at least one corpus"),
        ([fields(weight=0.0)], {}, "weights must be positive"),
        ([fields(weight=1e-5), coasts()], {}, "the weight of corpus fields is below 1/1024"),
        ([fields(0)], {}, "corpus fields has no sample"),
        ([PlannedCorpus(FIELDS, 10, ())], {}, "no target GSD"),
        ([PlannedCorpus(FIELDS, 10, (17.0,))], {}, "target GSD 17 m leaves an empty grid"),
        ([fields(temporal_dropout={"s3": 0.3})], {}, "temporal_dropout names 's3'"),
        ([fields(temporal_dropout={"s2": 1.0})], {}, "expected 0 <= share < 1"),
        ([fields(max_dates={"s2": 0})], {}, "max_dates of s2 is 0"),
        (
            [fields()],
            {"draw": "per_row"},
            "draw: unknown value 'per_row'; choose one of per_sample, per_step",
        ),
        ([fields()], {"rows_per_step": 0}, "rows_per_step and views_per_sample are at least 1"),
        ([fields()], {"draw": "per_step", "views_per_sample": 2}, "views_per_sample needs draw: per_sample"),
    ],
)
def test_impossible_plans_are_refused_in_a_sentence(corpora, options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")) as caught:
        Plan(corpora, **{"seed": 1, "rows_per_step": 4, "recipe": REFERENCE, **options})
    assert "\n" not in str(caught.value)


def test_an_unknown_corpus_is_named_with_its_neighbour() -> None:
    with pytest.raises(UserError, match="fields"):
        Plan([fields()], seed=1, rows_per_step=4, recipe=REFERENCE).capacity("field")


def test_max_dates_bound_the_capacity() -> None:
    plan = Plan([fields(max_dates={"s2": 2})], seed=1, rows_per_step=4, recipe=REFERENCE)
    assert plan.capacity("fields").dates == (1, 1, 4, 2)


def test_a_single_view_geometry_works() -> None:
    one = dataclasses.replace(FIELDS, modalities=FIELDS.modalities[:1])
    plan = Plan(
        [PlannedCorpus(one, 1100, (16.0,))], seed=1, rows_per_step=1, recipe=REFERENCE
    )  # one token per view
    rows = rows_of_epoch(plan, "fields", 0)
    assert_within(plan, "fields", rows)
    assert sorted(v.sample for row in rows for v in row) == list(range(1100))


@pytest.mark.parametrize("samples", [1, 7, 200, 1000])
def test_few_samples_fill_rows_and_meet_all_draws_over_several_epochs(samples: int) -> None:
    spec, gsds = PAPER["flairhub"]
    plan = Plan([PlannedCorpus(spec, samples, gsds)], seed=1, rows_per_step=1, recipe=REFERENCE)
    laps = -(-1024 // samples)
    rows = [plan.rows(step)[0] for step in range(round(laps * plan.steps_per_epoch("flairhub")))]
    assert_within(plan, "flairhub", rows)
    views = [view for row in rows for view in row]
    for epoch in range(laps):
        assert sorted(v.sample for v in views if v.epoch == epoch) == list(range(samples))
    assert {v.target_gsd for v in views} == set(gsds)
    assert len({v.key for v in views}) == len(views)
    assert min(plan.real_token_share("flairhub").values()) > 0.9
