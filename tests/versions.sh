#!/usr/bin/env bash
# Runs the tests of the package's core beside other releases of torch, each in a fresh environment:
#   tests/versions.sh 2.4.1 2.8.0
#   ROOMS="tests/core tests/loop" tests/versions.sh 2.4.1
# Needs a python3 that these releases support, and a package index.
set -euo pipefail

rooms=${ROOMS:-tests/core tests/scope tests/loop tests/plugins tests/seams tests/finding tests/check \
    tests/run tests/faults tests/test_topk.py tests/test_config.py tests/test_monkeypatch.py \
    tests/test_scripts.py}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

for version in "$@"; do
    packages=("torch==$version" "wrapt<2" pytest pytest-xdist hypothesis)
    case $version in
        2.[1-4].*) packages+=("numpy<2") ;; # what they were built with
        *) packages+=(numpy) ;;
    esac
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --no-cache-dir "${packages[@]}"
    # with its own dependencies, which must leave torch as it is
    "$work/$version/bin/pip" install --quiet --no-cache-dir -e "$root"
    echo "torch $("$work/$version/bin/python" -c 'import torch; print(torch.__version__)'):"
    (
        cd "$root"
        # shellcheck disable=SC2086
        "$work/$version/bin/pytest" -q -rfEs -p no:cacheprovider -n "${WORKERS:-auto}" $rooms
    )
    rm -rf "${work:?}/$version"
done
