"""The balanced start does what it is for."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ramen_jax.model.decoder import RamenDecoder
from ramen_jax.model.encoder import RamenEncoder
from ramen_jax.model.ramen import Ramen
from ramen_jax.sensors import Band
from tests.model.conftest import HEIGHT, OPTICAL, RADAR, SMALL, traps


@cache
def fresh(initialisation: str) -> tuple[RamenEncoder, RamenDecoder]:
    """A model as a training begins with it."""
    ramen = Ramen(SMALL, traps("fixed", initialisation=initialisation))
    params, statistics = jax.jit(ramen.init)(jax.random.key(0))
    return ramen.encoder(params, statistics), ramen.decoder(params)


def told(features_NxD: np.ndarray, wanted_N: np.ndarray) -> float:
    """Share of the variance of `wanted` that the best linear map tells."""
    a_NxD = np.concatenate([features_NxD, np.ones((len(wanted_N), 1))], axis=1)
    left_N = wanted_N - a_NxD @ np.linalg.lstsq(a_NxD, wanted_N, rcond=1e-4)[0]
    return float(1 - left_N.var() / wanted_N.var())


def one_date(encoder: RamenEncoder, bands: tuple[Band, ...], brightness_N: np.ndarray) -> np.ndarray:
    """Tokens [N, D] behind `in_norm` of an image whose bands are all as bright."""
    values_NxC = jnp.broadcast_to(
        jnp.asarray(brightness_N, jnp.float32)[:, None], (len(brightness_N), len(bands))
    )
    gate_Nx4 = jnp.full((len(brightness_N), 4), 0.25)
    matrix = encoder.resampler.fold_encoder(encoder.projector(bands))
    return np.asarray(encoder.input_norm(encoder.resampler.expand(values_NxC, gate_Nx4) @ matrix))


@pytest.mark.parametrize("bands", [OPTICAL, HEIGHT, RADAR])
def test_layer_norm_leaves_brightness(bands: tuple[Band, ...]) -> None:
    """(Mutant: no shift, which leaves little more than its sign.)"""
    brightness_N = np.random.default_rng(0).normal(size=400)
    found = {
        name: told(one_date(fresh(name)[0], bands, brightness_N), brightness_N)
        for name in ("scaled", "balanced")
    }
    assert found["balanced"] > 0.9 > 0.8 > found["scaled"], found


@pytest.mark.parametrize("bands", [HEIGHT, RADAR])
def test_bands_of_one_kind_begin_apart(bands: tuple[Band, ...]) -> None:
    """Cosine of their embeddings, in encoder and decoder. (Mutant: codes spread by 0.02.)"""
    for side in (0, 1):
        cosine = {}
        for name in ("scaled", "balanced"):
            first, second = np.asarray(fresh(name)[side].projector(bands))
            cosine[name] = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert cosine["scaled"] > 0.98 > 0.9 > cosine["balanced"], cosine


def test_predictions_begin_near_one_with_tokens_of_full_length() -> None:
    """A token is added to the encoding of a date: it must not be short. (Mutant: the gain at the tokens' norms.)"""
    decoder = fresh("balanced")[1]
    tokens_NxD = np.asarray(
        decoder.norm(jax.random.normal(jax.random.key(1), (500, SMALL.decoder_embed_dim)))
    )
    assert np.linalg.norm(tokens_NxD, axis=1) == pytest.approx(SMALL.decoder_embed_dim**0.5, rel=0.01)
    for bands in (OPTICAL, HEIGHT, RADAR):
        predicted = tokens_NxD @ np.asarray(decoder.projector(bands)).T
        assert 0.5 < predicted.std() < 2
