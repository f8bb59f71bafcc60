"""Wrong versions of minislice's functions, each a mistake that somebody could make, or has made.

Each takes the right function and returns the wrong one.
"""

import dataclasses
import math
import shutil
from contextlib import contextmanager

import torch
from models import VOCABULARY
from torch import nn

from minislice.architecture.blocks import LowRankAdapter, RMSNorm
from minislice.architecture.linears import set_weight
from minislice.architecture.modeling import CACHE
from minislice.beyond import experts
from minislice.beyond.inner import output_matrix
from minislice.beyond.rulers import PROBE
from minislice.corpus.batches import token_batches
from minislice.fusion import bare, subtract_mean


def is_head(linear):
    return linear.out_features == VOCABULARY


# Section 3.2: fusion


def eps_forgotten(right):
    return lambda norm, net: RMSNorm(net.trained_width, 0.0)


def eps_outside_the_root(right):
    return lambda self, x: x / ((x.square().sum(-1, keepdim=True) / self.trained_width).sqrt() + self.eps)


def mean_of_each_column(right):
    return lambda X: X - X.mean(0)


def mean_subtracted_again(right):
    return lambda self, x: right(self, x - x.mean(-1, keepdim=True))


def norm_over_the_tokens(right):
    return lambda self, x: x * torch.rsqrt(x.square().mean(0) + self.eps)


def root_of_the_width_lost(right):
    return lambda self, x: right(self, x) / self.trained_width**0.5


def mean_subtracted_from_every_embedding(right):
    def fuse(model):
        embedding = right(model).get_input_embeddings()
        set_weight(embedding, subtract_mean(embedding.weight.detach()))
        return model

    return fuse


def positions_overlooked(right):
    def network(model):
        net = right(model)
        return dataclasses.replace(net, embeddings=net.embeddings[:1])

    return network


def nothing_done(right):
    return lambda *arguments: None


def output_bias_keeps_its_mean(right):
    return lambda linear: set_weight(linear, subtract_mean(linear.weight.T).T)


def mean_of_the_wrong_axis(right):
    return lambda linear: set_weight(linear, subtract_mean(linear.weight), subtract_mean(linear.bias))


def shift_not_folded_into_the_head(right):
    def fuse_into(norm, linear, kind):
        bias = linear.bias
        right(norm, linear, kind)
        if is_head(linear):
            linear.bias = bias

    return fuse_into


def shift_folded_through_scaled_weights(right):
    def fuse_into(norm, linear, kind):
        weight = linear.weight * norm.weight
        set_weight(linear, weight, norm.bias @ weight.T + (0.0 if linear.bias is None else linear.bias))

    return fuse_into


def scale_forgotten(right):
    def fuse_into(norm, linear, kind):
        weight = linear.weight
        right(norm, linear, kind)
        set_weight(linear, weight)

    return fuse_into


def scale_on_the_output_side(right):
    def fuse_into(norm, linear, kind):
        weight = linear.weight
        right(norm, linear, kind)
        if weight.shape[0] == weight.shape[1]:
            set_weight(linear, weight * norm.weight[:, None])

    return fuse_into


def done_twice(right):
    def twice(*arguments):
        right(*arguments)
        right(*arguments)

    return twice


def head_still_tied(right):
    def fuse(model):
        right(model).lm_head.weight = model.get_input_embeddings().weight
        return model

    return fuse


# Sections 3.1 and 3.3: rotation


def transposed(right):
    return lambda linear, Q: right(linear, Q.T)


def output_bias_not_rotated(right):
    return lambda linear, Q: set_weight(linear, Q.T @ linear.weight)


def second_output_overlooked(right):
    return property(lambda block: right.fget(block)[:1])


def head_rotated_twice(right):
    return lambda linear, Q: (right(linear, Q), right(linear, Q) if is_head(linear) else None)


def head_not_rotated(right):
    return lambda linear, Q: None if is_head(linear) else right(linear, Q)


