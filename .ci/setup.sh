#!/bin/sh
# What make cannot express of the set-up. Quiet and quick when there is nothing to do.
#
#   setup.sh machine PYTHON NEED...   a Python, the system packages that are needed, and the two
#                                     virtual environments: .venv runs, .build-venv builds
#   setup.sh server                   a Triton server: the nvidia-pytriton wheel, into .venv
#
# PYTHON may be empty: the recorded one, or else the best one on this machine. A NEED is one of
# compiler, headers, libpython, libfuzzer, nghttp2, doctest, proxies, grpcpp; pip and venv are always
# needed. What is wished- for (wished-nghttp2) may be missing in the end: one line says so.
#
# Two environments, because grpcio-tools (which has protoc) and tritonclient ask for different
# protobufs. An environment that somebody else made as .venv is used as it is.
set -eu
cd "$(dirname "$0")/.."

say() { echo "==> $*"; }
fail() {
  printf 'setup: %s\n' "$1" >&2
  shift
  [ $# = 0 ] || printf '%s\n' "$@" >&2
  exit 1
}

# --- Python ---------------------------------------------------------------------------------------

# Facts about a Python, as shell assignments: py_stub, whether the Triton wheel can run models of this
# version, and py_library, whether there is the shared libpython that it takes.
# shellcheck disable=SC2016
probe='
import importlib.util, os, shlex, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
name = "libpython%s.so.1.0" % version
multiarch = sysconfig.get_config_var("MULTIARCH") or ""
folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")]
folders += ["/usr/lib/" + multiarch, "/usr/lib64", "/usr/lib", "/usr/local/lib"]
found = [f for f in folders if f and os.path.isfile(os.path.join(f, name))]
header = os.path.join(sysconfig.get_path("include"), "Python.h")
pip = importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")
path = getattr(sys, "_base_executable", sys.executable)
print("py_path=%s py_version=%s" % (shlex.quote(path), version))
print("py_new=%d py_venv=%d" % (sys.version_info >= (3, 11), bool(pip)))
print("py_header=%d py_library=%d" % (os.path.isfile(header), bool(found)))
print("py_stub=%d" % ((3, 11) <= sys.version_info[:2] <= (3, 13)))
'

# look_at PYTHON: sets py_*; false where it does not run or is too old.
look_at() {
  py_new=0
  facts="$("$1" -c "$probe" 2>/dev/null)" && eval "$facts" && [ "$py_new" = 1 ]
}

# find_python WANTED: sets py_* for the Python to use. Without a wish, one that the Triton wheel can
# run Python models with (3.11 to 3.13, with its shared library at hand) goes before others.
find_python() {
  if [ -n "$1" ]; then
    look_at "$1" && return
    [ "$("$1" -c 'print("runs")' 2>/dev/null)" = runs ] || fail "PYTHON=$1 does not run."
    fail "PYTHON=$1 is $("$1" --version 2>&1); triton_fast needs 3.11 or later."
  fi
  usable=
  for candidate in python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
    look_at "$candidate" || continue
    usable="${usable:-$py_path}"
    if [ "$py_stub" = 1 ] && { [ "$py_library" = 1 ] || can_get "libpython$py_version"; }; then
      return
    fi
  done
  if [ -n "$usable" ]; then
    look_at "$usable"
    return
  fi
  if [ -z "${py_tried:-}" ] && can_install && can_get python3; then
    py_tried=1
    say "installing system packages: python3"
    apt_install python3 || exit 1
    find_python ""
    return
  fi
  set -- "triton_fast needs Python 3.11 or later, and there is none here." \
    "Looked for python3, python3.11 to python3.14, and /usr/bin/python3." \
    "Install one, or say where it is: make PYTHON=/path/to/python3 ..."
  ! can_get python3 || set -- "$@" "  sudo apt-get install python3"
  fail "$@"
}

# --- System packages ------------------------------------------------------------------------------

as_root=
can_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] && return
  command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root="sudo -n"
}

# On a fresh image apt knows no package until it has been updated; once is enough.
update_apt() {
  if [ -z "${apt_updated:-}" ] && can_install; then
    apt_updated=1
    $as_root apt-get update -qq >/dev/null 2>&1 || true
  fi
}

known_to_apt() { apt-cache show --no-all-versions "$1" 2>/dev/null | grep -q '^Package:'; }

# can_get PACKAGE: does apt have it?
can_get() {
  command -v apt-cache >/dev/null || return 1
  known_to_apt "$1" || { update_apt && known_to_apt "$1"; }
}

can_get_all() {
  for package in $1; do can_get "$package" || return 1; done
}

# apt_install PACKAGE...: false where that does not work.
apt_install() {
  update_apt
  (
    services=
    for package in "$@"; do
      case "$package" in nginx | haproxy) services="$services $package" ;; esac
    done
    [ -z "$services" ] || keep_down
    # No terminal and no recommended packages: this is somebody's machine, and nobody is asked.
    if ! log="$(DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq \
      --no-install-recommends "$@" </dev/null 2>&1)"; then
      echo "$log" >&2
      fail "apt-get could not install: $*"
    fi
    for service in $services; do
      $as_root systemctl disable -q "$service" >/dev/null 2>&1 || true
    done
  )
}

