#!/usr/bin/env python3
"""Include arrows go down only, and each third-party header stays inside its room.

ROOMS is the architecture: a room and the rooms that it may include. `X/*` stands for every room below X. A public
header frugal/X.h belongs to the plane X (result.h, log.h and usage.h to base), and whoever may include a room of
that plane may include it.
"""

import pathlib
import re
import sys

import rule

ROOMS = {
    "base": [],
    "meter": ["base"],
    "meter/http": ["base"],
    "budget": ["base", "meter"],
    "budget/share": ["base", "budget"],
    "llm/kernel": ["base"],
    "llm/tensor": ["base", "llm/kernel"],
    "llm/kv": ["base", "llm/kernel", "llm/tensor"],
    "llm/vocab": ["base", "llm/tensor"],
    "llm/model": ["base", "llm/kernel", "llm/tensor", "llm/kv", "llm/vocab"],
    "llm/decode": ["base", "meter", "budget", "llm/kernel", "llm/tensor", "llm/kv", "llm/vocab", "llm/model"],
    "llm/peer": ["base", "llm/tensor", "llm/vocab", "llm/model"],
    "dnn/graph": ["base"],
    "dnn/exec": ["base", "dnn/graph"],
    "dnn/pack": ["base"],
    "dnn/plan": ["base", "meter", "budget", "dnn/graph", "dnn/exec", "dnn/pack"],
    "dnn/link": ["base", "meter", "budget", "dnn/graph", "dnn/exec", "dnn/pack", "dnn/plan"],
    "cascade": ["base", "meter", "budget", "dnn/exec"],
    "cascade/serve": ["base", "meter", "budget", "budget/share", "cascade"],
    "jobs": ["base", "meter", "budget"],
    "jobs/hosts": ["base", "meter", "budget", "jobs"],
    "server": ["base", "meter", "budget", "budget/*", "llm/*", "dnn/*", "cascade", "cascade/*", "jobs", "jobs/*", "meter/*"],
    "cli": ["base", "meter", "budget", "budget/*", "llm/*", "dnn/*", "cascade", "cascade/*", "jobs", "jobs/*", "meter/*", "server"],
}
BASE_PUBLIC = {"result", "log", "usage"}
GENERATED = {"build_info.h"}  # written into the build folder by cmake/

# Third-party headers: a pattern, and the rooms (or trees beside src/) that may include it. The tests of a room may
# include what the room may, and llama.cpp is the reference that tests and benches of llm/ compare with.
THIRD_PARTY = [
    (r"(llama|ggml|gguf)[\w-]*\.h", ["llm/vocab", "llm/peer", "tests/llm", "tests/reference", "tests/support", "bench"]),
    (r"(x86intrin|immintrin|arm_neon|arm_sve)\.h", ["llm/kernel"]),
    (r"openvino/.*", ["dnn/exec"]),
    (r"nats/.*|nats\.h", ["dnn/link", "budget/share", "jobs/hosts"]),
    (r"zstd\.h", ["dnn/pack"]),
    (r"sqlite3\.h", ["meter"]),
    (r"httplib\.h", ["server", "cascade/serve", "meter/http", "tests/cascade/serve"]),
    (r"microhttpd\.h", ["cascade/serve"]),
    (r"CLI/.*", ["cli"]),
    (r"editline/.*|histedit\.h", ["cli"]),
    (r"jpeglib\.h|png\.h", ["cli"]),
    # Values of JSON are at home wherever a file or an answer is JSON, but never in a public header.
    (r"nlohmann/.*", list(ROOMS) + ["tests", "bench", "fuzz"]),
    (r"gtest/.*|gmock/.*", ["tests"]),
    (r"benchmark/.*", ["bench"]),
]
SHOWN = {r"(llama|ggml|gguf)[\w-]*\.h": "llama.cpp, ggml", r"openvino/.*": "OpenVINO", r"nats/.*|nats\.h": "NATS",
         r"zstd\.h": "Zstandard",
         r"sqlite3\.h": "SQLite", r"httplib\.h": "cpp-httplib", r"microhttpd\.h": "libmicrohttpd", r"CLI/.*": "CLI11", r"editline/.*|histedit\.h": "libedit", r"jpeglib\.h|png\.h": "libjpeg, libpng",
         r"(x86intrin|immintrin|arm_neon|arm_sve)\.h": "compiler intrinsics"}
