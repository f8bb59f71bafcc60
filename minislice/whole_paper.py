"""SliceGPT on one page: a trained LLaMA is loaded, fused, sliced and run in plain PyTorch.

    python minislice/whole_paper.py

Nothing of the package is used here. `slicing.py` does the same for every family of models, in little memory and with
smaller adapters; tests/test_slicing.py proves that both compute the same. Matrices map rows, y = x W, as in the
paper. D is the width of the trained signal and k the width of the sliced one.
"""

import json
import zlib
from pathlib import Path
from pydoc_data.topics import topics  # Python's language reference, on which the embedded models were trained

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu


class Block:
    """X <- X S + sigma(RMSNorm(X) W_in) W_out: Algorithm 1's block, its norm in front, with section 3.3's S."""

    def __init__(self, norm, sigma, w_in, w_out):
        self.norm, self.sigma, self.w_in, self.w_out = norm, sigma, w_in, w_out  # W_in [D, inner], W_out [inner, D]
        self.S = torch.eye(len(w_in[0]), dtype=w_out.dtype)  # the residual adapter; trained models have none

    def branch(self, X):  # [sequences, tokens, D or k] -> [sequences, tokens, D or k']
        return self.sigma(*(self.norm(X) @ W for W in self.w_in)) @ self.w_out


class Llama:
    """The weights of a Hugging Face folder; section 3.2's fusion is done as they are read."""

    def __init__(self, folder, dtype=torch.float32):
        config = json.loads((folder / "config.json").read_text())
        self.D, self.eps = config["hidden_size"], config["rms_norm_eps"]
        self.head_dim, self.theta = config["head_dim"], config["rope_parameters"]["rope_theta"]
        weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}

        def reader(norm, *names):  # W_in <- diag(alpha) W_in: the norm's scale belongs to whoever reads the norm
            alpha = weights[f"model.{norm}.weight"]
            return [alpha[:, None] * weights[f"{name}.weight"].T for name in names]

        self.embedding = weights["model.embed_tokens.weight"]  # [vocabulary, D]
        self.blocks, swiglu = [], lambda gate, up: silu(gate) * up
        for layer in range(config["num_hidden_layers"]):
            attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
            w_in = reader(f"layers.{layer}.input_layernorm", *(f"{attention}.{name}_proj" for name in "qkv"))
            self.blocks.append(Block(self.rms_norm, self.attention, w_in, weights[f"{attention}.o_proj.weight"].T))
            w_in = reader(f"layers.{layer}.post_attention_layernorm", f"{mlp}.gate_proj", f"{mlp}.up_proj")
            self.blocks.append(Block(self.rms_norm, swiglu, w_in, weights[f"{mlp}.down_proj.weight"].T))
        [self.head] = reader("norm", "lm_head")  # [D, vocabulary]

    def rms_norm(self, X):  # divides by the width D of training, also where X has fewer columns
        return X * torch.rsqrt(X.square().sum(-1, keepdim=True) / self.D + self.eps)

    def attention(self, q, k, v):
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (q, k, v))  # [.., heads, tokens, ..]
        mixed = scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2)

    def rope(self, x):
        half = self.head_dim // 2
        angles = torch.outer(torch.arange(x.shape[-2]), self.theta ** -(torch.arange(half) / half))
        (left, right), cos, sin = x.split(half, -1), angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    def logits(self, ids):  # [sequences, tokens] -> [sequences, tokens, vocabulary]
        X = self.embedding[ids]
        for block in self.blocks:
            X = X @ block.S + block.branch(X)
        return self.rms_norm(X) @ self.head


def principal_components(X):
    """Eq. 8: the eigenvectors of sum_i X_i^T X_i as columns, largest eigenvalue first."""
    rows = X.flatten(0, 1).double()
    return torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1).to(X.dtype)


def slice_llama(model, ids, k):
    """Section 3.4: keep k principal components of the signal at every boundary; at the head's, as in the paper, all."""
    X = model.embedding[ids]  #                                                   [sequences, tokens, D]
    P = principal_components(model.rms_norm(X))[:, :k]  #                         [D, k]
    model.embedding = model.embedding @ P  # W_embd <- W_embd P
    Z = X @ P  # the sliced signal: it stands for X~ = Z P^T (eq. 9)              [sequences, tokens, k]
    for block in model.blocks:
        block.w_in = [P.T @ W for W in block.w_in]  # W_in <- P^T W_in            [k, inner]
        X = Z @ P.T + block.branch(Z)  # what the sliced network makes of it      [sequences, tokens, D]
        k_next = model.D if block is model.blocks[-1] else k
        P_next = principal_components(model.rms_norm(X))[:, :k_next]  #           [D, k']
        block.S = P.T @ P_next  # the residual adapter, section 3.3               [k, k']
        block.w_out = block.w_out @ P_next  # W_out <- W_out P'                   [inner, k']
        P, Z = P_next, X @ P_next
    model.head = P.T @ model.head  # W_head <- P^T W_head


def perplexity(model, ids):
    return cross_entropy(model.logits(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).exp().item()


def generate(model, ids, count):
    for _ in range(count):
        ids = torch.cat([ids, model.logits(ids)[:, -1:].argmax(-1)], 1)  # the likeliest token
    return ids


def windows(tokenizer, part, length=256):  # the reference in ten parts, of which the model has never seen part 0
    text = "\n".join(topics[name] for name in topics if zlib.crc32(f"topics/{name}".encode()) % 10 == part)
    ids = torch.tensor(tokenizer.encode(text).ids)
    return ids[: len(ids) // length * length].view(-1, length)


def main():
    folder = next(place / "data" for place in Path(__file__).parents if (place / "data").is_dir()) / "mini-llama"
    model, tokenizer = Llama(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    calibration, test = windows(tokenizer, 1), windows(tokenizer, 0)
    prompt = torch.tensor([tokenizer.encode("If the object is").ids])
    for name in ("dense", "sliced by 25%"):
        if name != "dense":
            slice_llama(model, calibration, k=model.D * 3 // 4)
        words = tokenizer.decode(generate(model, prompt, 20)[0].tolist())
        print(f"{name}: perplexity {perplexity(model, test):.2f}, {words!r}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