# The tests start proxies of their own. Those that come as packages are not to serve, neither now nor
# when this machine starts again.
keep_down() {
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
  fi
}

has_venv() {
  [ "$py_venv" = 1 ] || { [ -x .venv/bin/pip ] && [ -x .build-venv/bin/pip ]; }
}
has_headers() { [ "$py_header" = 1 ]; }
has_libpython() {
  # Only the server in the wheel needs it, and only Linux on x86-64 has that wheel, which brings the
  # library of 3.13 itself.
  [ "$(uname -sm)" != "Linux x86_64" ] || own_server >/dev/null || [ "$py_version" = 3.13 ] ||
    [ "$py_stub$py_library" = 11 ]
}
has_compiler() {
  for cxx in ${CXX:-} c++ g++ clang++; do
    if command -v "$cxx" >/dev/null; then return 0; fi
  done
  return 1
}
has_libfuzzer() {
  cxx="${CXX_FUZZ:-clang++}"
  command -v "$cxx" >/dev/null || return 1
  scratch="$(mktemp -d)"
  echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' \
    >"$scratch/probe.cpp"
  ok=0
  "$cxx" -fsanitize=fuzzer,address "$scratch/probe.cpp" -o "$scratch/probe" 2>/dev/null || ok=1
  rm -r "$scratch"
  return "$ok"
}

has_nghttp2() { pkg-config --atleast-version=1.43 libnghttp2 2>/dev/null; }
# Where CMake looks for its package.
has_doctest() {
  for folder in "${doctest_DIR:-}" /usr/lib*/cmake/doctest /usr/lib/*/cmake/doctest \
    /usr/share/cmake/doctest /usr/local/lib*/cmake/doctest; do
    [ ! -f "$folder/doctestConfig.cmake" ] || return 0
  done
  return 1
}
has_proxies() { [ -z "$(missing_proxies)" ]; }
# Where tests/peers looks, which need not be where this user's PATH does.
missing_proxies() {
  for program in nginx haproxy; do
    (PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin && command -v $program >/dev/null) ||
      echo $program
  done
}
has_grpcpp() {
  command -v grpc_cpp_plugin >/dev/null && command -v protoc >/dev/null &&
    pkg-config --exists grpc++ protobuf 2>/dev/null
}

# packages_for NEED: what Debian and Ubuntu call it.
packages_for() {
  case "$1" in
    venv) echo "python$py_version-venv" ;;
    headers) echo "python$py_version-dev" ;;
    libpython) if [ "$py_stub" = 1 ]; then echo "libpython$py_version"; fi ;;
    compiler) echo "g++" ;;
    libfuzzer)
      # Some releases have the runtime in a package of its own, some inside clang.
      if can_get libclang-rt-dev; then echo "clang libclang-rt-dev"; else echo "clang"; fi
      ;;
    nghttp2) echo "pkg-config libnghttp2-dev" ;;
    doctest) echo "doctest-dev" ;;
    proxies) missing_proxies ;;
    grpcpp) echo "libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc pkg-config" ;;
  esac
}

why() {
  case "$1" in
    venv) echo "the modules venv and ensurepip of $py_path, for environments of our own" ;;
    headers) echo "the headers of Python $py_version (Python.h), to compile against" ;;
    libpython)
      if [ "$py_stub" = 1 ]; then
        echo "libpython$py_version.so.1.0, which Triton's Python backend is linked to"
      else
        echo "a Python from 3.11 to 3.13, for Triton's Python backend ($py_path is $py_version)"
      fi
      ;;
    compiler) echo "a C++17 compiler, for the core of triton_fast" ;;
    libfuzzer) echo "clang with libFuzzer and AddressSanitizer, to fuzz the decoder" ;;
    nghttp2) echo "pkg-config and libnghttp2 1.43 or newer, for the native channel" ;;
    doctest) echo "doctest with its CMake package, for the tests of the C++ core" ;;
    proxies) echo "nginx and haproxy, to test against servers behind proxies" ;;
    grpcpp) echo "gRPC for C++, for one of the benchmarks' contenders" ;;
  esac
}

missing() {
  for need in "$@"; do
    "has_$need" || printf '%s ' "$need"
  done
}

