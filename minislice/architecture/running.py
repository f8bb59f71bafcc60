"""How a decoder runs blocks, and how a run is watched."""

from contextlib import ExitStack

from torch import Tensor, nn
from transformers import PreTrainedModel

from .blocks import BlockLayer
from .families import find_family


class LastLayerReached(Exception):
    """Ends a forward pass as soon as every layer's context is known."""


class Recorder(nn.Module):
    """Stands in for a layer: it records the arguments of its call, and hands the signal on unchanged."""

    def __init__(self, layer: BlockLayer, stands_for: nn.Module, contexts: list[dict], count: int):
        super().__init__()
        vars(self).update(layer=layer, stands_for=stands_for, contexts=contexts, count=count)

    def __getattr__(self, name: str):
        return getattr(vars(self)["stands_for"], name)  # a decoder may ask its layers for their type of attention

    def forward(self, hidden_states: Tensor, *positional, **context) -> Tensor | tuple[Tensor, None]:
        self.contexts.append(self.layer.context(positional, context))
        if len(self.contexts) == self.count:
            raise LastLayerReached(hidden_states)
        return self.layer.result(hidden_states)


class DecoderForward:
    """The `forward` of a decoder that runs blocks: it returns hidden states and attentions too, if they are asked for.

    transformers finds the modules whose outputs to return by their class and name, and blocks have others. This is an
    object and not a closure, so that a model can be copied and pickled.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, *args, output_hidden_states=None, output_attentions=None, return_dict=None, **kwargs):
        config, family = self.model.config, find_family(self.model.config)
        decoder = self.model.get_submodule(family.decoder)
        layers = getattr(decoder, family.layers)
        want_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_attentions = config.output_attentions if output_attentions is None else output_attentions
        kwargs |= {"output_hidden_states": want_states, "output_attentions": want_attentions, "return_dict": True}
        states, attentions = [], []
        with ExitStack() as hooks:
            for layer in layers if want_states else ():
                hooks.enter_context(layer.register_forward_pre_hook(lambda _, args: states.append(args[0])))
            blocks = [block for layer in layers for block in layer.blocks if block.attention is not None]
            for block in blocks if want_attentions else ():
                note = lambda _, args, output: attentions.append(output)  # noqa: E731
                hooks.enter_context(block.attention.register_forward_hook(note))
            outputs = type(decoder).forward(decoder, *args, **kwargs)
        if family.last_shaped_as:  # what the head doesn't read are zeros of `heads.ZeroColumns`
            width = self.model.get_output_embeddings().in_features
            outputs.last_hidden_state = outputs.last_hidden_state[..., :width]
        if want_states:
            outputs.hidden_states = (*states, outputs.last_hidden_state)
        if want_attentions:
            returned = [output[1] for output in attentions if isinstance(output, tuple)]
            outputs.attentions = tuple(weights for weights in returned if weights is not None)
        return outputs.to_tuple() if return_dict is False else outputs
