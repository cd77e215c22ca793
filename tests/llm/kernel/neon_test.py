"""The NEON set under emulation against the AVX2 set on this processor: every kernel's results, bit for bit.

    neon_test.py KERNEL_BITS KERNEL_BITS_AARCH64 QEMU
"""
import subprocess
import sys

SKIPPED = 77


def results(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == SKIPPED:
        print(" ".join(command), done.stdout.strip(), sep=": ")
        sys.exit(SKIPPED)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    lines = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(lines) > 50, done.stdout
    return lines


def main(native, foreign, qemu):
    # -cpu max: a processor with the dot product; the oldest that qemu knows must say that it lacks it.
    old = subprocess.run([qemu, "-cpu", "cortex-a53", foreign, "neon"], capture_output=True, text=True, timeout=300)
    assert old.returncode == SKIPPED, f"a processor without dot products: {old.returncode} {old.stderr}"
    neon = results(qemu, "-cpu", "max", foreign, "neon")
    # Sums of the plain set are not fused: whatever is not a sum of floats must agree there too.
    generic_here, generic_there = results(native, "generic"), results(qemu, "-cpu", "max", foreign, "generic")
    assert generic_here == generic_there, "the plain set differs between processors"
    avx2 = results(native, "avx2")
    different = [name for name in avx2 if avx2[name] != neon.get(name)]
    assert not different, f"NEON and AVX2 differ in {different}"
    assert generic_here != avx2, "a fused and an unfused sum cannot agree: the digests see nothing"
    print(f"{len(avx2)} results of NEON and AVX2 are equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
