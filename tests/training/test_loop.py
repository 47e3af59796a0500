"""The loop with a toy model: interrupted equals uninterrupted, and everything that stops or must not stop a run."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ramen_jax import config as configuration
from ramen_jax.console import UserError
from ramen_jax.training import checkpoint, checkpoint_files, loop, metrics
from ramen_jax.training.evaluators import LOSS, Validation
from tests.training import toy


def losses(workdir) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics.read(workdir) if "loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    outcome = loop.run(toy.job(), workdir)
    assert (outcome.step, outcome.complete) == (30, True)
    return losses(workdir)


def test_a_run_leaves_what_its_documentation_says(tmp_path, uninterrupted):
    assert [step for step, _ in uninterrupted] == list(range(30))
    assert uninterrupted[-1][1] < uninterrupted[0][1]
    config = toy.config("logging.tensorboard=true")
    loop.run(toy.job(config, steps=6), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "config.json",
        "runs.jsonl",
        "parameters.txt",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert json.loads((tmp_path / "config.json").read_text()) == configuration.plain(config)
    assert "total" in (tmp_path / "parameters.txt").read_text()
    facts = json.loads((tmp_path / "runs.jsonl").read_text())
    assert facts["device_kind"] == jax.devices()[0].device_kind
    assert (tmp_path / "step_toy.stablehlo.gz").stat().st_size > 0
    line = metrics.read(tmp_path)[-1]
    assert line["tokens"] == 24
    assert line["views"] == 8
    assert line["samples_per_second"] > 0


def test_stopping_and_resuming_changes_no_bit(tmp_path, uninterrupted):
    """Stopped between checkpoints by another process, with lines written after the checkpoint (as a kill leaves)."""
    loop.run(toy.job(toy.config("train.stop_at=7")), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 123.0}\n{"step": 8, "lo')
    outcome = loop.run(toy.job(), tmp_path)
    assert outcome.complete
    assert losses(tmp_path) == uninterrupted
    again = loop.run(toy.job(), tmp_path)
    assert again.complete
    assert losses(tmp_path) == uninterrupted


def test_core_seconds_survive_a_resume(tmp_path):
    spent = []
    for stop in (10, 20):
        loop.run(toy.job(toy.config(f"train.stop_at={stop}")), tmp_path)
        clock = checkpoint.load(tmp_path).meta["clock"]
        spent.append(clock["core_seconds"][jax.devices()[0].device_kind])
    assert 0 < spent[0] < spent[1]


def test_sigterm_saves_and_stops(tmp_path, uninterrupted):
    def with_signal(start):
        for batch in toy.batches(start):
            if batch.step == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    outcome = loop.run(toy.job()._replace(batches=with_signal), tmp_path)
    assert outcome.signalled
    assert not outcome.complete
    assert outcome.step in (12, 13)
    loop.run(toy.job(), tmp_path)
    assert losses(tmp_path) == uninterrupted


def test_a_loss_that_is_not_finite_changes_nothing_and_names_the_samples(tmp_path, uninterrupted):
    with pytest.raises(UserError, match=r"step 8 \(toy\).*place8_0.*skip_steps=8") as caught:
        loop.run(toy.job(broken=8), tmp_path)
    assert caught.value.code == 1
    report = json.loads((tmp_path / "not_finite_8_process0.json").read_text())
    assert report["samples"] == [f"place8_{row}" for row in range(8)]
    # The checkpoint is the state after step 7: with the sample repaired the run ends as one that never met it.
    assert (tmp_path / "checkpoints" / "8").is_dir()
    loop.run(toy.job(), tmp_path)
    assert losses(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("what", "overrides"),
    [("params", ("optimizer.learning_rate=1e38", "optimizer.warmup_share=0")), ("statistics", ())],
)
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, what, overrides):
    """The update's result is looked at, not only the loss before it. (Mutant: inf becomes the resume point.)"""

    class Spoiling(toy.ToyModel):
        def loss(self, params, statistics, rows, *arguments, train, **options):
            total, (losses, moved) = super().loss(
                params, statistics, rows, *arguments, train=train, **options
            )
            if what == "statistics":
                moved = {"mean": moved["mean"] + jnp.where(rows.values_RxD[0, 0] == spoilt, jnp.inf, 0.0)}
            return total, (losses, moved)

    spoilt = toy.rows_of(7).values_RxD[0, 0]
    job = toy.job(toy.config(*overrides, "checkpoint.every=1", "checkpoint.keep_latest=99"))
    job.program.model = Spoiling()
    with pytest.raises(UserError, match=r"not finite; the update was not applied"):
        loop.run(job, tmp_path)
    saved = checkpoint_files.find(tmp_path)
    if what == "statistics":
        assert saved.name == "7"
    for step in saved.parent.iterdir():
        loaded = checkpoint.load(step)
        for leaf in jax.tree.leaves((loaded.params, loaded.statistics)):
            assert np.isfinite(leaf).all(), step


