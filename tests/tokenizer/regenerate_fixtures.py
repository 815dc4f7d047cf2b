"""Write ``fixtures/``: small tokenizers as transformers saves them, and what it makes of texts.

    python -m tests.tokenizer.regenerate_fixtures [NAME ...]

once with transformers 4 and once with 5 installed (and sentencepiece, protobuf). Each writes the
folders that end in its number. ``expected.json`` beside a tokenizer holds texts, their ids with
special tokens found and with special tokens taken for text, and both decoded.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts
from tokenizers.processors import TemplateProcessing

from tests.tokenizer import tiny

FOLDER = Path(__file__).parent / "fixtures"
MAJOR = int(transformers.__version__.split(".")[0])
CORPUS = [*tiny.CORPUS, "<think> a tool_call b </think>", "MiXeD CaSe 2026-01-31T23:59 3.14 1e9"]
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace("{1,3}", "")
# Every combination that models have used, and some that nobody should.
FLAGGED = [
    AddedToken("<plain>", special=False, normalized=False),
    AddedToken("<norm>", special=False, normalized=True),
    AddedToken("<left>", special=True, lstrip=True, normalized=False),
    AddedToken("<right>", special=True, rstrip=True, normalized=False),
    AddedToken("<both>", special=False, lstrip=True, rstrip=True, normalized=False),
    AddedToken("<word>", special=False, single_word=True, normalized=False),
    AddedToken("word", special=False, single_word=True, normalized=False),
    AddedToken("<mask!>", special=True, lstrip=True, single_word=True, normalized=False),
]
TEXTS = [
    "", " ", "a", " a", "Hello, world!", "Why is the sky blue?", "  two  spaces  ",
    "tabs\t\tand\nlines\r\n\n  end\n", "it's we're I'LL don't", "1 12 123 1234 12345",
    "Größe naïve caf\u00e9 cafe\u0301", "Привет, мир! こんにちは 你好 안녕",
    "\U0001f999\U0001f680 \u200d", "def f(x):\n    return x['a']  # ok", "A \u2581 B\u2581\u2581C",
    "\u00a0nbsp\u3000wide",
]  # fmt: skip
AROUND = [
    "a{}b",
    "a {} b",
    "  {}\n{}",
    "{}",
    "{} {}",
    "\u00e9{}\u00e9",
    "_{}_",
    ".{}.",
    "\u3000{}\u00a0x",
]


def byte_level(split: Any, normalizer: Any = None, **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = cuts.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split_then_bytes(pattern: str) -> Any:
    isolated = cuts.Split(Regex(pattern), "isolated")
    return cuts.Sequence([isolated, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2() -> Any:
    tokenizer = byte_level(cuts.ByteLevel(add_prefix_space=False))
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    )


def smollm() -> Any:
    split = cuts.Sequence([cuts.Digits(individual_digits=True), cuts.ByteLevel(False)])
    tokenizer = byte_level(split)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}",
    )


def falcon() -> Any:
    split = cuts.Sequence(
        [
            cuts.Punctuation("contiguous"),
            cuts.ByteLevel(add_prefix_space=False),
            cuts.Digits(individual_digits=False),
            cuts.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    tokenizer = byte_level(split)
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


def llama3() -> Any:
    tokenizer = byte_level(split_then_bytes(CL100K), ignore_merges=True)
    begin = "<|begin_of_text|>"
    tokenizer.add_special_tokens(
        [begin, "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(3))]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=True,
    )


def qwen2() -> Any:
    tokenizer = byte_level(split_then_bytes(QWEN2), normalizers.NFC())
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(["<|endoftext|>", *marks])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=marks,
        add_bos_token=False,
    )


def sentencepiece_folder(add_dummy_prefix: bool, user_defined: str = "") -> str:
    folder = tempfile.mkdtemp()
    proto = tiny.spm_proto(add_dummy_prefix, user_defined)
    (Path(folder) / "tokenizer.model").write_bytes(proto)
    return folder


def llama2(legacy: bool, **more: Any) -> Any:
    path = sentencepiece_folder(True) + "/tokenizer.model"
    if MAJOR >= 5:  # which reads as not legacy whatever was saved
        return transformers.LlamaTokenizer.from_pretrained(Path(path).parent, **more)
    return transformers.LlamaTokenizerFast(path, legacy=legacy, **more)


def phi3() -> Any:
    tokenizer = llama2(True)
    marks = ["<|user|>", "<|assistant|>", "<|end|>"]
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    tokenizer.add_special_tokens({"eos_token": end, "pad_token": end})
    tokenizer.add_tokens(
        [AddedToken(t, special=True, rstrip=True, normalized=False) for t in marks]
    )
    return tokenizer


def gemma() -> Any:
    path = sentencepiece_folder(False, "<start_of_turn>,<end_of_turn>,\u2581\u2581,\n\n")
    if MAJOR >= 5:
        return transformers.GemmaTokenizer.from_pretrained(
            Path(path), bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>"
        )
    return transformers.GemmaTokenizerFast(
        f"{path}/tokenizer.model", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def unigram() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = cuts.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"
    )


def slow_llama2() -> Any:
    tokenizer = transformers.LlamaTokenizer(
        sentencepiece_folder(True) + "/tokenizer.model", add_eos_token=True, legacy=True
    )
    tokenizer.add_tokens(
        [AddedToken("<extra>", normalized=False), AddedToken("<|im_end|>", special=True)]
    )
    return tokenizer


def slow_opt() -> Any:
    source = byte_level(cuts.ByteLevel(add_prefix_space=False))
    source.add_special_tokens(["<pad>", "</s>"])
    folder = tempfile.mkdtemp()
    state = json.loads(source.to_str())["model"]
    vocab = source.get_vocab(with_added_tokens=True)
    Path(folder, "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(pair) for pair in state["merges"]]
    Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    return transformers.GPT2Tokenizer(
        f"{folder}/vocab.json",
        f"{folder}/merges.txt",
        pad_token="<pad>",
        add_bos_token=True,
        **names,
    )


def flagged(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        tokenizer = make()
        tokenizer.add_tokens(FLAGGED)
        return tokenizer

    return made


MAKERS: dict[str, Callable[[], Any]] = {
    "gpt2": flagged(gpt2),
    "smollm": smollm,
    "falcon": falcon,
    "llama3": llama3,
    "qwen2": flagged(qwen2),
    "llama2": lambda: llama2(True),
    "llama2-ends": lambda: llama2(True, add_bos_token=False, add_eos_token=True),
    "llama2-flags": flagged(lambda: llama2(True)),
    "phi3": phi3,
    "gemma": flagged(gemma),
    "unigram": flagged(unigram),
}
if MAJOR < 5:  # later ones have no slow forms of these
    MAKERS |= {"llama2-first": lambda: llama2(False)}
    MAKERS |= {"slow-flags": flagged(slow_llama2)}
    MAKERS |= {"slow-llama2": slow_llama2, "slow-opt": slow_opt}


def texts(tokenizer: Any) -> list[str]:
    marks = [t.content for t in tokenizer.added_tokens_decoder.values()]
    return [*TEXTS, *(around.format(mark, mark) for mark in marks for around in AROUND)]


def expected(tokenizer: Any, decoder: Any) -> dict[str, Any]:
    """Return what transformers makes of the texts, in columns."""
    found: dict[str, Any] = {"transformers": transformers.__version__, "texts": texts(tokenizer)}
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    for name, plain in (("ids", False), ("plain_ids", True)):
        tokenizer.split_special_tokens = plain
        if tokenizer.is_fast:
            tokenizer._tokenizer.encode_special_tokens = plain
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in found["texts"]]
        found[name] = rows
        found[f"{name}_text"] = [decoder.decode(ids, **how) for ids in rows]
        how["skip_special_tokens"] = True
        found[f"{name}_shown"] = [decoder.decode(ids, **how) for ids in rows]
        how["skip_special_tokens"] = False
        if not tokenizer.is_fast:
            break  # slow ones have no way to take control texts for text
    tokenizer.split_special_tokens = False
    if tokenizer.is_fast:
        tokenizer._tokenizer.encode_special_tokens = False
    found["around"] = tokenizer.encode("a", add_special_tokens=True)
    return found


def main() -> None:
    for name in sys.argv[1:] or MAKERS:
        if name not in MAKERS:
            continue  # of the other version
        folder = FOLDER / f"{name}-{MAJOR}"
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer = MAKERS[name]()
        tokenizer.save_pretrained(folder)
        again = type(tokenizer).from_pretrained(folder)
        decoder = again
        if name in (
            "slow-llama2",
            "slow-flags",
        ):  # which loses a space of the text; its fast form does not
            decoder = transformers.LlamaTokenizerFast.from_pretrained(folder)
        rows = json.dumps(expected(again, decoder), separators=(",", ":"))
        (folder / "expected.json").write_text(rows.replace("],", "],\n") + "\n")


if __name__ == "__main__":
    main()
