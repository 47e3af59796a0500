"""`python -m ramen_jax.pictures`: pictures of a training.

    python -m ramen_jax.pictures --workdir DIR

writes into DIR/pictures: `loss.png`; `reconstruction_CORPUS.png` with the original, what the encoder saw and the
reconstruction of every modality; `features_CORPUS.png` with the features of one scene at three target GSDs.
"""

from __future__ import annotations

from ramen_jax import console, storage


def run() -> int:
    parser = console.parser(
        "pictures",
        "Draws the loss, the reconstructions and the features of a training into DIR/pictures.",
        "  python -m ramen_jax.pictures --workdir runs/quickstart\n"
        "  python -m ramen_jax.pictures --workdir runs/quickstart --sample 3 --target-gsd 6.4",
    )
    parser.add_argument(
        "--workdir", type=storage.local, required=True, metavar="DIR", help="workdir of ramen_jax.train"
    )
    parser.add_argument(
        "--output", type=storage.local, metavar="DIR", help="where to write (default: WORKDIR/pictures)"
    )
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="which sample to show (default: 0)"
    )
    parser.add_argument(
        "--target-gsd",
        type=float,
        metavar="METRES",
        help="of the reconstruction (default: the middle one trained on)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mask (default: 0)")
    return console.call("ramen_jax.training.pictures", parser.parse_args())


if __name__ == "__main__":
    console.main(run)
