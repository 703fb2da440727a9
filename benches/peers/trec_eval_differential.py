#!/usr/bin/env python3
"""Random qrels and runs, measured by `ctune-dist evaluate` and by trec_eval's own code.

The published values in the tests are few; this looks for a disagreement nobody thought of. trec_eval comes
as `pip install pytrec-eval-terrier==0.5.11` (its C code of version 9, called from Python). Topics are small and
scores are few, so ties, unjudged documents, negative labels, scores that only f64 tells apart and topics without
a relevant document are the rule. Every topic's value must agree to the four decimals printed, and so must the
means over the topics of both files and, with -c, over all judged topics, where a topic that the run lacks is 0. A
line that is there twice must be refused.

    benches/peers/trec_eval_differential.py --binary target/release/ctune-dist --topics 3000

What is left out, because trec_eval 9 has no answer or another one than 10, which ctune-dist follows:
iprec_at_recall and 11pt_avg (10 rounds where 9 adds 0.9 and cuts), NaN (9 divides by 0 where there is nothing
relevant), and bpref of a topic whose labels all lie below level - 1, where 9 reads past its array.
"""

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile

import pytrec_eval

MEASURES = ["num_ret", "num_rel", "num_rel_ret", "map", "Rprec", "bpref", "recip_rank", "P", "recall", "infAP",
            "Rprec_mult", "utility", "binG", "G", "ndcg", "ndcg_rel", "Rndcg", "ndcg_cut", "map_cut", "relative_P",
            "success", "set_P", "set_relative_P", "set_recall", "set_map", "set_F", "num_nonrel_judged_ret"]
COUNTS = {"num_ret", "num_rel", "num_rel_ret", "num_nonrel_judged_ret"}


def collection(topics, rng):
    """qrels and run as dictionaries topic -> document -> label or score; a tenth of the topics is in one only."""
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
        only = rng.random()
        if only >= 0.05:
            qrels[f"q{topic}"] = labels
        if not 0.05 <= only < 0.1:
            run[f"q{topic}"] = scores
    return qrels, run


def lines(qrels, run, rng):
    judged = [f"{t} 0 {d} {label}\n" for t in qrels for d, label in qrels[t].items()]
    hits = [f"{t} Q0 {d} 1 {score!r} tag\n" for t in run for d, score in run[t].items()]
    rng.shuffle(hits)
    return judged, hits


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.writelines(text)


def ours(command, folder, options):
    """topic -> measure -> printed text."""
    call = command + [f"{folder}/qrels", f"{folder}/run", "-q"] + options
    for measure in MEASURES:
        call += ["-m", measure]
    output = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    values = {}
    for line in output.splitlines():
        measure, topic, value = line.split()
        values.setdefault(topic, {})[measure] = value
    return values


def means(theirs, topics):
    """measure -> its mean over `topics`, or sum; measures with NaN anywhere are left out."""
    summary = {}
    for measure in next(iter(theirs.values())):
        values = [theirs[topic][measure] for topic in theirs]
        if not any(math.isnan(value) for value in values):
            summary[measure] = sum(values) if measure in COUNTS else sum(values) / topics
    return summary


def disagreements(command, qrels, run, level, judged_only, rng):
    options = ["-l", str(level)] + (["-J"] if judged_only else [])
    with tempfile.TemporaryDirectory() as folder:
        judged, hits = lines(qrels, run, rng)
        write(f"{folder}/qrels", judged)
        write(f"{folder}/run", hits)
        found = ours(command, folder, options)
        complete = ours(command, folder, options + ["-c"])
        refuses(command, folder, judged, hits, rng)
    judge = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES), relevance_level=level,
                                           judged_docs_only_flag=judged_only)
    theirs = judge.evaluate(run)
    broken = {topic for topic in theirs if max(qrels[topic].values()) < level - 1}
    cases = [(topic, measure, value, found[topic][measure])
             for topic, values in theirs.items() for measure, value in values.items()
             if not (measure == "bpref" and topic in broken) and not math.isnan(value)]
    for printed, topics in ((found["all"], len(theirs)), (complete["all"], len(qrels))):
        cases += [("all", measure, value, printed[measure]) for measure, value in means(theirs, topics).items()
                  if not (measure == "bpref" and broken) and not (measure == "num_rel" and topics > len(theirs))]
    # The print rounds to 4 decimals; a value on the edge may differ in its last bit.
    wrong = [case for case in cases if abs(float(case[3]) - case[2]) > 0.5e-4 + 1e-9 * max(1, abs(case[2]))]
    return len(cases), wrong


def refuses(command, folder, judged, hits, rng):
    """A line twice in either file: exit code 3 and the place of the second."""
    for name, text in (("qrels", judged), ("run", hits)):
        at = rng.randrange(len(text))
        write(f"{folder}/twice", text + [text[at]])
        files = [f"{folder}/twice", f"{folder}/run"] if name == "qrels" else [f"{folder}/qrels", f"{folder}/twice"]
        done = subprocess.run(command + files, capture_output=True, text=True)
        if done.returncode != 3 or f"twice:{len(text) + 1}:" not in done.stderr:
            sys.exit(f"a line of {name} twice: exit code {done.returncode}, {done.stderr}")


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
            compared, wrong = disagreements(command, qrels, run, level, judged_only, rng)
            print(f"level {level}, judged only {judged_only}: {compared} values, {len(wrong)} disagree")
            for topic, *case in wrong[:3]:
                print("  ", topic, *case, qrels.get(topic, ""), run.get(topic, ""))
            failed = failed or bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
