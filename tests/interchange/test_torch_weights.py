"""One key table, both ways: bit-identical round trips, and errors that list every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ramen_jax.interchange.torch_weights import from_official, key_table, prefixed, to_official
from tests.golden.replay import Folder
from tests.model.conftest import build

MAE = Path(__file__).parents[1] / "golden" / "mae"


def official() -> dict[str, np.ndarray]:
    with np.load(MAE / "weights.npz") as archive:
        return {name: archive[name] for name in archive.files}


def template() -> tuple[dict[str, Any], dict[str, Any]]:
    """The trees of the golden model, by its shapes."""
    return Folder(MAE).ramen.shapes


def test_import_then_export_is_bit_identical() -> None:
    tensors = official()
    tensors["encoder.ltae.mlp.1.num_batches_tracked"] = np.asarray(123456, np.int64)
    returned = to_official(*from_official(tensors, template()))
    assert set(returned) == set(tensors)
    for name, array in tensors.items():
        assert returned[name].dtype == array.dtype, name
        np.testing.assert_array_equal(returned[name], array, err_msg=name)


def test_every_parameter_of_ours_has_one_official_place() -> None:
    _, params, statistics = build()
    tensors = to_official(params, statistics)
    ours = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    theirs = sum(t.size for n, t in tensors.items() if "running_" not in n and "num_batches" not in n)
    assert ours == theirs
    assert len(tensors) == len(key_table(2, 1))


def test_unknown_missing_and_misshaped_keys_are_all_listed() -> None:
    tensors = official()
    trees = template()
    tensors["encoder.extra"] = np.zeros(3)
    del tensors["decoder.mask_token"]
    tensors["encoder.blocks.1.attn.qkv.weight"] = np.zeros((192, 63), np.float32)
    tensors["encoder.resampler.experts.2.weight"] = np.zeros((64, 64), np.float32)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_official(tensors, trees)
    message = str(caught.value)
    assert "unknown key: encoder.extra" in message
    assert "missing key: decoder.mask_token" in message
    assert "encoder.blocks.1.attn.qkv.weight is (192, 63), expected (192, 64)" in message
    assert "encoder.resampler.experts.2.weight is (64, 64), expected (64, 64, 1, 1)" in message


def test_a_parameter_without_official_name_is_refused() -> None:
    _, params, statistics = build("fixed")
    with pytest.raises(ValueError, match="no official name for: decoder/modality_embedding/kernel"):
        to_official(params, statistics)


def test_the_published_checkpoint_has_no_prefix() -> None:
    assert prefixed({"cls_token": np.zeros(1)}).keys() == {"encoder.cls_token"}
    assert prefixed({"encoder.cls_token": np.zeros(1)}).keys() == {"encoder.cls_token"}
    trained = {"model.encoder.cls_token": np.zeros(1), "model.decoder.mask_token": np.zeros(1)}
    assert prefixed(trained).keys() == {"encoder.cls_token", "decoder.mask_token"}
