import json
from dataclasses import replace

from trimtab._version import VERSION
from trimtab.hardware import machine as module
from trimtab.hardware.machine import FLAGS, machine

CPUINFO = """processor\t: 0
model name\t: Some Processor 9
cpu family\t: 25
model\t\t: 17
stepping\t: 1
flags\t\t: fpu avx2 fma avx512_vnni avx2_other

processor\t: 1
model name\t: Another
"""


def cache(folder, index, level, kind, size):
    entry = folder / f"index{index}"
    entry.mkdir(parents=True)
    for name, text in (("level", level), ("type", kind), ("size", size)):
        (entry / name).write_text(f"{text}\n")


def test_the_processor_is_read_from_its_first_entry():
    info = module._cpuinfo(CPUINFO)
    assert module._processor(info) == "Some Processor 9 (family 25, model 17, stepping 1)"
    assert "avx512_vnni" in info["flags"].split()


def test_a_system_without_cpuinfo_still_has_a_processor():
    assert module._processor(module._cpuinfo(""))


def test_caches_are_read_and_instructions_left_out(tmp_path):
    cache(tmp_path, 0, "1", "Data", "32K")
    cache(tmp_path, 1, "1", "Instruction", "64K")
    cache(tmp_path, 2, "2", "Unified", "1024K")
    cache(tmp_path, 3, "3", "Unified", "32M")
    assert module._caches(tmp_path) == {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}


def test_no_caches_where_the_system_does_not_tell(tmp_path):
    assert module._caches(tmp_path / "none") == {}


def test_this_machine():
    here = machine()
    assert here.cores >= 1
    assert here.usable >= 1
    assert here.memory > 2**28
    assert set(here.flags) <= {*FLAGS, *module.ARM_FLAGS}
    assert here.libraries["trimtab"] == VERSION
    assert {"torch", "numpy", "onnxruntime"} <= set(here.libraries)
    assert json.loads(json.dumps(here.json()))["python"] == here.python


def test_the_key_changes_with_what_timings_depend_on_and_with_nothing_else():
    here = machine()
    assert here.key() == machine().key()
    assert replace(here, memory=here.memory + 1000).key() == here.key()
    others = [
        replace(here, libraries={**here.libraries, "onnxruntime": "0.0"}),
        replace(here, processor="another"),
        replace(here, usable=here.usable + 1),
        replace(here, flags=()),
    ]
    assert len({here.key(), *(other.key() for other in others)}) == 5
