"""Documents are what the tokenizer makes of the rows, and nothing that is left out or changed goes unsaid."""

import copy
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest

import moe_probe
from moe_probe.errors import NotFitting, OutOfRange, WrongType
from moe_probe.texts.reading import read_rows
from moe_probe.texts.tokenizing import check_fits, make_corpus

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def model():
    return moe_probe.load("ckpt/tiny-mixtral")


def ids(model, texts, **options):
    return [document.ids for document in make_corpus(model, texts, **options).documents]


def test_a_text_that_begins_with_its_special_tokens_gets_no_more_and_keeps_its_end(model):
    tokenizer, text = model.tokenizer, "def area(r):\n"
    plain = tuple(tokenizer(f"<s>{text}", add_special_tokens=False)["input_ids"])
    assert plain[0] == tokenizer.bos_token_id
    assert ids(model, [f"<s>{text}"]) == ids(model, [text], add_special_tokens=True) == [plain]
    assert ids(model, [text], add_special_tokens=False) == [plain[1:]]
    assert ids(model, [f"<s>{text}"], add_special_tokens=True) == [(plain[0], *plain)]
    assert ids(model, [text]) == [tuple(tokenizer(text.strip())["input_ids"])]
    assert ids(model, [text], strip=False) == [plain]


def test_texts_of_both_kinds_stand_in_their_order(model):
    texts = ["one", "<s>two", [5, 6], " three"]
    corpus = make_corpus(model, texts)
    assert [document.number for document in corpus.documents] == [0, 1, 2, 3]
    for document, text in zip(corpus.documents, texts, strict=True):
        if isinstance(text, str):
            assert document.text == text
            pieces = "".join(text[start:end] for start, end in document.spans)
            assert pieces.replace(" ", "") == text.replace(" ", "").removeprefix("<s>" if pieces[:1] != "<" else "")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_counts(model, side):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    texts = ["a short text", "a text that is quite a bit longer than the other"]
    for tensors in (None, "pt", "np"):
        assert ids(model, tokenizer(texts, padding=True, return_tensors=tensors)) == ids(model, texts)


def test_a_chat_goes_through_the_tokenizers_template(model):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    with pytest.raises(NotFitting, match="Row 0 is a chat, but the tokenizer of tiny-mixtral has no chat template"):
        make_corpus(model, [messages])
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = TEMPLATE
    chatty = moe_probe.load("ckpt/tiny-mixtral", tokenizer=tokenizer)
    expected = tuple(tokenizer.apply_chat_template(messages)["input_ids"])
    assert ids(chatty, [messages]) == ids(chatty, messages) == [expected]
    assert make_corpus(chatty, [messages]).documents[0].text == "<s>user: Hello\n<s>assistant: Yes?\n"
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(NotFitting, match=r"refuses row 0 \(roles must alternate\); correct its messages"):
        make_corpus(chatty, [messages])


def test_rows_are_read_once_for_several_models(model):
    rows = read_rows(text for text in ["one text", "another"])
    assert ids(model, rows) == ids(model, rows) == ids(model, ["one text", "another"])


def test_documents_keep_the_numbers_of_their_rows(model):
    with pytest.warns(UserWarning, match="2 of 4 rows are blank"):
        corpus = make_corpus(model, ["", "one", " ", "two"], labels=list("abcd"))
    assert [(document.number, document.label) for document in corpus.documents] == [(1, "b"), (3, "d")]


def test_characters_that_no_tokenizer_takes_are_replaced_and_it_is_said(model):
    with pytest.warns(UserWarning, match=r"2 of 3 texts hold NUL or half characters \(the first is row 0\)"):
        corpus = make_corpus(model, ["a\0b", "fine", "\ud800c"])
    assert [document.text for document in corpus.documents] == ["a\ufffdb", "fine", "\ufffdc"]


@pytest.mark.parametrize(
    ("length", "error"), [(0, OutOfRange), (-1, OutOfRange), (True, WrongType), (2.0, WrongType), ("5", WrongType)]
)
def test_a_length_that_is_none_is_refused(model, length, error):
    with pytest.raises(error, match="max_length is"):
        make_corpus(model, ["a text"], max_length=length)


def test_lengths_cut_documents_at_their_end(model):
    whole = ids(model, ["a text of some words"])[0]
    for length in (1, np.int64(3), 10_000):
        assert ids(model, ["a text of some words"], max_length=length) == [whole[:length]]


def test_documents_beyond_the_window_are_said(model):
    with pytest.warns(UserWarning, match="1 of 2 documents are longer than the 512 tokens of tiny-mixtral; 88 tokens"):
        assert list(map(len, ids(model, [[5] * 600, [6]]))) == [512, 1]
    with pytest.warns(UserWarning, match="longer than the 512 tokens that tiny-mixtral was made for; max_length=550"):
        assert list(map(len, ids(model, [[5] * 600], max_length=550))) == [550]


def test_a_long_text_is_said_once_and_by_us(monkeypatch):
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", Mock(side_effect=AssertionError))
    with pytest.warns(UserWarning, match="longer than the 512 tokens"):
        ids(moe_probe.load("ckpt/tiny-mixtral"), ["word " * 1000])


def test_token_ids_are_those_of_the_vocabulary(model):
    words = "Document 0 has the token id 512; tiny-mixtral has the ids 0 to 511"
    with pytest.raises(OutOfRange, match=words):
        make_corpus(model, [[3, 512]])
    corpus = make_corpus(model, [[3, 511]])
    assert make_corpus(model, corpus) is corpus
    document = replace(corpus.documents[0], ids=(512,))
    with pytest.raises(OutOfRange, match=words):
        make_corpus(model, replace(corpus, documents=(document,)))


def test_options_of_texts_have_no_effect_on_a_corpus_and_are_refused(model):
    corpus = make_corpus(model, ["a text"])
    for options in ({"labels": ["a"]}, {"max_length": 3}, {"column": "text"}, {"add_special_tokens": True}):
        with pytest.raises(NotFitting, match=f"a corpus already, so {next(iter(options))}= has no effect"):
            make_corpus(model, corpus, **options)


def test_attention_that_does_not_fit_is_said_before_the_pass(model, monkeypatch):
    corpus = make_corpus(model, [[5] * 500, [6] * 3])
    check_fits(corpus, model)
    assert model.config.num_attention_heads == 4
    free = psutil.virtual_memory()._replace(available=4 * 2 * 4 * 250**2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    words = (
        r"Document 0 has 500 tokens, whose attention needs 8.0 MB \(1 at a time\); 2.0 MB are free; pass max_length=250"
    )
    with pytest.raises(NotFitting, match=words):
        check_fits(corpus, model, batch_tokens=1)
    check_fits(make_corpus(model, [[5] * 250]), model)
    with pytest.raises(NotFitting, match=r"\(5 at a time\); .* pass a smaller batch_tokens="):
        check_fits(make_corpus(model, [[5] * 200] * 5), model)
    live = copy.deepcopy(model.module)
    live.config._attn_implementation = "sdpa"
    check_fits(corpus, moe_probe.load(live))