STANDARD = set("""algorithm any array atomic barrier bit bitset cassert ccomplex cctype cerrno cfenv cfloat charconv chrono
cinttypes climits clocale cmath codecvt compare complex concepts condition_variable coroutine csetjmp csignal cstdarg
cstddef cstdint cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution filesystem format
forward_list fstream functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits list
locale map memory memory_resource mutex new numbers numeric optional ostream queue random ranges ratio regex scoped_allocator
semaphore set shared_mutex source_location span sstream stack stdexcept stop_token streambuf string string_view
system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility valarray variant vector
version cpuid.h dirent.h dlfcn.h errno.h fcntl.h fenv.h ifaddrs.h malloc.h netdb.h poll.h pthread.h pwd.h sched.h signal.h
spawn.h stddef.h stdint.h termios.h time.h unistd.h cxxabi.h""".split())
STANDARD_FOLDERS = ("sys/", "linux/", "net/", "netinet/", "arpa/", "asm/")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def room_of(path):
    """'llm/kv' for 'llm/kv/dense.h'; None when the path is in no room."""
    parts = path.split("/")
    for n in (2, 1):
        if len(parts) > n and "/".join(parts[:n]) in ROOMS:
            return "/".join(parts[:n])
    return None


def may_include(room, other):
    return other == room or any(
        other == allowed or (allowed.endswith("/*") and other.startswith(allowed[:-1])) for allowed in ROOMS[room])


def plane(room):
    return room.split("/")[0]


def may_include_plane(room, name):
    return plane(room) == name or any(plane(allowed) == name for allowed in ROOMS[room])


def check_third_party(place, header):
    for pattern, rooms in THIRD_PARTY:
        if re.fullmatch(pattern, header):
            if not any(p == r or p.startswith(r + "/") for p in (place, place.removeprefix("tests/")) for r in rooms):
                return f"<{header}> may only be included in {', '.join(rooms)}"
            return None
    if header in STANDARD or header.startswith(STANDARD_FOLDERS):
        return None
    return f"<{header}> is neither standard nor in the table of third-party headers (tests/rules/arrows.py)"


def check_file(root, name):
    text = rule.read(root, name)
    top = name.split("/")[0]
    inside = name.split("/", 1)[1]
    room = room_of(inside) if top == "src" else None
    header_plane = None
    if top == "include":
        stem = pathlib.PurePath(name).stem
        header_plane = "base" if stem in BASE_PUBLIC else stem
    if top == "src" and room is None:
        return [f"{name}: lies in no room; rooms are named in tests/rules/arrows.py"]
    # Tests and benches see every room, but third-party headers are judged by the room that they test.
    place = room or (name.rsplit("/", 1)[0] if top != "include" else "include")
    found = []
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        at, kind, header = f"{name}:{line}", match.group(1), match.group(2)
        if kind == "<":
            problem = check_third_party(place, header)
            if problem:
                found.append(f"{at}: {problem}")
            continue
        if header.startswith("frugal/"):
            if not (root / "include" / header).exists():
                found.append(f"{at}: there is no public header {header}")
                continue
            stem = pathlib.PurePath(header).stem
            target = "base" if stem in BASE_PUBLIC else stem
            if room and not may_include_plane(room, target):
                found.append(f"{at}: {room} may not include {header}: arrows go down only")
            if header_plane and target not in ("base", header_plane) and not any(
                    may_include_plane(r, target) for r in ROOMS if plane(r) == header_plane):
                found.append(f"{at}: the public header of {header_plane} may not include {header}")
            continue
        if top == "include":
            found.append(f'{at}: a public header includes only "frugal/..." and the standard library')
            continue
        if header in GENERATED:
            continue
        if top == "fuzz" and (root / "tests" / header).exists():  # tiny models
            continue
        if top != "src" and (root / top / header).exists() and not (root / "src" / header).exists():
            continue
        if not (root / "src" / header).exists():
            found.append(f'{at}: "{header}" is not a path from src/: write the room, as in "base/text.h"')
            continue
        target = room_of(header)
        if room and target and not may_include(room, target):
            found.append(f"{at}: {room} may not include {target} ({header}): arrows go down only")
    return found


