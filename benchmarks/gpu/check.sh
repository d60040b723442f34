#!/usr/bin/env bash
# Prove everything on a GPU: build, tests, compute-sanitizer, timings. One call, nine minutes at most.
#
#     benchmarks/gpu/check.sh [--out DIR] [--seconds N] [--groups A,B] [build|tests|sanitize|timings|all]...
#
#   build     an editable install of fastgen._C for this GPU (in a virtual environment of its own
#             where the system's Python refuses one)
#   tests     every test marked `gpu`; a missing backend is a failure
#   sanitize  memcheck and racecheck on a small case of every CUDA operator
#   timings   python -m gpu.measure, into DIR/gpu.json
#
# DIR is benchmarks/results unless given. It receives gpu.json (the timings), gpu-check.json (which
# part passed) and, where it was given, check.log (every part's output; else see build/gpu/logs).
# Every part is bounded, so a later one still runs when an earlier one hangs. Exit status: 0 when
# every part that was asked for passed; targets that are missed do not fail it.
# Needs python3 with torch, pytest and pytest-benchmark; nvcc for build; no network.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 2
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

out=
seconds=530
groups=
parts=()
while (($#)); do
  case $1 in
    --out) out=${2:?--out needs a folder}; shift ;;
    --seconds) seconds=${2:?--seconds needs a number}; shift ;;
    --groups) groups=${2:?--groups needs names}; shift ;;
    build | tests | sanitize | timings) parts+=("$1") ;;
    all) parts+=(build tests sanitize timings) ;;
    -h | --help) usage; exit 0 ;;
    *) echo "check.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
