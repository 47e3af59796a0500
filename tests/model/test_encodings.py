"""Encodings of wavelengths, metres, scales and dates, and the layouts they must keep."""

from __future__ import annotations

from decimal import Decimal

import jax
import numpy as np
import pytest

from ramen_jax.model.encodings import date_denominators, date_encoding, frequencies, sincos, sincos_2d

WAVELENGTHS = np.array([443.0, 842.0, 2190.0], np.float32)


def phases(dim: int) -> np.ndarray:
    return WAVELENGTHS[:, None].astype(np.float64) / 10000.0 ** (np.arange(dim // 2) / (dim / 2))


def powers(base: int, exponent: np.ndarray) -> np.ndarray:
    """base ** exponent in 28 digits, rounded once: what float32 can hold at best."""
    return np.array([float(Decimal(base) ** Decimal(float(e))) for e in exponent]).astype(np.float32)


@pytest.mark.parametrize("dim", [64, 192, 384, 512, 768])
def test_frequencies_are_the_same_on_every_cpu(dim: int) -> None:
    """One last bit of a frequency turns the code of 2,190 nm by 2e-4."""
    expected = np.float32(1) / powers(10000, np.arange(dim // 2, dtype=np.float32) / np.float32(dim / 2))
    found = frequencies(dim)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dim", [4, 24, 48])
def test_date_denominators_are_the_same_on_every_cpu(dim: int) -> None:
    exponent = (2 * (np.arange(dim) // 2)).astype(np.float32) / np.float32(dim)
    found = date_denominators(dim)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, powers(367, exponent))


@pytest.mark.parametrize("dim", [64, 768])
def test_encodings_lose_nothing_beyond_the_float32_phase(dim: int) -> None:
    """Against float64 sines and cosines of the official float32 phase, on the longest phases there are."""
    positions = np.concatenate([WAVELENGTHS, -np.geomspace(1e-3, 6, 50), np.linspace(0, 3000, 500)])
    positions = positions.astype(np.float32)
    phase = (positions[:, None] * frequencies(dim)[None]).astype(np.float64)
    expected = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    np.testing.assert_allclose(jax.jit(sincos, static_argnums=1)(positions, dim), expected, rtol=0, atol=3e-7)


def test_date_encodings_lose_a_last_bit_of_the_phase_at_most() -> None:
    """Against float64: the compiler divides by a broadcast vector as a product with its inverse, one bit off."""
    days = np.arange(1, 367, dtype=np.float32)
    angle = days[:, None] / date_denominators(48)[None]
    even = (np.arange(48) % 2 == 0)[None]
    expected = np.where(even, np.sin(angle.astype(np.float64)), np.cos(angle.astype(np.float64)))
    found = np.asarray(date_encoding(days, 48))
    assert np.all(np.abs(found - expected) <= np.spacing(angle) + 3e-7)


def test_sines_come_before_cosines() -> None:
    found = np.asarray(sincos(WAVELENGTHS, 64))
    expected = np.concatenate([np.sin(phases(64)), np.cos(phases(64))], axis=1)
    np.testing.assert_allclose(found, expected, atol=4e-4)


def test_columns_come_before_rows() -> None:
    coords = np.array([[30.0, 0.0], [0.0, 30.0]], np.float32)
    x, y = np.asarray(sincos_2d(coords, 64))
    np.testing.assert_array_equal(x[:32], y[32:])
    np.testing.assert_array_equal(x[32:], y[:32])
    assert not np.array_equal(x[:32], x[32:])


def test_dates_interleave_and_have_a_period_of_367_days() -> None:
    days = np.array([1.0, 200.0, 366.0], np.float32)
    found = np.asarray(date_encoding(days, 48))
    angle = days[:, None] / 367.0 ** (2 * (np.arange(48) // 2) / 48)
    np.testing.assert_allclose(found[:, 0::2], np.sin(angle[:, 0::2]), atol=1e-4)
    np.testing.assert_allclose(found[:, 1::2], np.cos(angle[:, 1::2]), atol=1e-4)


def test_bfloat16_emulates_the_published_rounding() -> None:
    """In bfloat16 2190 nm becomes 2192 nm and 443 nm becomes 444 nm; float32 keeps them apart."""
    rounded = np.array([444.0, 840.0, 2192.0], np.float32)
    emulated, exact = np.asarray(sincos(WAVELENGTHS, 64, "bfloat16")), np.asarray(sincos(WAVELENGTHS, 64))
    # The first frequency is 1: its phase is the rounded wavelength itself.
    np.testing.assert_allclose(emulated[:, 0], np.sin(rounded), atol=1e-4)
    assert np.abs(exact[:, 0] - emulated[:, 0]).max() > 0.1


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
def test_any_leading_axes(shape: tuple[int, ...]) -> None:
    assert sincos(np.ones(shape, np.float32), 32).shape == (*shape, 32)
    assert date_encoding(np.ones(shape, np.float32), 6).shape == (*shape, 6)
