"""TEXT TO IDS AND BACK, by the libraries ``tokenizers`` and ``sentencepiece``.

`gguf_vocab` and `hf_vocab` read what a model ships and build an object of one of the two
libraries; `tokenizer.Tokenizer` is the one face in front of it. Special tokens are cut out of the
text by `special` before a library sees it, and only where the caller trusts the text. Decoding is
ours (`vocabulary` knows the bytes of every token), so that a stream (`detokenize`) and a whole
text come out the same. Importing this room imports neither library; building a tokenizer does.
"""

from fastllm.tokenizer.detokenize import StreamDetokenizer
from fastllm.tokenizer.tokenizer import Tokenizer, tokenizer_of

__all__ = ["StreamDetokenizer", "Tokenizer", "tokenizer_of"]
