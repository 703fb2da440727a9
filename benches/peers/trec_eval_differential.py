#!/usr/bin/env python3
"""Random qrels and runs, measured by `ctune-dist evaluate` and by trec_eval's own code.

The published values in the tests are few; this looks for a disagreement nobody thought of. trec_eval comes
as `pip install pytrec-eval-terrier==0.5.11` (its C code of version 9, called from Python). Topics are small and
scores are few, so ties, unjudged documents, negative labels, scores that only f64 tells apart and topics without
a relevant document are the rule. Every topic's value must agree to the four decimals printed.

    benches/peers/trec_eval_differential.py --binary target/release/ctune-dist --topics 3000

Two known differences are left out: iprec_at_recall (version 10 rounds where 9 adds 0.9 and cuts, and ctune-dist follows
10), and bpref of a topic whose labels all lie below level - 1, where version 9 reads past its array.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile

import pytrec_eval

MEASURES = ["num_ret", "num_rel", "num_rel_ret", "map", "Rprec", "bpref", "recip_rank", "ndcg",
            "P", "recall", "ndcg_cut", "map_cut", "success"]


def collection(topics, rng):
    """qrels and run as dictionaries topic -> document -> label or score."""
    qrels, run = {}, {}
    for topic in range(topics):
        pool = [f"D{n}" for n in rng.sample(range(10_000), rng.randint(1, 60))]
        judged = rng.sample(pool, rng.randint(1, len(pool)))
        highest = rng.choice([0, 1, 1, 2, 3])
        labels = {doc: rng.randint(-1, highest) for doc in judged}
        labels[judged[0]] = highest  # trec_eval has no answer where every label is negative
        retrieved = rng.sample(pool, rng.randint(1, len(pool)))
        levels = rng.randint(1, 12)
        scores = {doc: rng.randint(-levels, levels) / 3 * (1 + rng.choice([0, 0, 1e-9, 1e-5])) for doc in retrieved}
        qrels[f"q{topic}"], run[f"q{topic}"] = labels, scores
    return qrels, run


def write(path, lines):
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in lines)


def ours(command, folder, level, judged_only):
    """topic -> measure -> printed text."""
    call = command + [f"{folder}/qrels", f"{folder}/run", "-q", "-l", str(level)]
    call += ["-J"] if judged_only else []
    for measure in MEASURES:
        call += ["-m", measure]
    output = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    values = {}
    for line in output.splitlines():
        measure, topic, value = line.split()
        values.setdefault(topic, {})[measure] = value
    return values


def disagreements(command, qrels, run, level, judged_only):
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/qrels", (f"{t} 0 {d} {label}" for t in qrels for d, label in qrels[t].items()))
        write(f"{folder}/run", (f"{t} Q0 {d} 1 {score!r} tag" for t in run for d, score in run[t].items()))
        found = ours(command, folder, level, judged_only)
    judge = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES), relevance_level=level,
                                           judged_docs_only_flag=judged_only)
    compared, wrong = 0, []
    for topic, values in judge.evaluate(run).items():
        for measure, value in values.items():
            if measure == "bpref" and max(qrels[topic].values()) < level - 1:
                continue
            compared += 1
            # The print rounds to 4 decimals; a value on the edge may differ in its last bit.
            if abs(float(found[topic][measure]) - value) > 0.5e-4 + 1e-9:
                wrong.append((topic, measure, value, found[topic][measure], qrels[topic], run[topic]))
    return compared, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/ctune-dist")
    parser.add_argument("--topics", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    command = [os.path.abspath(arguments.binary), "evaluate"]
    failed = False
    for level in (1, 2, 3):
        for judged_only in (False, True):
            rng = random.Random(f"{arguments.seed} {level} {judged_only}")
            qrels, run = collection(arguments.topics, rng)
            compared, wrong = disagreements(command, qrels, run, level, judged_only)
            print(f"level {level}, judged only {judged_only}: {compared} values, {len(wrong)} disagree")
            for case in wrong[:3]:
                print("  ", *case)
            failed = failed or bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
