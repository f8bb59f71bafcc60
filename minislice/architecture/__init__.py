"""A transformers model seen as the paper's Algorithm 1, and a sliced network as a Hugging Face model."""
