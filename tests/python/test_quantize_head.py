"""--quantize-head: the output head as bit planes, tied to the embedding before or not."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import anyprec
from anyprec import _core
from anyprec.calibrate import calibrate, sensitivities
from anyprec.calibration_plan import Plan
from anyprec.cli.app import app
from anyprec.linear import AnyPrecisionLinear
from anyprec.modules import ModuleSelectionError, select_linears
from anyprec.quantization import quantize
from anyprec.tying import tied_to_embedding, untied
from checkpoints import byte_tokenizer, linears_of, tiny_model
from test_calibrate import TOKENS


@pytest.fixture(scope="module")
def options(calibration):
    return {**calibration, "quantize_head": True}


@pytest.fixture(scope="module", params=["llama", "llama-tied", "opt", "gemma2"])
def made(request, options, tmp_path_factory):
    model = tiny_model(request.param)
    out = tmp_path_factory.mktemp("made") / "out"
    return model, out, quantize(model, out, tokenizer=byte_tokenizer(), **options)


def embedding_name(model):
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding)


class TestTheCheckpoint:
    def test_the_head_is_planes_and_the_embedding_is_as_it_was(self, made):
        model, out, summary = made
        assert _core.verify_checkpoint(out)["problems"] == []
        checkpoint = anyprec.Checkpoint(out)
        assert checkpoint.modules[-1] == ("lm_head", 320, 48)
        assert "lm_head.weight" not in checkpoint.tensor_names()
        embedding = f"{embedding_name(model)}.weight"
        stored = torch.from_numpy(checkpoint.data(embedding).view("f4").copy())
        assert torch.equal(stored, model.get_input_embeddings().weight.flatten())
        assert "and the output head" in str(summary.selection)

    def test_the_config_no_longer_ties(self, made):
        model, out, _ = made
        tied = bool(tied_to_embedding(model, ["lm_head"]))
        config = json.loads((out / "config.json").read_text())
        assert config.get("tie_word_embeddings", False) is False
        assert model.config.tie_word_embeddings is tied  # the live model's is untouched

    def test_sizes_count_it(self, made):
        _, out, summary = made
        names = [name for name, _, _ in anyprec.Checkpoint(out).modules]
        assert [linear.name for linear in summary.selection.linears] == names
        on_disk = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        assert 0 < on_disk - summary.total_bytes < 60_000  # headers
        assert summary.to_dict()["linears"][-1]["relative_errors"]["8"] < 1e-3

    def test_the_loaded_model_speaks_with_it(self, made, tmp_path):
        original, out, _ = made
        model = anyprec.AnyPrecisionForCausalLM.from_quantized(out)
        assert isinstance(model.get_output_embeddings(), AnyPrecisionLinear)
        ids = torch.arange(60, 100)[None]
        wanted = original(ids).logits
        off = [
            ((model(ids, precision=b).logits - wanted).norm() / wanted.norm()) for b in (2, 4, 8)
        ]
        assert off[0] > off[1] > off[2]
        assert off[2] < 0.02
        assert model.generate(ids, max_new_tokens=3, precision=4).shape[1] > ids.shape[1]

        logits = model(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, logits)
        model.save_pretrained(tmp_path / "again")
        again = anyprec.AnyPrecisionForCausalLM.from_quantized(tmp_path / "again")
        assert torch.equal(again(ids).logits, logits)


class TestCalibration:
    def test_of_a_tied_weight_only_the_heads_use_counts(self):
        tied, separate = tiny_model("llama-tied"), tiny_model("llama")
        separate.load_state_dict(tied.state_dict())
        found = sensitivities(tied, ["lm_head"], TOKENS)["lm_head"]
        wanted = sensitivities(separate, ["lm_head"], TOKENS)["lm_head"]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
        assert tied.lm_head.weight is tied.model.embed_tokens.weight

    @pytest.mark.parametrize("family", ["llama", "llama-tied", "opt", "gemma2"])
    def test_segments_give_the_sums_of_one_pass(self, family, tmp_path):
        model = tiny_model(family, num_hidden_layers=3)
        names = [*linears_of(model), "lm_head"]
        sums = []
        for plan in (None, Plan(((0, 1), (1, 2), (2, 3)), False, "memory", 0, 0)):
            found = {}
            calibrate(
                model,
                names,
                TOKENS,
                lambda name, s, found=found: found.update({name: s}),
                device=torch.device("cpu"),
                dtype=torch.bfloat16,
                hessians=True,
                plan=plan,
            )
            sums.append(found)
        assert set(sums[0]) == set(sums[1]) == set(names)
        for name in names:
            assert torch.equal(sums[0][name].sensitivities, sums[1][name].sensitivities)
            assert torch.equal(sums[0][name].hessian, sums[1][name].hessian)

    def test_untied_heads_share_memory_and_are_tied_again(self):
        model = tiny_model("llama-tied")
        weight = model.model.embed_tokens.weight
        with untied(model, ["lm_head", "model.layers.0.mlp.up_proj"]):
            assert model.lm_head.weight is not weight
            assert model.lm_head.weight.data_ptr() == weight.data_ptr()
        assert model.lm_head.weight is weight


class TestSelection:
    def test_it_is_chosen_beside_patterns(self):
        selection = select_linears(tiny_model("llama-tied"), ["*.0.mlp.up_proj"], head=True)
        names = [linear.name for linear in selection.linears]
        assert names == ["model.layers.0.mlp.up_proj", "lm_head"]
        assert selection.origin == "patterns and the output head"

    def test_a_tied_head_chosen_by_pattern_alone_is_refused_with_the_way(self):
        with pytest.raises(ModuleSelectionError, match=r"tied to the embedding.*--quantize-head"):
            select_linears(tiny_model("llama-tied"), ["lm_head"])

    @pytest.mark.parametrize(
        ("head", "message"),
        [(None, "output head is not known"), (nn.Identity(), "a Identity, wanted a linear layer")],
    )
    def test_a_head_that_is_no_linear_is_refused(self, head, message):
        model = tiny_model("llama")
        model.get_output_embeddings = lambda: head
        with pytest.raises(ModuleSelectionError, match=message):
            select_linears(model, head=True)


def test_the_command_line_offers_it(tiny_source, tmp_path):
    report = tmp_path / "report.json"
    arguments = ["quantize", tiny_source, tmp_path / "out", "--dry-run", "--json", report]
    sizes = []
    for extra in ([], ["--quantize-head"]):
        result = CliRunner().invoke(app, [*map(str, arguments), *extra])
        assert result.exit_code == 0, result.output
        sizes.append(json.loads(report.read_text()))
    without, with_head = sizes
    assert [linear["name"] for linear in with_head["linears"]][-1] == "lm_head"
    # The embedding stays, so that what is stored grows by the head's planes and tables.
    assert with_head["base_bytes"] == without["base_bytes"]
    assert with_head["precisions"][0]["bytes"] > without["precisions"][0]["bytes"]
