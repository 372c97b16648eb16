#!/usr/bin/env bash
# Builds the fuzz targets into build/fuzz and runs them.
#
#   run.sh                  about 20 seconds in all
#   run.sh 1000000          that many inputs for each target, however long it takes
#   run.sh 60s              that many seconds in all
#   run.sh --planted        plants each bug of planted.cmake, and asks that it be found
#   run.sh --coverage       lines of the core that the corpora reach, from here and from earlier runs
#
# Exit status: 0 without a finding (for --planted, with every bug found), 1 otherwise, 2 if it could
# not run. A finding is left in build/fuzz/findings, with the command that runs it again. New corpus
# goes to build/fuzz/corpus. FUZZ_SEED repeats a run; CMAKE and CXX say which programs to take.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
build="$root/build/fuzz"
cxx="${CXX:-clang++}"

stop() {
  echo "run.sh: $1" >&2
  exit 2
}

# CMake may be the system's or one from PyPI; it has to be recent enough for CMakeLists.txt.
find_cmake() {
  local candidate
  for candidate in "${CMAKE:-}" cmake "$root/.venv/bin/cmake" "$root/.build-venv/bin/cmake"; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    if "$candidate" -P /dev/stdin 2>/dev/null <<<'cmake_minimum_required(VERSION 3.26)'; then
      echo "$candidate"
      return
    fi
  done
  stop "no cmake of 3.26 or later; 'pip install cmake' has one (or say where with CMAKE=)"
}

check_compiler() {
  command -v "$cxx" >/dev/null ||
    stop "no $cxx; on Debian and Ubuntu: apt-get install clang (or say which with CXX=)"
  local scratch
  scratch="$(mktemp -d)"
  echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' \
    >"$scratch/probe.cpp"
  if ! "$cxx" -fsanitize=fuzzer,address,undefined "$scratch/probe.cpp" -o "$scratch/probe" \
    2>"$scratch/log"; then
    cat "$scratch/log" >&2
    rm -r "$scratch"
    stop "$cxx cannot link libFuzzer and the sanitizers; on Debian and Ubuntu they are in
the package libclang-rt-<version>-dev, where the version is that of: $("$cxx" --version | head -1)"
  fi
  rm -r "$scratch"
}

# The targets of a build: without nghttp2 there are fewer.
targets_of() {
  cat "$1/csrc/fuzz/targets"
}

# compile DIRECTORY OPTIONS... -- TARGETS...
compile() {
  local directory="$1" options=()
  shift
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  mkdir -p "$directory"
  {
    "$cmake" -S "$root" -B "$directory" -DCMAKE_CXX_COMPILER="$cxx" -DTRITON_FAST_PYTHON=OFF \
      -DTRITON_FAST_FUZZ=ON "${options[@]}" &&
      "$cmake" --build "$directory" --parallel "${FUZZ_JOBS:-2}" --target "$@"
  } >"$directory/build.log" 2>&1 || {
    cat "$directory/build.log" >&2
    stop "the build failed"
  }
}

# Options that every run shares: inputs of 1 KiB reach all there is; a single block of more than
# 64 MiB, an input of more than 10 seconds, and 2 GiB in all are findings.
common() {
  echo "-max_len=1024 -malloc_limit_mb=64 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1"
  if [ -n "${FUZZ_SEED:-}" ]; then echo "-seed=$FUZZ_SEED"; fi
  case "$1" in
    fuzz_response | fuzz_strings) echo "-dict=$here/inference.dict" ;;
    fuzz_session) echo "-dict=$here/http2.dict" ;;
  esac
}

# A quarantine of 256 MiB, the default, is read from memory again and again: a third of the time. An
# input frees far less than 16 MiB.
export ASAN_OPTIONS="quarantine_size_mb=16:malloc_context_size=8${ASAN_OPTIONS:+:$ASAN_OPTIONS}"

# What is in the repository for a target, if anything.
seeds() {
  local folder="$here/corpus/${1#fuzz_}"
  if [ -d "$folder" ]; then echo "$folder"; fi
}

# Runs one target with a limit. Its log goes to a file; what counts of it is printed.
run_target() {
  local target="$1" limit="$2" corpus="$build/corpus/$1" log="$build/$1.log" status=0
  mkdir -p "$corpus" "$build/findings"
  # shellcheck disable=SC2046
  "$build/csrc/fuzz/$target" "$limit" $(common "$target") -artifact_prefix="$build/findings/$target-" \
    "$corpus" $(seeds "$target") >"$log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    grep -v -E '^#[0-9]+\s+(NEW|REDUCE|RELOAD|pulse)' "$log" | tail -60
    echo "$target: FOUND SOMETHING (status $status); log: $log"
    sed -n "s|.*Test unit written to \(.*\)|again: $build/csrc/fuzz/$target \1|p" "$log"
    return 1
  fi
  local runs speed cov
  runs="$(sed -n 's/stat::number_of_executed_units: *//p' "$log")"
  speed="$(sed -n 's/stat::average_exec_per_sec: *//p' "$log")"
  cov="$(grep -o -E 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -1)"
  echo "$target: $runs inputs, $speed a second, no finding ($cov)"
  # A harness whose every input is refused would find nothing and look well.
  sed -n -E 's/^(responses read|calls that were)/  \1/p' "$log"
  if grep -q -E '^(responses read without an error|calls that were answered with OK): 0 of' "$log"
  then
    echo "$target: not one answer got through; the harness is broken"
    return 1
  fi
}

