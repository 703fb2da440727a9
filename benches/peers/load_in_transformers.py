#!/usr/bin/env python3
"""Loads a coarse-tuned model folder in transformers, refuses missing or unexpected tensors, and scores pairs.

    python benches/peers/load_in_transformers.py runs/debian/coarse/model "QUERY" "DOCUMENT" ["DOCUMENT" ...]

Prints the QDPP logits (clicked, negative) of each document. Needs torch and transformers.
"""

import sys

import torch
from transformers import AutoTokenizer, BertForPreTraining

folder, query, *documents = sys.argv[1:]
model, info = BertForPreTraining.from_pretrained(folder, output_loading_info=True)
for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    if info[kind]:
        sys.exit(f"{folder}: {kind}: {sorted(info[kind])}")
tokenizer = AutoTokenizer.from_pretrained(folder)
model.eval()
with torch.no_grad():
    for document in documents:
        logits = model(**tokenizer(query, document, return_tensors="pt")).seq_relationship_logits[0]
        print(f"{logits[0]:8.4f} {logits[1]:8.4f}  {document}")
