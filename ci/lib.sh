# Shared by the scripts in ci/. Sourced, never run: . "$(dirname "$0")/lib.sh"
# Changes into the repository's root. Logs and tools live under target/.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TERM_COLOR=never DEBIAN_FRONTEND=noninteractive
export LC_ALL=C.UTF-8
# A machine that builds once has no use for incremental state.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0
# rustup changes only the PATH of login shells.
cargo_bin=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
[ ! -d "$cargo_bin" ] || PATH="$cargo_bin:$PATH"

target=${CARGO_TARGET_DIR:-target}
ci_log="$target/ci"
tools="$target/tools"

# The tools that cargo installs, pinned so that a run today is a run tomorrow.
cargo_deny_version=0.20.2
s3s_fs_version=0.14.1
virtiofsd_version=1.14.0
cargo_fuzz_version=0.13.2

# say TEXT: progress, on stderr.
say() {
    printf '%s\n' "$*" >&2
}

# need_root: mounts, namespaces and owners of files.
need_root() {
    [ "$(id -u)" = 0 ] || fail "mounts and namespaces need root" "sudo $0"
}

# fail WHAT HINT: the style of every error of Strata, then exit 2.
fail() {
    printf 'error: %s\n  hint: %s\n' "$1" "$2" >&2
    exit 2
}

# missing_packages PACKAGE…: those that are not installed, one a line.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' \
            || printf '%s\n' "$package"
    done
}

# need_packages PACKAGE…: installs the Debian packages that are missing.
need_packages() {
    local missing
    command -v dpkg-query >/dev/null \
        || fail "this is no Debian system" "install by hand what these packages hold: $*"
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" = 0 ] \
        || fail "packages are missing" "sudo apt-get install ${missing[*]}"
    say "installing: ${missing[*]}"
    mkdir -p "$ci_log"
    if ! { apt-get -q update && apt-get -qy --no-install-recommends install "${missing[@]}"; } \
        >"$ci_log/apt.log" 2>&1 </dev/null; then
        tail -n 30 "$ci_log/apt.log" >&2
        fail "apt-get failed (see $ci_log/apt.log)" "apt-get update && apt-get install ${missing[*]}"
    fi
}

# need_qemu: a QEMU that emulates a PC. Where parts of QEMU are from the backports already,
# the rest is taken from there, too: the two do not go together.
need_qemu() {
    command -v qemu-system-x86_64 >/dev/null && return
    case "$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null)" in
        *bpo*) need_backports qemu-system-x86 ;;
        *) need_packages qemu-system-x86 ;;
    esac
}

