"""Coupling rules of operators on quantised numbers, against ONNX Runtime (see `probing`)."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from tests import probing_quantised as families
from tests.probing import probe
from tests.probing_draw import Case, Draw, draws

FAMILIES: dict[str, tuple[Callable[[Draw], Case], int]] = {
    f.__name__: (f, count)
    for f, count in [
        (families.conv_integer, 40),
        (families.dynamic_quantize_linear, 20),
        (families.dynamic_quantize_lstm, 40),
        (families.dynamic_quantize_matmul, 26),
        (families.embed_layer_normalization, 20),
        (families.gather_block_quantized, 26),
        (families.matmul_bnb4, 26),
        (families.matmul_integer, 40),
        (families.matmul_integer_to_float, 26),
        (families.matmul_nbits, 40),
        (families.nibble_table, 20),
        (families.qgemm, 40),
        (families.qlinear_concat, 26),
        (families.qlinear_conv, 53),
        (families.qlinear_elementwise, 53),
        (families.qlinear_matmul, 40),
        (families.qlinear_pool, 26),
        (families.qlinear_softmax, 20),
        (families.wide_quantize, 26),
    ]
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_generated(family: str) -> None:
    make, count = FAMILIES[family]
    compared = 0
    for d in draws(family, count):
        made, feeds = make(d)
        try:
            report = probe(made, feeds, removals=4)
            assert not report.reference, "ONNX Runtime has no kernel"
        except Exception as error:
            raise AssertionError(f"{error}\n{onnx.printer.to_text(made)}") from error
        compared += bool(report.links and report.removals)
    assert compared >= count // 3
