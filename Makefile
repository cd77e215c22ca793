# Two commands set up everything: `make run` and `make test`. The build itself is CMake's (CMakePresets.json).
JOBS ?= $(shell nproc)

.PHONY: all run test setup format clean
all: setup
	cmake --preset release
	cmake --build --preset release -j $(JOBS)

setup:
	python3 scripts/bootstrap.py

run: all
	scripts/demo.sh

test: all
	ctest --preset release -j $(JOBS)

format:
	git ls-files '*.h' '*.cc' | xargs clang-format-14 -i

clean:
	rm -rf build
