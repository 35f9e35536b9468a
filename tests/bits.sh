#!/bin/sh
# bits.sh [-s] [WORD...]: builds refsae for every platform below (or for those whose name has one of the words)
# that has its compiler here, runs selftest and the digests of the toy world, and prints the table of BITS.md. Fails
# if two digests differ, if a build with one wrong bit passes selftest, or if a 32-bit machine takes a number that it
# cannot count to. -s: selftest alone, for machines that are emulated.
set -u
cd "$(dirname "$0")/.."
short=no
[ "${1:-}" != -s ] || { short=yes; shift; }
words=$*
first=
bad=0
complain() { echo "bits: $*" >&2; bad=1; }

wanted() {
    [ -n "$words" ] || return 0
    for word in $words; do
        case " $1 " in *[!a-z0-9_]"$word"[!a-z0-9_]*) return 0 ;; esac
    done
    return 1
}

# platform NAME COMPILER 'ARGUMENTS OF MAKE' [LAUNCHER...]
platform() {
    name=$1 cc=$2 arguments=$3
    shift 3
    wanted "$name" || return 0
    runner=${1:-}
    how=$*
    if ! command -v ${cc%% *} >/dev/null || ! command -v ${runner:-sh} >/dev/null; then
        echo "| $name | ${cc%% -*} | ${how:-natively} | not installed | |"
        return 0
    fi
    build=build-bits/$(echo "$cc $arguments" | cksum | cut -d ' ' -f 1)
    make_it() { make -s CC="$cc" BUILD="$build" $arguments "$@" 1>&2; }
    if ! make_it PROGRAM="$build/refsae" "$build/refsae"; then
        complain "$name: does not build"
        return 0
    fi
    began=$(date +%s)
    if ! "$@" "$build/refsae" selftest >"$build/lines" 2>"$build/said"; then
        case $(cat "$build/said") in
        *'this processor has no'*) echo "| $name | ${cc%% -*} | ${how:-natively} | not this processor | |" ; return 0 ;;
        esac
        complain "$name: $(cat "$build/said")"
        return 0
    fi
    took=$(($(date +%s) - began))
    if [ $short = no ]; then
        sh tests/digests.sh "$build/refsae" "$@" >>"$build/lines" || complain "$name: the digests do not run"
    fi
    digest=$(sha256sum <"$build/lines" | cut -c 1-16)
    first=${first:-$digest}
    [ "$digest" = "$first" ] || complain "$name: other bytes"
    version=$(${cc%% -*} --version 2>/dev/null | sed -n '1s/ *([^)]*)//gp')
    [ -n "$version" ] || version=$($cc -v 2>&1 | sed -n "s/\(clang version [0-9.]*\).*/\1 (zig)/p" | head -n 1)
    echo "| $name | $version | ${how:-natively} | $took s | $digest |"
    case $name in *musl) portable ;; esac
    wrong "$@"
}

# One bit of the square root that GPT-NeoX's GELU divides by: selftest must name that model, and no stage before it.
wrong() {
    [ ! -e "$build/wrong" ] || return 0
    rm -f "$build"/kernels*.o
    make_it DEPS= SAN="-DREFSAE_WRONG_BIT=+0x1p-23f" PROGRAM="$build/wrong" "$build/wrong" ||
        { complain "$name: no wrong build"; return 0; }
    "$@" "$build/wrong" selftest >"$build/wrong.txt" 2>/dev/null
    [ "$(sed -n '/DIFFERS/{s/ .*//p;q;}' "$build/wrong.txt")" = gpt_neox.st ] ||
        complain "$name: a wrong bit is not found, or not in gpt_neox.st: $(grep DIFFERS "$build/wrong.txt")"
    rm -f "$build"/kernels*.o
}

# What 32 bits cannot count to or address is refused.
narrow() {
    wanted "$1" && [ -n "${build:-}" ] && [ -x "$build/refsae" ] || return 0
    shift
    said=$("$@" "$build/refsae" sage --llm a --saes b --task ioi --out c --train 4294967298 2>&1)
    case $said in *'--train 4294967298: expected at most 4294967295'*) ;; *) complain "$name: $said" ;; esac
    truncate -s 5G "$build/large.safetensors"
    said=$("$@" "$build/refsae" info "$build/large.safetensors" 2>&1)
    case $said in *"too large for this machine's addresses"*) ;; *) complain "$name: $said" ;; esac
    rm -f "$build/large.safetensors"
}

