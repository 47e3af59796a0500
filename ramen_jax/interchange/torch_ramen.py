"""The RAMEN encoder in one file of PyTorch. Needs torch and safetensors, nothing else.

    model = load("ramen_base")                  # a folder with config.json and model.safetensors, or one weight file
    features = model({"s2": pixels_BxTxCxHxW}, target_gsd=40.0, dates={"s2": day_of_year_BxT})
    features.maps["s2"]                         # [B, D, rows, columns], one vector per 40 m x 40 m
    features.layers[0]["s2"]                    # the same after an inner block, for `layers=(3, 5, 7, 11)`

The images of one call show one place. Each is described by a sensor (bands, metres per pixel, normalisation), from
the model's config.json or made on the spot:

    mine = Sensor("drone", gsd=0.1, bands=(Band("red", wavelength_nm=660), Band("nir", wavelength_nm=850)),
                  mean=(80.0, 90.0), std=(30.0, 25.0))
    features = model({"drone": pixels}, target_gsd=2.0, sensors={"drone": mine})

Parameter names are those of the official code (github.com/nicolashoudre/RAMEN), so its state dicts load strictly. The
order of work is not: resampling acts on each channel alone and everything up to the first nonlinearity is linear, so
the C raw channels are resampled first and projector, experts and the input layer of the temporal encoder become one
C x D affine map. Features are the same to rounding; no array of width D exists at the images' own resolution.

`model.half()`, `model.bfloat16()` and autocast speed up the transformer's products; pixels, resampling, the temporal
encoder, sums and norms are float32 always, since stored values and day numbers do not fit in less. So are the features.

Shape letters: B batch, T dates, C bands, H, W pixels, N tokens of one modality (rows * columns), L all tokens and the
class token, D width, G heads of the temporal encoder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POLICIES = ("reference", "metric", "area")
BATCH_NORM_EPS = 1e-5
EXPERTS = 4
TEMPORAL_HEADS = 16
DATE_PERIOD = 367.0
HEADS_BY_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
RADAR = tuple(
    f"{orbit}_{polarisation}" for orbit in ("asc", "des") for polarisation in ("vv", "vh", "hv", "hh")
)
ELEVATION = ("dsm", "dtm", "slope")
EXTENT_TOLERANCE = 0.1  # how much the extents of two images of one place may differ
FINEST = 64  # tokens per pixel along an axis; more would be copies of each other


@dataclass(frozen=True)
class Band:
    """What one channel is: exactly one of a wavelength (nm), a radar channel ("asc_vv", ...) or an elevation."""

    name: str
    wavelength_nm: float | None = None
    radar: str | None = None
    elevation: str | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.wavelength_nm, self.radar, self.elevation)) != 1:
            raise ValueError(f"band '{self.name}' needs exactly one of wavelength_nm, radar and elevation")
        for value, known in ((self.radar, RADAR), (self.elevation, ELEVATION)):
            if value is not None and value not in known:
                raise ValueError(f"band '{self.name}' says '{value}'; known are {', '.join(known)}")

    @classmethod
    def of(cls, name: str, meaning: float | str) -> Band:
        """A band from its short form: a number is a wavelength in nm, a text a radar channel or an elevation."""
        if not isinstance(meaning, str):
            return cls(name, wavelength_nm=float(meaning))
        return cls(name, elevation=meaning) if meaning in ELEVATION else cls(name, radar=meaning)


@dataclass(frozen=True)
class Sensor:
    """Ordered bands, metres per pixel, and how stored values become model input.

    input = (stored * scale + offset - mean) / std, per band; `nodata` pixels and NaN become exactly 0.
    """

    name: str
    bands: tuple[Band, ...]
    gsd: float
    units: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    plausible: tuple[float, float] | None = None

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Sensor:
        """A sensor from plain data; bands as {name: nm, radar channel or elevation}, as config.json holds them."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(description) - known)
        if unknown:
            raise ValueError(f"sensor key {unknown[0]!r} is unknown; known are {', '.join(sorted(known))}")
        values = dict(description)
        values["bands"] = tuple(Band.of(name, meaning) for name, meaning in description["bands"].items())
        if values.get("nodata") is not None:
            values["nodata"] = float(values["nodata"])  # NaN and infinities are text in JSON
        for key in ("mean", "std", "plausible"):
            if values.get(key) is not None:
                values[key] = tuple(float(value) for value in values[key])
        return cls(**values)


class Features(NamedTuple):
    """What the encoder returns.

    `maps`: per modality [B, D, rows, columns] after the last block and LayerNorm. `cls`: the class token [B, D].
    `layers`: for each block asked for, in that order, the same dictionary after that block.
    """

    maps: dict[str, Tensor]
    cls: Tensor
    layers: tuple[dict[str, Tensor], ...]


