"""JSON of model folders."""

import pytest

from fastllm.errors import FormatError, ModelNotFoundError
from fastllm.formats import json_files
from fastllm.formats.json_files import parse_object, read_object


def test_an_object(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null, true, "é"], "limit": Infinity}', encoding="utf-8")
    assert read_object(str(path)) == {"a": [1, 2.5, None, True, "é"], "limit": float("inf")}


def test_what_is_not_one(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        read_object(str(path))
    path.write_text("[1]")
    with pytest.raises(FormatError, match=r"config\.json: a JSON list where an object"):
        read_object(str(path))
    monkeypatch.setattr(json_files, "_MAX_BYTES", 2)
    with pytest.raises(FormatError, match="3 bytes of JSON"):
        read_object(str(path))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b'{"a":1,"a":2}', b'{"a":' * 10**5, b'{"a":-' + b"1" * 999 + b"}"]
)
def test_damage_is_named_with_its_place(text):
    with pytest.raises(FormatError, match=r"^here: "):
        parse_object(text, "here")
