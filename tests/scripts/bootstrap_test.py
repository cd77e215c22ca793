"""scripts/bootstrap.py when things go wrong: with a scratch cache, packages made here, and no network."""

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import unittest
import zipfile
from unittest import mock

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"

# Stands for llama.cpp: a project that installs one file, so that the real CMake steps run in a second.
TINY_CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(tiny LANGUAGES NONE)
install(FILES llama.h DESTINATION include)
"""


def load_bootstrap(cache):
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPTS / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ, FRUGAL_CACHE=str(cache)):
        spec.loader.exec_module(module)
    return module


class Bootstrap(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="frugal-bootstrap-")
        self.addCleanup(scratch.cleanup)
        self.cache = pathlib.Path(scratch.name) / "cache"
        self.b = load_bootstrap(self.cache)
        self.packages = self.cache / "packages"
        self.packages.mkdir(parents=True)
        self.pins = {}
        self.b.pinned_hashes = lambda: self.pins
        self.b.LLAMA_SDIST = "tiny-1.tar.gz"
        self.b.POWER_WHEEL = self.b.OPENVINO_WHEEL = "tiny_a-1-py3-none-any.whl"
        self.b.PHOTO_WHEEL = self.b.HIGHS_WHEEL = "tiny_a-1-py3-none-any.whl"
        self.b.ONNX_WHEELS = []
        self.b.MODELS = {"tiny.gguf": ([("tiny_a-1-py3-none-any.whl", "a/part"), ("tiny_b-1-py3-none-any.whl", "b/part")],
                                       hashlib.sha256(b"GGUF, part one; part two").hexdigest())}
        self.add_sdist()
        self.add_wheel("tiny_a-1-py3-none-any.whl", "a/part", b"GGUF, part one")
        self.add_wheel("tiny_b-1-py3-none-any.whl", "b/part", b"; part two")
        self.said = io.StringIO()
        quiet = contextlib.redirect_stderr(self.said)
        quiet.__enter__()
        self.addCleanup(quiet.__exit__, None, None, None)

    def pin(self, name, requirement):
        self.pins[name] = (requirement, hashlib.sha256((self.packages / name).read_bytes()).hexdigest())

    def add_sdist(self):
        with tarfile.open(self.packages / "tiny-1.tar.gz", "w:gz") as tar:
            for name, text in (("CMakeLists.txt", TINY_CMAKE), ("llama.h", "// tiny\n")):
                info = tarfile.TarInfo(f"tiny-1/vendor/llama.cpp/{name}")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
        self.pin("tiny-1.tar.gz", "frugal-test-tiny==1")

    def add_wheel(self, name, member, data):
        with zipfile.ZipFile(self.packages / name, "w") as wheel:
            wheel.writestr(member, data)
        self.pin(name, f"frugal-test-{name[:6]}==1")

    def without_index(self):
        """pip with no index to ask: what a machine without network comes to, at once."""
        return mock.patch.dict(os.environ, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)

    # -- the build

    def test_builds_once(self):
        self.b.build_llama("llama")
        out = self.b.folder("llama")
        self.assertEqual((out / "include/llama.h").read_text(), "// tiny\n")
        self.assertTrue((out / ".complete").exists())
        with mock.patch.object(self.b, "run", side_effect=AssertionError("built again")):
            self.b.build_llama("llama")
        self.assertEqual([p.name for p in self.cache.iterdir() if p.name.endswith(".work")], [])

    def test_half_built_cache_is_rebuilt(self):
        out = self.b.folder("llama")
        (out / "include").mkdir(parents=True)
        (out / "include/llama.h").write_text("half")
        (out / "rest").write_text("of a build that was killed")
        work = self.cache / f".{out.name}.work"
        work.mkdir()
        (work / "rest").write_text("of the same")
        self.b.build_llama("llama")
        self.assertEqual((out / "include/llama.h").read_text(), "// tiny\n")
        self.assertFalse((out / "rest").exists())
        self.assertFalse(work.exists())

    def test_failed_build_leaves_no_stamp_and_shows_the_log(self):
        with tarfile.open(self.packages / "tiny-1.tar.gz", "w:gz") as tar:
            text = b'message(FATAL_ERROR "the reason is here")'
            info = tarfile.TarInfo("tiny-1/vendor/llama.cpp/CMakeLists.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        self.pin("tiny-1.tar.gz", "frugal-test-tiny==1")
        with self.assertRaisesRegex(self.b.BootstrapError, "(?s)cmake ended with status 1.*the reason is here"):
            self.b.build_llama("llama")
        self.assertFalse((self.b.folder("llama") / ".complete").exists())

    def test_other_flags_are_another_folder(self):
        before = self.b.folder("llama")
        self.b.LLAMA_FLAGS = [*self.b.LLAMA_FLAGS, "-DGGML_LTO=ON"]
        self.assertNotEqual(self.b.folder("llama"), before)
        self.assertNotEqual(self.b.folder("peers"), before)

    def test_two_checkouts_at_once_wait_for_each_other(self):
        log = self.cache / "order"
        inside = threading.Event()
        build_once = self.b.run

        def slow_run(command, **kwargs):
            inside.set()
            with open(log, "a") as f:
                f.write("first\n")
            build_once(command, **kwargs)

        # The second checkout is a process of its own; it must find the finished folder and build nothing.
        second = textwrap.dedent("""
            import importlib.util, sys
            spec = importlib.util.spec_from_file_location("bootstrap", sys.argv[1])
            b = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(b)
            def run(*args, **kwargs):
                sys.exit("the second checkout built, too")
            b.run = run
            b.build_llama("llama")
        """)
        self.b.run = slow_run
        out = self.b.folder("llama")
        started = []
        held = self.b.locked

        @contextlib.contextmanager
        def locked(name):
            with held(name):
                # We hold the lock; only now the second one starts, and must be seen waiting before we go on.
                child = subprocess.Popen([sys.executable, "-c", second, SCRIPTS / "bootstrap.py"], text=True,
                                         stderr=subprocess.PIPE, env=dict(os.environ, FRUGAL_CACHE=str(self.cache)))
                started.append(child)
                self.assertIn("waiting for it", child.stderr.readline())
                self.assertIsNone(child.poll())
                yield

        self.b.locked = locked
        self.b.build_llama("llama")
        self.assertTrue((out / ".complete").exists())
        _, errors = started[0].communicate(timeout=60)
        self.assertEqual(started[0].returncode, 0, errors)
        self.assertTrue(inside.is_set())

    # -- packages and models

    def test_models_are_joined_checked_and_kept(self):
        self.b.unpack_models()
        model = self.cache / "models/tiny.gguf"
        self.assertEqual(model.read_bytes(), b"GGUF, part one; part two")
        made = model.stat().st_mtime_ns
        self.b.unpack_models()
        self.assertEqual(model.stat().st_mtime_ns, made)

    def test_truncated_model_is_unpacked_again(self):
        self.b.unpack_models()
        model = self.cache / "models/tiny.gguf"
        model.write_bytes(b"GGUF, pa")
        self.b.unpack_models()
        self.assertEqual(model.read_bytes(), b"GGUF, part one; part two")

    def test_wrong_model_hash_is_refused(self):
        self.add_wheel("tiny_b-1-py3-none-any.whl", "b/part", b"; part 2")
        with self.assertRaisesRegex(self.b.BootstrapError, "tiny.gguf: its SHA-256 is .* not the pinned"):
            self.b.unpack_models()
        self.assertEqual(list((self.cache / "models").glob("tiny*")), [])

    def test_damaged_package_is_not_used(self):
        (self.packages / "tiny-1.tar.gz").write_bytes(b"something else")
        with self.without_index(), self.assertRaises(self.b.BootstrapError):
            self.b.download("tiny-1.tar.gz")

    def test_index_with_another_file_is_refused(self):
        # A folder that pip takes for an index, holding a wheel of the right name with other contents.
        index = self.cache / "index"
        index.mkdir()
        name = "frugal_test_wheel-1-py3-none-any.whl"
        with zipfile.ZipFile(index / name, "w") as wheel:
            wheel.writestr("frugal_test_wheel-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: frugal-test-wheel\nVersion: 1\n")
            wheel.writestr("frugal_test_wheel-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("frugal_test_wheel-1.dist-info/RECORD", "")
        self.pins[name] = ("frugal-test-wheel==1", "0" * 64)
        with self.without_index(), mock.patch.dict(os.environ, PIP_FIND_LINKS=str(index)):
            with self.assertRaisesRegex(self.b.BootstrapError, "another file than the pinned one"):
                self.b.download(name)
        self.assertFalse((self.packages / name).exists())
        self.pins[name] = ("frugal-test-wheel==1", hashlib.sha256((index / name).read_bytes()).hexdigest())
        with self.without_index(), mock.patch.dict(os.environ, PIP_FIND_LINKS=str(index)):
            self.assertTrue(self.b.download(name).exists())

    def test_no_network_lists_what_is_missing_and_where_it_goes(self):
        (self.packages / "tiny-1.tar.gz").unlink()
        (self.packages / "tiny_b-1-py3-none-any.whl").unlink()
        with self.without_index(), self.assertRaises(self.b.BootstrapError) as caught:
            self.b.build_llama("llama")
        text = str(caught.exception)
        self.assertIn(str(self.packages), text)
        self.assertIn("tiny-1.tar.gz  (frugal-test-tiny==1, sha256 " + self.pins["tiny-1.tar.gz"][1], text)
        self.assertIn("tiny_b-1-py3-none-any.whl", text)
        self.assertNotIn("    tiny_a-1-py3-none-any.whl", text)  # there already

    # -- the machine

    def test_not_root_gets_the_apt_line(self):
        self.b.APT_PACKAGES = {"libfrugal-test-dev": "/nonexistent/header.h", "cmake": sys.executable}
        with mock.patch("os.geteuid", return_value=1000), self.assertRaises(self.b.BootstrapError) as caught:
            self.b.install_apt_packages({})
        self.assertIn("apt-get install libfrugal-test-dev", str(caught.exception))
        self.assertNotIn("cmake", str(caught.exception))

    def test_failing_apt_says_what_to_install(self):
        self.b.APT_PACKAGES = {"libfrugal-test-dev": "/nonexistent/header.h"}
        self.b.run = mock.Mock(side_effect=self.b.BootstrapError("apt-get ended with status 100"))
        with mock.patch("os.geteuid", return_value=0), mock.patch("shutil.which", return_value="/usr/bin/x"):
            with self.assertRaisesRegex(self.b.BootstrapError, "(?s)status 100.*apt-get install libfrugal-test-dev"):
                self.b.install_apt_packages({})

    def test_little_disk_is_said_before_the_work(self):
        usage = mock.Mock(free=10 << 20)
        with mock.patch("shutil.disk_usage", return_value=usage), self.assertRaises(self.b.BootstrapError) as caught:
            self.b.build_llama("llama")
        self.assertIn("has 10 MiB free and 1024 MiB are needed", str(caught.exception))
        self.assertIn("FRUGAL_CACHE", str(caught.exception))
        self.assertFalse((self.b.folder("llama") / ".complete").exists())

    def test_full_disk_on_the_way_is_put_in_words(self):
        self.b.main = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        self.assertIn("no space is left", self.b.guarded_main())
        self.b.main = mock.Mock(side_effect=KeyboardInterrupt)
        self.assertEqual(self.b.guarded_main(), 130)

    def test_pins_are_complete(self):
        real = load_bootstrap(self.cache)
        pins = real.pinned_hashes()
        wanted = [*real.wanted_packages(), real.RECBOLE_WHEEL]
        self.assertEqual(sorted(pins), sorted(wanted), "requirements.txt and what the script fetches")
        for name in wanted:
            requirement, digest = pins[name]
            self.assertRegex(requirement, r"^[\w-]+==[\w.]+$")
            self.assertRegex(digest, r"^[0-9a-f]{64}$")


class Configure(unittest.TestCase):
    def test_cmake_says_to_run_the_bootstrap(self):
        if subprocess.run(["cmake", "--find-package", "-DNAME=llama", "-DCOMPILER_ID=GNU", "-DLANGUAGE=CXX", "-DMODE=EXIST"],
                          capture_output=True, cwd=tempfile.gettempdir()).returncode == 0:
            self.skipTest("this system has a llama package of its own")
        with tempfile.TemporaryDirectory(prefix="frugal-configure-") as scratch:
            done = subprocess.run(["cmake", "-S", SCRIPTS.parent, "-B", scratch + "/build", "-G", "Ninja"], text=True,
                                  capture_output=True, env=dict(os.environ, FRUGAL_CACHE=scratch + "/cache"))
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("run `python3 scripts/bootstrap.py`", " ".join(done.stderr.split()))


if __name__ == "__main__":
    unittest.main()
