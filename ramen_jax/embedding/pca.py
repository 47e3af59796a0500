"""A picture of features: their first three principal components as red, green and blue."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from ramen_jax.console import UserError
from ramen_jax.embedding.feature_files import said_writer
from ramen_jax.own_files import SOFTWARE

PCA_SAMPLES = 50_000
WRITTEN_BY = f"{SOFTWARE} picture of features"


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that `pca_picture` wrote."""
    return said_writer(path, "Software") == WRITTEN_BY


def pca_picture(features: Path, picture: Path) -> None:
    """The first three principal components of a feature raster as red, green and blue; transparent where nodata."""
    with rasterio.open(features) as source:
        stride = max(1, int(np.ceil(np.sqrt(source.height * source.width / PCA_SAMPLES))))
        shape = (source.count, -(-source.height // stride), -(-source.width // stride))
        sample = source.read(out_shape=shape).reshape(source.count, -1).T.astype(np.float64)
        sample = sample[np.isfinite(sample).all(axis=1)]
        if len(sample) < 4:
            raise UserError(f"{features} has {len(sample)} tokens with data, too few for a picture")
        mean = sample.mean(axis=0)
        axes_Dx3 = np.linalg.svd(np.cov((sample - mean).T), hermitian=True)[0][:, :3]
        axes_Dx3 *= np.sign(axes_Dx3[np.abs(axes_Dx3).argmax(axis=0), np.arange(3)])
        low, high = np.percentile((sample - mean) @ axes_Dx3, (1, 99), axis=0)
        image = np.zeros((4, source.height, source.width), np.uint8)
        for top in range(0, source.height, 64):
            height = min(64, source.height - top)
            block = source.read(window=Window(0, top, source.width, height))
            shown = np.einsum("dhw,dc->chw", block - mean[:, None, None].astype(np.float32), axes_Dx3)
            shown = (shown - low[:, None, None]) / np.maximum(high - low, 1e-9)[:, None, None]
            known = np.isfinite(block).all(axis=0)
            image[:3, top : top + height] = np.where(known, np.clip(shown, 0, 1) * 255, 0)
            image[3, top : top + height] = known * 255
    profile = {
        "driver": "PNG",
        "dtype": "uint8",
        "count": 4,
        "height": image.shape[1],
        "width": image.shape[2],
        "WRITE_METADATA_AS_TEXT": "YES",
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", rasterio.errors.NotGeoreferencedWarning
        )  # a picture needs no coordinates
        try:
            with rasterio.open(picture, "w", **profile) as target:
                target.update_tags(Software=WRITTEN_BY)
                target.write(image)
        except (OSError, rasterio.errors.RasterioError) as error:
            picture.unlink(missing_ok=True)
            raise UserError(f"cannot write {picture}: {error.__cause__ or error}") from error
