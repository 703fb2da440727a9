#!/usr/bin/env python3
"""Makes tests/assets/golden: what PyTorch + transformers compute for a tiny BERT.

The tests hold `src/reference` and the engine to these values. Everything is computed in float64
(from float32 weights) and stored rounded to float32, so the files are the exact result to the last
stored digit; beside them stands how far PyTorch's own float32 run is from it, which is the error
that a float32 implementation is allowed to have (twice over).

    pip install torch transformers safetensors numpy
    python tests/assets/make_golden.py            # rewrites tests/assets/golden

Written with the versions that golden.json names; the same versions give the same bytes.

Files:
    model.safetensors, config.json  the model as transformers saves BertForPreTraining
    outputs.safetensors             classifier.*, logits, scores and every gradient:
                                    pretraining/NAME, pretraining_dropout/NAME, ranking/NAME
    golden.json                     the pack, losses, ten AdamW steps, float32 errors, versions
    optimisers.json                 ten LAMB steps, ten AdamW steps with layer-wise decay, learning
                                    rates of the schedules of transformers

Two properties of transformers that the inputs avoid, because the engine differs on purpose:
row 0 of the word embedding ([PAD], its `padding_idx`) gets no gradient from a look-up, so no token
here is 0; and the MLM head runs at every position there, at the masked ones here (same loss).
"""

import copy
import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

OUT = pathlib.Path(__file__).parent / "golden"
SHAPE = dict(vocab_size=120, hidden_size=32, num_attention_heads=4, num_hidden_layers=2,
             intermediate_size=64, max_position_embeddings=64, type_vocab_size=2)
PAD, UNK, CLS, SEP, MASK = range(5)
# Tokens of query and document of each sequence; the longest fills all 64 positions, so that every
# row of the position table has a gradient.
PAIRS = [(4, 16), (2, 4), (5, 23), (3, 8), (6, 55), (1, 13)]
SAMPLES = [7, 3, 11, 0, 70001, 9]
PAIR_LABELS = [0, 1, 0, 0, 1, 1]
CU_GROUPS = [0, 2, 6]
EPOCH = 3
DROPOUT_RATE, DROPOUT_SEED = 0.1, 42
STEPS, WARMUP, LR, DECAY, CLIP = 10, 3, 1e-3, 0.01, 1.0
LAMB_LR, LAYER_DECAY = 2e-2, 0.75


# ---- the pack ------------------------------------------------------------------------------------
def make_pack(rng):
    """The sequences end to end, as `Batch` holds them."""
    pack = dict(ids=[], masked_ids=[], positions=[], segments=[], row_sample=[], cu_seqlens=[0],
                masked_rows=[], masked_labels=[])
    for number, (query, document) in enumerate(PAIRS):
        words = rng.integers(5, SHAPE["vocab_size"], query + document).tolist()
        ids = [CLS, *words[:query], SEP, *words[query:], SEP]
        masked = list(ids)
        for position, token in enumerate(ids):
            # The second sequence has no masked token: a case of its own for the MLM head.
            if token in (CLS, SEP) or number == 1 or rng.random() >= 0.2:
                continue
            draw = rng.random()
            masked[position] = MASK if draw < 0.8 else int(rng.integers(5, 120)) if draw < 0.9 else token
            pack["masked_rows"].append(len(pack["ids"]) + position)
            pack["masked_labels"].append(token)
        pack["ids"] += ids
        pack["masked_ids"] += masked
        pack["positions"] += range(len(ids))
        pack["segments"] += [0] * (query + 2) + [1] * (document + 1)
        pack["row_sample"] += [SAMPLES[number]] * len(ids)
        pack["cu_seqlens"].append(len(pack["ids"]))
    pack.update(samples=SAMPLES, pair_labels=PAIR_LABELS, cu_groups=CU_GROUPS, epoch=EPOCH,
                special=dict(pad=PAD, unk=UNK, cls=CLS, sep=SEP, mask=MASK))
    return pack


