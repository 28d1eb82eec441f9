#!/bin/sh
# Installs toolsmith for this user, without root:
#
#     curl -fsSL https://github.com/@REPOSITORY@/releases/latest/download/install.sh | sh
#
# TOOLSMITH_INSTALL_DIR  where to put it (default ~/.local/bin)
# TOOLSMITH_RELEASE      address of the release's files, for another version or a mirror
#
# The program replaces an older one in one step, once its SHA-256 is that of the
# release.
set -eu

fail() {
  echo "install.sh: $1" >&2
  exit 1
}

target() {
  case $(uname -m) in
  x86_64 | amd64) arch=x86_64 ;;
  aarch64 | arm64) arch=aarch64 ;;
  *) fail "there is no program for $(uname -m); run toolsmith.js with Deno" ;;
  esac
  case $(uname -s) in
  Linux) echo "$arch-unknown-linux-gnu" ;;
  Darwin) echo "$arch-apple-darwin" ;;
  *) fail "there is no program for $(uname -s); run toolsmith.js with Deno" ;;
  esac
}

fetch() {
  if command -v curl >/dev/null; then
    curl -fsSL --proto "=$scheme" --proto-redir "=$scheme" -o "$2" "$1"
  elif command -v wget >/dev/null; then
    wget -q -O "$2" "$1"
  else
    fail "curl or wget is needed"
  fi || fail "cannot download $1"
}

digest() {
  if command -v sha256sum >/dev/null; then
    sha256sum <"$1"
  elif command -v shasum >/dev/null; then
    shasum -a 256 <"$1"
  else
    fail "sha256sum or shasum is needed"
  fi
}

# Is this an http:// address of this host? User info, or a name that only begins
# like one of these, leads elsewhere.
is_loopback() {
  authority=${1#http://}
  [ "$authority" != "$1" ] || return 1
  authority=${authority%%/*}
  port=${authority##*:}
  case $port in
  "" | *[!0-9]*) host=$authority ;;
  *) host=${authority%:*} ;;
  esac
  case $host in
  127.0.0.1 | localhost | "[::1]") ;;
  *) return 1 ;;
  esac
}

# All in a function: a script that was cut on its way here runs nothing.
main() {
  release=${TOOLSMITH_RELEASE:-https://github.com/@REPOSITORY@/releases/latest/download}
  dir=${TOOLSMITH_INSTALL_DIR:-$HOME/.local/bin}
  case $release in
  https://*) scheme=https ;;
  *)
    is_loopback "$release" ||
      fail "TOOLSMITH_RELEASE must be an https address: $release"
    scheme=http
    ;;
  esac
  name=toolsmith-$(target)
  mkdir -p "$dir" || fail "cannot make $dir: set TOOLSMITH_INSTALL_DIR"
  staging=$(mktemp -d "$dir/.toolsmith-XXXXXX") ||
    fail "cannot write to $dir: set TOOLSMITH_INSTALL_DIR"
  trap 'rm -rf "$staging"' EXIT
  trap 'exit 1' HUP INT TERM
  fetch "$release/$name.sha256" "$staging/sha256"
  fetch "$release/$name" "$staging/toolsmith"
  read -r expected rest <"$staging/sha256" || :
  actual=$(digest "$staging/toolsmith")
  actual=${actual%% *}
  [ "${expected:-}" = "$actual" ] ||
    fail "$name has SHA-256 $actual, and the release says ${expected:-nothing}: nothing was installed"
  chmod 755 "$staging/toolsmith"
  mv -f "$staging/toolsmith" "$dir/toolsmith"
  echo "installed $dir/toolsmith"
  case :$PATH: in
  *:"$dir":*) ;;
  *) echo "add it to PATH: export PATH=\"$dir:\$PATH\"" ;;
  esac
  command -v oras >/dev/null || echo "it needs oras 1.3 or newer: https://oras.land/"
}

main
