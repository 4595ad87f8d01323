"""Names of Ethos-U configurations."""

import pytest

from trimtab.core.errors import InputError
from trimtab.core.target import parse
from trimtab.run.ethos.configuration import MACS, SYSTEMS, Configuration, modes, read, standards


def test_every_size_has_its_default():
    names = [c.name for c in standards()]
    assert names == [
        *("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256"),
        *("ethos-u65-256", "ethos-u65-512"),
        *("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
    ]
    assert read("ethos-u55-128") == Configuration("u55", 128, "Shared_Sram", "High_End_Embedded")
    assert read("ethos-u65-512") == Configuration("u65", 512, "Dedicated_Sram_384KB", "Client_Server")
    assert read("ethos-u85-256").system_config == "Ethos_U85_SYS_DRAM_Mid"


def test_mode_and_system_stand_behind_in_any_order():
    wanted = Configuration("u65", 512, "Shared_Sram", "Mid_End")
    assert read("ethos-u65-512-shared_sram-mid_end") == wanted
    assert read("ethos-u65-512-mid_end-shared_sram") == wanted
    assert wanted.name == "ethos-u65-512-shared_sram-mid_end"
    assert read("ethos-u55-128-sram_only").name == "ethos-u55-128-sram_only"


@pytest.mark.parametrize("family", MACS)
def test_names_are_read_back_and_are_targets(family):
    for macs in MACS[family]:
        for system in SYSTEMS[family]:
            for mode in modes(family, system):
                one = Configuration(family, macs, mode, system)
                assert read(one.name) == one
                assert parse(one.name).device == one.name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ethos-u55-100", "ethos-u55-128"),
        ("ethos-u55-128-dedicated_sram", "got 'dedicated_sram'"),  # flash holds no feature maps
        ("ethos-u55-128-fast", "got 'fast'"),
        ("ethos-u55-128-sram_only-shared_sram", "memory mode or system"),
        ("ethos-u55-128-sram_only-sram_only", "memory mode or system"),
        ("ethos-u85-256-mid_end", "got 'mid_end'"),
    ],
)
def test_what_there_is_not(name, says):
    with pytest.raises(InputError, match=says):
        read(name)
