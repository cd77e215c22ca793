# Two commands set up everything: `make run` and `make test`. The build itself is CMake's (CMakePresets.json).
JOBS ?= $(shell nproc)

.PHONY: all run test test-asan test-tsan check setup format clean
all: setup
	cmake --preset release
	cmake --build --preset release -j $(JOBS)

setup:
	python3 scripts/bootstrap.py $(SETUP)

run: all
	scripts/demo.sh

test: SETUP = --tests
test: all
	ctest --preset release -j $(JOBS)

# The same tests under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer.
test-asan:
	JOBS=$(JOBS) scripts/check.sh asan

test-tsan:
	JOBS=$(JOBS) scripts/check.sh tsan

check:
	JOBS=$(JOBS) scripts/check.sh

format:
	git ls-files '*.h' '*.cc' | xargs clang-format-14 -i

clean:
	rm -rf build
