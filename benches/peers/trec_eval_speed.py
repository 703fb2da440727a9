#!/usr/bin/env python3
"""How long `ctune-dist evaluate` takes for a large run, beside trec_eval's code called from Python.

Writes qrels and a run from a seed (1,000 topics, 300 judgements and 1,000 documents each; documents are drawn from
MS MARCO's 3.2 million, as many of them judged as in a TREC pool), then measures them by turns: the whole process of
ctune-dist from start to exit, and, in a fresh interpreter, reading both files with pytrec_eval's own parsers and
measuring (the start of Python and its imports are not counted). CPU time (of all threads) is told beside wall-clock
time, as it says more on a machine with other work. Both compute trec_eval's official set; their means
must agree. `pip install pytrec-eval-terrier==0.5.11` first.

    benches/peers/trec_eval_speed.py --binary target/release/ctune-dist
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

OFFICIAL = ["map", "gm_map", "Rprec", "bpref", "recip_rank", "iprec_at_recall", "P", "num_q", "num_ret", "num_rel",
            "num_rel_ret"]
PEER = f"""
import sys, time, pytrec_eval
start, cpu = time.perf_counter(), time.process_time()
with open(sys.argv[1]) as file:
    qrels = pytrec_eval.parse_qrel(file)
with open(sys.argv[2]) as file:
    run = pytrec_eval.parse_run(file)
read = time.perf_counter()
found = pytrec_eval.RelevanceEvaluator(qrels, set({OFFICIAL!r})).evaluate(run)
done = time.perf_counter()
cpu = time.process_time() - cpu
print(read - start, done - read, cpu, sum(values["map"] for values in found.values()) / len(found))
"""


def generate(folder, topics, judged, retrieved, seed):
    rng = random.Random(seed)
    with open(f"{folder}/qrels", "w") as qrels, open(f"{folder}/run", "w") as run:
        for topic in range(1, topics + 1):
            docs = [f"D{n}" for n in rng.sample(range(3_213_835), judged + retrieved)]
            for doc in docs[:judged]:
                qrels.write(f"{topic} 0 {doc} {rng.choice([0, 0, 0, 0, 1, 1, 2, 3])}\n")
            hits = docs[judged // 2:judged // 2 + retrieved]
            rng.shuffle(hits)
            for place, doc in enumerate(hits):
                score = 30 - place * 0.02 + rng.random() * 0.01
                run.write(f"{topic} Q0 {doc} {place + 1} {score:.6f} synthetic\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/ctune-dist")
    parser.add_argument("--topics", type=int, default=1000)
    parser.add_argument("--judged", type=int, default=300)
    parser.add_argument("--retrieved", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    ours, theirs = [], []  # (wall, CPU) of each round
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, arguments.topics, arguments.judged, arguments.retrieved, arguments.seed)
        files = [f"{folder}/qrels", f"{folder}/run"]
        sizes = ", ".join(f"{os.path.basename(name)} {os.path.getsize(name) / 1e6:.1f} MB" for name in files)
        print(f"{arguments.topics} topics: {sizes}; {arguments.rounds} rounds by turns; load {os.getloadavg()[0]:.1f}")
        for _ in range(arguments.rounds):
            before, start = cpu_of_children(), time.perf_counter()
            output = subprocess.run([arguments.binary, "evaluate"] + files, check=True, capture_output=True, text=True)
            ours.append((time.perf_counter() - start, cpu_of_children() - before))
            mean = next(line.split()[2] for line in output.stdout.splitlines() if line.startswith("map "))
            peer = subprocess.run([sys.executable, "-c", PEER] + files, check=True, capture_output=True, text=True)
            read, measure, cpu, other = map(float, peer.stdout.split())
            theirs.append((read + measure, cpu))
            if f"{other:.4f}" != mean:
                sys.exit(f"map is {mean} here and {other:.4f} there")
    for name, rounds in (("ctune-dist evaluate, whole process", ours), ("pytrec_eval, reading and measuring", theirs)):
        print(f"{name}: {summary(rounds, 0)} wall, {summary(rounds, 1)} CPU")
    for place, name in enumerate(("wall", "CPU")):
        ratio = statistics.median(r[place] for r in theirs) / statistics.median(r[place] for r in ours)
        print(f"ratio of the medians, {name}: {ratio:.1f}")


def cpu_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(rounds, place):
    values = [r[place] for r in rounds]
    return f"best {min(values):.3f} s, median {statistics.median(values):.3f} s"


if __name__ == "__main__":
    main()
