"""What a sliced model costs when it runs, by form of residual adapter: time and memory as ratios, the dense model is 1.

    python notebooks/measure/inference_cost.py

It is `minislice cost --head own` for the shapes of OPT-125M and of a LLaMA and a Phi as wide, as one table: random
weights, batch 1, 25%, float32. Prefill is one pass over a prompt of 128 tokens, decoding is one step with the cache,
memory is that of the parameters.
"""

import json

import torch
from common import cost_parser
from transformers import LlamaConfig, OPTConfig, PhiConfig

from minislice.adapters import FORMS
from minislice.measuring.shapes import random_model, sliced_config
from minislice.measuring.tables import markdown
from minislice.measuring.timing import inference_cost

WIDTH = {"hidden_size": 768, "num_attention_heads": 12}
SHAPES = {  # vocabularies of OPT, LLaMA-2 and Phi-2
    "OPT": OPTConfig(**WIDTH, ffn_dim=3072, word_embed_proj_dim=768, vocab_size=50272),
    "LLaMA": LlamaConfig(**WIDTH, intermediate_size=2048, vocab_size=32000),
    "Phi": PhiConfig(**WIDTH, intermediate_size=3072, vocab_size=51200),
}
COLUMNS = {"prefill": "prefill, ms", "decoding": "decoding, ms a token", "memory": "weights, bytes"}


def main() -> None:
    parser = cost_parser(__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="tokens decoded in a round")
    parser.add_argument("--vocabulary", type=int, help="in place of each model's, to try the script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results, machine = {}, {"dtype": torch.float32, "device": "cpu"}
    for shape, config in SHAPES.items():
        config.num_hidden_layers = arguments.layers
        config.vocab_size = arguments.vocabulary or config.vocab_size
        dense, results[shape] = random_model(config, **machine), {"dense": dict.fromkeys(COLUMNS, 1.0)}
        for form in FORMS:
            sliced = random_model(sliced_config(config, slicing=0.25, adapter=form, head="own"), **machine)
            costs = inference_cost(dense, sliced, length=arguments.steps, rounds=arguments.rounds, batch_size=1)
            results[shape][form] = {name: costs[quantity].ratio for name, quantity in COLUMNS.items()}
    lines = [
        [shape, what, *(f"{row[what]:.2f}" for row in result.values())]
        for shape, result in results.items()
        for what in COLUMNS
    ]
    print(json.dumps(results) if arguments.json else markdown(["model, 25%", "", "dense", *FORMS], lines))


if __name__ == "__main__":
    main()
