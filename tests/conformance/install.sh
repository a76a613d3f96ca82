#!/bin/sh
# Installs the programs that the conformance tests and the fuzz run use: HTTP/2 and gRPC stacks that share no code with
# ours. `make test-all` runs it first; a second time it finds everything and is quick.
#   tests/conformance/install.sh [PYTHON]      PYTHON: 3.11 to 3.13, with `venv`; python3 if not given
# Debian packages need root or sudo; the rest goes into .venv-conformance, .venv-fuzz and javascript/node_modules.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${1:-python3}
packages="curl g++ libgrpc++-dev make nghttp2-client nodejs npm pkg-config"

is_there() {
  for program in curl g++ h2load make nghttp node npm pkg-config; do
    command -v "$program" >/dev/null || return 1
  done
  pkg-config --exists grpc++
}

install_packages() {
  is_there && return
  if ! command -v apt-get >/dev/null; then
    echo "install by hand, there is no apt-get here: $packages" >&2
    exit 1
  fi
  as_root=""
  if [ "$(id -u)" != 0 ]; then as_root="sudo"; fi
  missing=$packages
  if command -v node >/dev/null && command -v npm >/dev/null; then  # a newer node than Debian's keeps its place
    missing=$(echo "$packages" | sed 's/nodejs npm //')
  fi
  echo "installing $missing"
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# $1: folder, $2: file of requirements
make_venv() {
  if [ -f "$1/.made" ] && cmp -s "$2" "$1/.made"; then return; fi
  echo "making ${1##*/}"
  "$python" -m venv "$1"
  "$1/bin/python" -m pip --disable-pip-version-check install --quiet -r "$2"
  cp "$2" "$1/.made"
}

install_javascript() {
  cd "$here/javascript"
  if [ -f node_modules/.made ] && cmp -s package.json node_modules/.made; then return; fi
  echo "installing the JavaScript client"
  npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error
  cp package.json node_modules/.made
}

install_packages
make_venv "$root/.venv-conformance" "$here/requirements.txt"
make_venv "$root/.venv-fuzz" "$root/tests/fuzz/requirements.txt"
install_javascript
make -s -C "$root/benchmarks/clients/cpp"
