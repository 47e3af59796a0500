"""Meshes of devices that are not here: slices joined by the data-centre network, and what does not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.parallel.mesh import make_mesh, present
from ramen_jax.recipe import REFERENCE
from tests.training import toy


@dataclasses.dataclass(frozen=True)
class Device:
    """Of a host of four, in a slice of two hosts, 4 x 2 chips."""

    id: int
    platform: str = "tpu"
    device_kind: str = "fake"
    core_on_chip: int = 0

    @property
    def coords(self):
        return self.id % 4, self.id // 4 % 2, 0

    @property
    def process_index(self):
        return self.id // 4

    @property
    def slice_index(self):
        return self.id // 8


def devices(count, platform="tpu"):
    return [Device(number, platform) for number in range(count)]


def mesh(count, *overrides, platform="tpu"):
    return make_mesh(toy.config(*overrides), devices(count, platform))


def slices_of(grid) -> np.ndarray:
    return np.vectorize(lambda device: device.slice_index)(grid)


def test_only_the_data_axis_leaves_a_slice():
    """(Mutant: a plain mesh, whose fsdp axis of 4 over 2 slices crosses the data-centre network at every layer.)"""
    found = mesh(16, "sharding.fsdp=4", "sharding.tensor=2")
    assert dict(found.shape) == {"data": 2, "fsdp": 4, "tensor": 2}
    assert (slices_of(found.devices) == np.arange(2)[:, None, None]).all()
    assert len(set(found.devices.ravel())) == 16


def test_another_axis_crosses_where_it_is_asked_for():
    found = mesh(16, "sharding.data=1", "sharding.fsdp=16", "sharding.across_slices=fsdp")
    assert (slices_of(found.devices).ravel() == np.repeat(np.arange(2), 8)).all()
    with pytest.raises(
        UserError, match=r"data = 1 cannot be split over 2 slices .*across_slices = 'fsdp' would do"
    ):
        mesh(16, "sharding.data=1", "sharding.fsdp=16")


def test_processes_are_slices_where_that_is_asked_for():
    """(Mutant: hosts with GPUs, which each call themselves a slice, are split as slices unasked.)"""
    found = mesh(16, "sharding.slices=4", "sharding.tensor=4", platform="gpu")
    assert [{device.process_index for device in row.ravel()} for row in found.devices] == [{0}, {1}, {2}, {3}]
    assert mesh(16, "sharding.data=1", "sharding.fsdp=16", platform="gpu").shape["fsdp"] == 16
    with pytest.raises(UserError, match=r"slices = 3, but the devices belong to 2 slices and 4 processes"):
        mesh(16, "sharding.slices=3")


@pytest.mark.parametrize(
    ("overrides", "would_do"),
    [
        (["sharding.data=3", "sharding.fsdp=4"], "data=2, fsdp=4, tensor=1"),
        (["sharding.fsdp=3"], "data=8, fsdp=1, tensor=1"),
        (["sharding.data=1", "sharding.fsdp=6", "sharding.tensor=4"], "data=1, fsdp=2, tensor=4"),
        (["sharding.fsdp=8", "sharding.tensor=4"], "data=1, fsdp=2, tensor=4"),
        (["sharding.fsdp=16"], "data=1, fsdp=8, tensor=1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told_with_one_that_does(overrides, would_do):
    with pytest.raises(UserError, match=f"there are 8 devices: .*{would_do}"):
        mesh(8, *overrides)
    settings = [f"sharding.{pair}" for pair in would_do.split(", ")]
    assert mesh(8, *settings).size == 8


def test_heads_that_the_tensor_axis_does_not_divide_are_told_with_a_number_that_does():
    """12 heads and 16. (Mutants: the encoder's alone; a divisor that another tower lacks.)"""
    model = Ramen(Architecture(), REFERENCE)
    with pytest.raises(UserError, match=r"12 .* and 16 .* do not divide .*tensor = 8 devices; 4 would"):
        model.on(mesh(8, "sharding.data=1", "sharding.tensor=8"))
    with pytest.raises(UserError, match=r"tensor = 3 devices; 2 would"):
        model.on(mesh(3, "sharding.data=1", "sharding.tensor=3"))
    assert model.on(mesh(8, "sharding.data=2", "sharding.tensor=4")).attention.backend == "splash"


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("no such backend"), "backend"), (AssertionError(), "plugin")]
)
def test_platforms_that_are_not_here_are_told(monkeypatch, error, told):
    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=rf"JAX_PLATFORMS is 'cuda': .*{told}"):
        present()


def test_an_unknown_axis_is_told():
    with pytest.raises(UserError, match=r"sharding\.across_slices.*'dat'"):
        toy.config("sharding.across_slices=dat")
    with pytest.raises(UserError, match=r"sharding\.storage\.embed.*'fsdb'"):
        toy.config("sharding.storage.embed=fsdb")
