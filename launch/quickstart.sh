#!/usr/bin/env bash
# From nothing to a pretrained (tiny) model and pictures of what it does, on a laptop, in under ten minutes:
#
#   bash launch/quickstart.sh
#
# Makes .venv, renders a small synthetic Earth, pretrains configs/tiny.py on it, stops half-way and resumes as after
# a power cut, and draws what was learnt. Everything lands in runs/quickstart. Running it again is quick and harmless.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
began=$SECONDS
workdir=runs/quickstart

step() { printf '\n== %s\n' "$*"; }

step "1/4 environment"
bash launch/setup_environment.sh
echo "Ready: .venv, $(.venv/bin/python --version)."

step "2/4 pretraining configs/tiny.py on a synthetic Earth, stopped half-way"
.venv/bin/python -m ramen_jax.train --config configs/tiny.py --workdir "$workdir" --config.train.stop_at=150

step "3/4 the same command again: it resumes by itself"
.venv/bin/python -m ramen_jax.train --config configs/tiny.py --workdir "$workdir"

step "4/4 pictures"
.venv/bin/python -m ramen_jax.pictures --workdir "$workdir" --sample 2

printf '\nDone in %d s. Look into %s/pictures; all of it:\n' $((SECONDS - began)) "$workdir"
ls -1 "$workdir" "$workdir/pictures" | sed 's/^/  /'
