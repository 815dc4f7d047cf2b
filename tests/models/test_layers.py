"""Whoever walks a decoder finds every part of it, mixers that nobody has thought of included."""

from dataclasses import dataclass, replace

import pytest

from fastllm.cli.summary import uses_of
from fastllm.errors import UnsupportedError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.models import parts, roles
from fastllm.models.bind import bind
from fastllm.models.families import family_of_hf
from fastllm.models.layers import (
    MLP,
    Attention,
    Branch,
    Layer,
    Linear,
    Mixer,
    Norm,
    Table,
    mixers,
    walk,
)
from tests.golden.cases import case, cases, materialize
from tests.step.models import runner_of


def decoder_of(name):
    config = case(name).config
    family = family_of_hf(config)
    return family.decoder(family.config_from_hf(config), "hf")


@dataclass(frozen=True, kw_only=True)
class Experts(Mixer):
    """Parts of its own, and other mixers in a tuple."""

    use = "experts"

    router: Linear
    experts: tuple[MLP, ...]
    shared: MLP | None = None

    @property
    def inputs(self):
        return (self.router, *(linear for expert in self.experts for linear in expert.inputs))


def with_experts(decoder):
    """A decoder whose last layer has experts beside its attention and MLP."""
    *layers, last = decoder.layers
    config = decoder.config
    mixer = Experts(
        router=Linear("layers.1.router", 2, config.hidden_size),
        experts=tuple(parts.mlp(config, number, gated=True) for number in (7, 8)),
    )
    norm = Norm("layers.1.experts_norm", "rms", config.hidden_size, 1e-6)
    branch = Branch(mixer=mixer, input_norm=norm)
    return replace(decoder, layers=(*layers, replace(last, branches=(*last.branches, branch))))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_part_is_walked_once_with_its_sizes(case):
    decoder = decoder_of(case.name)
    num_layers = len(decoder.layers)
    assert len(list(mixers(decoder, Attention))) == len(list(mixers(decoder, MLP))) == num_layers
    linears = list(walk(decoder, Linear))
    assert len(linears) == len(list(walk(decoder))) - len(list(walk(decoder, Norm))) - len(
        list(walk(decoder, Table))
    )
    weights = [linear.weight for linear in linears]
    assert len(set(weights)) == len(weights)
    gated = sum(mlp.gate is not None for mlp in mixers(decoder, MLP))
    projections = (decoder.project_in is not None) + (decoder.project_out is not None)
    assert len(weights) == 6 * num_layers + gated + projections + 1
    assert set(roles.multiplied(decoder)) == set(weights)
    # a product's columns are the rows of what it reads, whoever made the parts
    hidden = decoder.config.hidden_size
    for mixer in mixers(decoder):
        assert {linear.columns for linear in mixer.inputs} == {hidden}
    for attention in decoder.attentions:
        assert attention.o.columns == attention.q.rows
        assert attention.k.rows == attention.v.rows == attention.num_kv_heads * attention.head_dim
    for mlp in mixers(decoder, MLP):
        assert {linear.rows for linear in mlp.inputs} == {mlp.down.columns}
    assert {norm.size for norm in walk(decoder, Norm)} <= {hidden, decoder.config.head_dim}


def test_a_new_mixer_is_found_by_everybody():
    decoder = with_experts(decoder_of("llama"))
    new = {"layers.1.router": (2, 48)}
    for number in (7, 8):
        for part in ("gate", "up"):
            new[f"layers.{number}.mlp.{part}_proj"] = (80, 48)
        new[f"layers.{number}.mlp.down_proj"] = (48, 80)
    found = roles.matrices(decoder)
    assert {role: shape for role, shape in found.items() if role in new} == new
    assert set(new) <= set(roles.multiplied(decoder))
    assert roles.vectors(decoder)["layers.1.experts_norm"] == 48
    uses = uses_of(decoder)
    assert {uses[role] for role in new} == {"experts"}
    assert uses["layers.1.mlp.up_proj"] == "mlp"
    # its inner MLPs belong to it
    assert len(list(mixers(decoder, MLP))) == 2
    assert [type(mixer) for mixer in mixers(decoder)][-1] is Experts
    assert len(decoder.attentions) == 2


def test_a_layer_without_attention_has_no_place_in_the_cache():
    decoder = decoder_of("llama")
    attention, mlp = decoder.layers[0].branches
    layers = (Layer(branches=(mlp,)), Layer(branches=(attention, mlp)))
    assert len(replace(decoder, layers=layers).attentions) == 1


def test_a_mixer_without_kernels_is_refused(tmp_path, monkeypatch):
    """Not computed without it: the program says what it lacks."""
    checkpoint = open_checkpoint(materialize(case("llama"), tmp_path))
    bound = bind(checkpoint)
    unknown = Experts(router=bound.decoder.attentions[0].q, experts=())
    layer = bound.decoder.layers[0]
    branches = (replace(layer.branches[0], mixer=unknown), layer.branches[1])
    bound.decoder = replace(
        bound.decoder, layers=(replace(layer, branches=branches), *bound.decoder.layers[1:])
    )
    monkeypatch.setattr("fastllm.step.runner.bind", lambda _: bound)
    with pytest.raises(UnsupportedError, match="'experts' have no kernels"):
        runner_of(checkpoint, n_threads=1)
