#!/usr/bin/env python3
"""No orphans: every source and test is named in a CMake list, every header is included, every folder is added."""

import pathlib
import re

import rule

TREES = ("src/", "tests/", "bench/", "fuzz/", "examples/")


def cmake_text(root, name):
    return re.sub(r"#[^\n]*", "", rule.read(root, name))


def check(root, _args):
    names = rule.tracked_files(root)
    lists = {n: cmake_text(root, n) for n in names if n.endswith("CMakeLists.txt")}
    words = {n: set(re.split(r"[\s()\";]+", text)) for n, text in lists.items()}
    included = set()
    for name in names:
        if name.endswith((".h", ".cc")):
            included |= set(re.findall(r'#\s*include\s*"([^"]+)"', rule.read(root, name)))
    found = []
    for name in names:
        path = pathlib.PurePosixPath(name)
        if not name.startswith(TREES):
            continue
        if path.suffix == ".cc":
            # Named by a list in its own folder or one above, relative to that folder, or by any list from the root; a
            # test is named without ".cc", relative to tests/.
            ok = any("${PROJECT_SOURCE_DIR}/" + name in listed for listed in words.values())
            for folder in path.parents:
                listed = words.get(str(folder / "CMakeLists.txt").removeprefix("./"), set())
                ok = ok or str(path.relative_to(folder)) in listed
            if name.startswith("tests/"):
                test = str(path.relative_to("tests").with_suffix(""))
                registered = any(re.search(rf"frugal_add_test\(\s*{re.escape(test)}\s", text + " ")
                                 for n, text in lists.items() if n.startswith("tests/"))
                if path.stem.endswith("_test") and not registered:
                    found.append(f"{name}: no frugal_add_test({test} ...) registers this test")
                    continue
                ok = ok or registered
            if not ok:
                found.append(f"{name}: in no CMake list, so it is never compiled")
        elif path.suffix == ".h" and not name.startswith("examples/"):
            tree = name.split("/", 1)[0] + "/"
            if name.removeprefix(tree) not in included and path.name not in included:
                found.append(f"{name}: no file includes this header")
        elif path.suffix == ".py" and name.startswith("tests/"):
            importable = any(re.search(rf"^\s*(?:import|from)\s+{re.escape(path.stem)}\b", rule.read(root, other), re.M)
                             for other in names if other.endswith(".py") and other != name)
            if not importable and not any(path.name in text or path.stem in words[n] for n, text in lists.items()):
                found.append(f"{name}: no CMake list runs this script and no other script imports it")
        elif path.name == "CMakeLists.txt" and path.parent.parts and not name.startswith("examples/"):
            folder = path.parent
            if not any(re.search(rf"add_subdirectory\(\s*{re.escape(str(folder.relative_to(up)))}\s*\)",
                                 lists.get(str(up / "CMakeLists.txt").removeprefix("./"), ""))
                       for up in folder.parents):
                found.append(f"{name}: no add_subdirectory({folder.name}) above it")
    return found


def self_test(_args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {
            "CMakeLists.txt": "add_subdirectory(src)\nadd_subdirectory(tests)\n",
            "src/CMakeLists.txt": "add_subdirectory(base)\nadd_subdirectory(llm/kv)\n",
            "src/base/CMakeLists.txt": "frugal_add_room(base SOURCES a.cc)\n",
            "src/base/a.cc": '#include "base/a.h"\n',
            "src/base/a.h": "\n",
            "src/llm/kv/CMakeLists.txt": "frugal_add_room(llm/kv SOURCES d.cc)\n",
            "src/llm/kv/d.cc": "\n",
            "tests/CMakeLists.txt": "add_subdirectory(base)\nfrugal_add_rule(style)\n",
            "tests/base/CMakeLists.txt":
                "frugal_add_test(base/a_test LABELS fast DEPS base SOURCES ${PROJECT_SOURCE_DIR}/tests/support/s.cc)\n",
            "tests/support/s.cc": "\n",
            "tests/base/a_test.cc": "\n",
            "tests/style.py": "\n",
        })
        rule.expect(check(root, None))
        rule.plant(root, {
            "src/base/CMakeLists.txt": "frugal_add_room(base SOURCES a.cc)  # not b.cc\n",
            "src/base/b.cc": "\n",
            "src/base/b.h": "\n",
            "src/meter/CMakeLists.txt": "frugal_add_room(meter SOURCES m.cc)\n",
            "src/meter/m.cc": "\n",
            "tests/base/b_test.cc": "\n",
            "tests/lost.py": "\n",
        })
        rule.expect(check(root, None), "src/base/b.cc: in no CMake list", "src/base/b.h: no file includes",
                    "src/meter/CMakeLists.txt: no add_subdirectory", "tests/base/b_test.cc: no frugal_add_test",
                    "tests/lost.py: no CMake list runs")


if __name__ == "__main__":
    rule.main(check, self_test)
