"""From the options of `python -m ramen_jax.export` to the verified files."""

from __future__ import annotations

import argparse

from ramen_jax.documents import read_json_object
from ramen_jax.interchange import exchange
from ramen_jax.training.weights import read_checkpoint


def run(options: argparse.Namespace) -> int:
    """Exports or imports what the options name. Returns the exit status."""
    if options.official is not None:
        source = exchange.read_official(
            options.official, options.sensors, options.recipe or "reference", options.num_heads
        )
        decoder = source.tensors.keys() != source.encoder.keys()
    else:
        decoder = options.decoder
        source = read_checkpoint(options.checkpoint, decoder)
    if options.output.suffix == ".jaxexport":
        exchange.write_artefact(source, options.output, options.input, options.target_gsd, options.overwrite)
        print(f"wrote {options.output}")
        return 0
    report = exchange.export(
        source,
        options.output,
        decoder=decoder,
        overwrite=options.overwrite,
        licence=options.licence or exchange.LICENCE_FILE,
        results=read_json_object(options.results, "task: result pairs") if options.results else None,
    )
    cosine = min(run["cosine"] for run in report["runs"])
    print(
        f"wrote {options.output}: {len(source.tensors)} tensors; PyTorch and JAX agree to {report['worst']:.1e} "
        f"(cosine {cosine:.9f}) in {len(report['runs'])} comparisons"
    )
    return 0
