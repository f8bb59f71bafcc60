"""What a sliced network's config.json says: the dense model's own config, and every size that slicing changed."""

import copy
from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .families import find_family, register_fields

HEADS = ("linear", "tied", "fitted")
FORMAT_VERSION = 3  # raised when an older minislice could not read a new folder, or would read it wrongly


class SlicedConfig(PreTrainedConfig):
    """Everything but the weights that decides the shapes and the function of a sliced network.

    Raises:
        ValueError: a newer `format_version`, or sizes that don't fit together; the message names them.
    """

    model_type = "minislice"
    sub_configs: ClassVar = {"base": AutoConfig}  # dtype and attention implementation are passed on to it
    has_no_defaults_at_init: ClassVar = True  # or transformers 5.17 makes one without arguments
    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "cache"]

    def __init__(
        self,
        base: dict | PreTrainedConfig | None = None,  # the dense model's, after fusion
        widths: list[int] | None = None,  # the width of every boundary, blocks + 1 numbers
        adapters: list | None = None,  # for every block: "full", the rank of a low-rank one, None for the identity
        norm_eps: list[float] | None = None,  # the eps of the norm that reads each boundary
        neurons: list[int] | None = None,  # the number of neurons of every MLP; None: as in the dense model
        dropped: list[int] | None = None,  # the dense model's numbers of the blocks that are left out
        biases: list[list[str]] | None = None,  # the linears with a bias, for each block of a layer
        head: str = "linear",  # one of `HEADS`; see `heads.TiedHead`, `heads.FittedHead`
        head_bias: bool = False,
        head_shift: bool = False,  # whether a tied head has one
        head_was_tied: bool = False,  # before fusion
        family: dict | None = None,  # the entry of a model type that a user has registered
        slicing: dict | None = None,  # how the model was made, for people; nothing depends on it
        format_version: int = FORMAT_VERSION,
        **kwargs,
    ):
        if format_version > FORMAT_VERSION:
            raise ValueError(f"this model was saved by a newer minislice (format {format_version}); upgrade minislice")
        if isinstance(base, dict):
            self.base = AutoConfig.for_model(**base)
        elif isinstance(base, PreTrainedConfig):
            self.base = copy.deepcopy(base)  # `super().__init__` would reset a live model's attention implementation
        else:
            raise ValueError("a SlicedConfig needs `base`, the config of the dense model")
        if family is not None:
            register_fields(self.base.model_type, family)
        self.family = family
        self.widths, self.adapters, self.norm_eps, self.biases = widths, adapters, norm_eps, biases
        if format_version == 1 and head == "tied":
            head = "fitted"  # format 1's name for it was "tied"
        self.head, self.head_bias, self.head_was_tied = head, head_bias, head_was_tied
        self.head_shift, self.neurons, self.dropped = head_shift, neurons, [] if dropped is None else dropped
        self.slicing, self.format_version = slicing, format_version
        others = {name: value for name, value in kwargs.items() if name not in self.sizes}
        super().__init__(**{**others, "tie_word_embeddings": head != "linear"})
        self._check()

    def _check(self) -> None:
        D, per_layer = self.base.hidden_size, len(find_family(self.base).blocks_of(self.base, 0))
        blocks = per_layer * self.base.num_hidden_layers - len(self.dropped)
        lengths = {"widths": blocks + 1, "adapters": blocks, "norm_eps": blocks + 1, "biases": per_layer}
        if not all(type(number) is int for number in self.dropped) or len({*self.dropped}) < len(self.dropped):
            raise ValueError(f"'dropped' must be a list of blocks, each once; got {self.dropped!r}")
        for name, length in lengths.items():
            if (given := len(getattr(self, name) or [])) != length:
                raise ValueError(f"a model of {blocks} blocks needs {length} entries in {name!r}, got {given}")
        if not all(type(k) is int and 1 <= k <= D for k in self.widths):
            raise ValueError(f"'widths' must lie between 1 and the hidden size {D}, got {self.widths}")
        if self.head not in HEADS:
            raise ValueError(f"'head' must be one of {', '.join(HEADS)}, got {self.head!r}")
        for index, adapter in enumerate(self.adapters):
            k, k_next = self.widths[index : index + 2]
            is_low_rank = type(adapter) is int and 0 <= adapter <= k <= k_next
            if not (adapter == "full" or is_low_rank or (adapter is None and k == k_next)):
                raise ValueError(f"'adapters' has {adapter!r} for block {index}, which can't lead from {k} to {k_next}")

    def to_dict(self) -> dict:
        """Everything, and the sizes under the names at which other libraries look: PEFT makes prompts of them."""
        output = super().to_dict()
        output["base"].pop("_name_or_path", None)  # a folder of the machine that sliced the model
        output["base"].pop("dtype", None)  # this config has it
        return output | self.sizes

    def to_diff_dict(self) -> dict:
        """What config.json says: all but the sizes, which follow from the rest."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in self.sizes}

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of layers and heads, and the width of the embedding: narrower than D where boundary 0 is sliced."""
        base = self.base
        heads = base.num_attention_heads
        return {
            "hidden_size": self.widths[0],
            "num_hidden_layers": base.num_hidden_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": getattr(base, "num_key_value_heads", None) or heads,
            "head_dim": getattr(base, "head_dim", None) or base.hidden_size // heads,
        }

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """The config from which transformers reads layers, heads and vocabulary."""
        return self.base

    hidden_size = property(lambda self: self.base.hidden_size)  # D, the width before slicing
    num_hidden_layers = property(lambda self: self.base.num_hidden_layers)
    max_position_embeddings = property(lambda self: self.base.max_position_embeddings)
    vocab_size = property(lambda self: self.base.vocab_size)


def own_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Give a model, in place, a copy of its config that may be changed: another model may share the config."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own
    return own


def shorten(config: PreTrainedConfig, index: int) -> None:
    """Lower the number of layers by one, and take the layer's entry out of every list that has one for each layer."""
    layers = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == layers:  # layer_types and its like
            setattr(config, name, [*value[:index], *value[index + 1 :]])
    config.num_hidden_layers = layers - 1