def padded(pack, key):
    """The pack as transformers takes it: [S, longest], padded on the right, with a mask."""
    starts = pack["cu_seqlens"]
    lengths = np.diff(starts)
    shape = (len(lengths), max(lengths))
    batch = {name: torch.full(shape, fill) for name, fill in
             [("input_ids", PAD), ("token_type_ids", 0), ("attention_mask", 0), ("labels", -100)]}
    for s, (start, n) in enumerate(zip(starts, lengths)):
        batch["input_ids"][s, :n] = torch.tensor(pack[key][start:start + n])
        batch["token_type_ids"][s, :n] = torch.tensor(pack["segments"][start:start + n])
        batch["attention_mask"][s, :n] = 1
        for row, label in zip(pack["masked_rows"], pack["masked_labels"]):
            if start <= row < start + n:
                batch["labels"][s, row - start] = label
    return batch


# ---- dropout: the rule of src/engine/random.rs, written a second time ------------------------------
def philox(key, counter):
    """Philox4x32-10 over numpy arrays of counters."""
    c = [np.asarray(word, dtype=np.uint64) for word in np.broadcast_arrays(*counter)]
    k = list(key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [p1 >> np.uint64(32) ^ c[1] ^ np.uint64(k[0]), p1 & low,
             p0 >> np.uint64(32) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.stack(c)


def factors(site, shape):
    """0 or the scale for every element of a padded [S, n, H], [S, A, n, n] or [S, H] site."""
    threshold = round(DROPOUT_RATE * 65536)
    index = np.indices(shape, dtype=np.uint64)
    sample = np.asarray(SAMPLES, dtype=np.uint64)[index[0]]
    epoch, lane = np.uint64(EPOCH), index[-1]
    if len(shape) == 4:
        _, head, query, key = index
        counter = (sample, query | (key // np.uint64(8)) << np.uint64(16), epoch, head)
    else:
        position = index[1] if len(shape) == 3 else np.uint64(0)
        counter = (sample, position, epoch, lane // np.uint64(8))
    words = philox((DROPOUT_SEED, 0x100 + site), counter)
    word = np.take_along_axis(words, (lane % np.uint64(8) // np.uint64(2))[None].astype(int), 0)[0]
    half = np.where(lane % np.uint64(2) == 0, word & np.uint64(0xFFFF), word >> np.uint64(16))
    scale = np.float32(65536.0 / (65536 - threshold))
    return torch.from_numpy(np.where(half < threshold, np.float32(0), scale))


class PhiloxDropout:
    """While active, the k-th call of dropout in a forward pass is site k of the engine: both go
    through embeddings, then attention, attention output and FFN output of each layer, then the head."""

    def __enter__(self):
        self.site, self.original = 0, F.dropout

        def dropout(x, p=0.5, training=True, inplace=False):
            self.site += 1
            return x * factors(self.site - 1, tuple(x.shape)).to(x.dtype)

        F.dropout = dropout

    def __exit__(self, *_):
        F.dropout = self.original


class NoDropout:
    __enter__ = __exit__ = lambda *_: None


# ---- the models ------------------------------------------------------------------------------------
def randomise(model):
    """Weights far from their initial values: nothing is 0 or 1, no activation is linear."""
    for name, weight in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            weight.data = 1 + 0.2 * torch.randn_like(weight)
        else:
            weight.data = (0.1 if name.endswith("bias") else 0.2) * torch.randn_like(weight)


def pretraining(model, pack):
    """(total, named values): both losses and the logits of real tokens."""
    batch = padded(pack, "masked_ids")
    out = model(**batch, next_sentence_label=torch.tensor(pack["pair_labels"]))
    mlm_logits = out.prediction_logits[batch["labels"] != -100]  # ascending rows, as masked_rows
    mlm = F.cross_entropy(mlm_logits, torch.tensor(pack["masked_labels"]))
    qdpp = F.cross_entropy(out.seq_relationship_logits, torch.tensor(pack["pair_labels"]))
    assert torch.allclose(out.loss, mlm + qdpp), "transformers' own loss is the sum of the two"
    return mlm + qdpp, dict(mlm_loss=mlm, qdpp_loss=qdpp, mlm_logits=mlm_logits,
                            pair_logits=out.seq_relationship_logits)


def ranking(model, pack):
    """(LCE loss, named values)"""
    batch = padded(pack, "ids")
    del batch["labels"]
    scores = model(**batch).logits.squeeze(1)
    groups = list(zip(pack["cu_groups"], pack["cu_groups"][1:]))
    loss = sum(-F.log_softmax(scores[a:b], 0)[0] for a, b in groups) / len(groups)
    return loss, dict(loss=loss, scores=scores)


def run(model, function, pack, dropout):
    """Named values and gradients of one forward and backward pass."""
    model.zero_grad()
    with dropout:
        loss, values = function(model, pack)
    loss.backward()
    values = {name: value.detach().clone() for name, value in values.items()}
    return values, {name: p.grad.clone() for name, p in model.named_parameters()}


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2, phi the identity) with AdamW's bias correction. As the
    authors' code does, what has no weight decay (biases, LayerNorms) is not adapted either."""

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), decay = group["betas"], group["weight_decay"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["t"] += 1
                m, v, t = state["m"], state["v"], state["t"]
                m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                direction = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + group["eps"]) + decay * p
                norms = p.norm(), direction.norm()
                adapted = decay > 0 and norms[0] > 0 and norms[1] > 0
                p.sub_(group["lr"] * (norms[0] / norms[1] if adapted else 1.0) * direction)


def depth(name):
    """Layers above the embeddings: 0 for them, 1.. for the encoder's layers, then the heads."""
    if ".embeddings." in name:
        return 0
    layers = SHAPE["num_hidden_layers"]
    return int(name.split("layer.")[1].split(".")[0]) + 1 if ".layer." in name else layers + 1


def train(model, pack, make=torch.optim.AdamW, lr=LR, decay=DECAY, layer_decay=1.0):
    """Ten steps on one pack: (loss before each, gradient norm of each, learning rate of each, loss
    after all). The learning rate of a tensor is multiplied by layer_decay for every layer above it."""
    named = dict(model.named_parameters())
    plain = {n for n in named if n.endswith("bias") or "LayerNorm" in n}
    top = SHAPE["num_hidden_layers"] + 1
    groups = {}
    for n, p in named.items():
        scale = layer_decay ** (top - depth(n))
        key = (n in plain, scale)
        groups.setdefault(key, dict(params=[], lr=lr * scale, weight_decay=0.0 if n in plain else decay))
        groups[key]["params"].append(p)
    optimizer = make(list(groups.values()), lr=lr, betas=(0.9, 0.999), eps=1e-8)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    steps = dict(losses=[], grad_norms=[], learning_rates=[])
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = pretraining(model, pack)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        steps["losses"].append(loss.item())
        steps["grad_norms"].append(norm.item())
        steps["learning_rates"].append(max(schedule.get_last_lr()))
        optimizer.step()
        schedule.step()
    steps["final_loss"] = pretraining(model, pack)[0].item()
    return steps


def schedules():
    """Learning rates of STEPS * 2 steps with a peak of 1, warm-up WARMUP, by name."""
    def rates(make, **options):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer, num_warmup_steps=WARMUP, **options)
        values = []
        for _ in range(2 * STEPS):
            values.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return values

    steps = dict(num_training_steps=2 * STEPS)
    return dict(
        constant=rates(transformers.get_constant_schedule_with_warmup),
        linear=rates(transformers.get_linear_schedule_with_warmup, **steps),
        cosine=rates(transformers.get_cosine_schedule_with_warmup, **steps),
        cosine_min_lr=rates(transformers.get_cosine_with_min_lr_schedule_with_warmup, min_lr=0.1, **steps))


def optimisers(model, pack):
    """What `optimisers.json` holds; each run in float64, with the losses of float32 beside it."""
    def both(**options):
        steps = train(copy.deepcopy(model).double(), pack, **options)
        single = train(copy.deepcopy(model), pack, **options)
        return steps | dict(float32=dict(losses=single["losses"], final_loss=single["final_loss"]))

    return dict(
        lamb=both(make=Lamb, lr=LAMB_LR, decay=DECAY) | dict(weight_decay=DECAY, clip_norm=CLIP),
        layer_decay=both(layer_decay=LAYER_DECAY) | dict(weight_decay=DECAY, clip_norm=CLIP,
                                                          layer_decay=LAYER_DECAY),
        schedules=schedules() | dict(warmup=WARMUP, steps=2 * STEPS))


# ---- float32 against float64 -----------------------------------------------------------------------
def relative_error(name, single, double):
    """max |single - double| / max |double|. Softmax does not see a shift, so the gradients of the key
    biases and of the classifier's bias are 0; they are measured against their nearest relative."""
    relative = name.replace("self.key.bias", "self.query.bias").replace("classifier.bias", "classifier.weight")
    scale = double[relative].abs().max()
    return ((single[name].double() - double[name]).abs().max() / scale).item()


def main():
    torch.manual_seed(20)
    torch.set_num_threads(1)
    config = transformers.BertConfig(**SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                                     pad_token_id=PAD, layer_norm_eps=1e-12, num_labels=1)
    config._attn_implementation = "eager"
    pretrainer = transformers.BertForPreTraining(config).train()
    randomise(pretrainer)
    ranker = transformers.BertForSequenceClassification(config).train()
    ranker.bert.load_state_dict(pretrainer.bert.state_dict())
    ranker.classifier.weight.data = 0.5 * torch.randn(1, SHAPE["hidden_size"])
    ranker.classifier.bias.data = torch.tensor([0.1])
    pack = make_pack(np.random.default_rng(20))

    OUT.mkdir(exist_ok=True)
    pretrainer.save_pretrained(OUT)
    (OUT / "generation_config.json").unlink(missing_ok=True)
    tensors = {f"classifier.{n}": p.detach().clone() for n, p in ranker.classifier.named_parameters()}
    losses, errors = {}, {}
    for case, model, function, dropout in [
        ("pretraining", pretrainer, pretraining, NoDropout()),
        ("pretraining_dropout", pretrainer, pretraining, PhiloxDropout()),
        ("ranking", ranker, ranking, NoDropout()),
        ("ranking_dropout", ranker, ranking, PhiloxDropout()),
    ]:
        single, single_grads = run(copy.deepcopy(model), function, pack, dropout)
        values, grads = run(copy.deepcopy(model).double(), function, pack, dropout)
        losses[case] = {n: v.item() for n, v in values.items() if v.dim() == 0}
        errors[case] = {n: relative_error(n, single, values) for n in values}
        if case != "ranking_dropout":  # its scores tell the pooled site apart; gradients would add 90 KB
            errors[case] |= {n: relative_error(n, single_grads, grads) for n in grads}
            values |= grads
        tensors |= {f"{case}/{n}": v.float().contiguous() for n, v in values.items() if v.dim() > 0}
    save_file(tensors, OUT / "outputs.safetensors")

    steps = train(copy.deepcopy(pretrainer).double(), pack)
    single = train(copy.deepcopy(pretrainer), pack)
    steps |= dict(weight_decay=DECAY, clip_norm=CLIP, beta1=0.9, beta2=0.999, eps=1e-8)
    golden = dict(
        versions=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__,
                      numpy=np.__version__),
        pack=pack, dropout=dict(rate=DROPOUT_RATE, seed=DROPOUT_SEED), losses=losses, steps=steps,
        steps_float32=dict(losses=single["losses"], final_loss=single["final_loss"]),
        float32_errors=errors)
    (OUT / "golden.json").write_text(json.dumps(golden, indent=None) + "\n")
    more = json.dumps(optimisers(pretrainer, pack), indent=None)
    (OUT / "optimisers.json").write_text(more + "\n")
    for file in OUT.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(f"{len(tensors)} tensors, {size / 1000:.0f} kB")
    print("losses", losses)
    print("steps", steps)
    print("largest float32 errors", {case: max(e.values()) for case, e in errors.items()})


main()
