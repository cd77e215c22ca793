#!/usr/bin/env python3
"""Solves linear programmes in LP format by HiGHS, as a second opinion on frugal's own optimum.

    solve_lp.py FILE.lp [FILE.lp ...]     prints a line of JSON for each: status, objective, seconds of processor time
"""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bootstrap  # noqa: E402

sys.path[:0] = [str(bootstrap.folder("highs")), str(bootstrap.folder("onnx"))]  # numpy is beside onnx
try:
    import highspy  # noqa: E402
except ImportError as error:
    sys.exit(f"solve_lp.py: HiGHS is not there ({error}): run scripts/bootstrap.py")


def solve(path):
    model = highspy.Highs()
    model.silent()
    model.setOptionValue("threads", 1)
    if model.readModel(path) != highspy.HighsStatus.kOk:
        sys.exit(f"solve_lp.py: {path}: HiGHS cannot read it")
    start = time.process_time()
    model.run()
    seconds = time.process_time() - start
    optimal = model.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return {"file": path, "status": model.modelStatusToString(model.getModelStatus()), "optimal": optimal,
            "objective": model.getInfo().objective_function_value if optimal else None, "seconds": seconds}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    for name in sys.argv[1:]:
        print(json.dumps(solve(name)), flush=True)
