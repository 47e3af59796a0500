#!/usr/bin/env bash
# From nothing to a pretrained (tiny) model, pictures of what it does and a table of what it has learnt, on a laptop:
#
#   bash launch/quickstart.sh
#
# Makes .venv, renders a small synthetic Earth, pretrains configs/tiny.py on it, stops half-way and resumes as after
# a power cut, draws what was learnt, and measures it against raw bands and an untrained encoder on places that the
# training never saw. Everything lands in runs/quickstart. Running it again is quick and harmless.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
began=$SECONDS
workdir=runs/quickstart

step() { printf '\n== %s\n' "$*"; }

step "1/5 environment"
bash launch/setup_environment.sh
echo "Ready: .venv, $(.venv/bin/python --version)."

step "2/5 pretraining configs/tiny.py on a synthetic Earth, stopped half-way"
.venv/bin/python -m ramen_jax.train --config configs/tiny.py --workdir "$workdir" --config.train.stop_at=500

step "3/5 the same command again: it resumes by itself"
.venv/bin/python -m ramen_jax.train --config configs/tiny.py --workdir "$workdir"

step "4/5 pictures"
.venv/bin/python -m ramen_jax.pictures --workdir "$workdir" --sample 2

step "5/5 what it has learnt, on places it never saw"
if [ ! -f "$workdir/learning/table.md" ]; then
  .venv/bin/python -m ramen_jax.evaluate --suite learning --checkpoint "$workdir" --target-gsd 6.4 --labels 1 \
    --workdir "$workdir/learning"
else
  cat "$workdir/learning/table.md"
fi

printf '\nDone in %d s. Look into %s/pictures; all of it:\n' $((SECONDS - began)) "$workdir"
ls -1 "$workdir" "$workdir/pictures" | sed 's/^/  /'
