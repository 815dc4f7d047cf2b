"""Environment variables: read in one way, and told in README.md."""

import re
from pathlib import Path

import pytest

from fastllm import environment
from fastllm.environment import check_switches, home, switch
from fastllm.errors import FastLLMError, RequestError

ROOT = Path(__file__).parents[1]
# Ours alone: a build process's road, and the shell that asks for a completion.
INTERNAL = {"FASTLLM_BUILD_ROAD", "FASTLLM_COMPLETE"}


@pytest.mark.parametrize("value", ["2", "yes", "true", "off", " 1", "x" * 1000])
@pytest.mark.parametrize("name", environment.SWITCHES)
def test_a_switch_is_zero_or_one(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(
        RequestError, match=rf"variable {name}='{value[:5]}.*: must be 0 or 1$"
    ) as e:
        check_switches()
    assert len(str(e.value)) < 150


def test_what_a_switch_says(monkeypatch):
    for value, said in ("0", False), ("1", True), ("", None):
        monkeypatch.setenv("FASTLLM_PIN", value)
        assert switch("FASTLLM_PIN") is said
    monkeypatch.delenv("FASTLLM_PIN")
    assert switch("FASTLLM_PIN") is None


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTLLM_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setenv("FASTLLM_HOME", "~/x")
    assert home() == Path("/me/x")
    monkeypatch.setenv("FASTLLM_HOME", "~nobody-of-this-name/x")
    with pytest.raises(FastLLMError, match="FASTLLM_HOME"):
        home()
    monkeypatch.delenv("FASTLLM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "fastllm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home() == Path("/me/.cache/fastllm")


def test_the_readme_has_every_variable_that_the_code_reads():
    code = [*ROOT.glob("fastllm/**/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("tests/**/*.py")]
    read = set()
    for path in code:
        if path != Path(__file__):
            read |= set(re.findall(r"FASTLLM_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8")))
    table = re.findall(r"^\| `(FASTLLM_\w+)` \|", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert set(table) == read - INTERNAL
