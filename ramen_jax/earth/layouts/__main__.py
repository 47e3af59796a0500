"""`python -m ramen_jax.earth.layouts`: writes a synthetic corpus in its original on-disk layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ramen_jax import console
from ramen_jax.console import USAGE, UserError
from ramen_jax.earth import layouts

CORPORA = ("flairhub", "mmearth", "worldstrat")


def run(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "earth.layouts",
        "Writes synthetic places in the original on-disk layout of a pretraining corpus.",
        "  python -m ramen_jax.earth.layouts --corpus flairhub --output flairhub_files --places 8\n"
        "  python -m ramen_jax.earth.layouts --corpus flairhub --variant loader --output other --places 8\n"
        "  python -m ramen_jax.earth.layouts --corpus mmearth --output mmearth_files --places 40\n"
        "  python -m ramen_jax.earth.layouts --corpus worldstrat --output worldstrat_files --places 3",
    )
    parser.add_argument("--corpus", required=True, choices=CORPORA)
    parser.add_argument("--output", required=True, type=Path, help="folder to write, absent or empty")
    parser.add_argument("--places", type=int, default=8, help="how many places (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pixels (default 0)")
    parser.add_argument("--max-dates", type=int, help="longest series (default: flairhub 12, worldstrat 4)")
    parser.add_argument(
        "--variant",
        choices=("published", "loader"),
        default="published",
        help="flairhub: file names as published, or as the official RAMEN loader opens them (default published)",
    )
    parser.add_argument(
        "--pixels", type=int, default=1054, help="worldstrat: SPOT pixels per side (default 1054)"
    )
    options = parser.parse_args(arguments)
    if options.places < 1:
        raise UserError(f"--places is {options.places}, expected at least 1", USAGE)
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}, expected a whole number from 0 on", USAGE)
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise UserError(
            f"--output {options.output} is not empty; name a folder that does not exist yet", USAGE
        )
    dates = {} if options.max_dates is None else {"max_dates": options.max_dates}
    write: dict[str, Callable[..., list[str]]] = {
        "flairhub": lambda **shared: layouts.write_flairhub(**shared, **dates, variant=options.variant),
        "mmearth": lambda **shared: layouts.write_mmearth(**shared),
        "worldstrat": lambda **shared: layouts.write_worldstrat(**shared, **dates, pixels=options.pixels),
    }
    with console.progress(options.places, f"writing {options.corpus}", "places") as bar:
        write[options.corpus](
            output=options.output, places=options.places, seed=options.seed, progress=bar.advance
        )
    print(f"{options.output}: {options.places} places of synthetic {options.corpus}")
    return 0


if __name__ == "__main__":
    console.main(run)
