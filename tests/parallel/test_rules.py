"""Which axis of a parameter lies where: fallback, what stays whole, what is refused. Shapes only."""

from types import SimpleNamespace

import jax
import pytest

from ramen_jax import config as configuration
from ramen_jax.console import UserError
from ramen_jax.parallel import rules
from ramen_jax.training import experiment

STORAGE = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "layers": ""}


def sizes(data: int = 1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    ("shape", "names", "mesh", "expected"),
    [
        ((8, 6), ("embed", "mlp"), sizes(fsdp=4, tensor=2), (("fsdp", "tensor"), ())),
        ((6, 8), ("embed", "mlp"), sizes(fsdp=4), ((None, "fsdp"), ())),  # falls back
        (
            (8, 6, 10),
            ("layers", "embed", "mlp"),
            sizes(fsdp=4),
            (("fsdp", None, None), ()),
        ),  # layers, for want of others
        ((8, 6, 16), ("layers", "embed", "mlp"), sizes(fsdp=4), ((None, None, "fsdp"), ())),
        ((6, 10), ("embed", "mlp"), sizes(fsdp=4), ((None, None), ("fsdp",))),
        ((6, 8), ("embed", "mlp"), sizes(fsdp=4, tensor=2), ((None, "tensor"), ("fsdp",))),
        ((6, 8), (None, None), sizes(fsdp=2), ((None, None), ())),  # never meant to be split
        ((6,), ("embed",), sizes(), ((None,), ())),
    ],
)
def test_an_axis_that_does_not_divide_gives_way_to_the_next(shape, names, mesh, expected):
    """(Mutants: no fallback; the stacked layers first; an axis split twice.)"""
    assert rules.layout(shape, names, STORAGE, mesh, fall_back=True) == expected


def test_without_fallback_nothing_else_is_split():
    assert rules.layout((6, 8), ("embed", "mlp"), STORAGE, sizes(fsdp=4)) == ((None, None), ("fsdp",))


@pytest.fixture(scope="module")
def huge(repository):
    config = configuration.load(f"{repository}/configs/huge.py")
    return experiment.ramen(config).shapes[0]


def test_huge_is_split_on_256_devices_and_refused_on_512_with_what_would_do(huge):
    """Width 1280 is no multiple of 512. (Mutant: silence, 95 % of the parameters whole on each of 512 devices.)"""
    assert rules.kept_whole(huge, sizes(fsdp=256), STORAGE, rules.logical_axes).share < 0.02
    mesh = SimpleNamespace(shape=sizes(fsdp=512))
    with pytest.raises(
        UserError, match=r"keeps \d+% .* config\.sharding\.fsdp = 256 with config\.sharding\.data = 2"
    ):
        rules.refuse_whole(huge, mesh, STORAGE, rules.logical_axes)


def test_what_stays_whole_is_named_largest_first():
    tree = {
        "encoder": {"cls_token": jax.ShapeDtypeStruct((6,), "float32")},  # a vector, never meant to be split
        "b": {"mlp_outer": {"kernel": jax.ShapeDtypeStruct((6, 3), "float32")}},
        "decoder": {"embed": {"kernel": jax.ShapeDtypeStruct((6, 10), "float32")}},
        "a": {"mlp_inner": {"kernel": jax.ShapeDtypeStruct((8, 66), "float32")}},
    }
    found = rules.kept_whole(tree, sizes(fsdp=4), STORAGE, rules.logical_axes)
    assert found.names == ("decoder/embed/kernel", "b/mlp_outer/kernel")
    assert found.share == pytest.approx((60 + 18) / (60 + 18 + 528))
    assert (
        rules.refuse_whole(tree, SimpleNamespace(shape=sizes(fsdp=4)), STORAGE, rules.logical_axes) == found
    )
