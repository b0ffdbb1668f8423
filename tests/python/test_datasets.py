"""Calibration text: where it comes from, and which windows of it are taken."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import anyprec.datasets
from anyprec.datasets import DatasetError, calibration_tokens, documents
from checkpoints import EOS, byte_tokenizer


def ids_of(text):
    return byte_tokenizer()(text, add_special_tokens=False).input_ids


class BosTokenizer:
    """Starts every text with token 256, as Llama's and Gemma's tokenizers do."""

    bos_token_id = 256
    eos_token_id = EOS

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return SimpleNamespace(input_ids=[256] * add_special_tokens + ids_of(text))


def test_windows_are_pieces_of_the_text_that_do_not_overlap(text_file):
    tokens = calibration_tokens(byte_tokenizer(), str(text_file), num_examples=9, seq_len=100)
    text = ids_of(text_file.read_text())
    starts = []
    for row in tokens.ids:
        found = [s for s in range(0, len(text) - 99, 100) if text[s : s + 100] == row.tolist()]
        assert len(found) == 1
        starts += found
    assert tokens.ids.dtype == np.int64
    assert starts == sorted(set(starts))


def test_without_random_state_the_first_windows_are_taken(text_file):
    tokens = calibration_tokens(byte_tokenizer(), str(text_file), num_examples=9, seq_len=100)
    assert tokens.ids.ravel().tolist() == ids_of(text_file.read_text())[:900]


def test_the_choice_of_windows_depends_on_random_state_alone(text_file):
    def take(state, examples=9):
        return calibration_tokens(
            byte_tokenizer(),
            str(text_file),
            num_examples=examples,
            seq_len=50,
            random_state=state,
        )

    assert np.array_equal(take(0).ids, take(0).ids)
    assert not np.array_equal(take(0).ids, take(1).ids)
    assert take(0).sha256 == take(0).sha256 != take(1).sha256
    # More examples are the same ones and others.
    assert {row.tobytes() for row in take(0).ids} < {row.tobytes() for row in take(0, 12).ids}


def test_the_choice_of_windows_never_changes():
    class Counter:
        bos_token_id = eos_token_id = None

        def __call__(self, text, add_special_tokens=True, verbose=True):
            return SimpleNamespace(input_ids=list(range(len(text))))

    path = Path(anyprec.datasets.__file__)
    tokens = calibration_tokens(Counter(), str(path), num_examples=4, seq_len=2, random_state=5)
    ranked = sorted(range(len(path.read_text()) // 2), key=lambda i: _sha(f"5:{i}"))[:4]
    assert tokens.ids[:, 0].tolist() == sorted(2 * i for i in ranked)


def _sha(text):
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_a_bos_token_starts_every_window(text_file):
    tokens = calibration_tokens(BosTokenizer(), str(text_file), num_examples=5, seq_len=40)
    assert tokens.ids.shape == (5, 40)
    assert (tokens.ids[:, 0] == 256).all()
    assert not (tokens.ids[:, 1:] == 256).any()


def test_documents_are_joined_by_the_end_of_text_token(tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "abc"}\n\n{"text": "defg"}\n')
    tokens = calibration_tokens(byte_tokenizer(), str(path), num_examples=1, seq_len=8)
    assert tokens.ids[0].tolist() == [*ids_of("abc"), EOS, *ids_of("defg")]


def test_too_little_text_says_how_much_there_is(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 95)
    with pytest.raises(
        DatasetError, match=r"short.txt: 95 tokens are 9 windows of 10 .* wanted 12"
    ):
        calibration_tokens(byte_tokenizer(), str(path), num_examples=12, seq_len=10)


def test_a_folder_is_its_text_files_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first"}))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("third")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    name, texts = documents(str(tmp_path))
    assert name == tmp_path.name
    assert list(texts) == ["first", "second", "third"]


def test_line_ends_are_kept_as_they_are(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"a\r\nb\n")
    assert list(documents(str(path))[1]) == ["a\nb\n"]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"text": 3}', "bad.jsonl:2: wanted an object"), ("{", "bad.jsonl:2: not JSON")],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(DatasetError, match=message):
        list(documents(str(path))[1])


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"binary\.txt: not UTF-8"):
        list(documents(str(path))[1])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DatasetError, match=r"'nowhere' is neither .* wikitext2, ptb, pileval"):
        documents("nowhere")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no \.txt or \.jsonl"):
        documents(str(tmp_path))


def test_a_hub_dataset_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"'c4' needs the package `datasets`"):
        next(documents("c4")[1])


def test_a_hub_dataset_that_cannot_be_reached_names_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(DatasetError, match=r"'pileval' could not be read .* no route to host"):
        next(documents("pileval")[1])


def test_hub_rows_are_documents_or_lines_of_one(monkeypatch):
    rows = {
        "allenai/c4": [{"text": "one"}, {"text": "two"}],
        "Salesforce/wikitext": [{"text": "= T ="}, {"text": "line"}],
        "parquet": [{"sentence": "a b"}, {"sentence": "c"}],
    }
    calls = []

    def load_dataset(path, config, *, data_files, split, streaming):
        calls.append((path, config, data_files, split))
        return rows[path]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(documents("c4")[1]) == ["one", "two"]
    assert list(documents("wikitext2", split="test")[1]) == ["= T =\n\nline"]
    assert list(documents("ptb")[1]) == ["a b c"]
    assert calls[0][2] == {"train": "en/c4-train.00000-of-01024.json.gz"}
    assert calls[1] == ("Salesforce/wikitext", "wikitext-2-raw-v1", None, "test")


def test_of_a_hub_dataset_only_the_beginning_is_read(monkeypatch):
    read = []

    def rows():
        for i in range(10_000):
            read.append(i)
            yield {"text": "x" * 100}

    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *a, **k: rows())
    )
    calibration_tokens(byte_tokenizer(), "c4", num_examples=2, seq_len=100)
    assert len(read) == 16  # eight windows for each example


def test_the_packaged_text_is_enough_for_the_defaults():
    name, texts = documents("builtin")
    text = "".join(texts)
    # English takes at most 5 bytes a token in the vocabularies of today's models.
    assert name == "builtin"
    assert len(text.encode()) / 5 > 128 * 512
    notice = Path(anyprec.datasets.__file__).parent / "data" / "README.md"
    assert "ODC-BY" in notice.read_text()


@pytest.mark.slow
def test_the_packaged_text_gives_a_real_tokenizer_128_windows(smollm2_gguf):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    tokens = calibration_tokens(tokenizer, num_examples=128)
    assert tokens.ids.shape == (128, 512)
