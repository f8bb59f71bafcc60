"""Heads that share their matrix with the embedding; `minislice.heads` makes them from a trained head."""

from torch import Tensor, nn


class CentredEmbedding(nn.Embedding):
    """ids -> E[ids] M: an embedding that subtracts each row's mean when it is read; a tied head needs E unchanged."""

    def forward(self, ids: Tensor) -> Tensor:  # [...] -> [..., D]
        x = super().forward(ids)
        return x - x.mean(-1, keepdim=True)


class SharingHead(nn.Module):
    """A head that shares its matrix E, [vocabulary, width], with the embedding: one parameter, in two modules.

    Its other parameters, copies of `tensors`, have their names; None stands for a bias or a shift that isn't there.
    """

    def __init__(self, embedding: nn.Embedding, requires_grad: bool = True, **tensors: Tensor | None):
        super().__init__()
        self.weight = embedding.weight  # the name at which transformers looks for a head's matrix
        for name, tensor in tensors.items():
            parameter = None if tensor is None else nn.Parameter(tensor.detach().contiguous().clone(), requires_grad)
            setattr(self, name, parameter)

    def fit_bias(self) -> None:
        """Give the bias an entry for each token, also after transformers has resized E; a new token's is 0."""
        if self.bias is not None and len(self.bias) != len(self.weight):
            fitted = nn.functional.pad(self.bias.detach(), (0, len(self.weight) - len(self.bias)))
            self.bias = nn.Parameter(fitted, requires_grad=self.bias.requires_grad)

    def _save_to_state_dict(self, *args) -> None:
        self.fit_bias()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args) -> None:
        self.fit_bias()
        super()._load_from_state_dict(*args)

    def logits(self, x: Tensor) -> Tensor:  # [..., width of E] -> [..., vocabulary]
        self.fit_bias()
        return nn.functional.linear(x, self.weight, self.bias)


class TiedHead(SharingHead):
    """x -> (x diag(alpha) + beta) E^T + b: a head that shares its matrix E with the embedding, exactly as trained.

    E is [vocabulary, D]; alpha and beta, [D], are the final norm's scale and shift.
    """

    in_features = property(lambda self: len(self.alpha))

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., vocabulary]
        return self.logits(x * self.alpha if self.beta is None else x * self.alpha + self.beta)


class FittedHead(SharingHead):
    """x -> (x H) E^T + b: a head that shares the sliced embedding's matrix; H makes it nearly the trained head.

    E is [vocabulary, k], H is [width of the last boundary, k].
    """

    in_features = property(lambda self: self.H.shape[0])

    def forward(self, x: Tensor) -> Tensor:  # [..., width] -> [..., vocabulary]
        return self.logits(x @ self.H)


class ZeroColumns:
    """A forward hook that appends zeros to a module's output, up to the width of the first or of the last signal,
    whichever is larger. Some models reshape their last signal as their first one; the decoder cuts the zeros off.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, module: nn.Module, arguments: tuple, x: Tensor) -> Tensor:  # [..., k] -> [..., at least k]
        E, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings()
        return nn.functional.pad(x, (0, max(0, E.shape[1] - x.shape[-1], head.in_features - x.shape[-1])))
