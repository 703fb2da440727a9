#!/usr/bin/env python3
"""Reads a run's event files with tensorboard itself and compares them with metrics.jsonl.

    pip install tensorboard
    python benches/peers/read_events.py RUN_DIRECTORY
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run), size_guidance={"scalars": 0})
events.Reload()
expected = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    line = json.loads(line)
    for key, value in line.items():
        if key != "step" and value is not None:
            expected.setdefault(key, {})[line["step"]] = value
tags = set(events.Tags()["scalars"])
assert tags == set(expected), f"tags differ: {tags ^ set(expected)}"
for tag in sorted(tags):
    found = {event.step: event.value for event in events.Scalars(tag)}
    assert found.keys() == expected[tag].keys(), f"{tag}: steps differ"
    for step, value in found.items():
        assert math.isclose(value, expected[tag][step], rel_tol=1e-6, abs_tol=1e-30), (tag, step, value)
    print(f"{tag:<28} {len(found)} steps")
print(f"{len(tags)} scalars as in metrics.jsonl")
