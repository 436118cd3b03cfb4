# Shared by the scripts in contrib/. Source it; it defines functions only.

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "this step needs root: $*"
  fi
}

# need_packages PROGRAM=PACKAGE...: installs the Debian packages whose program is missing.
need_packages() {
  local pair program missing=()
  for pair in "$@"; do
    program=${pair%%=*}
    # /usr/sbin is not on every PATH, and some of these live there.
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("${pair#*=}")
  done
  [ "${#missing[@]}" = 0 ] && return 0
  command -v apt-get >/dev/null || die "please install: ${missing[*]}"
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_cargo() {
  command -v cargo >/dev/null || { [ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; }
  command -v cargo >/dev/null || die "a Rust toolchain is needed: see https://rustup.rs"
}

# need_crate NAME VERSION [OPTION...]: installs a program below target/tools, unless this version is there already.
need_crate() {
  local name=$1 version=$2
  shift 2
  grep -qs "^\"$name $version " target/tools/.crates.toml && [ -x "target/tools/bin/$name" ] && return 0
  say "installing $name $version"
  cargo install --locked --quiet --root target/tools --version "$version" "$@" "$name"
}

# need_venv NAME: installs Python programs below target/tools/NAME, unless they are there already: exactly what
# contrib/tools/NAME.txt has (made with `pip freeze`), and nothing that it does not have.
need_venv() {
  local dir=target/tools/$1 pins=contrib/tools/$1.txt
  cmp -s "$pins" "$dir/installed" && return 0
  # Debian has it in a package of its own, under no program's name.
  python3 -c 'import ensurepip' 2>/dev/null || need_packages no-venv=python3-venv
  say "installing $1"
  rm -rf "$dir"
  python3 -m venv "$dir"
  "$dir/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$pins"
  "$dir/bin/pip" check --disable-pip-version-check >/dev/null || die "$pins lacks something: $("$dir/bin/pip" check)"
  cp "$pins" "$dir/installed"
}

# need_npm NAME: installs a Node program below target/tools/NAME, unless it is there already: exactly what the lock file in
# contrib/tools/NAME has, by its hashes. No script of any package is run.
need_npm() {
  local dir=target/tools/$1 pins=contrib/tools/$1
  cmp -s "$pins/package-lock.json" "$dir/installed" && return 0
  need_packages node=nodejs npm=npm
  say "installing $1"
  rm -rf "$dir"
  mkdir -p "$dir"
  cp "$pins/package.json" "$pins/package-lock.json" "$dir"
  npm ci --silent --no-fund --no-audit --ignore-scripts --prefix "$dir"
  cp "$pins/package-lock.json" "$dir/installed"
}

need_fuse() {
  [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
  [ -c /dev/fuse ] || die "/dev/fuse is missing: the kernel has no FUSE here, and a mount can't be tested without it"
  # udev gives it mode 0666; where no udev runs (containers, small machines) only root could use it.
  [ "$(stat -c %a /dev/fuse)" = 666 ] || as_root chmod 666 /dev/fuse
}
