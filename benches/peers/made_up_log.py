"""A made-up query log for timing: Zipf words, every pair long enough to fill 256 tokens. Writes clicks.tsv and
documents.tsv in the current folder."""

import itertools
import random

random.seed(1)
words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(3, 9))) for _ in range(40000)]
weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))


def draw(n):
    return " ".join(random.choices(words, cum_weights=weights, k=n))


with open("clicks.tsv", "w") as clicks, open("documents.tsv", "w") as documents:
    for i in range(3000):
        clicks.write(f"{i}\t{draw(5)}\tD{i}\t\n")
        documents.write(f"D{i}\t\t{draw(2)}\t{draw(300)}\n")
