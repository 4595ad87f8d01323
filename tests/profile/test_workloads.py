import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from trimtab.profile.workloads import chain, convolution, product


def test_costs_are_those_of_the_formulas():
    assert product(6, "fp32").macs == 6 * 6 * 6
    assert convolution(4, 5, "fp32").macs == 3 * 3 * 4 * 4 * 5 * 5
    assert chain(7, channels=3).macs == 7 * 3 * 3


@pytest.mark.parametrize("make", [product, lambda n, p: convolution(n, 5, p)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_models_are_valid_and_run(make, precision):
    work = make(6, precision)
    onnx.checker.check_model(work.model, full_check=True)
    (y,) = ReferenceEvaluator(work.model).run(None, work.inputs)
    assert y.shape == work.inputs["x"].shape
    assert y.dtype == (np.float32 if precision == "fp32" else np.uint8)


def test_a_product_is_the_product_of_its_weight():
    work = product(6, "fp32")
    weight = onnx.numpy_helper.to_array(work.model.graph.initializer[0])
    (y,) = ReferenceEvaluator(work.model).run(None, work.inputs)
    np.testing.assert_allclose(y, work.inputs["x"] @ weight, rtol=1e-5)


def test_a_chain_is_as_long_as_asked_and_stays_in_range():
    work = chain(300)
    assert len(work.model.graph.node) == 300
    (y,) = ReferenceEvaluator(work.model).run(None, work.inputs)
    assert np.isfinite(y).all()
    assert np.abs(y).max() < 1e6