class Geometry(NamedTuple):
    """What follows from sizes and GSDs alone; tensors, so that a traced model holds them as constants."""

    rows: int
    columns: int
    position_NxD: Tensor
    sampling: dict[str, tuple[Tensor, Tensor]]  # per modality: [rows, H], [columns, W]
    scale: dict[str, float]  # native GSD over target GSD


def sine_cosine(position: Tensor, width: int, precision: str = "float32") -> Tensor:
    """[...] -> [..., width]: all sines, then all cosines, frequencies 10000^(-i / (width / 2)).

    Precision bfloat16 rounds position and frequency first: how some weights were trained, never an improvement.
    """
    exponent = torch.arange(width // 2, dtype=torch.float32, device=position.device) / (width / 2)
    dtype = getattr(torch, precision)
    phase = (position.float()[..., None].to(dtype) * (1.0 / 10000**exponent).to(dtype)).float()
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def date_encoding(day: Tensor, width: int) -> Tensor:
    """Day of year [...] -> [..., width]: sines and cosines interleaved, base 367."""
    index = torch.arange(width, dtype=torch.float32, device=day.device)
    phase = day.float()[..., None] / torch.pow(DATE_PERIOD, 2 * torch.floor(index / 2) / width)
    return torch.where(index % 2 == 0, phase.sin(), phase.cos())


def _linear_interpolation(position: Tensor, size: int) -> Tensor:
    """[n] fractional positions -> [n, size]: weights of the two nearest samples, clamped at both ends."""
    sample = torch.arange(size, dtype=torch.float64)
    return (1.0 - (position.clamp(0.0, size - 1.0)[:, None] - sample).abs()).clamp(min=0.0)


def _rounded(index: Tensor, step: float) -> Tensor:
    """Source coordinates (index + 0.5) * step - 0.5 with the float32 rounding of PyTorch's interpolate."""
    step32 = torch.full((), step, dtype=torch.float32)
    return ((index.float() + 0.5) * step32 - 0.5).double()


def sampling_matrix(pixels: int, native_gsd: float, target_gsd: float, grid: int, policy: str) -> Tensor:
    """The matrix [grid, pixels] that reads one axis of an image at the token grid; float32, rows sum to 1.

    `reference` follows the official rules (truncated size, the given factor, identity when the size is unchanged, a
    second resize when the grid is missed), `metric` true metric coordinates, `area` averages each token's footprint.
    """
    factor = native_gsd / target_gsd
    token = torch.arange(grid, dtype=torch.float64)
    if policy == "reference":
        size = math.floor(pixels * factor)
        if size < 1:
            raise ValueError(
                f"target GSD {target_gsd:g} m is larger than an image of {pixels * native_gsd:g} m"
            )
        if size == pixels:
            matrix = torch.eye(pixels, dtype=torch.float64)
        else:
            index = torch.arange(size, dtype=torch.float64)
            matrix = _linear_interpolation(_rounded(index, 1 / factor), pixels)
        if size != grid:
            matrix = _linear_interpolation(_rounded(token, size / grid), size) @ matrix
    elif policy == "metric":
        matrix = _linear_interpolation((token + 0.5) / factor - 0.5, pixels)
    elif policy == "area":
        pixel = torch.arange(pixels, dtype=torch.float64)
        start = (token / factor).clamp(0.0, pixels)[:, None]
        stop = ((token + 1) / factor).clamp(0.0, pixels)[:, None]
        matrix = (torch.minimum(stop, pixel + 1) - torch.maximum(start, pixel)).clamp(min=0.0)
        outside = matrix.sum(dim=1, keepdim=True) < 1e-9  # a token beyond the image reads its last pixel
        matrix = torch.where(outside, (pixel == pixels - 1).double(), matrix)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
    else:
        raise ValueError(f"unknown sampling policy '{policy}'; choose one of {', '.join(POLICIES)}")
    return matrix.float()


def measured_frames(valid: Mapping[str, Tensor], frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per modality bool [B, T]: frames with a measured pixel among those asked for; the first where there is none.

    A modality of which every frame counts is left out, unless the graph is being traced for other data.
    """
    counted = {}
    for name, valid_BxTx1xHxW in valid.items():
        measured_BxT = valid_BxTx1xHxW.flatten(2).any(dim=2)
        if name in frames:
            measured_BxT = measured_BxT & frames[name].to(torch.bool)
        first_T = torch.arange(measured_BxT.shape[1], device=measured_BxT.device) == 0
        measured_BxT = measured_BxT | (first_T & ~measured_BxT.any(dim=1, keepdim=True))
        if torch.compiler.is_compiling() or not bool(measured_BxT.all()):
            counted[name] = measured_BxT
    return counted


def _check_days(name: str, image: Tensor, days_BxT: Tensor | None) -> None:
    frames = image.shape[1]
    if days_BxT is None:
        raise ValueError(f"'{name}' has {frames} dates; give their days of year in dates['{name}']")
    if days_BxT.shape not in ((image.shape[0], frames), (1, frames)):
        raise ValueError(
            f"dates['{name}'] has shape {tuple(days_BxT.shape)}, expected {(image.shape[0], frames)}, one day per frame"
        )
    # A graph that is compiled cannot ask for values.
    if torch.compiler.is_compiling():
        return
    if not bool(((days_BxT >= 0) & (days_BxT <= 366) & (days_BxT == days_BxT.floor())).all()):
        raise ValueError(
            f"a date is a whole day of year from 1 to 366 (0: unknown), found {days_BxT.min().item():g} to "
            f"{days_BxT.max().item():g} in dates['{name}']"
        )


def _equals(image: Tensor, number: float) -> Tensor:
    """Where stored values are a number, as exactly as their type holds it."""
    if image.is_floating_point():
        return image == torch.full((), number, dtype=image.dtype, device=image.device)
    if number != int(number) or abs(number) >= 2.0**63:
        return torch.zeros_like(image, dtype=torch.bool)
    return image.long() == int(number)


class Projector(nn.Module):
    """Band descriptions -> one D-vector per band; learned vectors for the names in `entries`."""

    def __init__(self, width: int, entries: Sequence[str] = (), precision: str = "float32") -> None:
        super().__init__()
        self.width, self.precision = width, precision
        for entry in entries:
            self.register_parameter(f"{entry}_param", nn.Parameter(0.02 * torch.randn(width)))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width, eps=1e-5)
        )

    def forward(self, descriptions: Sequence[float | str]) -> Tensor:
        if isinstance(descriptions[0], str):
            vectors = torch.stack([self.get_parameter(f"{entry}_param") for entry in descriptions])
        else:
            device = self.get_parameter("mlp.0.weight").device
            wavelength = torch.tensor(descriptions, dtype=torch.float32, device=device)
            vectors = sine_cosine(wavelength, self.width, self.precision)
        return self.mlp(vectors.to(self.get_parameter("mlp.0.weight").dtype)).float()


class Resampler(nn.Module):
    """A mixture of linear experts chosen by the change of scale."""

    def __init__(self, width: int, precision: str = "float32") -> None:
        super().__init__()
        self.width, self.precision = width, precision
        self.experts = nn.ModuleList([nn.Conv2d(width, width, kernel_size=1) for _ in range(EXPERTS)])
        self.mlp = nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, EXPERTS))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, scale: float) -> tuple[Tensor, Tensor]:
        """The mixture at `scale` as one residual map: weight [D out, D in] and bias [D]."""
        log_scale = torch.full((), math.log(scale), device=self.temperature.device)
        encoded = sine_cosine(log_scale, self.width, self.precision)
        logits = self.mlp(encoded.to(self.temperature.dtype)).float()
        gate = (logits / self.temperature.float().clamp(min=1e-3)).softmax(dim=-1)
        weights = torch.stack([self.get_parameter(f"experts.{n}.weight").float() for n in range(EXPERTS)])
        biases = torch.stack([self.get_parameter(f"experts.{n}.bias").float() for n in range(EXPERTS)])
        return torch.tensordot(gate, weights[..., 0, 0], dims=1), gate @ biases


class Heads(nn.Module):
    """Parameters of the temporal attention: one learned query per head, keys from the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.randn(TEMPORAL_HEADS, 16) * math.sqrt(2 / 16))
        self.fc1_k = nn.Linear(width, TEMPORAL_HEADS * 16)

    def folded(self) -> Tensor:
        """Queries folded into the keys: [D, G]. The key bias is constant over time and leaves the softmax."""
        key_GxKxD = self.fc1_k.weight.float().view(TEMPORAL_HEADS, 16, -1)
        return torch.einsum("gkd,gk->dg", key_GxKxD, self.Q.float()) / 4.0


class TemporalEncoder(nn.Module):
    """L-TAE: a series of features becomes one.

    Its four BatchNorms use their stored statistics always, in training mode too, so that features never depend on the
    rest of the batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def normalised(inner: int, outer: int) -> list[nn.Module]:
            return [nn.Linear(inner, outer), nn.BatchNorm1d(outer, eps=BATCH_NORM_EPS), nn.ReLU()]

        self.inconv = nn.Sequential(*normalised(width, width))
        self.in_norm = nn.GroupNorm(TEMPORAL_HEADS, width)
        self.attention_heads = Heads(width)
        self.mlp = nn.Sequential(
            *normalised(width, width), *normalised(width, 2 * width), *normalised(2 * width, width)
        )

    def train(self, mode: bool = True) -> TemporalEncoder:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def entry(self) -> tuple[Tensor, Tensor]:
        """The input layer and its BatchNorm as one affine map: weight [D out, D in], bias [D]."""
        gain = self.get_parameter("inconv.1.weight").float() * torch.rsqrt(
            self.get_buffer("inconv.1.running_var").float() + BATCH_NORM_EPS
        )
        shift = self.get_parameter("inconv.0.bias").float() - self.get_buffer("inconv.1.running_mean").float()
        weight = self.get_parameter("inconv.0.weight").float() * gain[:, None]
        return weight, shift * gain + self.get_parameter("inconv.1.bias").float()

    def forward(self, x_BxTxNxD: Tensor, day_BxT: Tensor, frame_BxT: Tensor | None) -> Tensor:
        """Features before the input ReLU -> [B, N, D], float32; only frames that are True count."""
        batch, dates, tokens, width = x_BxTxNxD.shape
        group = width // TEMPORAL_HEADS
        y_BxTxNxGxK = F.relu(x_BxTxNxD).view(batch, dates, tokens, TEMPORAL_HEADS, group)
        if frame_BxT is None:
            variance, mean = torch.var_mean(y_BxTxNxGxK, dim=(1, 4), correction=0, keepdim=True)
        else:
            weight = frame_BxT.to(y_BxTxNxGxK.dtype)[:, :, None, None, None]
            count = weight.sum(dim=1, keepdim=True).clamp(min=1.0) * group
            mean = (weight * y_BxTxNxGxK).sum(dim=(1, 4), keepdim=True) / count
            variance = (weight * (y_BxTxNxGxK - mean).square()).sum(dim=(1, 4), keepdim=True) / count
        gain = self.in_norm.weight.float().view(TEMPORAL_HEADS, group)
        shift = self.in_norm.bias.float().view(TEMPORAL_HEADS, group)
        shift = shift + date_encoding(day_BxT, group)[:, :, None, None, :]
        y_BxTxNxGxK = (y_BxTxNxGxK - mean) * torch.rsqrt(variance + self.in_norm.eps) * gain + shift

        score_BxTxNxG = y_BxTxNxGxK.flatten(3) @ self.attention_heads.folded()
        if frame_BxT is not None:
            score_BxTxNxG = score_BxTxNxG.masked_fill(
                ~frame_BxT[:, :, None, None], torch.finfo(torch.float32).min
            )
        share_BxTxNxG = score_BxTxNxG.float().softmax(dim=1).to(y_BxTxNxGxK.dtype)
        pooled_BxNxD = (share_BxTxNxG[..., None] * y_BxTxNxGxK).sum(dim=1).flatten(2)
        return self._mlp(pooled_BxNxD.flatten(0, 1)).view(batch, tokens, width)

    def _mlp(self, x_NxD: Tensor) -> Tensor:
        """Layers, stored BatchNorms and ReLUs in float32, whatever the parameters are."""
        for index in range(0, len(self.mlp), 3):
            linear, norm = (
                {
                    name: tensor.float()
                    for name, tensor in (*module.named_parameters(), *module.named_buffers())
                }
                for module in (self.mlp[index], self.mlp[index + 1])
            )
            x_NxD = F.linear(x_NxD, linear["weight"], linear["bias"])
            x_NxD = F.batch_norm(
                x_NxD,
                norm["running_mean"],
                norm["running_var"],
                norm["weight"],
                norm["bias"],
                eps=BATCH_NORM_EPS,
            )
            x_NxD = F.relu(x_NxD)
        return x_NxD


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in float32, its result in the precision of the parameters."""
    weight = norm.get_parameter("weight")
    normed = F.layer_norm(
        x, norm.normalized_shape, weight.float(), norm.get_parameter("bias").float(), norm.eps
    )
    return normed.to(weight.dtype)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        batch, length, width = x_BxLxD.shape
        qkv = self.qkv(x_BxLxD).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BxHxLxK = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(mixed_BxHxLxK.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] float32 -> float32: sums and norms are exact, products in the precision of the parameters."""
        x = x + self.attn(_normed(self.norm1, x)).float()
        return x + self.mlp(_normed(self.norm2, x)).float()


class RamenEncoder(nn.Module):
    """The encoder. `config` is what config.json holds; `config["model"]` alone is enough to build one.

    Args:
        config: "model" (embed_dim, depth, num_heads, mlp_ratio = 4, block_eps = 1e-6, kinds = optical, radar and
            elevation), "sampling" (reference, metric or area), "missing" (zeros, or excluded: a token is the mean of
            the measured pixels it reads), "encodings" (float32, bfloat16), "sensors" {"corpus/modality": description}.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        sizes = config["model"]
        width = sizes["embed_dim"]
        if width % TEMPORAL_HEADS or width % sizes["num_heads"] or width % 4:
            raise ValueError(
                f"embed_dim {width} must be a multiple of 16 and of num_heads {sizes['num_heads']}"
            )
        self.config = dict(config)
        self.width = width
        self.sampling = config.get("sampling", "reference")
        self.missing = config.get("missing", "zeros")
        self.precision = precision = config.get("encodings", "float32")
        self.sensors = {name: Sensor.from_dict(entry) for name, entry in config.get("sensors", {}).items()}
        kinds = sizes.get("kinds", ("optical", "radar", "elevation"))

        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.spectral_projector = Projector(width, (), precision)
        self.radar_projector = Projector(width, RADAR, precision) if "radar" in kinds else None
        self.dem_projector = Projector(width, ELEVATION, precision) if "elevation" in kinds else None
        self.resampler = Resampler(width, precision)
        self.ltae = TemporalEncoder(width)
        self.in_norm = nn.LayerNorm(width, eps=1e-6)
        ratio, eps = sizes.get("mlp_ratio", 4.0), sizes.get("block_eps", 1e-6)
        self.blocks = nn.ModuleList(
            [Block(width, sizes["num_heads"], ratio, eps) for _ in range(sizes["depth"])]
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def half(self) -> RamenEncoder:
        """The blocks in float16; what makes tokens of pixels stays as exact as it is."""
        self.blocks.half()
        return self

    def bfloat16(self) -> RamenEncoder:
        """The blocks in bfloat16; what makes tokens of pixels stays as exact as it is."""
        self.blocks.bfloat16()
        return self

    def forward(
        self,
        images: Mapping[str, Tensor],
        target_gsd: float,
        dates: Mapping[str, Tensor] | None = None,
        frames: Mapping[str, Tensor] | None = None,
        sensors: Mapping[str, Sensor | Mapping[str, Any] | str] | None = None,
        layers: Sequence[int] = (),
        normalise: bool = True,
    ) -> Features:
        """Features of co-registered images of one place, on one grid of `target_gsd` metres per token.

        Args:
            images: modality -> stored values [B, T, C, H, W] of any numeric type. The first one's extent defines the
                grid, int(H * gsd / target_gsd) rows; tokens follow the order of the dictionary.
            target_gsd: metres per token.
            dates: modality -> day of year [B, T]; needed where T > 1.
            frames: modality -> bool [B, T], False for padding frames, which then change nothing. A frame in which
                nothing was measured is left out by itself.
            sensors: modality -> Sensor, its description, or a name in the config; default: the modality's name.
            layers: 0-based blocks whose output is also returned; the last one's has the final LayerNorm.
            normalise: False when the values are normalised already.

        Raises:
            ValueError: unknown sensor, missing statistics or dates, dates that are none, wrong shapes, complex values,
                extents that differ, a GSD that leaves no grid or asks for an impossible one.
        """
        if not images:
            raise ValueError("no image given")
        if not 0 < target_gsd < math.inf:
            raise ValueError(f"the target GSD is {target_gsd}, expected metres per token above 0")
        described = {name: self.sensor(name, (sensors or {}).get(name)) for name in images}
        for name, image in images.items():
            bands = len(described[name].bands)
            if image.ndim != 5 or image.shape[2] != bands:
                raise ValueError(
                    f"'{name}' has shape {tuple(image.shape)}; expected [B, T, C, H, W] with C = {bands}, the bands of "
                    f"sensor '{described[name].name}'"
                )
            if image.is_complex():
                raise ValueError(f"'{name}' holds complex numbers; give their amplitude or intensity")
            if image.shape[1] > 1:
                _check_days(name, image, (dates or {}).get(name))
        sizes = {name: (image.shape[3], image.shape[4]) for name, image in images.items()}
        geometry = self.geometry(sizes, target_gsd, described)
        valid: dict[str, Tensor] = {}
        if normalise:
            pairs = {name: self.normalise(image, described[name]) for name, image in images.items()}
            images, valid = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
            frames = measured_frames(valid, frames or {})
        return self.encode(images, geometry, described, dates or {}, frames or {}, valid, layers)

    def sensor(self, name: str, given: Sensor | Mapping[str, Any] | str | None = None) -> Sensor:
        """The sensor of a modality: as given, or the config's "corpus/modality"; the modality alone if unique."""
        if isinstance(given, Sensor):
            return given
        if isinstance(given, Mapping):
            return Sensor.from_dict(given)
        key = given or name
        matches = (
            [key] if key in self.sensors else [full for full in self.sensors if full.endswith(f"/{key}")]
        )
        if len(matches) != 1:
            choices = ", ".join(matches or sorted(self.sensors)) or "none"
            problem = "is described more than once" if matches else "is not in the model's config"
            raise ValueError(
                f"sensor '{key}' {problem} (there: {choices}); give its name or description in `sensors`"
            )
        return self.sensors[matches[0]]

    def normalise(self, image_BxTxCxHxW: Tensor, sensor: Sensor) -> tuple[Tensor, Tensor]:
        """Stored values -> model input, float32, 0 where nothing was measured; and what was, bool [B, T, 1, H, W].

        A pixel counts as missing when a band is not finite or is `nodata`; with a nodata of 0, when all bands are.
        """
        if sensor.mean is None or sensor.std is None:
            raise ValueError(f"sensor '{sensor.name}' has no mean and std; give them or pass normalise=False")
        device = image_BxTxCxHxW.device
        mean = torch.tensor(sensor.mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        std = torch.tensor(sensor.std, dtype=torch.float32, device=device).view(-1, 1, 1)
        x = image_BxTxCxHxW.float()
        missing = ~x.isfinite().all(dim=2, keepdim=True)
        if sensor.nodata is not None and math.isfinite(sensor.nodata):
            same = _equals(image_BxTxCxHxW, sensor.nodata)
            missing = missing | (
                same.all(2, keepdim=True) if sensor.nodata == 0 else same.any(2, keepdim=True)
            )
        return ((x * sensor.scale + sensor.offset - mean) / std).masked_fill(missing, 0.0), ~missing

    def geometry(
        self, sizes: Mapping[str, tuple[int, int]], target_gsd: float, sensors: Mapping[str, Sensor]
    ) -> Geometry:
        """Grid, positions and sampling matrices for images of (H, W) pixels; the first defines the grid."""
        first = next(iter(sizes))
        gsd = sensors[first].gsd
        if target_gsd * FINEST < gsd:
            raise ValueError(
                f"target GSD {target_gsd:g} m asks for {gsd / target_gsd:,.0f} cells per pixel and axis of '{first}', "
                f"whose pixels have {gsd:g} m; the limit is {FINEST}, a target GSD of at least {gsd / FINEST:g} m"
            )
        rows, columns = (int(size * (sensors[first].gsd / target_gsd)) for size in sizes[first])
        if rows < 1 or columns < 1:
            extent = min(sizes[first]) * sensors[first].gsd
            raise ValueError(
                f"target GSD {target_gsd:g} m is larger than the image '{first}', {extent:g} m across"
            )
        covered = {name: [side * sensors[name].gsd for side in size] for name, size in sizes.items()}
        for name, sides in covered.items():
            for side, wanted in zip(sides, covered[first], strict=True):
                if abs(side - wanted) > max(EXTENT_TOLERANCE * wanted, target_gsd):
                    raise ValueError(
                        f"'{name}' covers {sides[0]:g} x {sides[1]:g} m but '{first}' {covered[first][0]:g} x "
                        f"{covered[first][1]:g} m; images of one place must cover the same ground"
                    )
        device = self.cls_token.device
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        place = torch.stack([x.flatten(), y.flatten()]).to(device).float() * target_gsd
        half = self.width // 2
        position_NxD = torch.cat([sine_cosine(axis, half, self.precision) for axis in place], dim=1)
        sampling = {}
        for name, (height, width) in sizes.items():
            gsd = sensors[name].gsd
            sampling[name] = (
                sampling_matrix(height, gsd, target_gsd, rows, self.sampling).to(device),
                sampling_matrix(width, gsd, target_gsd, columns, self.sampling).to(device),
            )
        return Geometry(
            rows, columns, position_NxD, sampling, {m: sensors[m].gsd / target_gsd for m in sizes}
        )

    def bands(self, sensor: Sensor) -> Tensor:
        """The projector's matrix [C, D] of a sensor, whose bands may be of several kinds."""
        vectors: list[Tensor | None] = [None] * len(sensor.bands)
        for projector, attribute in (
            (self.spectral_projector, "wavelength_nm"),
            (self.radar_projector, "radar"),
            (self.dem_projector, "elevation"),
        ):
            places = [i for i, band in enumerate(sensor.bands) if getattr(band, attribute) is not None]
            if not places:
                continue
            if projector is None:
                raise ValueError(
                    f"sensor '{sensor.name}' has {attribute} bands, for which these weights have no part"
                )
            matrix = projector([getattr(sensor.bands[i], attribute) for i in places])
            for row, place in enumerate(places):
                vectors[place] = matrix[row]
        return torch.stack([vector for vector in vectors if vector is not None])

    def encode(
        self,
        images: Mapping[str, Tensor],
        geometry: Geometry,
        sensors: Mapping[str, Sensor],
        dates: Mapping[str, Tensor],
        frames: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        layers: Sequence[int] = (),
    ) -> Features:
        """`forward` on normalised float images, all checks done; tensors in, tensors out."""
        with torch.autocast(self.cls_token.device.type, enabled=False):
            x_BxLxD = self._tokens(images, geometry, sensors, dates, frames, valid)
        kept = {}
        for index, block in enumerate(self.blocks):
            x_BxLxD = block(x_BxLxD)
            if index == len(self.blocks) - 1:
                x_BxLxD = _normed(self.norm, x_BxLxD).float()
            if index in layers:
                kept[index] = self._maps(x_BxLxD, list(images), geometry)
        missing = [index for index in layers if index not in kept]
        if missing:
            raise ValueError(f"there is no block {missing[0]}; the blocks are 0 to {len(self.blocks) - 1}")
        maps = self._maps(x_BxLxD, list(images), geometry)
        return Features(maps, x_BxLxD[:, 0], tuple(kept[index] for index in layers))

    def _tokens(
        self,
        images: Mapping[str, Tensor],
        geometry: Geometry,
        sensors: Mapping[str, Sensor],
        dates: Mapping[str, Tensor],
        frames: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
    ) -> Tensor:
        """What the blocks read: [B, L, D] float32."""
        tokens = []
        gain, shift = (parameter.float() for parameter in (self.in_norm.weight, self.in_norm.bias))
        for name, image_BxTxCxHxW in images.items():
            down_rows, down_columns = geometry.sampling[name]
            small = down_rows @ (image_BxTxCxHxW @ down_columns.T)
            if self.missing == "excluded" and name in valid:
                share = down_rows @ (valid[name].to(small.dtype) @ down_columns.T)
                small = torch.where(share > 1e-6, small / share.clamp(min=1e-6), 0.0)
            pixel_BxTxNxC = small.flatten(3).transpose(2, 3)

            projector_CxD = self.bands(sensors[name])
            mixture, bias = self.resampler(geometry.scale[name])
            affine_CxD = projector_CxD + projector_CxD @ mixture.T
            if image_BxTxCxHxW.shape[1] > 1:
                weight, bias_in = self.ltae.entry()
                x_BxTxNxD = pixel_BxTxNxC @ (affine_CxD @ weight.T) + (bias @ weight.T + bias_in)
                x_BxNxD = self.ltae(x_BxTxNxD, dates[name], frames.get(name))
            else:
                x_BxNxD = pixel_BxTxNxC[:, 0] @ affine_CxD + bias
            tokens.append(
                F.layer_norm(x_BxNxD, (self.width,), gain, shift, self.in_norm.eps) + geometry.position_NxD
            )
        cls_BxD = self.cls_token.float().expand(tokens[0].shape[0], -1, -1)
        return torch.cat([cls_BxD, *tokens], dim=1)

    def _maps(self, x_BxLxD: Tensor, names: Sequence[str], geometry: Geometry) -> dict[str, Tensor]:
        batch, _, width = x_BxLxD.shape
        grid = (
            x_BxLxD[:, 1:].transpose(1, 2).reshape(batch, width, len(names), geometry.rows, geometry.columns)
        )
        return {name: grid[:, :, index] for index, name in enumerate(names)}


def load(path: str | Path, device: str = "cpu", **sizes: Any) -> RamenEncoder:
    """An encoder from an exported folder, a .safetensors file or an official .ckpt; in eval mode.

    Args:
        path: a folder with config.json and model.safetensors; or a weight file, with config.json beside it or not.
        device: where the weights go.
        sizes: entries of config["model"] that the file does not tell, num_heads for an unusual width say.

    Raises:
        ValueError: keys that are missing, unexpected or of another shape, all listed.
        FileNotFoundError: no such file or folder.
    """
    path = Path(path)
    weights = path / "model.safetensors" if path.is_dir() else path
    if not weights.exists():
        raise FileNotFoundError(f"no weights at {weights}")
    state = encoder_state(read_weights(weights))
    config_file = weights.parent / "config.json"
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    config["model"] = {**sizes_of(state), **config.get("model", {}), **sizes}
    if "num_heads" not in config["model"]:
        raise ValueError(
            f"the number of heads of a {config['model']['embed_dim']}-wide model is not known: num_heads="
        )
    model = RamenEncoder(config)
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{weights} does not fit the encoder: " + "; ".join(problems))
    model.load_state_dict(state, strict=True)
    return model.to(device).eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint, of which no code is executed."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
    return dict(state)


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a state dict, without prefix; a decoder is left out."""
    for prefix in ("model.encoder.", "encoder."):
        if any(key.startswith(prefix) for key in state):
            return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return dict(state)


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of a state dict tell about the model."""
    if "cls_token" not in state:
        raise ValueError("these weights hold no RAMEN encoder: there is no cls_token among their keys")
    width = state["cls_token"].shape[-1]
    blocks = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
    kinds = {"optical": "spectral_projector", "radar": "radar_projector", "elevation": "dem_projector"}
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "depth": len(blocks),
        "kinds": [kind for kind, prefix in kinds.items() if any(key.startswith(prefix) for key in state)],
    }
    if "blocks.0.mlp.fc1.weight" in state:
        sizes["mlp_ratio"] = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    if width in HEADS_BY_WIDTH:
        sizes["num_heads"] = HEADS_BY_WIDTH[width]
    return sizes


class FixedInput(nn.Module):
    """The encoder for images of given sizes, sensors and GSD: tensors in, tensors out, to be traced.

    Takes stored values [B, T, C, H, W] per modality, in order, then days of year [B, T] for each modality with T > 1.
    Returns one map [B, D, rows, columns] per modality, layer after layer; without `layers`, the final maps.
    """

    def __init__(
        self,
        model: RamenEncoder,
        shapes: Mapping[str, tuple[int, int, int]],
        target_gsd: float,
        sensors: Mapping[str, Sensor | Mapping[str, Any] | str] | None = None,
        layers: Sequence[int] = (),
        normalise: bool = True,
    ) -> None:
        """`shapes`: modality -> (T, H, W)."""
        super().__init__()
        self.model = model
        self.shapes = dict(shapes)
        self.sensors = {name: model.sensor(name, (sensors or {}).get(name)) for name in shapes}
        sizes = {name: (height, width) for name, (_, height, width) in shapes.items()}
        self.geometry = model.geometry(sizes, target_gsd, self.sensors)
        self.layers = tuple(layers)
        self.normalise = normalise
        self.series = [name for name, (dates, _, _) in shapes.items() if dates > 1]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        images = dict(zip(self.shapes, inputs, strict=False))
        dates = dict(zip(self.series, inputs[len(images) :], strict=True))
        valid: dict[str, Tensor] = {}
        if self.normalise:
            pairs = {name: self.model.normalise(image, self.sensors[name]) for name, image in images.items()}
            images, valid = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
        frames = measured_frames({name: valid[name] for name in self.series if name in valid}, {})
        features = self.model.encode(images, self.geometry, self.sensors, dates, frames, valid, self.layers)
        maps = features.layers if self.layers else (features.maps,)
        return tuple(layer[name] for layer in maps for name in self.shapes)

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Inputs of the right shapes."""
        images = [
            torch.randn(batch, dates, len(self.sensors[name].bands), height, width)
            for name, (dates, height, width) in self.shapes.items()
        ]
        days = [torch.arange(self.shapes[name][0]).float().expand(batch, -1) * 9 + 1 for name in self.series]
        return (*images, *days)


def to_onnx(fixed: FixedInput, path: str | Path, opset: int = 18) -> None:
    """Writes `fixed` as an ONNX file with a dynamic batch. Needs the packages onnx and onnxscript.

    Inputs are named after the modalities, "<modality>_dates" for their days; outputs "<modality>" or
    "<modality>_<layer>".
    """
    inputs = fixed.example()
    names = [*fixed.shapes, *(f"{name}_dates" for name in fixed.series)]
    suffixes = [f"_{layer}" for layer in fixed.layers] or ["_features"]
    torch.onnx.export(
        fixed.eval(),
        inputs,
        str(path),
        dynamo=True,
        opset_version=opset,
        input_names=names,
        output_names=[f"{name}{suffix}" for suffix in suffixes for name in fixed.shapes],
        dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in inputs),),
        external_data=False,
        verbose=False,
    )
