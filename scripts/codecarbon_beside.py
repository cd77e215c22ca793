#!/usr/bin/env python3
"""A busy loop under CodeCarbon, for `frugal bench meter --codecarbon PYTHON`, which meters the same processes at the same time.

    codecarbon_beside.py SECONDS     prints one JSON object: what CodeCarbon says
"""

import json
import logging
import multiprocessing
import sys
import tempfile
import time


def burn(seconds):
    end = time.monotonic() + seconds
    x = 1.0
    while time.monotonic() < end:
        for _ in range(10000):
            x = x * 1.0000001 + 1e-9


def main():
    from codecarbon import EmissionsTracker, OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    seconds = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        tracker = OfflineEmissionsTracker(country_iso_code="ESP", measure_power_secs=1, output_dir=folder, log_level="critical",
                                          allow_multiple_runs=True)
        tracker.start()
        begin = time.monotonic()
        worker = multiprocessing.Process(target=burn, args=(seconds,))
        worker.start()
        worker.join()
        tracker.stop()
        data = tracker.final_emissions_data
        out = {
            "seconds": time.monotonic() - begin,
            "cpu_j": 3.6e6 * data.cpu_energy,
            "ram_j": 3.6e6 * data.ram_energy,
            "energy_j": 3.6e6 * data.energy_consumed,
            "cpu_w": data.cpu_power,
            "ram_w": data.ram_power,
            "grams": 1000 * data.emissions,
            "country": data.country_name,
            "cpu_model": data.cpu_model,
        }
    # Where it puts a machine that cannot be located: no network is tried, its own fallback is asked.
    try:
        from codecarbon.external.geography import GeoMetadata

        out["without_network"] = GeoMetadata.from_geo_js("http://127.0.0.1:9/").country_name
    except Exception as error:  # the peer's inside may change
        out["without_network"] = f"not asked: {type(error).__name__}"
    del EmissionsTracker
    print(json.dumps(out))


if __name__ == "__main__":
    main()
