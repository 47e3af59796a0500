#!/usr/bin/env bash
# The short check on every other Python that is present (3.12 and 3.13): in a copy of the committed files, installs the
# versions that launch/constraints.txt gives that Python, checks types, asks every command for its help, replays the
# golden numbers, and pretrains configs/tiny.py in miniature.
#
#   bash launch/other_pythons.sh              # those found by name on the PATH or by pyenv
#   bash launch/other_pythons.sh python3.14   # the ones named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs() { "$1" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2> /dev/null; }

find_pythons() {
  local version candidate
  for version in 3.12 3.13; do
    for candidate in "python$version" "$(pyenv root 2> /dev/null || true)"/versions/"$version".*/bin/python; do
      if [ "$(runs "$candidate")" = "$version" ]; then printf '%s\n' "$candidate"; break; fi
    done
  done
}

copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT
if [ $# -gt 0 ]; then pythons=$(printf '%s\n' "$@"); else pythons=$(find_pythons); fi
if [ -z "$pythons" ]; then echo "No Python 3.12 or 3.13 is present: nothing was run on them."; fi

status=0
check() {
  printf '\n== Python %s: %s\n' "$1" "${*:2}"
  "${@:2}" || { status=1; printf 'error: Python %s: this failed: %s\n' "$1" "${*:2}" >&2; }
}
while read -r python; do
  [ -n "$python" ] || continue
  version=$(runs "$python") || { echo "error: $python does not run, or has no venv module" >&2; status=2; continue; }
  copy=$copies/$version
  git clone --quiet . "$copy"
  PYTHON=$python bash "$copy/launch/setup_environment.sh"
  cd "$copy"
  check "$version" .venv/bin/python -m mypy
  for command in prepare train export embed bench pictures evaluate compile_check checkpoint doctor; do
    check "$version" .venv/bin/python -m "ramen_jax.$command" --help > /dev/null
  done
  check "$version" .venv/bin/python tests/golden/replay.py tests/golden/mae
  check "$version" .venv/bin/python -m ramen_jax.train --config configs/tiny.py:quicktest --workdir runs/quicktest
  cd - > /dev/null
  rm -rf "$copy"
done <<< "$pythons"
exit "$status"
