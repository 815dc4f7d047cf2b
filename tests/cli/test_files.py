"""info and quantize on a real, tiny file."""

import dataclasses
import json
import shutil

import pytest

from fastllm.cli import main
from fastllm.errors import BudgetError
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.machine.cpus import default_threads
from fastllm.memory.ledger import Ledger
from fastllm.models.bind import bind
from fastllm.options import LoadOptions
from fastllm.step.plan import Plan
from fastllm.step.runner import Runner
from tests import tiny_gguf
from tests.golden.cases import case, materialize
from tests.tiny_gguf import HIDDEN, KV_HEADS, LAYERS, MLP, VOCAB
from tests.tokenizer.fixtures import files

ATTENTION = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2)
MLPS = LAYERS * 3 * HIDDEN * MLP


def test_info_adds_up(tmp_path, capsys):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    assert main.run(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "llama"
    assert facts["name"] == "tiny"
    assert facts["parameters"] == VOCAB * HIDDEN + ATTENTION + MLPS
    assert facts["model_bytes"] == 4 * facts["parameters"]
    assert facts["kv_bytes_per_token"] == LAYERS * 2 * KV_HEADS * 16 * 4  # f32, as all is
    assert facts["kv_type"] == "f32"
    parts = facts["memory_needed"]
    assert parts.pop("n_ctx") == tiny_gguf.CONTEXT
    assert parts.pop("total") == sum(parts.values())
    assert facts["tensors"]["mlp"] == {
        "parameters": MLPS,
        "bytes": 4 * MLPS,
        "types": {"f32": 4 * MLPS},
    }
    assert facts["fits"]
    assert facts["context_that_fits"] == facts["context"] == tiny_gguf.CONTEXT
    assert main.run(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "fits with its whole context" in out
    assert "f32 100%" in out


def test_info_says_what_does_not_fit(tmp_path, capsys, monkeypatch):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    monkeypatch.setattr("fastllm.step.plan.room_bytes", lambda _base: 1_000_000)
    with pytest.raises(BudgetError) as refused:
        Runner(open_checkpoint(path), LoadOptions())
    assert main.run(["info", str(path)]) == 0
    assert f"does not fit: {refused.value}" in capsys.readouterr().out  # as a run says it
    assert main.run(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert not facts["fits"]
    assert facts["context_that_fits"] == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_type": "f16"}, {"kv_type": "f32", "n_ctx": 70}, {"n_ctx": 3}, {"quant": "q8_0"},
     {"n_threads": 3, "n_batch": 7}],
)  # fmt: skip
def test_info_has_the_figures_of_the_run_one_intends(tmp_path, capsys, options):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    names = {"kv_type": "--kv-type", "n_ctx": "-c", "quant": "--quant"}
    names |= {"n_threads": "-t", "n_batch": "-b"}
    words = [word for name, value in options.items() for word in (names[name], str(value))]
    assert main.run(["info", str(path), "--json", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    plan = Plan(
        bind(open_checkpoint(path)),
        LoadOptions(**options),
        options.get("n_threads", default_threads()),
    )
    ledger = plan.ledger(plan.context())
    assert facts["memory_needed"] == {**dataclasses.asdict(ledger), "total": ledger.total}
    assert facts["kv_bytes_per_token"] == plan.kv_bytes_per_token
    assert main.run(["info", str(path), *words]) == 0
    assert str(ledger) in capsys.readouterr().out


def test_info_of_a_context_that_was_asked(tmp_path, capsys, monkeypatch):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    assert main.run(["info", str(path), "-c", str(tiny_gguf.CONTEXT + 1)]) == 1
    assert f"the model allows 1 to {tiny_gguf.CONTEXT} tokens (-c)" in capsys.readouterr().err
    # a real ledger counts whole huge pages, and this model is small
    monkeypatch.setattr(Plan, "ledger", lambda _, n_ctx, __=None: Ledger(n_ctx, 0, n_ctx, 0, 0, 0))
    monkeypatch.setattr("fastllm.step.plan.room_bytes", lambda _base: 40)
    assert main.run(["info", str(path), "-c", "41"]) == 0
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "KV cache of 41 tokens" in shown
    assert "the longest context that fits has 40 tokens (-c 40)" in shown
    assert main.run(["info", str(path), "-c", "41", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is False
    assert main.run(["info", str(path), "-c", "40"]) == 0
    assert f"fits with 40 of {tiny_gguf.CONTEXT} tokens" in capsys.readouterr().out


def test_quantize_writes_a_smaller_model(tmp_path, capsys):
    path, out = tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "small.gguf"
    assert main.run(["quantize", str(path), str(out), "--type", "q4_0"]) == 0
    assert "became" in capsys.readouterr().err
    assert main.run(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["tensors"]["mlp"]["types"]) == {"q4_0"}
    assert main.run(["quantize", str(path), str(path)]) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert main.run(["quantize", str(path), str(out), "--type", "q9"]) == 2


def test_quantize_reads_folders(tmp_path, capsys):
    folder = materialize(case("llama"), tmp_path / "tiny")
    for source in files("smollm-5").values():
        shutil.copy(source, folder)
    out = tmp_path / "tiny.gguf"
    assert main.run(["quantize", str(folder), str(out), "--to", "q8_0"]) == 1
    # Its embedding has 131 rows, the vocabulary more tokens: those without a row are left out.
    assert "gives other tokens" in capsys.readouterr().err
    assert not out.exists()
    for name in files("smollm-5"):
        (folder / name).unlink()
    assert main.run(["quantize", str(folder), str(out), "--to", "bf16"]) == 0
    said = capsys.readouterr().err
    assert "note" in said
    assert "no tokenizer" in said
    assert main.run(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "tiny"
    assert set(facts["tensors"]["mlp"]["types"]) == {"bf16"}
    assert main.run(["quantize", str(folder), str(folder / "model.safetensors")]) == 1
    assert "is the source itself" in capsys.readouterr().err


def test_a_vocabulary_alone(tmp_path, capsys):
    path = tiny_gguf.write(tmp_path / "v.gguf", weights=False, tokenizer=True)
    assert main.run(["info", str(path)]) == 1
    assert "vocabulary and no weights" in capsys.readouterr().err
    assert main.run(["tokenize", str(path), "bad", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pieces"] == ["<s>", "b", "a", "d"]
    assert found["count"] == 4


def test_warmup_says_what_is_ready(monkeypatch, capsys, tmp_path):
    built = {name: str(tmp_path / name) for name in ("step", "pack")}
    monkeypatch.setattr("fastllm.kernels.objects.warmup", lambda progress: built)
    (tmp_path / "step").touch()
    assert main.run(["warmup"]) == 1
    assert "1 of 2 kernel objects could not be kept" in capsys.readouterr().err
    (tmp_path / "pack").touch()
    assert main.run(["warmup"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 kernel objects are ready" in captured.err