require() {
  lacking="$(missing "$@")"
  [ -n "$lacking" ] || return 0
  packages=
  for need in $lacking; do
    for package in $(packages_for "$need"); do packages="$packages $package"; done
  done
  if can_install; then
    for need in $lacking; do
      for package in $(packages_for "$need"); do
        can_get "$package" || hopeless "$lacking" "apt has no package $package."
      done
    done
    [ "$py_stub" = 1 ] || case "$lacking" in *libpython*) hopeless "$lacking" ;; esac
    say "installing system packages:$packages"
    # shellcheck disable=SC2086
    apt_install $packages || exit 1
    look_at "$py_path"
    lacking="$(missing "$@")"
    [ -z "$lacking" ] || hopeless "$lacking" "They are still missing with$packages installed."
  elif command -v apt-get >/dev/null; then
    hopeless "$lacking" "Install them, then run make again:" "  sudo apt-get install$packages"
  else
    hopeless "$lacking" "Install them with this system's package manager, then run make again."
  fi
}

# wish NEED: installs it, or says in a line that it could not be.
wish() {
  [ -n "$(missing "$1")" ] || return 0
  packages=
  for package in $(packages_for "$1"); do packages="$packages $package"; done
  if can_install && can_get_all "$packages"; then
    say "installing system packages:$packages"
    # shellcheck disable=SC2086
    apt_install $packages || true
  fi
  [ -z "$(missing "$1")" ] ||
    say "going on without $(why "$1") (Debian: apt-get install$packages)"
}

# hopeless NEEDS LINE...: says what is missing, why, and what to do.
hopeless() {
  echo "setup: this machine lacks, and set-up may not or cannot install:" >&2
  for need in $1; do echo "  - $(why "$need")" >&2; done
  case " $1" in
    *" libpython "*)
      can_get "libpython$py_version" ||
        set -- "$@" "Another Python may have what Triton needs (make PYTHON=/path/to/python3 ...)." \
          "One that is built from source has it when configured with --enable-shared."
      ;;
  esac
  case " $1" in
    *" libfuzzer "*) set -- "$@" "Without fuzzing: make test FUZZ=0" ;;
  esac
  case " $1" in
    *" doctest "*) set -- "$@" "Without the core's own tests: make lint check-fuzz check-python" ;;
  esac
  case " $1" in
    *" nghttp2 "*) set -- "$@" "Without the native channel: make HTTP2=OFF ..." ;;
  esac
  shift
  fail "$@"
}

# --- Environments ---------------------------------------------------------------------------------

# environment FOLDER: a virtual environment of py_path; its stamp says of which Python it is.
environment() {
  stamp="$1/.stamps/python"
  if [ -x "$1/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$py_path" ]; then return 0; fi
  if [ -x "$1/bin/python" ] && { [ ! -e "$stamp" ] || [ -e "$1/.stamps/adopted" ]; }; then
    ours="$py_path"
    look_at "$1/bin/python" && [ "$py_path" = "$ours" ] ||
      fail "$1 is an environment of another Python that set-up did not make: remove it, or leave" \
        "PYTHON out to use it."
    say "using the environment $1 that is there (Python $py_version)"
    "$1/bin/python" -c 'import pip' 2>/dev/null || "$1/bin/python" -m ensurepip >/dev/null
    mkdir -p "$1/.stamps"
    touch "$1/.stamps/adopted"
  else
    say "making the environment $1 with $py_path (Python $py_version)"
    rm -rf "$1"
    "$py_path" -m venv "$1"
    mkdir -p "$1/.stamps"
  fi
  # 25.1 is the first that reads dependency groups.
  "$1/bin/python" -m pip install -q --upgrade 'pip>=25.1'
  echo "$py_path" >"$stamp"
}

machine() {
  wanted="$1"
  shift
  if [ -z "$wanted" ] && [ -x .venv/bin/python ]; then
    wanted="$(cat .venv/.stamps/python 2>/dev/null || echo .venv/bin/python)"
    [ -x "$wanted" ] || wanted=
  fi
  find_python "$wanted"
  needs=
  wishes=
  for need in "$@"; do
    case "$need" in
      wished-*) wishes="$wishes ${need#wished-}" ;;
      *) needs="$needs $need" ;;
    esac
  done
  # shellcheck disable=SC2086
  require venv $needs
  for need in $wishes; do wish "$need"; done
  environment .venv
  environment .build-venv
}

# --- The Triton server ----------------------------------------------------------------------------

# Says which server there is that the wheel would not add to; false where there is none.
own_server() {
  if [ -n "${TRITON_FAST_TRITONSERVER:-}" ]; then
    echo "$TRITON_FAST_TRITONSERVER"
  else
    command -v tritonserver
  fi
}

server() {
  if found="$(own_server)"; then
    say "the Triton server is $found"
  elif [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "no Triton server: its wheel is for Linux on x86-64. TRITON_FAST_TRITONSERVER names another."
  else
    say "installing a Triton server (the nvidia-pytriton wheel, 55 MB)"
    # Its metadata asks for numpy < 2 and for more that only its own client needs.
    .venv/bin/python -m pip install -q --no-deps "${TRITON_WHEEL:-nvidia-pytriton}"
  fi
}

case "${1:-}" in
  machine | server) "$@" ;;
  *) fail "what is '${1:-}'? See the head of $0." ;;
esac
