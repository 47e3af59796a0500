"""What is read from compiled programs, the table of chips, the advice; wrong input. No TPU compiler is needed."""

import argparse
import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from ramen_jax import config as configuration
from ramen_jax.attention.splash import block_of
from ramen_jax.benchmarks import compile_check as engine
from ramen_jax.benchmarks import hlo
from ramen_jax.console import UserError
from ramen_jax.parallel import chips

# The text of a compiled module: a loop of three rounds that gathers a layer, and one sum of bfloat16 gradients.
MODULE = """HloModule example, num_partitions=8

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  ROOT %s = bf16[] add(%a, bf16[] %b)
}

%cut (stack: f32[3,16,8], place: s32[]) -> f32[1,16,8] {
  %stack = f32[3,16,8]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  ROOT %piece = f32[1,16,8]{2,1,0} dynamic-slice(%stack, %place), dynamic_slice_sizes={1,16,8}
}

%body (carry: (s32[], f32[3,16,8])) -> (s32[], f32[3,16,8]) {
  %carry = (s32[], f32[3,16,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %w = f32[3,16,8]{2,1,0} get-tuple-element(%carry), index=1
  %layer = f32[1,16,8]{2,1,0} fusion(%w, %i), kind=kLoop, calls=%cut
  %begun = (f32[1,16,8]{2,1,0}, f32[8,16,8]{2,1,0}) all-gather-start(%layer), replica_groups=[1,8]<=[8], dimensions={0}
  %whole = f32[8,16,8]{2,1,0} all-gather-done(%begun)
  ROOT %next = (s32[], f32[3,16,8]{2,1,0}) tuple(%i, %w)
}

%condition (carry.1: (s32[], f32[3,16,8])) -> pred[] {
  %carry.1 = (s32[], f32[3,16,8]{2,1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (w.1: f32[3,16,8], g: bf16[64]) -> bf16[64] {
  %w.1 = f32[3,16,8]{2,1,0} parameter(0)
  %g = bf16[64]{0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[3,16,8]{2,1,0}) tuple(%zero, %w.1)
  %loop = (s32[], /*index=1*/f32[3,16,8]{2,1,0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %near = bf16[64]{0:T(256)S(1)} copy(%g)
  ROOT %sum = bf16[64]{0} all-reduce(%near), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    """(Mutants: the trip count left out; the operand of an asynchronous gather counted for its result.)"""
    work = hlo.read(MODULE)
    gathered, summed = work.collectives["all-gather", "f32"], work.collectives["all-reduce", "bf16"]
    assert set(work.collectives) == {("all-gather", "f32"), ("all-reduce", "bf16")}
    assert (gathered.count, gathered.bytes) == (3, 3 * 8 * 16 * 8 * 4)
    assert gathered.sent == 3 * 7 * 16 * 8 * 4
    assert (summed.count, summed.bytes, summed.sent) == (1, 128, 128 * 2 * 3 / 4)
    assert work.of_kind("all-gather").count == 3


def test_traffic_is_that_of_the_layer_and_not_of_the_stack_it_is_cut_from():
    """(Mutants: on-chip arrays counted as device memory; all three layers counted in each round.)"""
    layer = 16 * 8 * 4
    rounds = 3 * (layer + layer + 4 + 2 * layer)  # cut: written, read, place; gather: begun
    assert hlo.read(MODULE).traffic == rounds + 128 + 128  # copy reads 64 bfloat16; the sum writes as many


# The same as a TPU's compiler writes it: rounds in the condition alone, groups by axes of the mesh, slices in flight.
TPU_MODULE = """HloModule example, num_partitions=8

