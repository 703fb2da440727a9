#!/usr/bin/env python3
"""The PyTorch + transformers side of the training-step comparison: BertForPreTraining, MLM + NSP,
forward, backward, gradient clipping and AdamW, on padded batches whose tokens are all real.

    pip install torch transformers
    python benches/peers/bert_step.py                                   # 6 layers x 384, 8 x 256
    python benches/peers/bert_step.py --layers 2 --hidden 128 --heads 4 --intermediate 512 \
        --vocab 8000 --batch 32 --length 80

What to keep in mind beside ctune-dist's numbers:
* transformers runs the MLM head at every position, whatever the labels (its loss then drops 85 % of
  the logits); ctune-dist runs it at the masked positions. `--masked-head` gives the PyTorch side the same
  saving by calling encoder and heads apart, which no transformers user gets from the model class.
* There is no padding here, which favours PyTorch: ragged data costs it the share of [PAD].
* Dropout is 0.1, as a user trains, unless `--dropout` says otherwise.
The first steps (`--warmup`) are not counted: they allocate the optimiser's state.
"""

import argparse
import json
import platform
import statistics
import time

import torch
import transformers
from torch.nn import functional as F


def arguments():
    parser = argparse.ArgumentParser(description="PyTorch + transformers BERT training step, tokens/s")
    for name, default in [("layers", 6), ("hidden", 384), ("heads", 12), ("intermediate", 1536),
                          ("vocab", 30522), ("batch", 8), ("length", 256), ("threads", 2),
                          ("steps", 10), ("warmup", 2), ("repeats", 1)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--masked-head", action="store_true", help="MLM head at masked positions only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


def make_model(a):
    config = transformers.BertConfig(
        vocab_size=a.vocab, hidden_size=a.hidden, num_attention_heads=a.heads, num_hidden_layers=a.layers,
        intermediate_size=a.intermediate, max_position_embeddings=max(512, a.length),
        hidden_dropout_prob=a.dropout, attention_probs_dropout_prob=a.dropout)
    return transformers.BertForPreTraining(config).to(a.device).train()


def make_batch(a):
    """Random tokens, 15 % of them labelled; the attention mask is all ones."""
    ids = torch.randint(5, a.vocab, (a.batch, a.length))
    labels = torch.where(torch.rand(a.batch, a.length) < 0.15, ids, -100)
    batch = dict(input_ids=torch.where(labels >= 0, 4, ids), attention_mask=torch.ones_like(ids),
                 token_type_ids=(torch.arange(a.length) >= a.length // 4).long().repeat(a.batch, 1),
                 labels=labels, next_sentence_label=torch.randint(0, 2, (a.batch,)))
    return {name: tensor.to(a.device) for name, tensor in batch.items()}


def loss_of(model, batch, masked_head):
    if not masked_head:
        return model(**batch).loss
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    out = model.bert(**inputs)
    chosen = batch["labels"] != -100
    logits, pairs = model.cls(out.last_hidden_state[chosen], out.pooler_output)
    return F.cross_entropy(logits, batch["labels"][chosen]) + F.cross_entropy(pairs, batch["next_sentence_label"])


def measure(a):
    """Seconds of every counted step."""
    torch.manual_seed(1)
    model = make_model(a)
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    # foreach and fused are PyTorch's fast paths; fused exists on CPU too.
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.01), dict(params=plain, weight_decay=0.0)],
                                  lr=1e-4, fused=True)
    seconds = []
    for _ in range(a.warmup + a.steps):
        batch = make_batch(a)
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(a.device, torch.bfloat16, enabled=a.bf16):
            loss = loss_of(model, batch, a.masked_head)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        if a.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[a.warmup:]


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    tokens = a.batch * a.length
    for _ in range(a.repeats):
        seconds = measure(a)
        median = statistics.median(seconds)
        print(json.dumps(dict(
            peer=f"torch {torch.__version__}, transformers {transformers.__version__}",
            model=f"{a.layers}x{a.hidden}, heads {a.heads}, ffn {a.intermediate}, vocab {a.vocab}",
            batch=f"{a.batch}x{a.length}", dropout=a.dropout, precision="bf16 autocast" if a.bf16 else "f32",
            mlm_head="masked positions" if a.masked_head else "every position",
            device=a.device if a.device == "cpu" else torch.cuda.get_device_name(), threads=a.threads,
            machine=platform.machine(), steps=len(seconds), step_ms=round(1000 * median, 1),
            step_ms_range=[round(1000 * min(seconds), 1), round(1000 * max(seconds), 1)],
            tokens_per_s=round(tokens / median))), flush=True)


main()
