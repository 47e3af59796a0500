"""Of `checkpoint` and `doctor`."""

from __future__ import annotations

from tests.wrong_inputs.registry import OLD, TINY, case
from tests.wrong_inputs.weights import trained

WORKDIR = str(OLD / "workdir")

case("checkpoint", "no action", lambda place: [])
case("checkpoint", "unknown action", lambda place: ["delete", WORKDIR])
case("checkpoint", "no path", lambda place: ["inspect"])
case("checkpoint", "nothing there", lambda place: ["inspect", str(place / "nothing")])
case("checkpoint", "an empty folder", lambda place: ["verify", str(place)])
case("checkpoint", "a null character", lambda place: ["inspect", "a\0b"])
case("checkpoint", "a file", lambda place: ["verify", __file__])
case("checkpoint", "a step that is not there", lambda place: ["inspect", WORKDIR, "--step", "3"])
case("checkpoint", "a step that is no number", lambda place: ["inspect", WORKDIR, "--step", "last"])
case("checkpoint", "copy nowhere", lambda place: ["copy", WORKDIR])
case("checkpoint", "copy over a file", lambda place: ["copy", WORKDIR, "--output", __file__])
case("checkpoint", "copy where nothing can be", lambda place: ["copy", WORKDIR, "--output", "/proc/nowhere"])
case(
    "checkpoint", "inspect with an output", lambda place: ["inspect", WORKDIR, "--output", str(place / "out")]
)
case("checkpoint", "verify with --decoder", lambda place: ["verify", WORKDIR, "--decoder"])
case(
    "checkpoint",
    "to another format",
    lambda place: ["to-safetensors", WORKDIR, "--output", str(place / "a.ckpt")],
)
case(
    "checkpoint",
    "to a file with an unknown step",
    lambda place: [*("to-safetensors", WORKDIR, "--step", "9", "--output", str(place / "a.safetensors"))],
)
for name, told in (
    ("no meta", None),
    ("meta of nothing", b""),
    ("meta of a list", b"[]"),
    ("meta of text", b"\xff"),
):
    file = "meta" if told is None else "meta/metadata"
    case(
        "checkpoint",
        f"verify {name}",
        lambda place, file=file, told=told: ["verify", trained(place, file, told)],
    )
    case(
        "checkpoint",
        f"copy {name}",
        lambda place, file=file, told=told: [
            "copy",
            trained(place, file, told),
            "--output",
            str(place / "out"),
        ],
    )

case("doctor", "unknown option", lambda place: ["--speed"])
case("doctor", "no configuration there", lambda place: ["--config", str(place / "nothing.py")])
case("doctor", "a key without a configuration", lambda place: ["--config.seed=1"])
case("doctor", "an unknown key", lambda place: ["--config", TINY, "--config.sead=1"])
case("doctor", "a workdir that cannot be", lambda place: ["--workdir", "/proc/nowhere"])
case("doctor", "a workdir that is a file", lambda place: ["--workdir", __file__])
case("doctor", "no time to wait", lambda place: ["--timeout", "0"])
case("doctor", "a coordinator alone", lambda place: ["--coordinator", "localhost:1234"])
case(
    "doctor",
    "a process beyond the last",
    lambda place: [*("--coordinator", "localhost:1234", "--processes", "2", "--process-id", "2")],
)
case(
    "doctor",
    "a coordinator without a port",
    lambda place: [*("--coordinator", "localhost", "--processes", "2", "--process-id", "0")],
)
case(
    "doctor",
    "a host that nobody knows",
    lambda place: [*("--coordinator", "no-such-host.invalid:1234", "--processes", "2", "--process-id", "1")],
)
case(
    "doctor",
    "a port that cannot be",
    lambda place: [*("--coordinator", "localhost:99999999", "--processes", "2", "--process-id", "0")],
)
