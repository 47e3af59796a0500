"""Encodings of wavelengths, metres, scales and dates, and the layouts they must keep."""

from __future__ import annotations

import numpy as np
import pytest

from ramen_jax.model.encodings import date_encoding, sincos, sincos_2d

WAVELENGTHS = np.array([443.0, 842.0, 2190.0], np.float32)


def phases(dim: int) -> np.ndarray:
    return WAVELENGTHS[:, None].astype(np.float64) / 10000.0 ** (np.arange(dim // 2) / (dim / 2))


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
