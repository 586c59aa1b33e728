#!/bin/sh
# Installs aihost below a prefix, or takes it away again. Needs neither Rust nor Python, and may be run again at any time.
set -eu

usage() {
    echo "usage: ./install [--prefix DIR] [--uninstall]"
    echo "  --prefix DIR   programs go to DIR/bin, plugins to DIR/lib/aihost/plugins [default: /usr/local for root, else ~/.local]"
    echo "  --uninstall    remove what an install put there; models, state and models.yaml stay"
}
fail() {
    echo "error: $1" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=
uninstall=no
while [ $# -gt 0 ]; do
    case $1 in
    --prefix) [ $# -gt 1 ] || fail "--prefix needs a folder"; prefix=$2; shift ;;
    --prefix=*) prefix=${1#--prefix=} ;;
    --uninstall) uninstall=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "\`$1\` is not known" ;;
    esac
    shift
done
if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then
        prefix=/usr/local
    else
        [ -n "${HOME:-}" ] || fail "HOME is not set: say where to install with --prefix DIR"
        prefix=$HOME/.local
    fi
fi
case $prefix in
/*) ;;
*) prefix=$(pwd)/$prefix ;;
esac
list=$prefix/lib/aihost/installed-files

if [ "$uninstall" = yes ]; then
    [ -f "$list" ] || fail "there is no aihost below $prefix (no $list); name its --prefix"
    while IFS= read -r file; do
        rm -f -- "$prefix/$file" && echo "removed $prefix/$file"
    done <"$list"
    rm -f -- "$list"
    for folder in lib/aihost/plugins lib/aihost share/doc/aihost/docs share/doc/aihost; do
        rmdir "$prefix/$folder" 2>/dev/null || true
    done
    echo "models, state and models.yaml stay where they are"
    exit 0
fi

# What cannot run here is not put here.
[ "$(uname -s)" = Linux ] || fail "this archive is for Linux, and this is $(uname -s)"
machine=$(uname -m)
[ "$machine" = x86_64 ] || fail "this archive is for x86_64, and this machine is $machine"
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //') || glibc=
[ -n "$glibc" ] || fail "this system has no glibc (Alpine?); aihost needs 2.28 or newer"
oldest=$(printf '2.28\n%s\n' "$glibc" | sort -V | head -n 1)
[ "$oldest" = 2.28 ] || fail "this system has glibc $glibc, and aihost needs 2.28 or newer (Debian 10, Ubuntu 18.10, RHEL 8)"
[ -f "$here/SHA256SUMS" ] || fail "SHA256SUMS is missing: unpack the archive again"
wrong=$(cd "$here" && sha256sum --quiet -c SHA256SUMS 2>&1 | sed -n 's/^\.\/\([^:]*\): .*/\1/p' | head -n 1)
[ -z "$wrong" ] || fail "$wrong is missing or not whole: unpack the archive again"

mkdir -p "$prefix/lib/aihost" 2>/dev/null || fail "cannot write below $prefix; name a folder that you may write: --prefix DIR"
[ -w "$prefix/lib/aihost" ] || fail "cannot write below $prefix; name a folder that you may write: --prefix DIR"
needed=$(du -sk "$here" | cut -f 1)
free=$(df -Pk "$prefix" | awk 'NR == 2 { print $4 }')
[ "$free" -gt "$needed" ] || fail "$prefix has $((free / 1024)) MiB free, and $((needed / 1024)) MiB are needed"

# A file is whole or is the old one: what runs goes on with what it has open.
new=$(cd "$here" && find bin lib share -type f | LC_ALL=C sort)
count=0
changed=0
for file in $new; do
    target=$prefix/$file
    count=$((count + 1))
    if [ -f "$target" ] && cmp -s "$here/$file" "$target"; then
        continue
    fi
    mkdir -p "$(dirname "$target")"
    cp -p "$here/$file" "$target.new.$$" || { rm -f "$target.new.$$"; fail "cannot write $target"; }
    mv -f "$target.new.$$" "$target"
    changed=$((changed + 1))
done
# What an older version had and this one has not.
if [ -f "$list" ]; then
    while IFS= read -r file; do
        case "
$new
" in
        *"
$file
"*) ;;
        *) rm -f -- "$prefix/$file" && echo "removed $prefix/$file, which this version has no more" ;;
        esac
    done <"$list"
fi
printf '%s\n' "$new" >"$list"

echo "aihost $("$prefix/bin/aihost" --version | cut -d ' ' -f 2) is installed below $prefix ($changed of $count files were new)"
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) echo "next: export PATH=\"$prefix/bin:\$PATH\"   # also in ~/.profile" ;;
esac
if [ "$changed" = 0 ]; then
    exit 0
fi
echo "next: aihost init && aihost up      # a models.yaml that fits this machine, and a host that serves it"
echo "      aihost restart                # where one runs already: it is replaced without refusing a request"