# A small build against PORTING.md: its size, and what is undefined in an object is C99's, the compiler's or in the list.
portable() {
    [ "$(wc -c <"$build/refsae")" -le 608000 ] || complain "$name: $(wc -c <"$build/refsae") bytes, expected at most 608000"
    nm --defined-only "$build"/*.o | awk 'NF > 2 { print $3 }' | sort -u >"$build/defined"
    for file in $(sed -n 's/^| `\([a-z_]*\)\.c`.*/\1/p' PORTING.md); do
        sed -n "/^| .$file\.c/p" PORTING.md | grep -o '`[a-z_]*`' | tr -d '`' >"$build/listed"
        nm -u "$build/$file.o" | awk '{ print $2 }' | sed 's/64$//' | sort -u >"$build/undefined"
        while read -r word; do
            grep -qx "$word" "$build/undefined" || complain "PORTING.md: $file.c does not call $word"
        done <"$build/listed"
    done
    for object in "$build"/*.o; do
        file=$(basename "$object" .o)
        for word in $(nm -u "$object" | awk '{ print $2 }' | sort -u | comm -23 - "$build/defined" | sed 's/64$//'); do
            echo " $c99 " | grep -q " $word " ||
                sed -n "/^| .$file\.c/p" PORTING.md | grep -q "\`$word\`" ||
                complain "PORTING.md: $file.c calls $word"
        done
    done
}
c99='abs atoi bsearch calloc ceil exit fclose feof ferror fflush fgets floor fma fmaf fmax fmin fmod fprintf fputc fputs
fopen fread free frexp fscanf fwrite getc getenv ldexp longjmp memchr memcmp memcpy memmove memset printf putc putchar puts qsort
raise realloc remove rename rint signal snprintf sprintf sqrt sqrtf sscanf stderr stdin stdout strcat strchr strcmp strcpy strcspn
strerror strlen strncmp strncpy strpbrk strrchr strspn strstr strtod strtof strtok strtol strtoll strtoul strtoull trunc
vfprintf vsnprintf setjmp isalnum tolower __errno_location _GLOBAL_OFFSET_TABLE_ __cpu_indicator_init __cpu_model'
c99=$(echo $c99)

# setjmp there needs exceptions; signals and getpid are imitated.
wasi='zig cc -target wasm32-wasi -mllvm -wasm-enable-sjlj -mllvm -wasm-use-legacy-eh=true -mexception-handling
-D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_GETPID -lwasi-emulated-signal -lwasi-emulated-getpid -Wl,--stack,65536
-Wno-unused-command-line-argument'
wasi=$(echo $wasi)

echo "| platform | compiler | run | selftest | digest |"
echo "|---|---|---|---|---|"
for threads in 1 2 3 7; do
    platform "x86-64, threads: $threads" gcc '' env OMP_NUM_THREADS=$threads
done
for isa in avx512 avx2 scalar; do
    platform "x86-64 $isa" gcc '' env REFSAE_ISA=$isa
done
for level in -O0 -O3 '-O2 -flto' '-O2 -march=native'; do
    platform "x86-64 $level" gcc "OPT=${level%% *} CFLAGS=${level#* }"
done
platform 'x86-64, own fma' gcc 'FMA=own SIMD=no OPENMP=no'
for compiler in gcc-11 clang-13 clang clang-15 clang-16 clang-19 clang-22 'zig cc'; do
    platform "x86-64 $compiler" "$compiler" 'OPENMP=no'
done
# zig-N, PATH's name for the zig of PyPI's ziglang N: a Clang of its own, without what the choice of vector code needs.
for compiler in 'zig-0.12 cc' 'zig-0.13 cc' 'zig-0.14 cc' 'zig-0.15 cc' 'zig-0.16 cc'; do
    platform "x86-64 $compiler, scalar" "$compiler" 'OPENMP=no SIMD=no MACROS='
done
platform 'x86-64 tcc' tcc 'DEPS= WARN= OPENMP=no SIMD=no'
platform 'x86-64 SMALL' gcc 'SMALL=1'
platform 'x86-64 SMALL musl' musl-gcc 'SMALL=1'
platform 'i686 SSE2' i686-linux-gnu-gcc 'OPENMP=no LDFLAGS=-static'
narrow 'i686 SSE2'
platform 'aarch64 neon' aarch64-linux-gnu-gcc 'OPENMP=no LDFLAGS=-static' qemu-aarch64
platform 's390x, big-endian' s390x-linux-gnu-gcc '' qemu-s390x -L /usr/s390x-linux-gnu
platform 'powerpc, big-endian, 32 bits' powerpc-linux-gnu-gcc 'OPENMP=no LDFLAGS=-static' qemu-ppc
narrow 'powerpc, big-endian, 32 bits' qemu-ppc
platform 'ppc64le' powerpc64le-linux-gnu-gcc 'OPENMP=no LDFLAGS=-static' qemu-ppc64le
platform 'riscv64' riscv64-linux-gnu-gcc 'OPENMP=no LDFLAGS=-static' qemu-riscv64
platform 'armhf VFPv4' arm-linux-gnueabihf-gcc 'CFLAGS=-mfpu=vfpv4 OPENMP=no LDFLAGS=-static' qemu-arm
platform 'armhf' arm-linux-gnueabihf-gcc 'OPENMP=no LDFLAGS=-static' qemu-arm
platform 'mipsel' mipsel-linux-gnu-gcc 'OPENMP=no LDFLAGS=-static' qemu-mipsel
platform 'wasm32-wasi, 64 KB of stack' "$wasi" 'SMALL=1 LDFLAGS=tests/wasi.s' node --no-warnings tests/wasi.mjs
exit $bad
