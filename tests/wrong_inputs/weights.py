"""Of whoever reads weights, and of `export`, `pictures` and `bench`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.wrong_inputs.embed import embedded
from tests.wrong_inputs.registry import OLD, TINY, case, file

# -- checkpoints and exported folders, by whoever reads them -------------------------------------------------------


def exported(place: Path, name: str, content: str | bytes) -> str:
    shutil.copytree(OLD / "exported", place / "exported")
    file(place, f"exported/{name}", content)
    return str(place / "exported")


def trained(place: Path, name: str, content: bytes | None) -> str:
    shutil.copytree(OLD / "workdir", place / "workdir")
    path = place / "workdir" / "checkpoints" / "2" / name
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        path.write_bytes(content)
    return str(place / "workdir")


WEIGHTS: dict[str, Callable[[Path], str]] = {
    "config of nothing": lambda place: exported(place, "config.json", "{}"),
    "config of a list": lambda place: exported(place, "config.json", "[]"),
    "config not utf-8": lambda place: exported(place, "config.json", b"\xff"),
    "config of wrong types": lambda place: exported(
        place, "config.json", '{"model": 3, "traps": [], "sensors": "x"}'
    ),
    "config of wrong sizes": lambda place: exported(
        place,
        "config.json",
        (OLD / "exported/config.json").read_text().replace('"embed_dim": 32', '"embed_dim": "x"'),
    ),
    "no heads": lambda place: exported(
        place,
        "config.json",
        (OLD / "exported/config.json").read_text().replace('"num_heads": 2', '"num_heads": 0'),
    ),
    "other weights": lambda place: exported(
        place,
        "config.json",
        json.dumps({**json.loads((OLD / "exported/config.json").read_text()), "weights_sha256": "0"}),
    ),
    "weights of nothing": lambda place: exported(place, "model.safetensors", b""),
    "weights of a text": lambda place: exported(place, "model.safetensors", b"hello, world" * 100),
    "no meta": lambda place: trained(place, "meta", None),
    "meta of nothing": lambda place: trained(place, "meta/metadata", b""),
    "no parameters": lambda place: trained(place, "params", None),
    "short parameters": lambda place: trained(place, "params/_METADATA", b"{}"),
}
for name, spoilt in WEIGHTS.items():
    case("embed", name, lambda place, s=spoilt: embedded(place, "--checkpoint", s(place)))
    case("export", name, lambda place, s=spoilt: ["--checkpoint", s(place), "--output", str(place / "out")])
for name in ("no meta", "meta of nothing", "no parameters", "short parameters"):
    case("pictures", name, lambda place, s=WEIGHTS[name]: ["--workdir", s(place)])


def exporting(place: Path, *options: str) -> list[str]:
    return ["--checkpoint", str(OLD / "exported"), "--output", str(place / "out"), *options]


def importing(place: Path, content: str | bytes, *options: str) -> list[str]:
    return ["--import", file(place, "official.ckpt", content), "--output", str(place / "out"), *options]


case("export", "no arguments", lambda place: [])
case("export", "no output", lambda place: ["--checkpoint", str(OLD / "exported")])
for options in (
    *(
        "--decoder",
        "--num-heads 2",
        "--recipe fixed",
        "--sensors x.yaml",
        "--licence nowhere",
        "--results nowhere",
    ),
    *("--results README.md", "--target-gsd x", "--import x.ckpt", "--output x.onnx", "--output x.jaxexport"),
    *("--output README.md", "--output README.md --overwrite", "--output tests --overwrite"),
):
    case("export", options, lambda place, o=options: exporting(place, *o.split()))
for name, content in {"list": "[1]", "not utf-8": b"\xff", "cut": "{"}.items():
    case(
        "export",
        f"results, {name}",
        lambda place, c=content: exporting(place, "--results", file(place, "r.json", c)),
    )
for inputs in (
    "aerial",
    "aerial=1x2",
    "nothing=1x64x64",
    "aerial=0x64x64",
    "aerial=1x0x0",
    "aerial=1x9999999999x99",
):
    case(
        "export",
        f"--input {inputs}",
        lambda place, i=inputs: [
            *("--checkpoint", str(OLD / "exported"), "--output", str(place / "a.jaxexport")),
            *("--input", i, "--target-gsd", "8"),
        ],
    )
for gsd in ("0", "-1", "nan", "inf", "1e-9"):
    case(
        "export",
        f"--target-gsd {gsd}",
        lambda place, g=gsd: [
            *("--checkpoint", str(OLD / "exported"), "--output", str(place / "a.jaxexport")),
            *("--input", "flairhub/aerial=1x64x64", "--target-gsd", g),
        ],
    )
for name, content in {
    "nothing": "",
    "a text": "hello",
    "zip": b"PK\x03\x04" + bytes(40),
    "pickle": b"\x80\x02K\x01.",
}.items():
    case("export", f"import, {name}", lambda place, c=content: importing(place, c))
case(
    "export",
    "import, no heads",
    lambda place: [
        *(
            "--import",
            str(OLD / "exported" / "model.safetensors"),
            "--output",
            str(place / "out"),
            "--num-heads",
            "0",
        ),
    ],
)

# -- pictures and bench ------------------------------------------------------------------------------------------------

for options in ("--workdir nowhere", "--workdir README.md", "--workdir configs", "--sample 1", "--seed x"):
    case("pictures", options, lambda place, o=options: o.split())
for options in (
    "--sample -1",
    "--sample 99999",
    "--target-gsd 0",
    "--target-gsd nan",
    "--target-gsd inf",
    "--seed 1.5",
):
    case(
        "pictures",
        f"a workdir, {options}",
        lambda place, o=options: ["--workdir", str(OLD / "workdir"), *o.split()],
    )
for options in (
    *("--corpus nothing", "--batch 0", "--batch -1", "--batch x", "--batch 1000000000000", "--target-gsd 0"),
    *(
        "--target-gsd nan",
        "--target-gsd inf",
        "--target-gsd -5",
        "--target-gsd 1e-9",
        "--dates -1",
        "--dates x",
    ),
    *("--dates 100000000", "--modalities nothing", "--modalities +", "--steps 0", "--steps -3"),
    *("--data-only --seconds 0", "--data-only --seconds nan", "--data-only --step-seconds -1"),
    *(
        "--batch 1,two",
        "--precision float16",
        "--data-only --json --batch 1,2",
        "--against nowhere",
        "--output README.md",
    ),
    *("--data-only --corpus nothing", "--config nowhere.py", "--config.model.depth=0", "--config.seed=x"),
):
    case("bench", options, lambda place, o=options: ["--config", TINY, "--corpus", "tiny", *o.split()])
