#!/usr/bin/env bash
# Builds every module and refreshes prebuilt/ with its manifest. Usage: build.sh [NAME...]
#
# With the rustup target wasm32-wasip2 (and wasm32-wasip1 for one module) it needs nothing else.
# Elsewhere NARAE_GUEST_TOOLCHAIN may name a shell file that sets up a rustc with library sources;
# then std is built too, and modules that need no std I/O are built without it, which is smaller.
# README.md describes the manifest.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"

# file            package      kind      features
MODULES="
burglar           burglar      http      -
config            config       http      -
counter           counter      http      -
crash             crash        http      -
crash-start       crash-start  http      -
echo              echo         http      -
fetch             fetch        http      -
files             files        std       -
files-p3          files-p3     http      -
greedy            greedy       http      -
flaky             flaky        std       -
hello             hello        http      -
hello-p3          hello-p3     http      -
notes             notes        http      -
peek              peek         http      -
report            report       std       -
report-p1         report       core      -
report-p3         report-p3    http      -
slow              slow         http      -
spin              spin         http      -
spin-start        spin-start   http      -
std-hello         std-hello    std       -
tcp               tcp          http      -
version-broken    version      http      broken
version-v1        version      http      -
version-v2        version      http      v2
"

installed() { rustup target list --installed 2>/dev/null | grep -qx "$1"; }

flags=()
http_target=wasm32-wasip2
if installed wasm32-wasip2; then
    home=${CARGO_HOME:-$HOME/.cargo}
    # No machine paths in panic messages.
    remap="--remap-path-prefix=$home/registry/src=/crates --remap-path-prefix=$(rustc --print sysroot)=/rust"
    export RUSTFLAGS="${RUSTFLAGS:-} $remap"
elif [ -n "${NARAE_GUEST_TOOLCHAIN:-}" ]; then
    # shellcheck source=/dev/null
    . "$NARAE_GUEST_TOOLCHAIN"
    flags=(-Zbuild-std=std,panic_abort)
    http_target=wasm32-unknown-unknown
else
    echo "build.sh: no way to build for WebAssembly here; try: rustup target add wasm32-wasip2 wasm32-wasip1" >&2
    exit 1
fi

build() { # file package kind features
    local target=$http_target artifact=${2//-/_}
    case $3 in
        std) target=wasm32-wasip2 ;;
        core) target=wasm32-wasip1 ;;
    esac
    [ "$2" = report ] && artifact=report
    local args=(--locked --release --target "$target" -p "$2")
    [ "$4" = - ] || args+=(--features "$4")
    cargo build "${args[@]}" ${flags[@]+"${flags[@]}"}
    local dir=${CARGO_TARGET_DIR:-target}/$target/release
    install -m 644 "$dir/$artifact.wasm" "prebuilt/$1.wasm"
}

# Each file below the folders, by its path from here: path NUL bytes NUL.
source_hash() { # folder...
    find "$@" -type f | sort | while IFS= read -r file; do
        printf '%s\0' "$file"
        cat "$file"
        printf '\0'
    done | sha256sum | cut -d' ' -f1
}

# Modules that were not built in this run keep their entry: a stale one must stay visible.
entry() { # file package
    local folders=("$2") list
    if grep -q '^kit\.workspace' "$2/Cargo.toml"; then folders+=(kit); fi
    list=$(printf '"%s", ' "${folders[@]}")
    printf '\n[[module]]\nfile = "%s.wasm"\nsha256 = "%s"\nfolders = [%s]\nsource = "%s"\n' \
        "$1" "$(sha256sum "prebuilt/$1.wasm" | cut -d' ' -f1)" "${list%, }" "$(source_hash "${folders[@]}")"
}

old_entry() { # file
    awk -v want="file = \"$1.wasm\"" 'BEGIN { RS = ""; ORS = "\n" } index($0, want) { print "\n" $0 }' \
        prebuilt/manifest.toml 2>/dev/null || true
}

mkdir -p prebuilt
manifest=$(mktemp)
trap 'rm -f "$manifest"' EXIT
echo "# Written by build.sh; the rules are in README.md." > "$manifest"
while read -r file package kind features; do
    [ -n "$file" ] || continue
    if [ $# -eq 0 ] || [[ " $* " == *" $file "* ]]; then
        build "$file" "$package" "$kind" "$features" < /dev/null
        entry "$file" "$package" >> "$manifest"
    else
        old_entry "$file" >> "$manifest"
    fi
done <<< "$MODULES"
install -m 644 "$manifest" prebuilt/manifest.toml
