"""What the devices of a mesh tell each other in the real step, read from the compiled programs of eight."""

import json
import os
import subprocess
import sys

import pytest

from tests.parallel.sharded import DEPTHS

LAYERS = sum(DEPTHS.values())
KERNELS = 4  # of a block
WIDTHS = (64, 32)  # of the towers of tests.parallel.sharded
BYTES = 4


def run(repository, *arguments, devices=8):
    """The lines that tests.parallel.sharded prints, in a process of its own."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.parallel.sharded", *arguments],
        cwd=repository,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in ("{", "[")]


@pytest.fixture(scope="module")
def steps(repository):
    reports = run(repository, "collectives", "data=8", "data=1,fsdp=8", "data=1,tensor=8")
    return {report["mesh"]: report for report in reports}


def test_a_data_parallel_step_sums_gradients_and_gathers_nothing(steps):
    """Gradients, losses and counts are summed, once each; rows stay where they are. Gradients are summed in float32.

    (Mutants: the decoder's scatter with row numbers in its index, which gathers the pixels of all rows; gradients of
    bfloat16 products summed in bfloat16.)
    """
    report = steps["data=8"]
    assert report["types"] == {"all_gather": [], "all_reduce": ["f32"], "reduce_scatter": []}
    assert set(report["kinds"]) == {"all-reduce"}
    summed, gradients = report["kinds"]["all-reduce"][2], BYTES * report["parameters"]
    assert 0 < summed < 1.1 * gradients + 4096  # parts for series have no gradient here


def test_fsdp_gathers_each_kernel_twice_and_scatters_its_gradient_once(steps):
    """Layer by layer, inside the loops over the layers: forward, backward, gradient. Kernels travel as they are
    multiplied, in bfloat16 where that is asked for, gradients in float32.

    (Mutants: all layers gathered before the loop, or in float32; gradients of kernels summed in bfloat16, or whole on
    every device and cut afterwards; those of what lies outside of the stacks cut before they are formed, which makes
    pieces travel.)
    """
    report = steps["data=1,fsdp=8"]
    assert set(report["kinds"]) == {"all-gather", "all-reduce", "reduce-scatter"}
    assert report["types"] == {"all_gather": ["bf16"], "all_reduce": ["f32"], "reduce_scatter": ["f32"]}
    gathered, scattered = report["kinds"]["all-gather"], report["kinds"]["reduce-scatter"]
    assert gathered[1] == 2 * KERNELS * LAYERS
    assert scattered[:2] == [KERNELS * LAYERS, KERNELS * LAYERS]
    assert scattered[2] == BYTES * report["kernels"]
    # Outside the loops: what is not in the stacks, once; never the stacks.
    outside = report["parameters"] - report["kernels"]
    assert gathered[2] <= BYTES * (2 * report["kernels"] + 2 * outside)


def test_tensor_parallelism_sums_twice_per_block_and_twice_backward(steps):
    """Results of `project` and `mlp_outer`, gradients of the inputs of `qkv` and `mlp_inner`; heads never travel.

    (Mutants: the forward sum done anew where a block is recomputed; qkv cut without regard to heads.)
    """
    report = steps["data=1,tensor=8"]
    summed = report["kinds"]["all-reduce"]
    assert summed[1] == 4 * LAYERS
    gathered = report["kinds"]["all-gather"]  # gradients of qkv's heads and of biases, which are stored whole
    assert gathered[1] <= 2 * LAYERS
    assert gathered[2] < BYTES * (report["kernels"] // 3)
    assert report["kinds"].get("collective-permute", [0, 0])[1] == 0
    assert "all-to-all" not in report["kinds"]
    activations = sum(
        4 * depth * tokens * width * BYTES
        for depth, tokens, width in zip(DEPTHS.values(), report["tokens"], WIDTHS, strict=True)
    )
    outside = report["parameters"] - report["kernels"]
    assert activations < summed[2] < activations + BYTES * outside


def test_a_device_does_the_same_among_eight_as_among_four(repository):
    """Bytes, rounds of loops and collectives at two rows of 1,153 tokens per device.

    (Mutant: blocks of attention cut from the rows of all devices together.)
    """
    four, eight = run(repository, "flatness")
    assert eight == pytest.approx(four, rel=1e-3)
    assert four[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_eight_devices_have_the_loss_and_gradients_of_one(repository, dtype, most):
    """At 1,153 tokens a row. Bfloat16: products of other shapes are rounded elsewhere; bounded, not equal.

    (Mutants: a gradient not summed over fsdp; heads of one device twice; the bias added before the sum over tensor.)
    """
    meshes = ("data=8", "data=1,fsdp=8", "data=1,fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")
    for report in run(repository, "compare", dtype, *meshes):
        assert report["length"] > 1024
        assert report["loss"] < most, report
        assert report["gradient"] < most, report
        if dtype == "float32":
            assert report["worst"][1] < most, report
