"""Checkpoints with codebooks that are not full tables: made, counted, loaded and run."""

import itertools
from dataclasses import replace

import pytest
import torch

from anyprec import _core, quantization
from anyprec.calibrate import Sums
from anyprec.hessian_fit import fit_to_hessian, hessian_for
from anyprec.model import AnyPrecisionForCausalLM
from anyprec.modules import Linear
from anyprec.options import Options, QuantizeError, classes
from anyprec.quantization import quantize
from anyprec.recipes import Binary, Descent, Recipe
from anyprec.sizes import precision_sizes

BITS = tuple(range(2, 7))
JOINT = Recipe("joint", refit=True, descent=Descent({2: 1.0, 3: 1.0, 4: 1.0}, 1, 1))
CODEBOOKS = {
    "hybrid": ({"codebook": "hybrid"}, (4, "io")),
    "hybrid of 3 bits": ({"codebook": "hybrid", "lut_bits": 3, "cell_groups": "sym"}, (3, "sym")),
    "groups": ({"codebook": "hybrid", "lut_bits": 2, "group_size": 32}, (2, "io")),
    "bcq": ({"codebook": "bcq"}, (0, "one")),
    "bcq by groups": ({"codebook": "bcq", "group_size": 32}, (0, "one")),
}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("hybrid", "fast"),
        ("bcq", "fast"),
        ("bcq by groups", "fast"),
        *((name, JOINT) for name in CODEBOOKS),
    ],
    ids=str,
)
def test_a_checkpoint_has_the_codebooks_asked_for(name, recipe, tiny_source, text_file, tmp_path):
    options, form = CODEBOOKS[name]
    summary = quantize(
        tiny_source,
        tmp_path / "out",
        dataset=str(text_file),
        num_examples=3,
        seq_len=32,
        device="cpu",
        precisions=BITS,
        recipe=recipe,
        **options,
    )
    checkpoint = _core.Checkpoint(str(tmp_path / "out"))
    assert (checkpoint.codebook["lut_bits"], checkpoint.codebook["cell_groups"]) == form
    for size in summary.sizes:
        stored = sum(
            checkpoint.data(f"{linear.name}.{kind}.{size.precision}").nbytes
            for linear in summary.selection.linears
            for kind in ("lut", "alpha")
            if f"{linear.name}.{kind}.{size.precision}" in checkpoint
        )
        assert size.lut_bytes == stored
    for result in summary.results:
        relative = [result.relative_error(b) for b in BITS]
        assert all(b < a for a, b in itertools.pairwise(relative))
    model = AnyPrecisionForCausalLM.from_quantized(tmp_path / "out", device="cpu")
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        for b in BITS:
            assert torch.isfinite(model(tokens, precision=b).logits).all()


@pytest.mark.parametrize("name", ["bcq", "bcq by groups"])
@pytest.mark.parametrize("start", ["range", "greedy"])
def test_binary_coding_interrupted_on_other_threads_ends_with_the_same_bytes(
    name, start, tiny_source, text_file, tmp_path, monkeypatch
):
    def request(out, threads):
        recipe = replace(JOINT, binary=Binary(start))
        settings = {"dataset": str(text_file), "num_examples": 3, "seq_len": 32, "device": "cpu"}
        settings |= {"precisions": BITS, "recipe": recipe, "threads": threads}
        quantize(tiny_source, out, **settings, **CODEBOOKS[name][0])
        return {file.name: file.read_bytes() for file in sorted(out.iterdir())}

    whole = request(tmp_path / "whole", 1)
    real, fitted = quantization.fit_to_hessian, []

    def stop_at_the_third(*args):
        fitted.append(args)
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(quantization, "fit_to_hessian", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        request(tmp_path / "out", 2)
    assert request(tmp_path / "out", 2) == whole
    assert len(fitted) == 3 + 12  # two of the 14 linears were done


def test_the_published_way_leaves_other_codes():
    """Recipes' metric and start reach the fit."""
    torch.manual_seed(0)
    weight, sums = torch.randn(8, 96), Sums(torch.rand(8, 96), torch.diag(torch.rand(96)))
    found = {}
    for metric, start in itertools.product(("guided", "fisher", "plain"), ("range", "greedy")):
        recipe = replace(JOINT, metric=metric, binary=Binary(start))
        options = Options(codebook="bcq", group_size=32, precisions=BITS, recipe=recipe)
        hessian = hessian_for(sums, recipe)
        found[metric, start] = fit_to_hessian(weight, None, hessian, options, torch.device("cpu"))
    codes = {key: fit.codes.numpy().tobytes() for key, fit in found.items()}
    assert len(set(codes.values())) == len(codes)


def test_binary_coding_begins_with_codes_of_its_own_and_clusters_of_every_seed(
    tiny_source, text_file, tmp_path, monkeypatch
):
    calls, fit = [], torch.ops.anyprec.fit

    def watched(*args):
        calls.append(args)
        return fit(*args)

    monkeypatch.setattr(torch.ops.anyprec, "fit", watched)

    def starts(name, **request):
        calls.clear()
        settings = {"dataset": str(text_file), "num_examples": 3, "seq_len": 32, "device": "cpu"}
        quantize(
            tiny_source, tmp_path / name, group_size=32, precisions=BITS, **settings, **request
        )
        return list(calls)

    descent = Descent({2: 1.0, 3: 0.5}, 2, 1, seeds=(2, 3, 8))
    found = starts("bcq", codebook="bcq", recipe=replace(JOINT, binary=Binary("range", descent)))
    trees = [starts(f"lut {b}", seed_precision=b, recipe=JOINT) for b in (2, 3)]
    for (weight, codes, hessian, *_, taus, rounds, _), two, three in zip(
        found, *trees, strict=True
    ):
        curvature = hessian.diagonal().contiguous()
        own = torch.ops.anyprec.binary_codes(weight, curvature, 32, list(BITS), "range")
        assert torch.equal(codes, torch.cat([own[None], two[1], three[1]]))
        assert (taus, rounds) == ([1.0, 0.5, 0.0, 0.0, 0.0], 2)
        assert two[-3] == [1.0, 1.0, 1.0, 0.0, 0.0]  # other codebooks have the recipe's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook": "huffman"}, "codebook 'huffman': wanted one of lut, hybrid, bcq"),
        ({"lut_bits": 3}, "only a hybrid has them"),
        ({"codebook": "bcq", "cell_groups": "io"}, "only a hybrid has them"),
        ({"codebook": "hybrid", "lut_bits": 8}, "lut_bits 8: wanted 1 to 7"),
        ({"codebook": "hybrid", "cell_groups": "two"}, "cell_groups 'two': wanted one of one, io"),
        ({"codebook": "hybrid", "lut_bits": 3, "cell_groups": "qu"}, "'qu': wanted lut_bits 4"),
    ],
)
def test_a_form_that_is_not_there_is_named(options, message):
    with pytest.raises(QuantizeError, match=message):
        Options(**options)


@pytest.mark.parametrize(("form", "entries"), [((8, "one"), 256), ((4, "io"), 24), ((0, "one"), 9)])
def test_sizes_count_tables_and_alphas(form, entries):
    linear = Linear("a", 10, 64)
    assert precision_sizes([linear], [8], 0, form)[0].lut_bytes == 10 * entries * 2
    assert classes(3, "sym") == 4
