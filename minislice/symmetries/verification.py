"""Does a model have the symmetries of `kinds`? Change a copy by each, and measure."""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .. import invariance
from ..architecture.families import FAMILIES
from ..architecture.modeling import SlicedConfig
from ..architecture.network import Network, network
from ..checks import require_flag, require_seed
from ..corpus.batches import Tokens, token_batches
from ..fusion import fuse
from ..measuring.propose import propose
from .anatomy import attentions
from .kinds import SYMMETRIES
from .places import Symmetry


@dataclass(frozen=True)
class Finding:
    """One symmetry, tried on one model."""

    symmetry: str
    group: str
    use: str
    freedom: int | str  # the number of free parameters, 0 for a finite group; or why the model doesn't have it
    compared: str  # logits, or log-probabilities
    errors: dict[str, float]  # by dtype: max |difference| over max |reference|; empty if the model doesn't have it
    tolerances: dict[str, float]

    @property
    def holds(self) -> bool:
        return not isinstance(self.freedom, str) and self.passed

    @property
    def passed(self) -> bool:
        """False if the model should have the symmetry, and it doesn't hold."""
        return all(error <= self.tolerances[dtype] for dtype, error in self.errors.items())


@dataclass(frozen=True)
class Findings:
    findings: list[Finding]
    dtypes: list[str]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def measured(self) -> dict:
        """The findings in JSON's types."""
        return {"symmetries": [asdict(f) | {"holds": f.holds, "passed": f.passed} for f in self.findings]}

    def __str__(self) -> str:
        columns = "".join(f"{dtype:>10s}" for dtype in self.dtypes)
        rows = [f"{'symmetry':34s} {'holds':6s}{columns} {'free parameters':>16s}  used for"]
        for finding in self.findings:
            start = f"{finding.symmetry:34s} {'yes' if finding.holds else 'no' if finding.passed else 'FAILED':6s}"
            if isinstance(finding.freedom, str):
                rows.append(f"{start}  {finding.freedom}")
            else:
                errors = "".join(f"{error:10.1e}" for error in finding.errors.values())
                free = f"{finding.freedom:,}" if finding.freedom else "finite"
                rows.append(f"{start}{errors} {free:>16s}  {finding.use}")
        return "\n".join([*rows, "Largest error of the logits (of the log-probabilities, for the head's constant)."])


@torch.no_grad()
def change(net: Network, symmetry: Symmetry, seed: int = 0) -> int | str:
    """Act with random elements at all places of a fused float64 network, in place.

    Returns the number of free parameters at all places together, or why the symmetry acts nowhere.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        places = symmetry.places(net)
    except ValueError as reason:
        return str(reason)
    freedoms = [symmetry.freedom(place) for place in places]
    free = [(place, number) for place, number in zip(places, freedoms, strict=True) if not isinstance(number, str)]
    for place, _ in free:
        symmetry.act(place, symmetry.element(place, generator))
    return sum(number for _, number in free) if free else (freedoms or ["it has none"])[0]


def verify(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    symmetries: bool = False,
    dtypes: Iterable[str] = tuple(invariance.TOLERANCES),
    seed: int = 0,
    batch_size: int = 1,
    progress: bool = False,
) -> invariance.Verification | Findings:
    """`minislice.invariance.verify`; with `symmetries` try all symmetries in place of the steps of SliceGPT.

    Symmetries are tried on a fused copy in float64, on the CPU, which is then cast; a sliced model may be tried, too,
    and for a model in no table the error has `propose`'s answer. Other arguments and errors as in `invariance.verify`.
    """
    require_flag("symmetries", symmetries)
    if not symmetries:
        options = {"dtypes": dtypes, "seed": seed, "batch_size": batch_size, "progress": progress}
        return invariance.verify(model, tokens, attention_mask, **options)
    seed = require_seed(seed)
    invariance.require_dtypes(dtypes)
    if isinstance(model, PreTrainedModel) and model.config.model_type not in (*FAMILIES, SlicedConfig.model_type):
        proposal, remedy = propose(model), "register the one that `minislice propose` finds"
        missing = f"no entry of the table describes {model.config.model_type!r}; {remedy}"
        raise ValueError(missing if proposal.passed else str(proposal))
    net = network(model)
    batches = token_batches(model, tokens, attention_mask, batch_size)
    tokens = [{"input_ids": batch.ids, "attention_mask": batch.mask} for batch in batches]
    exact = invariance.in_dtype(model, "float64").cpu()
    exact = exact if net.is_fused else fuse(exact)
    tolerances = dict(invariance.ROUTED_TOLERANCES if net.has_experts else invariance.TOLERANCES)
    try:
        rounds = any(attention.rounds for attention in attentions(network(exact)))
    except ValueError:  # an attention of another make, which may
        rounds = True
    if rounds:
        tolerances["float64"] = invariance.FLOAT32_NORM_TOLERANCE
    logits = invariance.logits_of(exact, tokens, batch_size=batch_size)
    findings = []
    for symmetry in tqdm(SYMMETRIES, desc="symmetries", disable=not progress, leave=False):
        changed, errors = copy.deepcopy(exact), {}
        freedom = change(network(changed), symmetry, seed)
        compared = (lambda x: x) if symmetry.of_logits else (lambda x: x.double().log_softmax(-1))
        for dtype in () if isinstance(freedom, str) else dtypes:
            cast = changed if dtype == "float64" else invariance.in_dtype(changed, dtype)
            changed_logits = invariance.batch_logits(cast, tokens, batch_size=batch_size)
            errors[dtype] = invariance.relative_error(map(compared, changed_logits), map(compared, logits))
        described = (symmetry.name, symmetry.group, symmetry.use)
        what = "logits" if symmetry.of_logits else "log-probabilities"
        findings.append(Finding(*described, freedom, what, errors, tolerances))
    return Findings(findings, list(dtypes))