((${#parts[@]})) || parts=(build tests sanitize timings)
wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

logs=$root/build/gpu/logs
given=$out
out=${out:-$root/benchmarks/results}
mkdir -p "$out" "$logs" || exit 2
rm -f "$logs"/*.log
out=$(cd "$out" && pwd)
declare -A outcome=() spent=()
started=$SECONDS
left() { echo $((seconds - (SECONDS - started))); }
# The least of a part's own limit and what is left of the whole.
within() { local rest; rest=$(left); echo $((rest < $1 ? (rest > 1 ? rest : 1) : $1)); }
say() { printf '%4ds  %s\n' $((SECONDS - started)) "$*"; }

python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
export PYTHONPATH=$root/benchmarks:$root${PYTHONPATH:+:$PYTHONPATH}
# Machine code that Triton and torch.compile made; the same folders for every part of a call.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$root/build/gpu/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$root/build/gpu/inductor}
export FASTGEN_CACHE=${FASTGEN_CACHE:-$root/build/gpu/fastgen}
if [[ -z ${FASTGEN_COMMIT:-} ]] && git rev-parse --git-dir >/dev/null 2>&1; then
  FASTGEN_COMMIT=$(git describe --always --dirty 2>/dev/null) && export FASTGEN_COMMIT
fi

# ---------------------------------------------------------------------------- what is there

for module in torch pytest; do
  "$python" -c "import $module" 2>/dev/null || {
    echo "check.sh: $python has no $module; name another with PYTHON=..." >&2
    exit 2
  }
done
gpu=$("$python" - <<'END' 2>"$logs/gpu.log"
import torch
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    print(f"{torch.cuda.get_device_name()}|{major}{minor}{'a' if major >= 9 else ''}")
END
) || gpu=
say "python $("$python" -c 'import platform; print(platform.python_version())'), commit ${FASTGEN_COMMIT:-unknown}"
if [[ -n $gpu ]]; then
  say "GPU: ${gpu%|*} (sm_${gpu#*|})"
else
  say "no GPU: torch sees no CUDA device $(tail -n 1 "$logs/gpu.log" | cut -c1-120)"
fi
for tool in nvidia-smi nvcc compute-sanitizer ncu ninja; do
  command -v "$tool" >/dev/null || say "not there: $tool"
done

# Run a part's command with a limit; its output goes to a log and the last lines to the screen.
bounded() { # name, seconds, command...
  local name=$1 limit status begun=$SECONDS
  limit=$(within "$2")
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1
  status=$?
  if ((status == 124 || status == 137)); then
    say "$name: stopped after $limit s"
  fi
  spent[$name]=$((SECONDS - begun))
  return $status
}
part_begun=$SECONDS
finish() { # part, status, words
  outcome[$1]=$([[ $2 == 0 ]] && echo passed || echo FAILED)
  spent[$1]=$((SECONDS - part_begun))
  part_begun=$SECONDS
  say "$1: ${outcome[$1]} in ${spent[$1]} s ${3:-}"
  summarise
}
# Written after every part, so that they are there if the next one takes the machine with it.
summarise() {
  {
    printf '{\n "commit": "%s",\n "gpu": "%s",\n "parts": {' "${FASTGEN_COMMIT:-unknown}" "${gpu%|*}"
    local comma=
    for part in build tests sanitize timings; do
      [[ -n ${outcome[$part]:-} ]] || continue
      printf '%s\n  "%s": {"outcome": "%s", "seconds": %d}' "$comma" "$part" "${outcome[$part]}" "${spent[$part]:-0}"
      comma=,
    done
    printf '\n }\n}\n'
  } >"$out/gpu-check.json"
  [[ -z $given ]] || tail -n +1 "$logs"/*.log >"$out/check.log"
}

# ---------------------------------------------------------------------------- build

venv=$root/build/gpu/venv
if ! wanted build && [[ -x $venv/bin/python ]]; then
  python=$venv/bin/python
fi

build_part() {
  if ! command -v nvcc >/dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
    finish build 1 "(nvcc is not there: the CUDA kernels cannot be built)"
    return
  fi
  local archs=${FASTGEN_CUDA_ARCHS:-${gpu#*|}}
  export FASTGEN_CUDA_ARCHS=${archs:-90a} FASTGEN_BUILD=cuda
  local install=(-m pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps --editable .)
  if ! bounded build 170 "$python" "${install[@]}"; then
    if grep -qiE 'externally-managed|permission denied|not writeable' "$logs/build.log"; then
      say "build: this Python takes no packages; a virtual environment over it is made"
      "$python" -m venv --system-site-packages "$venv" >"$logs/venv.log" 2>&1 || {
        finish build 1 "(no virtual environment: $(tail -n 1 "$logs/venv.log"))"
        return
      }
      # A virtual environment over another one sees that one's base, not its packages.
      "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
      python=$venv/bin/python
      bounded build 170 "$python" "${install[@]}"
    else
      # pip may be too old or absent: the build itself needs nothing of it.
      say "build: pip could not ($(tail -n 1 "$logs/build.log" | cut -c1-160)); building in place"
      mv "$logs/build.log" "$logs/build-pip.log"
      bounded build 170 "$python" -m build_support --kernels
    fi
  fi
  "$python" - >"$logs/built.log" 2>&1 <<'END'
import sys
from fastgen.ops import compiled
print({name: value for name, value in compiled.build_information().items() if value})
reason = compiled.missing("cuda")
sys.exit(reason)
END
  finish build $? "$(tail -n 1 "$logs/built.log" | cut -c1-300)"
}

# ---------------------------------------------------------------------------- tests

has() { "$python" -c "import $1" >/dev/null 2>&1; }
warm_pid=
stop_warming() {
  if [[ -n $warm_pid ]]; then
    kill -- "-$warm_pid" 2>/dev/null
    wait "$warm_pid" 2>/dev/null
    warm_pid=
  fi
}
pause_warming() { # STOP or CONT
  [[ -z $warm_pid ]] || kill "-$1" -- "-$warm_pid" 2>/dev/null
  return 0
}
trap stop_warming EXIT

sanitize_pid=
wait_for_sanitize() {
  [[ -n $sanitize_pid ]] || return 0
  wait "$sanitize_pid"
  local status=$?
  sanitize_pid=
  cat "$logs/sanitize.out"
  local begun=$part_begun
  finish sanitize $status
  part_begun=$begun # it ran beside the tests
}

tests_part() {
  # Only files that hold such tests: others may import what this machine lacks.
  local files options=(-q -m gpu -p no:cacheprovider --durations=5) jobs=()
  mapfile -t files < <(grep -rlE 'mark\.gpu\b' tests --include='test_*.py' |
    grep -vE '^tests/(kernels|bench)/' | sort)
  has xdist && jobs+=(-n "${FASTGEN_TEST_JOBS:-6}")
  has pytest_timeout && options+=(--timeout 120)
  FASTGEN_REQUIRE_GPU=1 bounded tests 200 "$python" -m pytest "${options[@]}" "${jobs[@]}" "${files[@]}"
  local status=$?
  # Tests of the clock want the device for themselves.
  wait_for_sanitize
  pause_warming STOP
  FASTGEN_REQUIRE_GPU=1 bounded tests-timing 40 "$python" -m pytest "${options[@]}" tests/bench || status=1
  pause_warming CONT
  cat "$logs"/tests{,-timing}.log | grep -E '^(FAILED|ERROR)' | cut -c1-200 | head -n 40
  finish tests $status "$(tail -qn 1 "$logs"/tests{,-timing}.log | cut -c1-100 | tr '\n' ' ')"
}

# ---------------------------------------------------------------------------- sanitize

sanitize_part() { # in a subshell, so that it may run beside the tests
  if ! command -v compute-sanitizer >/dev/null; then
    say "sanitize: compute-sanitizer is not there"
    return 1
  fi
  # torch launches kernels of its own to fill tensors; only ours are watched, which is much faster.
  local filter=() help
  help=$(compute-sanitizer --help 2>&1)
  for option in --kernel-name --kernel-regex --filter; do
    if grep -q -- "$option" <<<"$help"; then
      filter=("$option" "kns=fastgen")
      break
    fi
  done
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  # First the check of the check: an error that was planted must be found.
  local common=(--error-exitcode 97 --print-limit 20 --target-processes application-only "${filter[@]}")
  bounded sanitize-planted 40 compute-sanitizer --tool memcheck "${common[@]}" \
    "$python" benchmarks/sanitize_cases.py --planted
  local planted=$? status=0 words
  if ! grep -q 'Invalid __global__ read' "$logs/sanitize-planted.log"; then
    say "sanitize: memcheck did not see the error that was planted (status $planted), see logs/sanitize-planted.log"
    status=1
  fi
  for tool in memcheck racecheck; do
    bounded "sanitize-$tool" 90 compute-sanitizer --tool "$tool" "${common[@]}" \
      "$python" benchmarks/sanitize_cases.py || status=1
    words=$(grep -E 'SUMMARY|calls of|sanitize_cases:' "$logs/sanitize-$tool.log" | tr '\n' ' ' | cut -c1-240)
    say "sanitize: $tool: ${words:-no summary} (${spent[sanitize-$tool]} s)"
  done
  return $status
}

# ---------------------------------------------------------------------------- timings

warm_up() {
  # While tests and the sanitizer run nothing is timed, so what takes long to compile is compiled.
  say "compiling ahead for the timings in the background"
  setsid "$python" -m gpu.warm --jobs "${FASTGEN_WARM_JOBS:-8}" \
    --seconds "$(within 240)" >"$logs/warm.log" 2>&1 &
  warm_pid=$!
}

timings_part() {
  if [[ -n $warm_pid ]]; then
    # Compiling ahead is worth waiting for, but not at the price of half the measurements.
    local patience=$(($(left) / 3))
    while ((patience-- > 0)) && kill -0 "$warm_pid" 2>/dev/null; do sleep 1; done
    stop_warming
    tail -n 1 "$logs/warm.log"
  fi
  local limit options=()
  limit=$(($(left) - 15))
  if ((limit < 30)); then
    finish timings 1 "(no time left)"
    return
  fi
  [[ -n $groups ]] && options+=(--groups "$groups")
  bounded timings $((limit + 12)) "$python" -m gpu.measure \
    --seconds "$limit" --out "$out/gpu.json" "${options[@]}"
  local status=$?
  sed -n '/^| what/,$p' "$logs/timings.log" | cut -c1-220
  if ((status == 124 || status == 137)) && [[ -s $out/gpu.json ]]; then
    status=0 # the file holds every row that was finished
  fi
  finish timings $status "$([[ -s $out/gpu.json ]] && echo "$out/gpu.json" || tail -n 1 "$logs/timings.log")"
}

# ---------------------------------------------------------------------------- all of it

needs_gpu() { # part
  [[ -n $gpu ]] || finish "$1" 1 "(no GPU)"
  [[ -n $gpu ]]
}

wanted build && build_part
if wanted timings && [[ -n $gpu ]] && { wanted tests || wanted sanitize; }; then
  warm_up
fi
if wanted sanitize && needs_gpu sanitize; then
  (sanitize_part) >"$logs/sanitize.out" &
  sanitize_pid=$!
fi
wanted tests && needs_gpu tests && tests_part
wait_for_sanitize
wanted timings && needs_gpu timings && timings_part

echo
status=0
for part in build tests sanitize timings; do
  if wanted "$part"; then
    printf '%-9s %s\n' "$part" "${outcome[$part]:-not reached}"
    [[ ${outcome[$part]:-} == passed ]] || status=1
  fi
done
echo "in $((SECONDS - started)) s; logs in ${logs#"$root/"}"
exit $status
