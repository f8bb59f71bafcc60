"""A transformers model seen as the paper's Algorithm 1, and a sliced network as a Hugging Face model.

A saved model takes these files with it and loads where minislice isn't installed, so they import torch, transformers
and one another alone.
"""