# need_backports PACKAGE…: installs packages from the backports, which this machine need not
# have among its sources.
need_backports() {
    local codename uri lists="$PWD/$ci_log/backports"
    case "$ci_log" in /*) lists="$ci_log/backports" ;; esac
    codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
    uri=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $codename" | head -n 1)
    [ "$(id -u)" = 0 ] && [ -n "$uri" ] || fail "packages are missing" \
        "sudo apt-get install -t $codename-backports $*"
    say "installing from $codename-backports: $*"
    mkdir -p "$lists/parts" "$lists/lists/partial"
    cp /etc/apt/sources.list.d/*.sources "$lists/parts/" 2>/dev/null || true
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
        "$uri" "$codename-backports" >"$lists/parts/backports.list"
    local options=(-q -o "Dir::Etc::sourceparts=$lists/parts" -o "Dir::State::Lists=$lists/lists")
    if ! { apt-get "${options[@]}" update && apt-get "${options[@]}" -y -t "$codename-backports" \
        --no-install-recommends install "$@"; } >"$ci_log/apt.log" 2>&1 </dev/null; then
        tail -n 30 "$ci_log/apt.log" >&2
        fail "apt-get failed (see $ci_log/apt.log)" "apt-get install -t $codename-backports $*"
    fi
}

# need_debs: the packages that machines of tests are made of, downloaded once into
# target/ci/debs and not installed: a kernel with its modules, and one static program.
need_debs() {
    local debs="$ci_log/debs" kernel
    [ -e "$debs/kernel.deb" ] && [ -e "$debs/busybox.deb" ] && return
    say "downloading: a kernel and busybox"
    mkdir -p "$debs/new"
    [ -n "$(apt-cache madison linux-image-amd64)" ] || apt-get -q update >/dev/null </dev/null
    kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    [ -n "$kernel" ] || fail "this system offers no package of a kernel" "apt-get update"
    (cd "$debs/new" && apt-get -q download "$kernel" busybox-static >/dev/null 2>&1) \
        || fail "the packages cannot be downloaded" "apt-get update; apt-get download $kernel"
    mv "$debs/new/$kernel"_*.deb "$debs/kernel.deb"
    mv "$debs/new"/busybox-static_*.deb "$debs/busybox.deb"
    rmdir "$debs/new"
}

# need_libvirt_schemas: what libvirt takes as a domain, out of its package, which is not installed.
need_libvirt_schemas() {
    local libvirt="$ci_log/debs/libvirt"
    [ -e "$libvirt/usr/share/libvirt/schemas/domain.rng" ] && return
    say "downloading: libvirt's schemas"
    rm -rf "$libvirt"
    mkdir -p "$libvirt"
    [ -n "$(apt-cache madison libvirt0)" ] || apt-get -q update >/dev/null </dev/null
    (cd "$libvirt" && apt-get -q download libvirt0 >/dev/null 2>&1 && dpkg-deb -x libvirt0_*.deb .) \
        || fail "the package libvirt0 cannot be downloaded" "apt-get update; apt-get download libvirt0"
    [ -e "$libvirt/usr/share/libvirt/schemas/domain.rng" ] \
        || fail "libvirt's package has no schemas" "apt-file search libvirt/schemas/domain.rng"
}

# need_rust: cargo, rustfmt and clippy of at least the workspace's rust-version.
need_rust() {
    local wanted found
    command -v cargo >/dev/null || fail "there is no cargo" "install Rust with rustup"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    printf '%s\n%s\n' "$wanted" "$found" | sort -CV \
        || fail "Rust $found is too old; Strata needs $wanted" "rustup update stable"
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 \
        || fail "rustfmt or clippy is missing" "rustup component add rustfmt clippy"
}

# need_kernel: what mounting and namespaces need. Names the command that mends it.
need_kernel() {
    need_root
    [ -c /dev/fuse ] && : 2>/dev/null <>/dev/fuse \
        || fail "/dev/fuse cannot be opened" "modprobe fuse; mknod /dev/fuse c 10 229"
    local cgroups
    cgroups=$(awk '$3 == "cgroup2" && $4 ~ /(^|,)rw(,|$)/ { print $2; exit }' /proc/mounts)
    [ -n "$cgroups" ] && [ -w "$cgroups/cgroup.procs" ] \
        || fail "no writable cgroup v2 hierarchy" \
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
}

# need_cargo_tool NAME VERSION [FEATURES]: a tool of cargo's, installed once into target/tools.
need_cargo_tool() {
    local name=$1 version=$2 features=${3:-}
    PATH="$PWD/$tools/bin:$PATH"
    case "$tools" in /*) PATH="$tools/bin:$PATH" ;; esac
    [ "$("$name" --version 2>/dev/null)" = "$name $version" ] && return
    say "installing: $name $version (cargo)"
    mkdir -p "$ci_log"
    if ! CARGO_TARGET_DIR="$tools/build" cargo install --quiet --locked --force --profile dev \
        --no-default-features --features "$features" --root "$tools" --version "$version" "$name" \
        >"$ci_log/$name.log" 2>&1 </dev/null; then
        tail -n 30 "$ci_log/$name.log" >&2
        fail "cargo could not install $name $version" "cargo install --locked $name"
    fi
    rm -rf "$tools/build"
}

# sum_results: reads the output of `cargo test` and prints "passed failed skipped".
sum_results() {
    awk '/^test result: / {
        for (i = 2; i <= NF; i++) {
            if ($i == "passed;") passed += $(i - 1)
            if ($i == "failed;") failed += $(i - 1)
            if ($i == "ignored;") skipped += $(i - 1)
        }
    } END { printf "%d %d %d\n", passed, failed, skipped }'
}

# closing_line PASSED FAILED SKIPPED: the last line of a run; false unless tests
# ran and none failed.
closing_line() {
    [ "$1" -gt 0 ] || [ "$2" -gt 0 ] || say "error: no test ran"
    printf '%d passed, %d failed, %d skipped\n' "$1" "$2" "$3"
    [ "$1" -gt 0 ] && [ "$2" -eq 0 ]
}
