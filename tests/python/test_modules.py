"""Which linear layers are chosen: families' files against the search, patterns, refusals."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from anyprec.modules import (
    ModuleSelectionError,
    config_directories,
    family_patterns,
    select_linears,
)
from checkpoints import linears_of, tiny_model

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES = sorted(
    path.stem
    for folder in config_directories()
    if folder.is_dir()
    for path in folder.glob("*.json")
)


def tiny_of(model_type):
    """A tiny model of a family on the meta device: names and shapes."""
    if model_type == "gemma3":
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 4, "image_size": 28, "patch_size": 14}
        config = AutoConfig.for_model(
            "gemma3", text_config=TINY, vision_config=vision, mm_tokens_per_image=4
        )
    else:
        sizes = dict(TINY)
        if model_type == "opt":
            sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
        if model_type in ("phi3", "smollm3"):
            sizes |= {"pad_token_id": 0}
        config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_familys_file_names_what_the_search_finds(model_type, monkeypatch):
    model = tiny_of(model_type)
    listed = select_linears(model)
    assert listed.origin == f"configs/{model_type}.json"
    monkeypatch.setattr("anyprec.modules.family_patterns", lambda model_type: None)
    found = select_linears(model)
    assert found.origin == "automatic"
    assert found.linears == listed.linears
    # Every pattern of the file is one of this family's layers, in each of the two blocks.
    assert len(listed.linears) == 2 * len(listed.patterns)


def test_the_families_that_must_be_there_are():
    wanted = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "opt"}
    assert wanted <= set(FAMILIES)


def test_chosen_layers_have_their_shapes_in_the_models_order():
    model = tiny_model("llama")
    selection = select_linears(model)
    assert [linear.name for linear in selection.linears] == list(linears_of(model))
    for linear in selection.linears:
        weight = model.get_submodule(linear.name).weight
        assert (linear.out_features, linear.in_features) == tuple(weight.shape)


def test_heads_embeddings_routers_and_towers_are_never_found():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(8, 8)
            self.gate = nn.Linear(8, 4)
            self.shared_expert_gate = nn.Linear(8, 1)
            self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(16, 8)
            self.vision_tower = nn.ModuleList([nn.Linear(99, 99) for _ in range(9)])
            self.blocks = nn.ModuleList([Block(), Block()])
            self.lm_head = nn.Linear(8, 16)

    names = [linear.name for linear in select_linears(Model()).linears]
    assert names == [f"blocks.{i}.{n}" for i in (0, 1) for n in ("up", "experts.0", "experts.1")]


def test_a_layer_under_two_names_is_chosen_under_both():
    model = nn.Module()
    shared = nn.Linear(4, 4)
    model.blocks = nn.ModuleList([shared, shared])
    assert [linear.name for linear in select_linears(model).linears] == ["blocks.0", "blocks.1"]


def test_patterns_choose_what_they_match():
    selection = select_linears(tiny_model("llama"), ["*.1.mlp.*", "*.0.self_attn.q_proj"])
    assert [linear.name for linear in selection.linears] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert selection.origin == "patterns"


def test_a_pattern_that_matches_nothing_is_an_error_with_examples():
    with pytest.raises(ModuleSelectionError, match=r"'\*\.wq' matches no .*self_attn\.q_proj"):
        select_linears(tiny_model("llama"), ["*.mlp.*", "*.wq"])


def test_a_head_tied_to_the_embedding_is_refused():
    with pytest.raises(ModuleSelectionError, match="lm_head: its weight is tied"):
        select_linears(tiny_model("llama-tied"), ["lm_head"])
    assert select_linears(tiny_model("llama"), ["lm_head"]).linears[0].name == "lm_head"


def test_gpt2s_transposed_layers_are_refused_by_name():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32))
    with pytest.raises(ModuleSelectionError, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        select_linears(model)
    with pytest.raises(ModuleSelectionError, match=r"mlp\.c_fc is a Conv1D"):
        select_linears(model, ["*.mlp.c_fc"])


def test_a_model_without_blocks_says_so():
    with pytest.raises(ModuleSelectionError, match="has no list of decoder blocks"):
        select_linears(nn.Linear(2, 2))


def test_an_installed_family_file_comes_before_the_source_trees(tmp_path, monkeypatch):
    first, second = tmp_path / "package", tmp_path / "tree"
    for folder, pattern in ((first, "a.*"), (second, "b.*")):
        folder.mkdir()
        family = {"model_type": "toy", "linears": [pattern]}
        (folder / "toy.json").write_text(json.dumps(family))
    monkeypatch.setattr("anyprec.modules.config_directories", lambda: [first, second])
    assert family_patterns("toy") == ("a.*",)
    (first / "toy.json").unlink()
    assert family_patterns("toy") == ("b.*",)
    assert family_patterns("unknown") is None
    assert family_patterns("../toy") is None


def test_a_family_file_of_another_model_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "toy.json").write_text('{"model_type": "other", "linears": ["a"]}')
    monkeypatch.setattr("anyprec.modules.config_directories", lambda: [tmp_path])
    with pytest.raises(ModuleSelectionError, match=r"toy\.json: wanted"):
        family_patterns("toy")
