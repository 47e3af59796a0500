"""Of `evaluate` and `compile_check`."""

from __future__ import annotations

from pathlib import Path

from tests.wrong_inputs.registry import BOMB, OLD, TINY, case, file


def judged(place: Path, *changes: str) -> list[str]:
    options = {
        "--task": "sen1floods11",
        "--data": str(place),
        "--encoder": "raw",
        "--workdir": str(place / "run"),
    }
    options |= dict(zip(changes[::2], changes[1::2], strict=True))
    return [text for option in options.items() if option[1] for text in option]


for option, values in {
    "--task": ("nothing", "sen1floods11,nothing", "", "../x"),
    "--data": ("/proc/nowhere", "README.md"),
    "--encoder": ("nothing", "checkpoint", "raw,nothing", ","),
    "--checkpoint": ("nowhere", "README.md", "configs"),
    "--protocol": ("best", "x"),
    "--target-gsd": ("0", "-1", "nan", "inf", "ten", "10,,x"),
    "--seeds": ("x", "1.5", "-1"),
    "--labels": ("0", "-1", "2", "nan", "x"),
    "--decoder": ("nothing",),
    "--epochs": ("0", "-1", "x"),
    "--batch-size": ("0", "-8", "x"),
    "--replicate": ("0", "-2", "x"),
    "--crop": ("0", "-5", "x"),
    "--channels": ("0", "-1", "x"),
    "--dtype": ("float64",),
    "--cache-limit": ("-1", "nan", "inf", "x"),
    "--workdir": ("/proc/nowhere/run", "README.md"),
}.items():
    for value in values:
        case("evaluate", f"{option} {value!r}", lambda place, o=option, v=value: judged(place, o, v))
for name, content in {
    "empty": "",
    "a list": "- a\n",
    "unknown": "kind: magic\n",
    "bomb": BOMB,
    "not utf-8": b"a: \xff\n",
    "unclosed": "a: [",
    "wrong types": "name: 3\nclasses: x\nsensors: 4\n",
}.items():
    case(
        "evaluate",
        f"a task, {name}",
        lambda place, c=content: judged(place, "--task", "", "--config", file(place, "task.yaml", c)),
    )
for words in (
    "--suite nothing",
    "--suite learning --checkpoint nowhere",
    "--suite learning --target-gsd 400",
):
    case("evaluate", words, lambda place, w=words: [*w.split(), "--workdir", str(place / "run")])
case("evaluate", "a task without data", lambda place: ["--task", "mados", "--workdir", str(place / "run")])
case("evaluate", "no arguments", lambda place: [])
case("evaluate", "empty data", lambda place: judged(place, "--checkpoint", str(OLD / "exported")))

for options in (
    *(
        "--topology nothing",
        "--topology v5e:",
        "--topology v5e:0x4",
        "--topology v5e:4xx4",
        "--rows 0",
        "--rows -4",
    ),
    *("--rows x", "--rows 1,,2", "--corpus nothing", "--config nowhere.py", "--config.model.depth=0"),
):
    case(
        "compile_check",
        options,
        lambda place, o=options: ["--config", TINY, "--topology", "v5e:2x2", *o.split()],
    )
case("compile_check", "no arguments", lambda place: [])