%body (carry: (s32[], bf16[4,64])) -> (s32[], bf16[4,64]) {
  %carry = (s32[], bf16[4,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = bf16[4,64]{1,0} get-tuple-element(%carry), index=1
  %names = bf16[4,64]{1,0} custom-call(%x), custom_call_target="ConcatBitcast"
  %begun = ((bf16[4,64]{1,0}), bf16[1,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%names), slice={[0:1], [0:64]}
  %near = bf16[1,64]{1,0:S(1)} slice-done(%begun)
  %sum = bf16[1,64]{1,0:S(1)} all-reduce(%near), replica_groups=mesh['data'=2,'tensor'=4] {'tensor'}, to_apply=%add
  ROOT %next = (s32[], bf16[4,64]{1,0}) tuple(%i, %x)
}

%condition (carry.1: (s32[], bf16[4,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %carry.1 = (s32[], bf16[4,64]{1,0}) parameter(0)
  %now = s32[] get-tuple-element(%carry.1), index=0
  ROOT %go = pred[] compare(%now, %limit), direction=LT
}

ENTRY %main (start: (s32[], bf16[4,64])) -> (s32[], bf16[4,64]) {
  %start = (s32[], bf16[4,64]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[4,64]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_loops_groups_and_moves_are_read_as_a_tpu_compiler_writes_them():
    """(Mutants: one round; a group of two devices; a slice counted as the array it is cut from.)"""
    work = hlo.read(TPU_MODULE)
    summed = work.collectives["all-reduce", "bf16"]
    assert (summed.count, summed.repeated, work.rounds) == (12, 12, 12)
    assert summed.sent == 12 * 128 * 2 * 3 / 4
    # The slice is read from device memory, its copy lies on the chip; the condition compares two numbers.
    assert work.traffic == 12 * (128 + 4 + 4 + 1)


# A gather that goes on beside two fusions, a sum of which each device keeps a part, a gather on a SparseCore.
ASYNC_MODULE = """HloModule example, num_partitions=4

%begin (part: f32[2,8]) -> (f32[2,8], f32[8,8]) {
  %part = f32[2,8]{1,0} parameter(0)
  %gather.0 = f32[8,8]{1,0} all-gather(%part), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %begun = (f32[2,8]{1,0}, f32[8,8]{1,0}) custom-call(%gather.0), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (part.1: f32[2,8], whole.1: f32[8,8], x: f32[16]) -> (f32[16], f32[2,8], f32[8,8]) {
  %part.1 = f32[2,8]{1,0} parameter(0)
  %whole.1 = f32[8,8]{1,0} parameter(1)
  %x = f32[16]{0} parameter(2)
  %gather.1 = f32[8,8]{1,0} all-gather(%part.1), replica_groups=[1,4]<=[4], dimensions={0}
  %y = f32[16]{0} negate(%x)
  ROOT %both = (f32[16]{0}, f32[2,8]{1,0}, f32[8,8]{1,0}) tuple(%y, %part.1, %gather.1)
}

%end (part.2: f32[2,8], whole.2: f32[8,8]) -> f32[8,8] {
  %part.2 = f32[2,8]{1,0} parameter(0)
  %whole.2 = f32[8,8]{1,0} parameter(1)
  %gather.2 = f32[8,8]{1,0} all-gather(%part.2), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %ended = f32[8,8]{1,0} custom-call(%whole.2, %gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (g: f32[8,8]) -> f32[2,8] {
  %g = f32[8,8]{1,0} parameter(0)
  %sum = f32[8,8]{1,0} all-reduce(%g), replica_groups=[1,4]<=[4], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %cut = f32[2,8]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={2,8}
}

ENTRY %main (w: f32[2,8], v: f32[16], t: f32[1000,8], i: s32[4]) -> f32[2,8] {
  %w = f32[2,8]{1,0} parameter(0)
  %v = f32[16]{0} parameter(1)
  %t = f32[1000,8]{1,0} parameter(2)
  %i = s32[4]{0} parameter(3)
  %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) fusion(%w), kind=kCustom, calls=%begin
  %a = f32[2,8]{1,0} get-tuple-element(%start), index=0
  %b = f32[8,8]{1,0} get-tuple-element(%start), index=1
  %beside = (f32[16]{0}, f32[2,8]{1,0}, f32[8,8]{1,0}) fusion(%a, %b, %v), kind=kLoop, calls=%async_collective_fusion.1
  %whole = f32[8,8]{1,0} fusion(%a, %b), kind=kCustom, calls=%end
  %rare = ((), (), s32[1]) async-start(), calls=%rows
  %more = ((f32[1000,8], s32[4]), f32[4,8]{1,0}, s32[1]) async-update(%rare, %t, %i)
  %picked = f32[4,8]{1,0} async-done(%more)
  ROOT %kept = f32[2,8]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
}

%rows (t.1: f32[1000,8], i.1: s32[4]) -> f32[4,8] {
  %t.1 = f32[1000,8]{1,0} parameter(0)
  %i.1 = s32[4]{0} parameter(1)
  ROOT %found = f32[4,8]{1,0} custom-call(%t.1, %i.1), custom_call_target="sparse"
}
"""


def test_a_collective_that_goes_on_beside_others_is_counted_once():
    """(Mutants: counted in each of the three fusions; what a fusion hands on counted as traffic; a sum of which each
    keeps a part counted as a whole sum; all rows counted that a SparseCore picks from.)"""
    work = hlo.read(ASYNC_MODULE)
    gathered, cut = work.of_kind("all-gather"), work.of_kind("reduce-scatter")
    assert set(work.collectives) == {("all-gather", "f32"), ("reduce-scatter", "f32")}
    assert (gathered.count, gathered.bytes, gathered.sent) == (1, 256, 192)
    assert (cut.count, cut.bytes, cut.sent) == (1, 256, 192)
    begun, beside, ended, picked, kept = 64 + 64 + 256, 64 + 64, 0, 2 * 128, 256 + 64
    assert work.traffic == begun + beside + ended + picked + kept


def test_a_program_is_read_as_its_compiler_writes_it():
    """Not by way of jaxlib, which does not understand all that a TPU's compiler makes."""
    lowered = jax.jit(lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x)).lower(jax.numpy.ones((8, 8)))
    compiled, text = engine.compile_to_text(lowered)
    assert hlo.read(text).rounds == 7
    assert compiled.memory_analysis() is not None


def test_a_narrow_array_is_moved_in_whole_tiles():
    """Heads of 32 in bfloat16: 4 of 100 x 32 take 4 x 104 x 128; with tokens innermost 4 x 32 x 128.

    (Mutants: the values alone; tiles of the last axes whatever the order of the layout.)
    """
    module = """
ENTRY %main (q: bf16[4,100,32]) -> bf16[4,100,32] {
  %q = bf16[4,100,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %turned = bf16[4,100,32]{1,2,0:T(8,128)(2,1)} copy(%q)
}
"""
    assert hlo.read(module).traffic == 2 * 4 * (104 * 128 + 32 * 128)


def test_pairs_are_those_of_views_and_work_is_that_of_blocks():
    """Two rows of 1,024 tokens in blocks of 512: one view over all; two views, each a block, one shorter by 12.

    (Mutant: pairs of the whole row for the second.)
    """
    rows = [[1024], [500, 512]]
    assert engine.real_pairs(rows) == (1024**2 + 500**2 + 512**2) / 2
    assert block_of(1024) == 512
    # The second view begins in the first block: all four blocks meet in both rows.
    assert engine.visited_pairs(rows, 1024) == 1024**2
    assert engine.visited_pairs([[512, 512]], 1024) == 2 * 512**2


def test_text_that_is_no_module_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.read("nothing")


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ramen_jax.benchmarks import hlo

mesh = jax.make_mesh((8,), ("data",))
split, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("data", None))
def loss(w, x):
    return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
gradient = jax.jit(jax.grad(loss), in_shardings=(whole, split), out_shardings=whole)
work = hlo.read(gradient.lower(jnp.ones((5, 16, 16)), jnp.ones((32, 16))).compile().as_text())
print(work.of_kind("all-reduce").bytes, work.of_kind("all-gather").count)
"""


def test_a_data_parallel_gradient_is_summed_once_over_eight_devices(repository):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(5 * 16 * 16 * 4.0), "0"]  # whether per layer or all together


def test_known_slices():
    slice_ = chips.topology("v5p:8x8x16")
    assert (slice_.chips, slice_.chip.name) == (1024, "v5p")
    for name, chip in chips.CHIPS.items():
        assert name == chip.name
        assert all(shape.count("x") == chip.axes - 1 for shape in chip.topologies)
        assert 16 * 2**30 <= chip.memory <= 95 * 2**30
        assert 100 < chip.flops / chip.bandwidth < 700  # operations per byte, of every generation


@pytest.mark.parametrize("text", ["v5e:4x5", "v5e", "v7:4x4", "v5e:4x4x4", ""])
def test_an_unknown_topology_lists_the_known(text):
    with pytest.raises(UserError, match=r"unknown --topology .*v5e:\{2x2,.*16x16\}") as caught:
        chips.topology(text)
    assert caught.value.code == 2


@pytest.mark.parametrize("text", ["0", "4,", "four", "-1", "4;8"])
def test_rows_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=r"--rows is .*expected rows per chip"):
        engine.rows_asked(text)
    assert engine.rows_asked("4,8") == [4, 8]


def test_rows_follow_the_chips(monkeypatch, repository, capsys):
    """64 rows do not divide over 256 chips: each gets one, and that is told. (Mutant: a refusal.)"""
    shape = {"data": 128, "fsdp": 2, "tensor": 1}
    monkeypatch.setattr(engine, "make_mesh", lambda *_: SimpleNamespace(shape=shape))
    path = f"{repository}/configs/base.py"
    config = configuration.load(path)
    assert engine.with_rows(path, [], config, 0, []).data.rows_per_step == 256
    assert "256 chips hold rows: config.data.rows_per_step=256" in capsys.readouterr().out
    assert engine.with_rows(path, [], config, 4, []).data.rows_per_step == 1024
    several = configuration.load(f"{repository}/configs/pod_h100_16.py")
    found = engine.with_rows(f"{repository}/configs/pod_h100_16.py", [], several, 2, [])
    assert {entry.rows_per_step for entry in found.corpora} == {512}


def test_a_corpus_that_the_configuration_lacks_is_refused(repository):
    path = f"{repository}/configs/base.py"
    arguments = argparse.Namespace(topology="v5e:2x2", rows="", corpus="flairhb", config=path)
    with pytest.raises(UserError, match=r'flairhb.*did you mean "flairhub"'):
        engine.run(configuration.load(path), arguments, [])


def test_what_the_compiler_found_no_room_for_does_not_fit_though_it_be_less_than_the_chip_has():
    """A v5e leaves programs 15.75 of its 16 GiB. (Mutant: only the peak is compared.)"""
    chip = chips.CHIPS["v5e"]
    found = engine.Check("flairhub", 4, 1.0, 2.0, None, 15.9 * 2**30, 1.0, 1.0, None)
    assert not found.fits(chip)
    assert dataclasses.replace(found, work=hlo.Work()).fits(chip)
    assert "does not fit" in engine.summary([found], chip)


def test_the_bound_is_the_slowest_part_and_mfu_counts_the_models_operations_alone():
    """(Mutant: what is recomputed counts as utilisation.)"""
    chip = chips.CHIPS["v5e"]
    work = hlo.Work(traffic=chip.bandwidth * 0.1)
    found = engine.Check("flairhub", 4, 1.0, 2.0, 1.0, 1.0, chip.flops * 0.1, chip.flops * 0.2, work)
    assert found.bound(chip) == "arithmetic"
    assert found.mfu(chip) == pytest.approx(0.5)


def test_the_compilers_complaint_tells_what_was_needed():
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    assert engine.needed(text + "Used 20.5G of 15.75G hbm. Exceeded by 4.75G.") == 20.5 * 2**30
    assert engine.needed("INTERNAL: something else") is None


@pytest.mark.parametrize(
    ("parameters", "optimizer", "peak", "overrides", "expected"),
    [
        (4.0, 8.0, 20.0, (), "--config.sharding.fsdp=-1"),
        (1.0, 2.0, 20.0, (), "--config.model.dtype=bfloat16"),
        (1.0, 2.0, 40.0, ("model.dtype=bfloat16", "model.remat=dots"), "--config.model.remat=full"),
        (1.0, 2.0, 40.0, ("model.dtype=bfloat16",), "--config.optimizer.accumulate=4"),
        (
            1.0,
            2.0,
            90.0,
            ("model.dtype=bfloat16", "sharding.data=1", "sharding.fsdp=-1"),
            "chips with more memory: v5p",
        ),
    ],
)
def test_advice_is_the_cheapest_change(repository, parameters, optimizer, peak, overrides, expected):
    """On a chip of 16 GiB, four rows. (Mutant: micro-batches that would not fit either.)"""
    config = configuration.load(f"{repository}/configs/base.py", overrides)
    found = engine.Check(
        "flairhub", 4, *(2**30 * x for x in (parameters, optimizer)), None, peak * 2**30, 1.0, 1.0, None
    )
    if parameters + optimizer < 8 and "chips" in expected:
        found = dataclasses.replace(found, rows=1)
    assert expected in engine.advice(found, chips.CHIPS["v5e"], config)
    assert any(expected in line for line in engine.table(found, chips.CHIPS["v5e"], config))