# What a target gets of the time: most goes to what strangers send us.
weight_of() {
  case "$1" in
    fuzz_response | fuzz_session) echo 4 ;;
    *) echo 1 ;;
  esac
}

run_all() {
  compile "$build" -- fuzz_targets
  local failed=0 target share all=0
  for target in $(targets_of "$build"); do all=$((all + $(weight_of "$target"))); done
  for target in $(targets_of "$build"); do
    case "$1" in
      *s)
        share=$((${1%s} * $(weight_of "$target") / all))
        run_target "$target" "-max_total_time=$((share > 0 ? share : 1))" || failed=1
        ;;
      *) run_target "$target" "-runs=$1" || failed=1 ;;
    esac
  done
  return "$failed"
}

# A bug counts as found when the patched program stops at an input that the sound one reads. The number
# of inputs is the limit; that of time is for a search that hangs, on a busy machine too.
run_planted() {
  local failed=0 name harness begin folder
  compile "$build" -- fuzz_targets planted
  while read -r name harness; do
    folder="$build/planted/$name"
    rm -rf "$folder"
    mkdir -p "$folder/corpus"
    begin=$SECONDS
    # shellcheck disable=SC2046
    "$build/csrc/fuzz/planted_$name" -runs=1000000 -max_total_time=300 $(common "$harness") -seed=1 \
      -artifact_prefix="$folder/" "$folder/corpus" $(seeds "$harness") >"$folder/log" 2>&1 || true
    local input
    input="$(find "$folder" -maxdepth 1 -name '*-*' | head -1)"
    if [ -z "$input" ]; then
      echo "planted $name: NOT FOUND by $harness; log: $folder/log"
      failed=1
    elif ! "$build/csrc/fuzz/$harness" "$input" >"$folder/sound.log" 2>&1; then
      echo "planted $name: $harness without the bug stops as well; log: $folder/sound.log"
      failed=1
    else
      echo "planted $name: found by $harness" \
        "after $(sed -n 's/stat::number_of_executed_units: *//p' "$folder/log") inputs" \
        "in $((SECONDS - begin)) s"
    fi
  done <"$build/csrc/fuzz/planted/list"
  return "$failed"
}

run_coverage() {
  local tools target profiles=() objects=()
  tools="$(dirname "$(readlink -f "$(command -v "$cxx")")")"
  [ -x "$tools/llvm-cov" ] && [ -x "$tools/llvm-profdata" ] ||
    stop "no llvm-cov beside $cxx; on Debian and Ubuntu: apt-get install llvm"
  compile "$build/coverage" -DTRITON_FAST_FUZZ_COVERAGE=ON -- fuzz_targets
  for target in $(targets_of "$build/coverage"); do
    mkdir -p "$build/corpus/$target"
    # shellcheck disable=SC2046
    LLVM_PROFILE_FILE="$build/coverage/$target.profraw" "$build/coverage/csrc/fuzz/$target" -runs=0 \
      -max_len=1024 "$build/corpus/$target" $(seeds "$target") >"$build/coverage/$target.log" 2>&1
    profiles+=("$build/coverage/$target.profraw")
    objects+=(${objects[0]:+-object} "$build/coverage/csrc/fuzz/$target")
  done
  "$tools/llvm-profdata" merge -o "$build/coverage/all.profdata" "${profiles[@]}"
  "$tools/llvm-cov" report "${objects[@]}" -instr-profile="$build/coverage/all.profdata" \
    "$root/csrc/src" "$root/csrc/include"
  "$tools/llvm-cov" show "${objects[@]}" -instr-profile="$build/coverage/all.profdata" \
    "$root/csrc/src" "$root/csrc/include" >"$build/coverage/lines.txt"
  echo "line by line: $build/coverage/lines.txt"
}

what="${1:-20s}"
case "$what" in
  --planted | --coverage) ;;
  *) [[ "$what" =~ ^[1-9][0-9]*s?$ ]] || stop "what is '$what'? A number of inputs, or of seconds as in 60s" ;;
esac
cmake="$(find_cmake)"
check_compiler
case "$what" in
  --planted) run_planted ;;
  --coverage) run_coverage ;;
  *) run_all "$what" ;;
esac
