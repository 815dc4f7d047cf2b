"""Objects in memory without LLVM: as LLVM puts them there, or not at all."""

import ctypes

import llvmlite.binding as llvm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import KernelError
from fastllm.kernels import elf, objects

pytestmark = pytest.mark.skipif(not elf.SUPPORTED, reason="objects are not ELF of x86-64 here")


def compiled(text, code_model="large"):
    """Object code of IR, by the model that Numba has."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(reloc="static", codemodel=code_model, opt=2)
    module = llvm.parse_assembly(text)
    module.verify()
    return machine.emit_object(module)


def called(address, *args):
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(args))
    return prototype(address)(*args)


def table_of(values, name="f"):
    """A function that looks a number up, by way of a second one, and takes its absolute value."""
    rows = ", ".join(f"i64 {value}" for value in values)
    return f"""
@table = private constant [{len(values)} x i64] [{rows}], align 64
declare i64 @labs(i64)
define i64 @{name}(i64 %i) {{
  %x = call i64 @"{name}.inner"(i64 %i)
  %y = call i64 @labs(i64 %x)
  ret i64 %y
}}
define linkonce_odr i64 @"{name}.inner"(i64 %i) noinline {{
  %p = getelementptr [{len(values)} x i64], [{len(values)} x i64]* @table, i64 0, i64 %i
  %x = load i64, i64* %p
  ret i64 %x
}}
"""


VALUES = st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=300)


@settings(max_examples=25)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_several_objects_side_by_side(tables):
    """Their symbols have equal names; each finds its own constants and its own function."""
    image = elf.Image([("f", compiled(table_of(values))) for values in tables])
    for address, values in zip(image.addresses, tables, strict=True):
        assert [called(address, i) for i in range(len(values))] == [abs(v) for v in values]


def test_as_llvm_places_it():
    code = compiled(table_of([3, -4, 5]))
    image = elf.Image([("f", code)])
    engine, found = objects._place_by_llvm([("f", "f", code)])
    ours = [called(image.addresses[0], i) for i in range(3)]
    assert ours == [called(found["f"], i) for i in range(3)]
    del engine


def test_constants_cannot_be_written():
    """The memory is executed and read, never written: its mapping says so."""
    image = elf.Image([("f", compiled(table_of([1])))])
    with open("/proc/self/maps") as file:
        for line in file:
            low, high = (int(word, 16) for word in line.split()[0].split("-"))
            if low <= image.addresses[0] < high:
                assert line.split()[1] == "r-xp"
                return
    raise AssertionError("not mapped")


WRITTEN = """
@word = internal global i64 0
define i64 @f(i64 %i) {
  store i64 %i, i64* @word
  ret i64 0
}
define i64 @g() {
  %x = load i64, i64* @word
  ret i64 %x
}
"""
FOREIGN = "declare i64 @no_such_function(i64)\n" + (
    "define i64 @f(i64 %i) {\n  %x = call i64 @no_such_function(i64 %i)\n  ret i64 %x\n}\n"
)


@pytest.mark.parametrize(
    ("code", "symbol"),
    [
        (lambda: compiled(WRITTEN), "f"),
        (lambda: compiled(table_of([1]), "small"), "f"),
        (lambda: compiled(FOREIGN), "f"),
        (lambda: compiled(table_of([1])), "g"),
        (lambda: b"MZ" + bytes(200), "f"),
        (lambda: b"", "f"),
        (lambda: b"\x7fELF\2\1" + bytes(100), "f"),
    ],
    ids=["variables", "small code", "unknown function", "no symbol", "a DLL", "nothing", "empty"],
)
def test_what_is_not_plain_is_left_to_llvm(code, symbol):
    with pytest.raises(elf.NotPlain):
        elf.Image([(symbol, code())])


def test_llvm_takes_what_is_not_plain():
    keep, found = objects._place([("set", "f", compiled(WRITTEN))])
    assert not isinstance(keep, elf.Image)
    assert called(found["set"], 5) == 0


def test_memory_that_may_not_be_executed(monkeypatch):
    class Refuses:
        def mprotect(self, *_):
            ctypes.set_errno(13)
            return -1

    monkeypatch.setattr(elf.ctypes, "CDLL", lambda *_, **__: Refuses())
    code = compiled("define i64 @f() {\n  ret i64 7\n}")
    with pytest.raises(KernelError, match=r"cannot be put into memory: .*executed"):
        objects._place([("f", "f", code)])
