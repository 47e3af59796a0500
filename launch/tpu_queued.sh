#!/usr/bin/env bash
# A pretraining on a TPU slice of Google Cloud by queued resources, asked for again whenever it is taken away.
#
#   PROJECT=my-project ZONE=europe-west4-b TYPE=v5litepod-16 WORKDIR=gs://my-bucket/runs/base bash launch/tpu_queued.sh
#
# Runs on your own machine, until the training is complete or fails by itself. Every host of the slice gets this
# checkout, makes its .venv and starts the same command; prepared corpora have to lie where CONFIG says, on each of them.
# The slice is deleted at the end.
#
# Checked with shellcheck and by tests that run it with a stand-in for gcloud; not run on Google Cloud.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${PROJECT:?set PROJECT to the Google Cloud project}" "${ZONE:?set ZONE, europe-west4-b say}"
: "${TYPE:?set TYPE to the kind of slice, v5litepod-16 say}" "${WORKDIR:?set WORKDIR to a gs:// folder}"
name=${NAME:-ramen}
config=${CONFIG:-configs/base.py}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
pause=${PAUSE:-60}
stopped=143

tpu() { gcloud compute tpus "$@" --project "$PROJECT" --zone "$ZONE" --quiet; }

release() { tpu queued-resources delete "$name" --force > /dev/null 2>&1 || true; }

state() { tpu queued-resources describe "$name" --format 'value(state.state)' 2> /dev/null || echo NONE; }

on_all() { tpu tpu-vm ssh "$name" --worker all --command "$1"; }

start() {
  release
  tpu queued-resources create "$name" --node-id "$name" --accelerator-type "$TYPE" --runtime-version "$runtime" --spot
  local now
  while now=$(state); [ "$now" != ACTIVE ]; do
    case $now in
      FAILED | SUSPENDED | NONE) echo "the request ended as $now; asking again" >&2; return 1 ;;
    esac
    echo "waiting for $TYPE: $now"
    sleep "$pause"
  done
  git archive --format tar.gz --output "$archive" HEAD
  tpu tpu-vm scp "$archive" "$name:ramen_jax.tar.gz" --worker all
  on_all 'mkdir -p ramen_jax && tar -xzf ramen_jax.tar.gz -C ramen_jax && bash ramen_jax/launch/setup_environment.sh &&
    ramen_jax/.venv/bin/python -m pip install --quiet --constraint ramen_jax/launch/constraints.txt "ramen_jax/.[tpu,buckets]"'
}

train() {
  on_all "cd ramen_jax && RAMEN_JAX_STOPPED_STATUS=$stopped .venv/bin/python -m ramen_jax.train \
    --config '$config' --workdir '$WORKDIR' --distributed"
}

archive=$(mktemp --suffix .tar.gz)
trap 'rm -f "$archive"; release' EXIT
while true; do
  status=0
  if start; then train || status=$?; else status=$stopped; fi
  [ "$status" -ne 0 ] || { echo "complete"; exit 0; }
  if [ "$status" -ne "$stopped" ] && [ "$(state)" = ACTIVE ]; then
    echo "error: the training ended by itself with status $status; its message is above" >&2
    exit "$status"
  fi
  echo "the slice was taken away (status $status); asking for another"
  sleep "$pause"
done
