"""Coupling rules of operators on quantised numbers, against ONNX Runtime (see `probing`)."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import probing_quantised as families
from tests.probing import probe
from tests.probing_draw import Case, Draw
from tests.test_probing_generated import budget

FAMILIES: dict[str, tuple[Callable[[Draw], Case], int]] = {
    f.__name__: (f, count)
    for f, count in [
        (families.conv_integer, 60),
        (families.dynamic_quantize_linear, 30),
        (families.dynamic_quantize_matmul, 40),
        (families.gather_block_quantized, 40),
        (families.matmul_integer, 60),
        (families.matmul_integer_to_float, 40),
        (families.matmul_nbits, 60),
        (families.nibble_table, 30),
        (families.qgemm, 60),
        (families.qlinear_concat, 40),
        (families.qlinear_conv, 80),
        (families.qlinear_elementwise, 80),
        (families.qlinear_matmul, 60),
        (families.qlinear_pool, 40),
        (families.qlinear_softmax, 30),
        (families.wide_quantize, 40),
    ]
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_generated(family: str) -> None:
    make, count = FAMILIES[family]
    compared = 0

    @budget(count)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal compared
        made, feeds = make(Draw(data.draw))
        try:
            report = probe(made, feeds, removals=4)
            assert not report.reference, "ONNX Runtime has no kernel"
        except Exception as error:
            raise AssertionError(f"{error}\n{onnx.printer.to_text(made)}") from error
        compared += bool(report.links and report.removals)

    check()
    assert compared >= count // 3
