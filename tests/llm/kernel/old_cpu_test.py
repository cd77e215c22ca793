"""A processor without AVX2, under emulation: the plain set of kernels is there, and gives what it gives here.

    old_cpu_test.py KERNEL_BITS QEMU
"""
import subprocess
import sys

NO_SUCH_SET = 77
OLD = ("-cpu", "Nehalem")  # SSE4.2, nothing newer


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def main(bits, qemu):
    for newer in ("avx2", "avx512"):
        assert run(qemu, *OLD, bits, newer).returncode == NO_SUCH_SET, f"{newer} on a processor without it"
    here, there = run(bits, "generic"), run(qemu, *OLD, bits, "generic")
    assert here.returncode == there.returncode == 0, there.stderr
    assert len(here.stdout.splitlines()) > 50, here.stdout
    assert here.stdout == there.stdout, "the plain set differs between processors"
    print(f"{len(here.stdout.splitlines())} results of the plain set are equal on an old processor")


if __name__ == "__main__":
    main(*sys.argv[1:])
