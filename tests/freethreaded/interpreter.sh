#!/usr/bin/env bash
# Builds a CPython 3.13 without GIL from Debian's source package: tests/freethreaded/interpreter.sh FOLDER
# leaves FOLDER/python/bin/python3.13t. Takes about six minutes on two cores; an interpreter that is there already
# does as well (make freethreaded PYTHON_FT=/path/to/python3.13t).
set -euo pipefail

folder=$(realpath -m "$1")
jobs=${JOBS:-2}
suite=trixie package=python3.13

# Debian's address is that of the machine's own apt sources; its signature is checked as ever, and the release's
# lists are kept apart from the machine's.
fetch() {
  local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg apt=$folder/apt
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
    grep -oE '(https?|ftp|file)://?[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ')
  [ -n "$mirror" ] || { echo "no Debian mirror in /etc/apt: give PYTHON_FT=/path/to/python3.13t" >&2; exit 1; }
  mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
  echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
  local options=(-qq -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State="$apt/state" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User="$(id -un)")
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" source --download-only "$package=$(newest "${options[@]}")")
  mkdir -p "$folder/source"
  tar --extract --strip-components 1 --directory "$folder/source" --file "$(echo "$apt/$package"_*.orig.tar.*z)"
}

newest() { apt-cache "$@" showsrc --only-source "$package" | sed -n 's/^Version: //p' | sort --version-sort | tail -n 1; }

require() { # what pip, ctypes and the wheels need; a build without them would fail much later
  local header missing=0
  for header in openssl/ssl.h:libssl-dev ffi.h:libffi-dev zlib.h:zlib1g-dev; do
    echo "#include <${header%:*}>" | ${CC:-cc} -E - >/dev/null 2>&1 || { echo "apt-get install ${header#*:}" >&2; missing=1; }
  done
  return $missing
}

build() {
  cd "$folder/source"
  ./configure --quiet --disable-gil --disable-test-modules --prefix="$folder/python"
  make --silent --jobs "$jobs"
  make --silent install
}

require
[ -e "$folder/.fetched" ] || { fetch && touch "$folder/.fetched"; }
(build) >"$folder/build.log" 2>&1 || { tail -n 30 "$folder/build.log" >&2; exit 1; }
"$folder/python/bin/python3.13t" -c "import ctypes, ssl, sys, zlib; assert not sys._is_gil_enabled()"
