#!/usr/bin/env bash
# Makes .venv at the root of the checkout and installs everything into it. Called by quickstart.sh and test.sh;
# also useful by itself. Quick when there is nothing to do. An installation that was interrupted is begun anew.
#
#   bash launch/setup_environment.sh
#   PYTHON=/path/to/python3.12 bash launch/setup_environment.sh     # choose the Python yourself
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

marker=.venv/ramen_jax_started   # this script made .venv, so this script may clear it
stamp=.venv/ramen_jax_complete   # written last: the installation came to its end, for these inputs
log=.venv/install.log
inputs=$( (pwd; cat requirements.txt pyproject.toml launch/constraints.txt) | cksum)

fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

# One installation at a time, where the system can lock: quickstart.sh and test.sh may be started together.
if command -v flock > /dev/null; then
  exec 9> launch/.lock
  flock -n 9 || { echo "Waiting for another installation into .venv to finish ..."; flock 9; }
fi

if [ "$(cat "$stamp" 2> /dev/null)" = "$inputs" ] && .venv/bin/python -c '' 2> /dev/null; then
  exit 0
fi

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.12 python3.11 python3.13 python}; do
    if usable "$name"; then command -v "$name"; return; fi
  done
  local found
  found=$( (python3 --version || python --version) 2> /dev/null || echo "no Python")
  fail "needs Python 3.11 or later with the venv module, found ${PYTHON:+$PYTHON, }$found.
Install it (on Debian and Ubuntu: apt-get install python3 python3-venv) or name one: PYTHON=/path/to/python3.12 bash $0"
}

if [ -e "$marker" ] && [ ! -e "$stamp" ]; then
  echo "The last installation into .venv was interrupted: starting it anew."
  rm -rf .venv
fi
if [ ! -e .venv ] || ! .venv/bin/python -c '' 2> /dev/null; then
  if [ -e .venv ] && [ ! -e "$marker" ]; then
    fail ".venv exists, was not made by this script, and its Python does not run; move it away and run this again"
  fi
  python=$(find_python) || exit 1
  rm -rf .venv
  mkdir .venv
  touch "$marker"
  echo "Making .venv with $("$python" --version) ($python)."
  "$python" -m venv .venv
fi
rm -f "$stamp"

echo "Installing the packages of requirements.txt into .venv; this is done once and takes a few minutes."
.venv/bin/python -m pip install --disable-pip-version-check --no-input \
  --constraint launch/constraints.txt --editable '.[test]' > "$log" 2>&1 &
pip=$!
trap 'kill "$pip" 2> /dev/null || true' EXIT
trap 'exit 130' INT TERM

# pip's own output is in the log; here one line says how far it is.
began=$SECONDS
while kill -0 "$pip" 2> /dev/null; do
  sleep 1
  if [ -t 1 ]; then every=1; else every=20; fi
  if [ $(( (SECONDS - began) % every )) -eq 0 ]; then
    collected=$(grep -c '^Collecting' "$log" || true)
    if grep -q '^Installing collected packages' "$log"; then doing="installing $collected packages"
    else doing="$collected packages fetched"; fi
    if [ -t 1 ]; then printf '\r\033[K  %d s, %s' $((SECONDS - began)) "$doing"
    else printf '  %d s, %s\n' $((SECONDS - began)) "$doing"; fi
  fi
done
if [ -t 1 ]; then printf '\r\033[K'; fi
if ! wait "$pip"; then
  tail -n 15 "$log" >&2
  fail "pip could not install the packages (its last lines are above, all of them in $log); run this again to retry"
fi
trap - EXIT

printf '%s\n' "$inputs" > "$stamp"
echo "Installed in $((SECONDS - began)) s."
