import pytest

from trimtab.core.errors import InputError
from trimtab.hardware.energy import (
    HOROWITZ_45NM,
    HOROWITZ_DRAM,
    HOROWITZ_SRAM,
    Energy,
    dynamic_energy,
    edp,
    joules_per_mac,
    mac_energy,
    multiplier_growth,
    systolic_throughput,
    tops_per_watt,
    transfer_efficiency,
)


def test_energy_is_the_sum_of_its_parts():
    assert Energy(compute=1.0, memory=2.0, movement=3.0).total == 6.0
    assert Energy(1.0, 2.0, 3.0, static=4.0).total == 10.0


def test_horowitz_as_printed():
    # fig. 1.1.9: 0.2 pJ and 3.7 pJ for products, 10 pJ for 64 bits of 8 kB, 1.3 to 2.6 nJ for 64 bits of DRAM
    assert HOROWITZ_45NM["multiply int8"] == 0.2e-12
    assert HOROWITZ_45NM["multiply fp32"] == 3.7e-12
    assert HOROWITZ_SRAM[8192] * 8 == pytest.approx(10e-12)
    assert HOROWITZ_DRAM[0] * 8 == pytest.approx(1.3e-9)
    assert HOROWITZ_DRAM[0] / HOROWITZ_SRAM[8192] == pytest.approx(130)


def test_a_multiply_add_is_a_product_and_a_sum():
    assert mac_energy("int8") == pytest.approx(0.3e-12)
    assert mac_energy("fp16") == pytest.approx(1.5e-12)
    assert mac_energy("fp32") == pytest.approx(4.6e-12)
    with pytest.raises(InputError, match="int4"):
        mac_energy("int4")


def test_multiplier_energy_grows_with_the_square_of_the_width():
    assert [multiplier_growth(bits) for bits in (4, 8, 16, 32)] == [0.25, 1.0, 4.0, 16.0]
    printed = HOROWITZ_45NM["multiply int32"] / HOROWITZ_45NM["multiply int8"]
    assert multiplier_growth(32, 8) == pytest.approx(printed, rel=0.05)


def test_edp_and_tops_per_watt():
    assert edp(3e-3, 2e-3) == pytest.approx(6e-6)
    assert tops_per_watt(macs_per_second=1e12, watts=4.0) == 0.5
    assert joules_per_mac(tops_per_watt(1e12, 4.0)) == pytest.approx(4.0 / 1e12)


def test_systolic_throughput():
    # TPU v1: 256 x 256 at 700 MHz, 92 TOPS (Jouppi et al. 2017)
    assert 2 * systolic_throughput(256, 256, 700e6) == pytest.approx(92e12, rel=0.003)
    assert systolic_throughput(2, 3, 10.0, operations=4) == 240.0


def test_transfer_efficiency_and_voltage():
    assert transfer_efficiency(useful=100.0, moved=50.0, utilisation=0.25) == 0.5
    assert dynamic_energy(1.0, volt=1.0, nominal=2.0) == 0.25
