"""Original files -> a prepared corpus: ArrayRecord shards, manifest with statistics and fingerprint.

    python -m ramen_jax.prepare --corpus flairhub --source DIR --output DIR [--workers N] [--runner NAME]

Killed half-way and started again, it goes on where it was and ends with the same shards. Files that cannot be used
are listed with their cause in OUTPUT/rejected.jsonl.
"""

from __future__ import annotations

from typing import Any

from ramen_jax import console, storage
from ramen_jax.console import USAGE, UserError
from ramen_jax.corpora.preparation import prepare, report, verify
from ramen_jax.documents import parse_yaml
from ramen_jax.recipe import RECIPES, Recipe

_EXAMPLES = """\
  python -m ramen_jax.prepare --corpus flairhub --source /data/flairhub/data --output /data/prepared/flairhub
  python -m ramen_jax.prepare --corpus mmearth --source /data/MMEarth64 --output /data/prepared/mmearth --workers 32
  python -m ramen_jax.prepare --corpus my_places.yaml --source rasters --output prepared --set crop=128
  python -m ramen_jax.prepare --verify --output /data/prepared/flairhub
  python -m ramen_jax.prepare --corpus worldstrat --source DIR --output DIR --runner DataflowRunner \\
      --beam-options=--project=mine,--region=europe-west4   (needs `pip install apache-beam`)"""


def run() -> None:
    parser = console.parser(
        "prepare", "Original files to ArrayRecord shards, manifest and statistics.", _EXAMPLES
    )
    parser.add_argument(
        "--corpus", help="name of a shipped description (flairhub, mmearth, ...), or a YAML file"
    )
    parser.add_argument("--source", help="folder of the original files")
    parser.add_argument("--output", required=True, help="folder for manifest.json and the shards")
    parser.add_argument("--workers", type=int, help="processes (default: one per processor)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the description"
    )
    parser.add_argument(
        "--recipe",
        default="fixed",
        metavar="NAME",
        help=f"of the trainings it is for: {' or '.join(RECIPES)}; the official code's rules, or ours (default: fixed)",
    )
    parser.add_argument(
        "--trap",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one trap that differs from the recipe",
    )
    parser.add_argument(
        "--unpack", metavar="DIR", help="first unpack the archives of SOURCE into DIR, then read that"
    )
    parser.add_argument("--runner", help="Apache Beam runner to hand the work to, such as DirectRunner")
    parser.add_argument("--beam-options", default="", help="pipeline options for the runner, comma separated")
    parser.add_argument(
        "--verify", action="store_true", help="hash every shard of OUTPUT against its manifest"
    )
    arguments = parser.parse_args()
    folder = storage.local(arguments.output)
    try:
        if arguments.verify:
            verify(folder)
        elif not arguments.corpus:
            raise UserError("--corpus is missing (a shipped name or a YAML file)", USAGE)
        else:
            entry = {
                "spec": arguments.corpus,
                "source": arguments.source,
                "options": dict(_option(text) for text in arguments.set),
            }
            beam_options = [text for text in arguments.beam_options.split(",") if text]
            recipe = Recipe.named(
                arguments.recipe, **dict(_option(text, "--trap") for text in arguments.trap)
            )
            prepare(
                entry, folder, recipe, arguments.workers, arguments.runner, beam_options, arguments.unpack
            )
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(report(folder))


def _option(text: str, flag: str = "--set") -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{flag} {text}: expected KEY=VALUE", USAGE)
    return key, parse_yaml(value, f"{flag} {key}", USAGE)


if __name__ == "__main__":
    console.main(run)