def adapter_missing(right):
    return lambda S, like: nn.Identity()


def adapter_transposed(right):
    return lambda S, like: right(S.T, like)


def gaussian_matrix(right):
    return lambda width, generator: torch.randn(width, width, generator=generator).double() / width**0.5


def from_the_global_generator(right):
    return lambda width, generator: right(width, torch.default_generator)


def qr_without_the_sign_fix(right):
    return lambda width, generator: torch.linalg.qr(torch.randn(width, width, generator=generator).double()).Q


def qr_of_a_uniform_matrix(right):
    return lambda width, generator: torch.linalg.qr(torch.rand(width, width, generator=generator).double()).Q


# Section 3.4: principal components and slicing


def ascending(right):
    return lambda C, *dtype: tuple(result.flip(-1) for result in right(C, *dtype))


def only_eigenvalues_turned_round(right):
    def principal_components(C, *dtype):
        eigenvalues, Q = right(C, *dtype)
        return eigenvalues, Q.flip(1)

    return principal_components


def eigenvectors_not_normalised(right):
    def principal_components(C, *dtype):
        eigenvalues, Q = right(C, *dtype)
        return eigenvalues, Q * eigenvalues.sqrt()

    return principal_components


def columns_of_largest_norm(right):
    def principal_components(C, *dtype):
        norms, order = C.diagonal().sort(descending=True)
        return norms, torch.eye(len(C), dtype=C.dtype)[:, order]

    return principal_components


def divided_by_the_sliced_width(right):
    return lambda self, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def centred(right):
    return lambda x, *rest: right(x - x.mean(dim=(0, 1)), *rest)


def of_the_norms_input(right):
    return lambda self, X, norm, *rest: right(self, X, nn.Identity(), *rest)


def averaged_over_the_batch(right):
    return lambda x, mask, total: right(x, mask) / len(x) + (0 if total is None else total)