def check_links(root, name):
    """DEPS of a room's CMake list are arrows too."""
    found = []
    text = re.sub(r"#[^\n]*", "", rule.read(root, name))
    for call in re.finditer(r"frugal_add_room\(\s*([\w/]+)([^)]*)\)", text):
        room, body = call.group(1), call.group(2)
        if room not in ROOMS:
            found.append(f"{name}: the room {room} is not in the table of tests/rules/arrows.py")
            continue
        deps = re.search(r"\bDEPS\s+([\w/\s]*?)(?=\b(?:SOURCES|PRIVATE_LIBS|PUBLIC_LIBS|DEPS)\b|$)", body)
        for dep in deps.group(1).split() if deps else []:
            if not may_include(room, dep):
                found.append(f"{name}: {room} may not link {dep}: arrows go down only")
    return found


def table():
    """ROOMS for ARCHITECTURE.md."""
    lines = ["| room | may include | third-party headers |", "|---|---|---|"]
    for room, allowed in ROOMS.items():
        theirs = [name for pattern, name in SHOWN.items() for p, rooms in THIRD_PARTY if p == pattern and room in rooms]
        lines.append(f"| `{room}` | {', '.join(allowed) or 'nothing'} | {', '.join(theirs)} |")
    return lines


def check_page(root):
    """ARCHITECTURE.md shows this table."""
    page = root / "ARCHITECTURE.md"
    if page.exists() and "\n".join(table()) not in page.read_text():
        return ["ARCHITECTURE.md: its table of rooms is not the one of tests/rules/arrows.py; paste what `--table` prints"]
    return []


def check(root, args):
    if args and args.table:
        print("\n".join(table()))
        sys.exit()
    found = check_page(root)
    for room, allowed in ROOMS.items():  # the table itself: no cycle, as every arrow points to an earlier line
        order = list(ROOMS)
        for target in allowed:
            if not target.endswith("/*") and order.index(target) >= order.index(room):
                found.append(f"arrows.py: {room} -> {target} points up")
    for name in rule.tracked_files(root):
        if name.startswith(("src/", "include/", "tests/", "bench/", "fuzz/")):
            if name.endswith((".h", ".cc")):
                found += check_file(root, name)
            elif name.endswith("CMakeLists.txt") and name.startswith("src/"):
                found += check_links(root, name)
    return found


def self_test(_args):
    clean = {
        "include/frugal/result.h": "#include <string>\n",
        "include/frugal/llm.h": '#include "frugal/result.h"\n',
        "include/frugal/dnn.h": '#include "frugal/result.h"\n',
        "src/base/text.h": "#include <string>\n",
        "src/llm/kv/dense.h": '#include "base/text.h"\n#include "frugal/llm.h"\n',
        "src/llm/vocab/tokenizer.cc": "#include <llama.h>\n",
        "src/llm/kv/CMakeLists.txt": "frugal_add_room(llm/kv SOURCES a.cc DEPS base)\n",
        "tests/llm/kv/dense_test.cc": '#include "llm/kv/dense.h"\n#include <gtest/gtest.h>\n',
    }
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, clean)
        rule.expect(check(root, None))
        rule.plant(root, {
            "ARCHITECTURE.md": "| room | may include |\n",
            "src/base/up.h": '#include "llm/kv/dense.h"\n',
            "src/cascade/other_plane.cc": '#include "frugal/llm.h"\n',
            "src/llm/kv/ggml.cc": "#include <ggml.h>\n",
            "src/meter/unknown.cc": "#include <boost/any.hpp>\n",
            "src/base/relative.cc": '#include "../base/text.h"\n',
            "src/nowhere/lost.cc": "\n",
            "include/frugal/meter.h": '#include "base/text.h"\n',
            "include/frugal/budget.h": "#include <nlohmann/json.hpp>\n",
            "include/frugal/jobs.h": '#include "frugal/llm.h"\n',
            "src/budget/CMakeLists.txt": "frugal_add_room(budget SOURCES a.cc DEPS base jobs PRIVATE_LIBS x)\n",
        })
        rule.expect(check(root, None), "base may not include llm/kv", "cascade may not include frugal/llm.h",
                    "<ggml.h> may only be included in", "<boost/any.hpp> is neither", '"../base/text.h" is not a path',
                    "lies in no room", 'includes only "frugal/..."', "<nlohmann/json.hpp> may only be",
                    "public header of jobs may not include", "budget may not link jobs",
                    "ARCHITECTURE.md: its table")


if __name__ == "__main__":
    rule.main(check, self_test, [("--table", {"action": "store_true", "help": "print the table of ARCHITECTURE.md"})])
