#!/usr/bin/env bash
# Builds the native library with AddressSanitizer and UndefinedBehaviorSanitizer and runs its tests on that build:
#     scripts/sanitize.sh [python]
# Where that cannot be done (no g++ with sanitizers, no cmake) it says why and ends without an error.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python3}
cxx=${CXX:-g++}
build=build/sanitize

skip() {
    echo "sanitize: skipped: $1" >&2
    exit 0
}

command -v "$cxx" > /dev/null || skip "there is no $cxx"
command -v cmake > /dev/null || skip "there is no cmake"
if [[ $("$cxx" --version) == *clang* ]]; then skip "$cxx is clang, whose sanitizers cannot be loaded before Python; set CXX=g++"; fi

# A program that reads past its memory must be caught.
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'int main(int n, char**) { int* p = new int[n]; int past = p[n]; delete[] p; return past; }' > "$probe/probe.cpp"
"$cxx" -fsanitize=address,undefined "$probe/probe.cpp" -o "$probe/probe" 2> "$probe/log" || skip "$cxx has no sanitizers: $(head -n 1 "$probe/log")"
caught=$("$probe/probe" 2>&1 || true)
[[ $caught == *heap-buffer-overflow* ]] || skip "AddressSanitizer does not run on this machine"

# Python is built without them, so that their runtimes must be there before it.
preload=""
for name in libasan.so libubsan.so; do
    path=$("$cxx" -print-file-name="$name")
    [ -f "$path" ] || skip "$cxx has no shared $name"
    preload="$preload $path"
done

# At -O3 the same checks take two and a half times as long to compile.
generator=()
if command -v ninja > /dev/null; then generator=(-G Ninja); fi
cmake -S . -B "$build" "${generator[@]}" -DCMAKE_CXX_COMPILER="$cxx" -DCONVARY_SANITIZE=address,undefined \
    -DCMAKE_BUILD_TYPE=Sanitize -DCMAKE_CXX_FLAGS_SANITIZE="-O1 -DNDEBUG" > "$probe/log" || {
    cat "$probe/log"
    exit 1
}
cmake --build "$build" --parallel "$(nproc)" > "$probe/log" || {
    cat "$probe/log"
    exit 1
}

# Leaks would be Python's own; the tests of instruction sets load a second copy of the library. A block too large for memory is an error code of the library.
log=log_path=$probe/report
env LD_PRELOAD="$preload" ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0:$log" UBSAN_OPTIONS="print_stacktrace=1:$log" \
    CONVARY_LIBRARY="$PWD/$build/libconvary.so" OMP_NUM_THREADS=1 CONVARY_HOSTILE_CALLS=800 \
    "$python" -m pytest -q -n auto --maxprocesses 8 --dist worksteal tests/test_custom_ops.py \
    tests/ops/native/test_{library,router}.py tests/ops/*/test_{hostile,native*,bf16}.py || {
    cat "$probe"/report.* 2> /dev/null || true  # pytest has no say when its process ends
    exit 1
}
