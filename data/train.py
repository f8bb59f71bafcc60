"""Train the three embedded models and their tokenizer, from nothing but the Python that runs this script.

    python data/train.py tokenizer          # first: data/mini-*/tokenizer.json, one minute
    python data/train.py mini-opt           # then each model: about half an hour on one core
    python data/train.py mini-llama
    python data/train.py mini-phi

Text: `minislice.corpus.embedded.stdlib_documents("train")`, read at run time. Every model folder is a complete
Hugging Face model: config, float16 safetensors, tokenizer; beside them `training.csv`, the log of the loss.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PhiConfig, PreTrainedTokenizerFast

from minislice.corpus.embedded import stdlib_documents

DATA = Path(__file__).parent
END, PAD = "<|endoftext|>", "<|pad|>"
COMMON = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
CONFIGS = {
    "mini-opt": OPTConfig(**COMMON, ffn_dim=768, word_embed_proj_dim=192, dropout=0.0),
    "mini-llama": LlamaConfig(**COMMON, intermediate_size=480, num_key_value_heads=2, tie_word_embeddings=False),
    "mini-phi": PhiConfig(**COMMON, intermediate_size=576),
}


def train_tokenizer() -> None:
    """A byte-level BPE of 4096 tokens, one copy in every model folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=COMMON["vocab_size"],
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(stdlib_documents("train"), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD)
    for name in CONFIGS:
        tokenizer.save_pretrained(DATA / name)


def token_stream(name: str, split: str) -> torch.Tensor:
    """All documents, each followed by the end token, as one vector of token ids."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DATA / name)
    documents = tokenizer(stdlib_documents(split), add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in documents for token in (*ids, tokenizer.eos_token_id)])


def windows(stream: torch.Tensor, starts: torch.Tensor, seqlen: int) -> torch.Tensor:
    return stream[starts[:, None] + torch.arange(seqlen)]  # [len(starts), seqlen]


@torch.no_grad()
def held_out_loss(model, stream: torch.Tensor, seqlen: int) -> float:
    """Mean negative log-likelihood (nats per token) over 64 windows spread evenly over the held-out text."""
    starts = torch.linspace(0, len(stream) - seqlen, 64).long()
    batches = windows(stream, starts, seqlen).split(16)
    return sum(model(input_ids=ids, labels=ids).loss.item() for ids in batches) / len(batches)


def train(name: str, steps: int, batch: int, seqlen: int, peak_lr: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    train_stream, held_out_stream = token_stream(name, "train"), token_stream(name, "test")
    print(f"{name}: {model.num_parameters():,} parameters, {len(train_stream):,} training tokens", flush=True)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95))
    warmup = steps // 20

    def schedule(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    rows, began = [], time.perf_counter()
    for step in range(1, steps + 1):
        ids = windows(train_stream, torch.randint(len(train_stream) - seqlen, (batch,)), seqlen)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0 or step == steps:
            held_out = held_out_loss(model, held_out_stream, seqlen)
            seconds = round(time.perf_counter() - began)
            rows.append([step, step * batch * seqlen, f"{loss.item():.4f}", f"{held_out:.4f}", seconds])
            print(*rows[-1], flush=True)
    model.to(torch.float16).save_pretrained(DATA / name)
    with (DATA / name / "training.csv").open("w", newline="") as log:
        csv.writer(log).writerows([["step", "tokens", "training_loss", "held_out_loss", "seconds"], *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokenizer", *CONFIGS])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--peak-lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    what = arguments.pop("what")
    if what == "tokenizer":
        train_tokenizer()
    else:
        train(what, **arguments)
