"""A sliced network as a Hugging Face model.

transformers' own classes can't describe a sliced network: its signal is narrower than its heads together, its norms
divide by a width that is no longer there, and its residual connections have adapters. So the model is a wrapper:
``base`` is transformers' own model, with its layers replaced by blocks and its matrices cut to size.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .building import build, description
from .card import TAGS, made_by, model_card
from .configuration import SlicedConfig
from .folder import whole_folder
from .heads import SharingHead
from .network import network

# What this release of transformers calls the cache of keys and values, in arguments and outputs.
CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


class SlicedForCausalLM(PreTrainedModel, GenerationMixin):
    """A sliced language model; `AutoModelForCausalLM.from_pretrained` makes one, `wrap` turns a sliced model into one.

    ``base`` is the model that does the work, so it has the names of its family: ``base.model.layers[0].blocks[0]``.
    """

    config: SlicedConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["BlockLayer"]
    # True of every family; `base` checks again what was asked for.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: SlicedConfig, base: PreTrainedModel | None = None):
        super().__init__(config)
        if base is None:
            self.base = build(config)
            self.base.save_pretrained = SavesSliced(self.base)
        else:
            self.base, self.generation_config = base, base.generation_config
            for module in base.modules():
                module._is_hf_initialized = True  # or `post_init` would draw adapters and heads anew
        self.config.base = self.base.config  # one object, so that changes to the base's config are saved
        self._tied_weights_keys = _tied(self.base)
        self.post_init()

    @classmethod
    def wrap(cls, model: PreTrainedModel) -> "SlicedForCausalLM":
        """The same model as a `SlicedForCausalLM`, if it isn't one; they share every module, nothing is copied."""
        if isinstance(model, cls):
            return model
        wrapped = cls(SlicedConfig(**description(model)), base=model)
        wrapped.training = model.training
        return wrapped

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but tensors too few or too many are an error, unless `output_loading_info` tells them."""
        name = pretrained_model_name_or_path
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        for fault in ("missing", "unexpected"):
            if names := sorted(info[f"{fault}_keys"]):
                raise ValueError(f"{name}: {len(names)} tensors are {fault}: {', '.join(names[:3])} ...")
        return model

    def describe(self, notes: dict[str, Any] | None = None) -> None:
        """Have the config say what the modules are now, and how they were made; `notes` as in `save_pretrained`."""
        known, new = dict(self.config.slicing or {}), made_by(self)
        if any(new.get(step, known.get(step)) != known.get(step) for step in ("options", "recovery")):
            known.pop("perplexity", None)  # noted before this was done
        known |= {**new, **(notes or {})}
        for name, value in {**description(self.base), "slicing": known}.items():
            setattr(self.config, name, value)
        self.config.tie_word_embeddings = self.config.head != "linear"
        self._tied_weights_keys = _tied(self.base)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,  # one for each type of layer, or for all
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Any = None,
        **kwargs,
    ):
        """As the dense model's; hidden states are the sliced signal: what a layer reads, and the final norm's output.

        Transformers has two names for the cache, the newer and the older one (`CACHE`); either will do here.
        """
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name)
        return self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{CACHE: past_key_values if cache is None else cache},
            **kwargs,
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args, inputs_embeds: Tensor | None = None, **kwargs):
        """As the dense model's; transformers looks for the name `inputs_embeds` in this signature."""
        return self.base.prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base.set_input_embeddings(value)
        if isinstance(head := self.get_output_embeddings(), SharingHead):
            head.weight = value.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.base.set_output_embeddings(value)

    def save_pretrained(
        self,
        save_directory,
        *args,
        tokenizer: Any = None,
        force: bool | None = None,
        notes: dict | None = None,
        **kwargs,
    ) -> None:
        """Write a folder that `from_pretrained` loads: weights, config, code, model card.

        A new folder appears whole or not at all. In a folder that has files, a saved model's files are replaced and all
        others stay: a `Trainer` can save beside its checkpoints.

        Args:
            tokenizer: saved with it.
            force: of a folder that has files: None does as said above; True replaces all of it; False refuses it.
            notes: what else is known about the model ("calibration", "perplexity" ...), for config and model card.
            args, kwargs: transformers' own, such as `max_shard_size`.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained(push_to_hub=True) isn't supported; call model.push_to_hub(name) instead")
        _require_loadable(self.base)
        self.describe(notes)
        target = Path(save_directory)
        beside = force is None and target.is_dir()
        with _model_inside(target) if beside else whole_folder(target, bool(force)) as folder:
            super().save_pretrained(folder, *args, **kwargs)
            self._save_rest(folder, tokenizer)

    def save_description(self, folder: Path, tokenizer: Any = None) -> None:
        """Write what `save_pretrained` does except the weights; whoever calls this has written them already."""
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.architectures = [type(self).__name__]
        _require_loadable(self.base)
        custom_object_save(self, folder, config=self.config)
        self.config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        self._save_rest(folder, tokenizer)

    def _save_rest(self, folder: Path, tokenizer: Any) -> None:
        """The tokenizer and the model card."""
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(self, self.num_parameters()), encoding="utf-8")


def without_memory(
    config: PreTrainedConfig, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model of a config, dense or sliced, on torch's meta device: it has every shape and no weights."""
    with torch.device("meta"):
        dtype = config.dtype if dtype is None else dtype
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


