"""Of `prepare`: descriptions, options, sources, manifests."""

from __future__ import annotations

from pathlib import Path

from tests.wrong_inputs.registry import BOMB, case, file

# -- prepare -----------------------------------------------------------------------------------------------------------


def prepared(place: Path, *options: str, corpus: str = "worldstrat") -> list[str]:
    source = place / "source"
    source.mkdir(exist_ok=True)
    return ["--corpus", corpus, "--source", str(source), "--output", str(place / "prepared"), *options]


ONE_MODALITY = "modalities: {a: {sensor: sentinel2_l2a, pattern: '{id}.tif'}}\n"
DESCRIPTIONS: dict[str, str | bytes] = {
    "empty": "",
    "a list": "- a\n- b\n",
    "a number": "3",
    "no kind": "name: x\n",
    "unknown kind": "kind: magic\n",
    "kind is a list": "kind: [geofolder]\n",
    "kind is a mapping": "kind: {a: 1}\n",
    "name is a number": "kind: geofolder\nname: 3\nmodalities: {}\n",
    "no modalities": "kind: geofolder\n",
    "modalities is a list": "kind: geofolder\nmodalities: [a]\n",
    "modalities is a number": "kind: geofolder\nmodalities: 3\n",
    "modality is a text": "kind: geofolder\nmodalities: {a: b}\n",
    "modality without pattern": "kind: geofolder\nmodalities: {a: {sensor: sentinel2_l2a}}\n",
    "modality with unknown sensor": "kind: geofolder\nmodalities: {a: {sensor: x, pattern: '{id}.tif'}}\n",
    "sensor is a list": "kind: geofolder\nmodalities: {a: {sensor: [x], pattern: '{id}.tif'}}\n",
    "pattern is a number": "kind: geofolder\nmodalities: {a: {sensor: sentinel2_l2a, pattern: 3}}\n",
    "pattern without id": "kind: geofolder\nmodalities: {a: {sensor: sentinel2_l2a, pattern: 'a.tif'}}\n",
    "crop is a text": "kind: geofolder\ncrop: big\nmodalities: {a: {sensor: sentinel2_l2a, pattern: '{id}.tif'}}\n",
    "split is a number": "kind: geofolder\nsplit: 3\n" + ONE_MODALITY,
    "val is a text": "kind: geofolder\nsplit: {val: x}\n" + ONE_MODALITY,
    "sensors is a number": "kind: geofolder\nsensors: 3\nmodalities: {}\n",
    "sensors is nowhere": "kind: geofolder\nsensors: nowhere.yaml\nmodalities: {a: {sensor: x, pattern: '{id}.tif'}}\n",
    "unknown option": "kind: geofolder\nmodalitys: {}\n",
    "tab": "kind:\tgeofolder\n\t- x\n",
    "unclosed": "kind: [",
    "bomb": "kind: geofolder\n" + BOMB,
    "itself": "kind: geofolder\nmodalities: &a {b: *a}\n",
    "python": "!!python/object/apply:os.system ['true']\n",
    "date": "kind: geofolder\nname: 2020-13-45\n",
    "not utf-8": b"kind: \xff\n",
    "binary": bytes(range(256)),
    "numbers for keys": "kind: geofolder\n3: 4\n",
    "synthetic, text places": "kind: synthetic\nplaces: many\n",
    "synthetic, negative places": "kind: synthetic\nplaces: -3\n",
    "synthetic, geometry": "kind: synthetic\ngeometry: round\n",
    "synthetic, list geometry": "kind: synthetic\ngeometry: [tiny]\n",
    "synthetic, modalities": "kind: synthetic\nmodalities: [nothing]\nplaces: 1\n",
    "synthetic, dates": "kind: synthetic\nmax_dates: none at all\nplaces: 1\n",
    "mmearth, a trap": "kind: mmearth\ndraw: seeded\n",
}
for name, content in DESCRIPTIONS.items():
    case("prepare", name, lambda place, c=content: prepared(place, corpus=file(place, "mine.yaml", c)))
for option in (
    *("--set x", "--set =", "--set places", "--set crop=[", "--set crop={a: *b}", "--trap x=1", "--trap x"),
    *(
        "--trap worldstrat_repeats=often",
        "--recipe best",
        "--workers x",
        "--workers 1.5",
        "--runner NoSuchRunner",
    ),
    *(
        "--set repeats=fixed",
        "--set nothing=3",
        "--corpus nothing",
        "--source /proc/nowhere",
        "--beam-options",
    ),
):
    flag, _, value = option.partition(" ")
    case("prepare", option, lambda place, f=flag, v=value: prepared(place, f, *([v] if v else [])))
for shipped in ("flairhub", "mmearth", "worldstrat", "terramesh", "treesatai", "worldcereal"):
    case("prepare", f"empty source, {shipped}", lambda place, s=shipped: prepared(place, corpus=s))


def verifying(place: Path, manifest: str | bytes | None) -> list[str]:
    if manifest is not None:
        file(place, "prepared/manifest.json", manifest)
    return ["--verify", "--output", str(place / "prepared")]


case("prepare", "no output", lambda place: ["--corpus", "worldstrat"])
case("prepare", "no corpus", lambda place: ["--output", str(place / "prepared")])
case("prepare", "output is a file", lambda place: [*prepared(place)[:-1], file(place, "prepared", "mine")])
for name, content in {
    "missing": None,
    "no json": "{",
    "a list": "[]",
    "no format": "{}",
    "format is a list": '{"format": []}',
    "edited": '{"format": 1, "fingerprint": "x"}',
    "nan": '{"format": 1, "x": NaN}',
    "not utf-8": b"\xff",
    "deep": '{"a":' * 100_000,
}.items():
    case("prepare", f"verify, {name}", lambda place, c=content: verifying(place, c))
