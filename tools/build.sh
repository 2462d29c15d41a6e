# Sourced by run and test: Debian packages, configuring, building. Needs $root, the folder of the repository.

packages=(g++ cmake ninja-build pkg-config libhwy-dev libfmt-dev libcli11-dev nlohmann-json3-dev libutf8proc-dev
  libpcre2-dev libssl-dev libdnnl-dev libjs-dygraphs libgtest-dev python3-dev pybind11-dev python3-numpy python3-pytest
  python3-setuptools python3-wheel python3-pip python3-venv)
all_packages=("${packages[@]}" clang-14 libclang-rt-14-dev clang-format-14 clang-tidy-14 chromium libopenmpi-dev
  openmpi-bin)

# Installs those of the named packages that are missing; false when none is. Where there is no dpkg-query nothing counts
# as missing, and CMake says which library it does not find.
install_missing() {
  command -v dpkg-query >/dev/null || return 1
  local package have missing=()
  have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null)
  for package; do
    grep -qxF "$package installed" <<<"$have" || missing+=("$package")
  done
  ((${#missing[@]})) || return 1

  local line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" as_root=()
  echo "Dense needs Debian packages, installed as root by: $line" >&2
  if ((EUID != 0)); then
    [[ -t 0 && -t 2 ]] && command -v sudo >/dev/null || exit 2
    local answer
    read -r -p "Run this with sudo? [y/N] " answer
    [[ $answer == [yY]* ]] || exit 2
    as_root=(sudo)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive bash -c "$line" </dev/null >&2 || exit 2
}

# build PRESET FOLDER TARGET: brings the target up to date; configures first where that was not done yet, or was done
# for a repository at another place (moved or copied). Speaks on stderr, and only when there is something to do.
build() {
  local preset=$1 folder=$root/$2 target=$3 cache=""
  mkdir -p "$folder" && exec 9>"$folder/lock" && flock 9 || return 1 # one build at a time in a folder
  [[ -f $folder/build.ninja ]] && cache=$(<"$folder/CMakeCache.txt")
  if [[ $cache != *"CMAKE_HOME_DIRECTORY:INTERNAL=$root"$'\n'* ]]; then
    echo "configuring $2" >&2
    if ! (cd "$root" && cmake --preset "$preset" --fresh) >"$folder/configure.log" 2>&1; then
      cat "$folder/configure.log" >&2
      return 1
    fi
  fi
  # Of what Ninja says, one short line per file built and the errors are kept.
  ninja -C "$folder" "$target" 2>&1 9>&- | sed -uE >&2 \
    -e '/^ninja: (no work to do|Entering directory)|^\[[0-9/]+\] Re-|^-- /d' \
    -e 's|^(\[[0-9/]+\]) Building CX*X* object .*\.dir/(.*)\.o$|\1 \2|'
  local result=${PIPESTATUS[0]}
  exec 9>&-
  return "$result"
}