class SavesSliced:
    """`save_pretrained` of a fused or sliced OPT, LLaMA ...; transformers' own would write a folder that loads wrongly.

    An object and not a closure, so that a copied or pickled model gets one that saves the copy.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, save_directory, *args, state_dict: dict[str, Tensor] | None = None, **kwargs) -> None:
        """As `SlicedForCausalLM.save_pretrained`."""
        if state_dict is not None:
            state_dict = {f"base.{name}": tensor for name, tensor in state_dict.items()}
        SlicedForCausalLM.wrap(self.model).save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)


def _tied(base: PreTrainedModel) -> dict[str, str] | None:
    """For transformers: the name of a tied head's matrix, and the embedding's, under which it is saved."""
    net = network(base)
    if isinstance(net.head, nn.Linear):
        return None
    names = {parameter: name for name, parameter in base.named_parameters()}
    return {f"base.{net.family.head}.weight": f"base.{names[net.embeddings[0].weight]}"}


def _require_loadable(base: PreTrainedModel) -> None:
    """Raise a ValueError unless transformers' Auto classes make this model of its config."""
    kind, config, model = base.config.model_type, type(base.config), type(base)
    if kind not in CONFIG_MAPPING or config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"a saved model couldn't be loaded again: transformers' Auto classes don't know {model.__name__}. Call "
            f"AutoConfig.register({kind!r}, {config.__name__}) and AutoModelForCausalLM.register({config.__name__}, "
            f"{model.__name__}) before saving, and wherever it is loaded"
        )


@contextmanager
def _model_inside(folder: Path) -> Iterator[Path]:
    """A new folder inside. When the block ends, its files move up and replace the files of a model that is there.

    A README.md that somebody wrote stays. A ValueError if files that aren't a saved model's would be overwritten.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    named = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
    weights = [path for name in named for path in folder.glob(name)]
    strangers = [] if kind else [*weights, *folder.glob("*config.json")]
    strangers += [] if kind == "minislice" else [folder / path.name for path in Path(__file__).parent.glob("*.py")]
    if taken := [path.name for path in strangers if path.exists()]:
        raise ValueError(
            f"{folder} has files that aren't a saved model's: {', '.join(taken)}; save to another folder, or replace "
            "all of this one with force=True"
        )
    with TemporaryDirectory(dir=folder, prefix=f".{folder.name}.partial-") as new:
        yield Path(new)
        files = {folder / path.relative_to(new): path for path in Path(new).rglob("*") if path.is_file()}
        for place, path in files.items():
            if place.name != "README.md" or not place.exists() or TAGS in place.read_text(errors="replace"):
                place.parent.mkdir(exist_ok=True)
                path.replace(place)
        for path in {*weights} - files.keys():  # last: an interrupt before leaves more files, not fewer
            path.unlink()


AutoConfig.register(SlicedConfig.model_type, SlicedConfig, exist_ok=True)
AutoModelForCausalLM.register(SlicedConfig, SlicedForCausalLM, exist_ok=True)
SlicedConfig.register_for_auto_class()
SlicedForCausalLM.register_for_auto_class("AutoModelForCausalLM")
