#!/usr/bin/env bash
# The digest tests under AddressSanitizer and UndefinedBehaviorSanitizer: the C core is built aside, and the tree stays
# as it is. Usage: tests/sanitize.sh [python], a Python that has the test requirements. Needs gcc with its sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

# The package aside, without the checkout's own core, so that the sanitized one stands in its place.
mkdir "$built/lib"
cp -r engine/obs_engine "$built/lib/"
rm -f "$built"/lib/obs_engine/_native*.so
CFLAGS="-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
    OBS_ENGINE_STRICT=1 "$python" setup.py -q build_ext --build-lib "$built/lib" --build-temp "$built/temp"
# Why no leak check: the interpreter itself leaves memory behind at its end.
# Why malloc: Python's own allocator would hide an overrun inside its arenas.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
    PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$built/lib" \
    "$python" -c '
import sys, obs_engine.digests, obs_engine._native as core, pytest
assert core.__file__.startswith(sys.argv[1]), core.__file__
assert "libasan" in open("/proc/self/maps").read()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/unit/test_digests.py", "tests/property/test_digests.py"]))
' "$built"
