#!/usr/bin/env bash
# Checks everything: formatting and lint (ruff), types (mypy), tests (pytest on two processes).
#
#   bash launch/test.sh                      # all of it
#   bash launch/test.sh tests/model -k mae   # ruff, mypy, and the tests that the arguments select
#
# Tests on real imagery run where RAMEN_JAX_REAL_DATA names its folder and are skipped elsewhere; so are the tests
# against PyTorch where torch is not installed (.venv/bin/pip install torch==2.13.0).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup_environment.sh

run() { printf '\n== %s\n' "$*"; "$@"; }
status=0
run .venv/bin/python -m ruff format --check . || status=1
run .venv/bin/python -m ruff check . || status=1
run .venv/bin/python -m mypy || status=1
run .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@" || status=1
exit "$status"