def last_tokens_left_out(right):
    return lambda x, mask=None: right(x.flatten(0, -2)[: x.flatten(0, -2).shape[0] // 1024 * 1024])


def only_one_triangle(right):
    return lambda *arguments: right(*arguments).triu()


def products_in_float32(right):
    return lambda x, mask=None, *total: (x.flatten(0, -2).T @ x.flatten(0, -2)).double() + sum(total)


def mask_ignored(right):
    return lambda x, mask=None, *total: right(x, None, *total)


def padding_attended_to(right):
    return lambda self, ids, mask=None: right(self, ids)


def padding_filled_in_place(right):
    def checked(model, ids, mask):
        result = right(model, ids, mask)
        ids[mask == 0] = 0
        return result

    return checked


def one_less(right):
    return lambda *arguments: max(1, right(*arguments) - 1)


# Section 4: evaluation


def not_shifted(right):
    def perplexity(model, ids, mask=None, **options):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        return math.exp(nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))

    return perplexity


def padding_predicted(right):
    return lambda *arguments: [dataclasses.replace(batch, mask=None) for batch in right(*arguments)]


def batches_weighted_alike(right):
    def perplexity(model, ids, mask=None, batch_size=8):
        batches = token_batches(model, ids, mask, batch_size)
        return sum(right(model, batch.ids, batch.mask) for batch in batches) / len(batches)

    return perplexity


def cache_not_handed_on(right):
    return lambda self, x, **context: right(self, x, **{**context, CACHE: None})


# Heads


def scale_left_out_of_the_head(right):
    return lambda self, x: nn.functional.linear(x if self.beta is None else x + self.beta, self.weight, self.bias)


def shift_left_out_of_the_head(right):
    return lambda self, x: nn.functional.linear(x * self.alpha, self.weight, self.bias)


def mean_left_in_the_embedding(right):
    return nn.Embedding.forward


def never_a_tie(right):
    return lambda net: "is never kept"


def ends_aligned(right):
    def make_adapter(P, Q_next, k_next, form, *rest):
        return right(P, Q_next, k_next, "low-rank" if P.shape[1] <= k_next else form, *rest)

    return make_adapter


# Residual adapters


def wrong_polar_factor(right):
    def align(P, Q_next, k_next):
        P_next, *rest = right(P, Q_next, k_next)
        turn = Q_next[:, :k_next].T @ P_next
        return Q_next[:, :k_next] @ turn.T, *rest

    return align


def directions_in_reverse(right):
    def align(*arguments):
        P_next, U, deficits = right(*arguments)
        return P_next, U.flip(1), deficits

    return align


def deficit_without_its_root(right):
    return lambda A, *rest: right(A * A.norm(dim=0), *rest)


def next_basis_left_as_it_was(right):
    return lambda P, Q_next, k_next, *rest: (Q_next[:, :k_next], *right(P, Q_next, k_next, *rest)[1:])


def no_direction_dropped(right):
    def make_adapter(P, Q_next, k_next, form, tolerance, like):
        P_next, _, E = right(P, Q_next, k_next, form, tolerance, like)
        deficits, U = torch.linalg.eigh(torch.eye(k_next) - P.T @ P_next)
        return P_next, LowRankAdapter(U * deficits.clamp(min=0).sqrt(), k_next), E

    return make_adapter


def always_full(right):
    return lambda P, Q_next, k_next, form, tolerance, like: right(P, Q_next, k_next, "full", tolerance, like)


def left_out_without_aligning(right):
    def make_adapter(P, Q_next, k_next, form, *rest):
        right_one = right(P, Q_next, k_next, form, *rest)
        return (Q_next[:, :k_next], *right_one[1:]) if form == "none" else right_one

    return make_adapter


# Streaming: one part in memory at a time, and a state on the disk


def norms_left_out(right):
    return lambda net, blocks: [setattr(block, "norm", bare(block.norm, net)) for block in blocks]


def read_in_float16(right):
    def read(self, root, device):
        right(self, root, device)
        for parameter in root.parameters():
            parameter.data = parameter.data.half().to(parameter.dtype)

    return read


def written_before_it_was_sliced(right):
    @contextmanager
    def part(self, index):
        with right(self, index):
            self._write(index)
            self._write = lambda index: None
            yield
        del self._write

    return part


def copied_into_place(right):
    return lambda new, target: shutil.copytree(new, target.with_name(f"{target.name}-1")) and right(new, target)


def generator_forgotten(right):
    def restore(self):
        done = right(self)
        self.slicer.generator.manual_seed(0)
        return done

    return restore


def signal_forgotten(right):
    def restore(self):
        done = right(self)
        if done:
            for rows in self.slicer.Z.batches:
                rows.zero_()
        return done

    return restore


def part_left_out(right):
    def restore(self):
        done = right(self)
        return done + (done > 0)

    return restore


def basis_in_float32(right):
    def restore(self):
        done = right(self)
        if done:
            self.slicer.Q = self.slicer.Q.float().double()
        return done

    return restore


def covariances_kept_to_oneself(right):
    return lambda self, tensor: tensor


# Beyond the paper: neurons and repair


def only_by_norm(right):
    """Which neurons to keep, from the size of their weights alone."""

    def least_harmful(C, W, delete, candidates, *args):
        return right(torch.eye(len(C)).to(C), W, delete, candidates, *args)

    return least_harmful


def plainly_deleted(right):
    def least_harmful(C, W, *args):
        kept, _ = right(C, W, *args)
        return kept, W[kept]

    return least_harmful


def ridge_forgotten(right):
    return lambda C, B, ridge: right(C, B, 0.0)


def other_sign(right):
    return lambda *args: -right(*args)


def tokens_unweighted(right):
    def moments(h, y, x, mask, add_to=None):
        total = torch.cat([h[mask].T @ h[mask], h[mask].T @ (x - y)[mask]], dim=1)
        return total if add_to is None else add_to + total

    return moments


def padding_counted(right):
    return lambda h, y, x, mask, add_to=None: right(h, y, x, None, add_to)


def branchs_number_overlooked(right):
    return lambda block: right(block) / block.scale


def first_neurons_kept(right):
    return lambda mlp, kept: right(mlp, torch.arange(len(kept)))


def up_keeps_its_first_neurons(right):
    """Of gate and up in one linear, the gate's rows are the right ones."""

    def keep_neurons(mlp, kept):
        (linear,), count = mlp.readers, mlp.neurons
        set_weight(linear, linear.weight[torch.cat([kept, torch.arange(len(kept)) + count])])
        set_weight(mlp.writer, mlp.writer.weight[:, kept])

    return keep_neurons


def all_keep_what_the_first_keeps(right):
    """Every expert loses the neurons that the first one can do without."""
    return lambda experts, kept: right(experts, kept[:1].expand_as(kept))


def gates_and_ups_taken_for_neighbours(right):
    """Rows that lie one half behind the other are looked for side by side, and the other way round."""

    def keep_experts_neurons(experts, kept):
        layout = experts.is_concatenated
        experts.is_concatenated = not layout
        right(experts, kept)
        experts.is_concatenated = layout

    return keep_experts_neurons


def router_ignored(right):
    """Every expert counts as much for a token."""

    def expert_moments(calibration, block, *args):
        even = block.experts.register_forward_pre_hook(lambda module, inputs: (*inputs[:2], 0 * inputs[2] + 1))
        try:
            return right(calibration, block, *args)
        finally:
            even.remove()

    return expert_moments


def experts_pad(right):
    """What is padding counts as text."""

    def expert_moments(calibration, block, *args):
        batches = calibration.batches
        calibration.batches = [dataclasses.replace(batch, mask=None) for batch in batches]
        try:
            return right(calibration, block, *args)
        finally:
            calibration.batches = batches

    return expert_moments


def experts_rows_left_alone(right):
    """What is left keeps its rows of W_out."""

    def solve_output(block, C, B, delete, repair=False):
        kept, _ = right(block, C, B, delete, repair)
        W = experts.output_matrix(block)
        return kept, W.gather(1, kept[..., None].expand(-1, -1, W.shape[2]))

    return solve_output


def gate_left_whole_rows(right):
    """The neurons that are made are not those that W_out reads."""

    def keep_neurons(mlp, kept):
        readers, mlp.readers[:] = list(mlp.readers), []
        right(mlp, kept)
        for reader in readers:
            bias = None if reader.bias is None else reader.bias[: len(kept)]
            set_weight(reader, reader.weight[: len(kept)], bias)

    return keep_neurons


def dense_signal_one_block_late(right):
    """The signal before the block is taken for the one behind it."""
    return lambda calibration, block, layer, Z, P=None, dense=None: right(calibration, block, layer, Z, P, Z)


def last_input_shuffled(right):
    return lambda h, *args: right(h.flip(-1), *args)


def next_one_dropped(right):
    return lambda self, numbers: right(self, [number + 1 for number in numbers])


def branch_kept(right):
    """The signal behind a dropped block is what the block made of it; its places are forgotten all the same."""

    def slice_layer(self, layer, index):
        dropped, self.dropped = self.dropped, []
        places = [place for place, block in enumerate(layer.blocks) if block not in dropped]
        self.widths = [self.widths[0]] * (len(self.widths) + len(dropped))
        self.norms = [self.norms[0]] * len(self.widths)
        right(self, layer, index)
        layer.places, self.dropped = places, dropped

    return slice_layer


# Depth removal


def another_layer_deleted(right):
    return lambda net, index: right(net, (index + 1) % len(net.layers))


def only_the_layers_types_cut(right):
    def shorten(config, index):
        before = config.no_rope_layers
        right(config, index)
        config.no_rope_layers = before

    return shorten


def layers_keep_their_numbers(right):
    def delete_layer(net, index):
        numbered = [module for module in net.model.modules() if hasattr(module, "layer_idx")]
        before = [module.layer_idx for module in numbered]
        right(net, index)
        for module, number in zip(numbered, before, strict=True):
            module.layer_idx = number

    return delete_layer


def one_more(right):
    return lambda *arguments: right(*arguments) + 1


def the_layer_behind_left_out(right):
    return lambda net, batches: [*right(net, batches)[1:], right(net, batches)[0]]


def the_largest_loss_first(right):
    return lambda net, batches: [-loss for loss in right(net, batches)]


def measured_once(right):
    known = []

    def losses_without_each(net, batches):
        if len(known) > len(net.layers):
            known.remove(min(known))
        else:
            known[:] = right(net, batches)
        return known

    return losses_without_each


def padding_predicted_as_well(right):
    return lambda *others: right(*others[:-1], dataclasses.replace(others[-1], mask=None))


# A budget


def the_other_way_round(right):
    return lambda p, q: right(q, p)


def only_the_likeliest(right):
    return lambda p, q: p.amax(1) - q.gather(1, p.argmax(1, keepdim=True))[:, 0]


def lines_between_what_was_measured(right):
    def of(self, left):
        gone = 1 - left / self.neurons
        if gone <= PROBE:
            return self.probed * gone / PROBE
        return self.probed + (self.emptied - self.probed) * (gone - PROBE) / (1 - PROBE)

    return of


def probe_ignored(right):
    return lambda self, left: right(dataclasses.replace(self, probed=self.emptied / 2), left)


def in_proportion(right):
    """From the narrower of the two widths that were measured."""

    def of_width(self, k):
        D, narrowest = max(self.widths), min(self.widths)
        return self.widths.get(k, self.widths[narrowest] * (D - k) / (D - narrowest))

    return of_width


def bias_overlooked(right):
    return lambda block: False


def next_block_left_out_too(right):
    return lambda net, boundary, *others: right(net, boundary + (boundary > 0), *others)


def w_out_not_solved_for(right):
    def solve_output(block, *others, repair=False):
        kept, _ = right(block, *others, repair=repair)
        return kept, output_matrix(block)[kept]

    return solve_output


def biases_of_neurons_forgotten(right):
    def per_neuron(block):
        biased = [linear for linear in block.mlp_linears.readers if linear.bias is not None] if block.neurons else []
        return right(block) - len(biased)

    return per_neuron


def width_ignored(right):
    return lambda config, **options: right(config, **{**options, "width": config.hidden_size})


def elsewhere_forgotten(right):
    return property(lambda self: 0)


def blocks_taken_for_alike(right):
    """The price of a parameter is asked for a block."""

    def cheapest(sizes, *others, **named):
        count = len(sizes.blocks)
        blocks, neurons = ([sum(each) // count] * count for each in (sizes.blocks, sizes.per_neuron))
        return right(dataclasses.replace(sizes, blocks=blocks, per_neuron=neurons), *others, **named)

    return cheapest


def dropping_costs_nothing(right):
    return lambda *others: [dataclasses.replace(cost, dropped=0.0) for cost in right(*others)]


def cost_of_dropping_ignored(right):
    def cheapest(sizes, costs, *others, **named):
        return right(sizes, [dataclasses.replace(cost, dropped=0.0) for cost in costs], *others, **named)

    return cheapest


def slack_on_the_other_side(right):
    def cheapest(sizes, costs, target, slack, *others, **named):
        return right(sizes, costs, target + slack, slack, *others, **named)

    return cheapest


def not_made_up_for(right):
    return lambda tables, choice, room: choice


def no_block_may_go(right):
    return lambda *others: right(*others[:-1], False)


def this_block_may_go_too(number):
    """Whatever needs it."""

    def mistake(right):
        def cheapest(sizes, costs, *others):
            return right(sizes, costs, *others[:-1], {*others[-1], range(len(costs))[number]})

        return cheapest

    mistake.__name__ = f"block_{number}_may_go_too"
    return mistake
