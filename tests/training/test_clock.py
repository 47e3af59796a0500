"""Where time goes and what it gets done: the clock, the algebra of the blocks, profiles."""

import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.model import flops
from ramen_jax.model.architecture import Architecture
from ramen_jax.parallel.chips import CHIPS, peak_flops
from ramen_jax.training import checkpoint, clock, loop, metrics, profile
from ramen_jax.training.clock import Clock
from tests.training import toy


@pytest.fixture
def now(monkeypatch):
    time = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: time[0])
    return time


def test_every_second_is_in_one_place_and_survives_an_interruption(now):
    """(Mutants: waiting counted as a step too; what an earlier process spent is forgotten.)"""
    first = Clock(8, "TPU v5 lite", began=90.0)
    first.pause("start")
    for kind in ("evaluation", "save"):
        now[0] += 7.0
        first.tick(1, 1, 1)
        now[0] += 2.0
        first.pause(kind)
    second = Clock(8, "TPU v5 lite", first.saved(), began=now[0])

    def slow_batches():
        now[0] += 4.0
        yield "batch"

    for _ in second.waiting(slow_batches()):
        now[0] += 3.0
        second.tick(1, 1, 1)
    assert second.seconds == {"step": 17, "data": 4, "save": 2, "evaluation": 2, "start": 10, "lost": 0}
    assert second.goodput() == 17 / 35
    assert "49% steps, 11% waiting for data" in second.summary()
    assert second.core_seconds == {"TPU v5 lite": 8 * 21}


def test_rates_are_those_of_real_tokens_and_of_the_hardware(now):
    """Half of the tokens are padding: it counts for nothing in the MFU."""
    fast = Clock(4, "TPU v5 lite")
    for _ in range(5):
        now[0] += 2.0
        fast.tick(views=3, tokens=1000, padded=2000, flops=4 * 197e12)
    rates = fast.rates()
    assert (rates["tokens_per_second"], rates["padded_tokens_per_second"]) == (500, 1000)
    assert rates["tokens_per_second_per_device"] == 125
    assert (rates["mfu"], rates["tflops_per_device"]) == (0.5, 98.5)
    assert "50% MFU" in fast.line(1.0)


def test_a_processor_has_no_peak_and_hence_no_mfu(now):
    slow = Clock(1, "cpu")
    for _ in range(5):
        now[0] += 1.0
        slow.tick(1, 1, 1, flops=1e9)
    assert "mfu" not in slow.rates()
    assert slow.rates()["tflops_per_device"] == 1e-3


def test_peaks_are_found_by_the_names_that_jax_gives():
    """(Mutant: the shortest beginning that fits, which takes a v5e for a v5p.)"""
    assert peak_flops("TPU v5 lite") == CHIPS["v5e"].flops
    assert peak_flops("TPU v5") == CHIPS["v5p"].flops
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("cpu") is None


def test_blocks_cost_what_the_algebra_says():
    """Two views of 3 and 5 tokens and padding, written out. (Mutants: padding counted; pairs of the whole row.)"""
    sizes = Architecture(embed_dim=32, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1)
    encoder = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
    block = 2 * 8 * (4 * 32**2 + 2 * 32 * 128) + 4 * 32 * (9 + 25)
    assert flops.of_training(sizes, encoder, np.zeros((1, 4), int)) == 3 * 2 * block


def test_a_run_tells_where_its_time_went_and_how_often_it_compiled(tmp_path, capsys):
    loop.run(toy.job(toy.config("train.stop_at=10")), tmp_path)
    assert "compilations in this process" in capsys.readouterr().out
    line = metrics.read(tmp_path)[-1]
    assert 0 < line["goodput"] < 1
    spent = checkpoint.load(tmp_path).meta["clock"]["seconds"]
    assert spent["step"] > 0
    assert spent["start"] > 0


def test_steps_that_were_lost_count_against_the_goodput(tmp_path):
    """Seven steps were done after the last save. (Mutant: the lines are dropped and their time with them.)"""
    loop.run(toy.job(toy.config("train.stop_at=10")), tmp_path)
    with (tmp_path / metrics.FILE).open("a") as file:
        file.writelines(f'{{"step": {step}, "loss": 1.0, "step_seconds": 2.0}}\n' for step in range(10, 17))
    loop.run(toy.job(toy.config("train.stop_at=20")), tmp_path)
    assert checkpoint.load(tmp_path).meta["clock"]["seconds"]["lost"] == pytest.approx(14.0)


def test_a_profile_beyond_the_run_is_refused_in_one_line(tmp_path):
    settings = toy.config("logging.profile_steps=20:25", "train.stop_at=24")
    with pytest.raises(UserError, match=r"'20:25', but the run ends after step 24; .*END at most 24"):
        loop.run(toy.job(settings), tmp_path)
    profile.require_within("20:25", 25)
    profile.require_within("", 0)
