#!/usr/bin/env bash
# What `rlpapers test` runs, in the active environment. --all adds what is marked slow or peer.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  "") flags="" marks="not slow and not gpu and not peer" ;;
  --all) flags="slow" marks="not gpu" ;;
  *) echo "usage: tests/run.sh [--all]" >&2; exit 2 ;;
esac
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
export MPLBACKEND=Agg SDL_VIDEODRIVER=dummy MUJOCO_GL=disable TQDM_DISABLE=1
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 RLPAPERS_PRESET=smoke

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
sums() {  # one line for each file below PATH... that git tracks or would track
  git ls-files -z -co --exclude-standard -- "$@" | sort -zu |
    while IFS= read -r -d '' f; do [ ! -f "$f" ] || sha256sum "$f"; done
}
unchanged() {  # unchanged COMMAND PATH...: fail if COMMAND alters a file below PATH or makes a new one
  local command=$1 before after; shift
  before=$(sums "$@")
  $command
  after=$(sums "$@")
  if [ "$before" != "$after" ]; then
    { diff <(echo "$before") <(echo "$after") || true; } |
      sed -n 's/^[<>] [0-9a-f]*  /changed: /p' | sort -u
    echo "Look at what \`$command\` changed and commit it."
    exit 1
  fi
}

step "style"
ruff format --check nbs tests setup.py
ruff check nbs tests setup.py

step "package in step with notebooks"
unchanged nbdev-export rlpapers nbs pyproject.toml

step "clean notebooks"
unchanged nbdev-clean nbs

step "notebooks"
unchanged "nbdev-test --n-workers 2 --timing${flags:+ --flags $flags}" nbs rlpapers

step "docs"
if command -v quarto >/dev/null; then
  nbdev-docs
else
  python tests/check_docs.py
fi

step "tests"
pytest -m "$marks"

step "all passed"