def test_how_many_samples_were_left_out_is_said_at_the_end(tmp_path, capsys):
    loop.run(toy.job(bad=(3, 4)), tmp_path)
    assert "2 of 242 samples (0.8%) could not be used and were left out" in capsys.readouterr().out


def test_a_step_can_be_left_out(tmp_path):
    with pytest.raises(UserError):
        loop.run(toy.job(broken=8), tmp_path)
    outcome = loop.run(toy.job(toy.config("train.skip_steps=8"), broken=8), tmp_path)
    assert outcome.complete
    assert [step for step, _ in losses(tmp_path)] == [step for step in range(30) if step != 8]


def test_another_configuration_in_the_workdir_is_refused_with_the_difference(tmp_path):
    loop.run(toy.job(steps=2), tmp_path)
    with pytest.raises(UserError, match=r"optimizer\.beta1: 0\.9 -> 0\.8") as caught:
        loop.run(toy.job(toy.config("optimizer.beta1=0.8"), steps=2), tmp_path)
    assert caught.value.code == 2
    assert "checkpoint" not in str(caught.value)


def test_bad_samples_are_listed_and_too_many_stop_the_run(tmp_path):
    outcome = loop.run(toy.job(bad=(3, 4)), tmp_path / "few")
    assert outcome.complete
    listed = [json.loads(line) for line in (tmp_path / "few" / "bad_samples.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == ["lost3", "lost4"]
    with pytest.raises(
        UserError, match=r"samples \(.*%\) could not be used.*max_bad_share.*bad_samples\.jsonl"
    ):
        loop.run(toy.job(bad=tuple(range(30))), tmp_path / "many")


def validated(settings, steps: int, counts: tuple[int, ...]):
    """A job whose validation has one batch for each of these numbers of rows, the others being zeros."""

    def held_out():
        for number, count in enumerate(counts):
            batch = next(toy.batches(1000 + number))
            batch.rows.values_RxD[count:] = 0
            yield batch

    job = toy.job(settings, steps)
    return job._replace(evaluators=[Validation(job.program, settings.validation.every, held_out)])


def test_validation_runs_on_its_schedule_and_ranks_checkpoints(tmp_path):
    loop.run(validated(toy.config("validation.every=5"), 20, (8, 8)), tmp_path)
    found = {line["step"]: line[LOSS] for line in metrics.read(tmp_path) if LOSS in line}
    assert sorted(found) == [4, 9, 14, 19]
    ranked = json.loads((tmp_path / "checkpoints" / "20" / "metrics" / "metrics").read_text())
    assert ranked == {"loss": found[19]}


def test_the_validation_loss_is_a_sum_over_counts(tmp_path):
    """Two batches of unequal counts weigh as one of both. (Mutant: a mean of the batches' means.)"""

    class Counted(toy.ToyModel):
        def counts(self, rows):
            return {"s2": jnp.sum(jnp.any(rows.values_RxD != 0, axis=1)) * jnp.float32(toy.WIDTH)}

    job = validated(toy.config("validation.every=5"), 5, (8, 1))
    job.program.model = Counted()
    state = job.program.create_state()
    (evaluator,) = job.evaluators
    found = evaluator.run(state.params, state.statistics, 0)[LOSS]
    sums, values = 0.0, 0
    for number, count in enumerate((8, 1)):
        rows = toy.rows_of(1000 + number).values_RxD[:count]
        hidden = jax.nn.gelu(rows @ state.params["hidden"]["kernel"])
        sums += float(jnp.sum(jnp.square(hidden @ state.params["out"]["0"]["kernel"] - rows)))
        values += rows.size
    assert found == pytest.approx(sums / values, rel=1e-5)


def test_an_evaluator_cannot_change_the_training(tmp_path, uninterrupted):
    class Greedy:
        every = 4

        def run(self, params, statistics, step):
            jax.tree.map(lambda leaf: leaf + 1, params)
            return {"greedy/step": float(step)}

    assert loop.run(toy.job(evaluators=[Greedy()]), tmp_path).complete
    assert losses(tmp_path) == uninterrupted
    seen = [line["greedy/step"] for line in metrics.read(tmp_path) if "greedy/step" in line]
    assert seen == [4, 8, 12, 16, 20, 24, 28, 30]


def test_a_signal_saves_before_anything_is_measured(tmp_path):
    """SIGTERM leaves seconds: the save comes first, and validation not at all. (Mutant: all hooks run on STOP.)"""

    class Slow:
        every = 1000

        def run(self, params, statistics, step):
            raise AssertionError("measured although asked to stop")

    def with_signal(start):
        for batch in toy.batches(start):
            if batch.step == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    outcome = loop.run(toy.job(evaluators=[Slow()])._replace(batches=with_signal), tmp_path)
    assert outcome.signalled
    assert (tmp_path / "checkpoints" / str(outcome.step)).is_dir()


@pytest.mark.parametrize(
    ("stop", "problem", "step", "expected"),
    [
        (False, "", 3, loop.Decision.GO_ON),
        (True, "", 3, loop.Decision.STOP),
        (True, "", 9, loop.Decision.FINISH),
        (True, "a loss is not finite", 9, loop.Decision.FAIL),
    ],
)
def test_one_decision_per_step(stop, problem, step, expected):
    assert loop.decide(loop.Signs(stop, problem), step, end=9) is expected


def test_skipped_steps_do_not_detach_the_learning_rate(tmp_path):
    """The rate applied is the rate logged. (Mutant: the schedule counts updates instead of steps.)"""
    steps, skipped = 12, (2, 3, 4)
    overrides = (
        "optimizer.beta1=0",
        "optimizer.weight_decay=0",
        "optimizer.eps=1e-30",
        "optimizer.warmup_share=0.9",
    )
    options = [
        f"train.skip_steps={','.join(map(str, skipped))}",
        "checkpoint.every=1",
        "checkpoint.keep_latest=99",
    ]
    job = toy.job(toy.config(*overrides, *options), steps=steps)
    loop.run(job, tmp_path)
    logged = {line["step"]: line["learning_rate"] for line in metrics.read(tmp_path)}
    assert sorted(logged) == [step for step in range(steps) if step not in skipped]
    for step in (5, 8):  # right after the gap, and later: one update is the difference of two checkpoints
        before, after = (checkpoint.load(tmp_path / "checkpoints" / str(n)).params for n in (step, step + 1))
        moved = max(
            float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))
        )
        second = (
            1 - 0.999
        )  # Adam's first moment is the gradient; its update is at most rate / sqrt(share of it)
        assert logged[step] * 0.1 < moved < logged[step] / second**0.5


def test_a_profile_of_some_steps_is_written(tmp_path):
    loop.run(toy.job(toy.config("logging.profile_steps=2:4"), steps=5), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(UserError, match=r"profile_steps is 'all', expected two steps FIRST:END"):
        loop.run(toy.job(toy.config("logging.profile_steps=all"), steps=7), tmp_path / "other")


def test_a_process_that_left_a_corrupt_configuration_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable JSON"):
        loop.run(toy.job(), tmp_path)
