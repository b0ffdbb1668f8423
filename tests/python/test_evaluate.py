"""Perplexity, divergence and decode speed against plain computations."""

import math

import numpy as np
import pytest
import torch

from anyprec import AnyPrecisionForCausalLM
from anyprec.datasets import DatasetError
from anyprec.evaluate import Score, evaluate, load_text, mean_and_stderr, windows
from anyprec.speed import TokenClock, decode_speed
from checkpoints import VOCABULARY, byte_tokenizer, tiny_model, write_checkpoint

TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("evaluate") / "out", tiny_model("llama"))


@pytest.fixture(scope="module")
def model(written):
    return AnyPrecisionForCausalLM.from_quantized(written.path, precisions=[2, 3, 8])


@pytest.fixture(scope="module")
def tokens():
    return windows(byte_tokenizer(), TEXT, seq_len=60, max_windows=5)


def test_windows_are_the_text_in_order_without_special_tokens():
    tokenizer = byte_tokenizer()
    found = windows(tokenizer, TEXT, seq_len=50)
    assert found.shape == (len(TEXT) // 50, 50)
    assert tokenizer.decode(found.flatten()) == TEXT[: found.numel()]
    assert torch.equal(windows(tokenizer, TEXT, 50, max_windows=3), found[:3])


def test_text_shorter_than_a_window_is_an_error():
    with pytest.raises(DatasetError, match="3 tokens, fewer than one window of 50"):
        windows(byte_tokenizer(), "abc", 50)


def test_text_file_is_taken_as_it_is_but_for_its_line_ends(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b" \n a\r\n\r\nb\rc  \n\n")
    assert load_text(str(file)) == " \n a\n\nb\nc  \n\n"


def _plain_scores(model, tokens):
    """Losses of each window by the model itself, and log-probabilities in double precision."""
    losses, distributions = [], []
    with torch.no_grad():
        for window in tokens:
            losses.append(model(window[None], labels=window[None]).loss.item())
            distributions.append(model(window[None]).logits[0, :-1].double().log_softmax(-1))
    return np.array(losses), distributions


def test_perplexity_and_its_error_are_those_of_the_models_own_loss(model, written, tokens):
    result = evaluate(model, tokens, [3, 8], written.original)
    for score, dense in zip(
        [*result.results, result.original],
        [written.dense_model(3), written.dense_model(8), written.original],
        strict=True,
    ):
        losses, _ = _plain_scores(dense, tokens)
        perplexity = math.exp(losses.mean())
        assert score.perplexity == pytest.approx(perplexity, rel=2e-3)
        error = perplexity * losses.std(ddof=1) / math.sqrt(len(losses))
        assert score.stderr == pytest.approx(error, rel=0.02)
    assert (result.windows, result.seq_len) == tuple(tokens.shape)


def test_divergence_and_agreement_are_those_of_the_distributions(model, written, tokens):
    result = evaluate(model, tokens, [2, 8], written.original)
    _, original = _plain_scores(written.original, tokens)
    for score in result.results:
        _, quantized = _plain_scores(written.dense_model(score.precision), tokens)
        pairs = list(zip(original, quantized, strict=True))
        kl = np.array([(p.exp() * (p - q)).sum(-1).mean().item() for p, q in pairs])
        top1 = np.mean([(p.argmax(-1) == q.argmax(-1)).double().mean().item() for p, q in pairs])
        assert score.kl == pytest.approx(kl.mean(), rel=5e-3)
        assert score.kl_stderr == pytest.approx(kl.std(ddof=1) / math.sqrt(len(kl)), rel=0.05)
        assert score.top1 == pytest.approx(top1, abs=0.01)
    low, high = result.results
    assert low.kl > 10 * high.kl
    assert low.top1 < high.top1
    assert result.original.kl is None


def test_original_agrees_with_itself(written, tokens):
    class Itself(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, precision, **kwargs):
            return written.original(**kwargs)

    score = evaluate(Itself(), tokens, [8], written.original).results[0]
    assert score.kl == 0
    assert score.top1 == 1


def assert_same_scores(found, wanted, rel):
    pairs = zip([*found.results, found.original], [*wanted.results, wanted.original], strict=True)
    for one, other in pairs:
        numbers, wanted_numbers = one.to_dict(), other.to_dict()
        assert numbers == pytest.approx(wanted_numbers, rel=rel, abs=1e-5)


def test_scores_do_not_depend_on_how_many_windows_a_pass_takes(model, written, tokens, monkeypatch):
    wanted = evaluate(model, tokens, [2, 8], written.original)
    monkeypatch.setattr("anyprec.evaluate._windows_in_a_pass", lambda *_: 2)
    steps = []
    found = evaluate(model, tokens, [2, 8], written.original, on_step=lambda: steps.append(1))
    assert_same_scores(found, wanted, 1e-3)
    assert len(steps) == 3 * len(tokens)


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_a_cpu(model, written, tokens):
    wanted = evaluate(model, tokens, [2, 8], written.original)
    on_gpu = AnyPrecisionForCausalLM.from_quantized(
        written.path, precisions=[2, 8], device="cuda", dtype="float32"
    )
    original = tiny_model("llama").to("cuda")
    assert_same_scores(evaluate(on_gpu, tokens, [2, 8], original), wanted, 2e-2)


def test_single_window_has_no_error_bar(model, tokens):
    result = evaluate(model, tokens[:1], [8])
    assert result.results[0].stderr is None
    assert result.results[0].to_dict().keys() == {"precision", "perplexity", "stderr"}
    assert result.original is None
    assert "original" not in result.to_dict()


def test_every_window_of_every_model_is_a_step(model, written, tokens):
    steps = []
    evaluate(model, tokens, [2, 3], written.original, on_step=lambda: steps.append(1))
    assert len(steps) == 3 * len(tokens)


def test_a_model_that_predicts_nothing_has_the_vocabulary_as_perplexity(tokens):
    class Uniform(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, use_cache):
            logits = torch.zeros(*input_ids.shape, VOCABULARY)
            return type("Output", (), {"logits": logits})

    score = evaluate(None, tokens, (), Uniform()).original
    assert score.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert score.stderr == pytest.approx(0, abs=1e-3)


def test_figures_that_overflow_are_null_in_json():
    assert Score(2, math.inf, None).to_dict() == {
        "precision": 2,
        "perplexity": None,
        "stderr": None,
    }


def test_mean_and_standard_error():
    assert mean_and_stderr([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(math.sqrt(5 / 3) / 2))
    assert mean_and_stderr([2.0]) == (2.0, None)


def test_decode_speed_counts_the_tokens_that_were_generated(model):
    calls = []
    generate = model.generate
    # It must ask for nothing that keeps the native engine away.
    model.generate = lambda **kwargs: calls.append(kwargs) or generate(engine="native", **kwargs)
    try:
        speed = decode_speed(model, precision=3, new_tokens=6, repetitions=2)
    finally:
        del model.generate
    assert [call["max_new_tokens"] for call in calls] == [4, 6, 6]
    assert {call["precision"] for call in calls} == {3}
    assert [len(call["streamer"].times) for call in calls] == [4, 6, 6]
    wanted = sorted(call["streamer"].tokens_per_second for call in calls[1:])
    assert list(speed.repetitions) == wanted
    assert speed.tokens_per_second in wanted


def test_decode_speed_of_a_model_without_precisions(written):
    assert decode_speed(written.original, new_tokens=3, repetitions=1).tokens_per_second > 0
    with pytest.raises(ValueError, match="new_tokens 1"):
        decode_speed(written.original, new_tokens=1)


def test_clock_leaves_the_prompt_and_the_first_token_out():
    clock = TokenClock()
    clock.put(torch.zeros(1, 5))
    assert clock.tokens_per_second is None
    for _ in range(3):
        clock.put(torch.zeros(1))
    clock.times = [10.0, 10.5, 11.0]
    assert clock.tokens_per_second == 2.0
