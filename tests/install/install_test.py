"""Installs this build into a scratch prefix, moves the prefix, and builds and runs examples/hello from there."""

import argparse
import os
import pathlib
import shutil
import subprocess
import tempfile


def run(*command, **kwargs):
    print("$", *command, flush=True)
    return subprocess.run([str(c) for c in command], check=True, text=True, **kwargs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True, help="the configured and built tree")
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--expect", required=True, help="what the example must print")
    parser.add_argument("arguments", nargs="*", help="arguments of the example")
    args = parser.parse_args()
    example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "hello"
    with tempfile.TemporaryDirectory(prefix="frugal-install-") as scratch:
        scratch = pathlib.Path(scratch)
        run("cmake", "--install", args.build, "--prefix", scratch / "first", stdout=subprocess.DEVNULL)
        shutil.move(scratch / "first", scratch / "moved")  # an install must not remember where it was made
        prefix = scratch / "moved"
        config = next(prefix.rglob("frugalConfig.cmake")).parent
        for file in config.glob("*.cmake"):
            assert str(pathlib.Path(args.build).resolve()) not in file.read_text(), f"{file} names the build tree"
        env = {k: v for k, v in os.environ.items() if k not in ("FRUGAL_CACHE", "CMAKE_PREFIX_PATH")}
        run("cmake", "-S", example, "-B", scratch / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DCMAKE_CXX_COMPILER={args.compiler}", "-DCMAKE_BUILD_TYPE=Release", env=env)
        run("cmake", "--build", scratch / "build", env=env)
        done = run(scratch / "build" / "hello", *args.arguments, env=env, stdout=subprocess.PIPE)
        print(done.stdout)
        assert args.expect in done.stdout, f"the example printed {done.stdout!r}, not {args.expect!r}"
        command = prefix / "bin" / "frugal"
        version = run(command, "--version", stdout=subprocess.PIPE).stdout
        assert version.startswith("frugal "), version


main()
