"""Pipeline text, TOML pipelines, and the registry of passes."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as oir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.ir.errors import UsageError
from secateur.ir.registry import Registry, entry_points
from secateur.passes.base import Contract, Pass, PassContext, PassResult
from secateur.passes.options import pass_options
from secateur.passes.pipeline import format_pipeline, load_pipeline_toml, parse_pipeline
from secateur.passes.registry import find_pass, list_passes, pass_registry


class _Idle(Pass):
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "does nothing"

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        return PassResult(model, False)


@dataclass(frozen=True)
class Plain(_Idle):
    name: ClassVar[str] = "plain"


@dataclass(frozen=True)
class Trim(_Idle):
    """The shape of a real pruning pass: one option of every kind."""

    name: ClassVar[str] = "trim"

    ratio: float | None = None
    macs: float | None = None
    criterion: str = "l2"
    scope: Literal["local", "global"] = "global"
    level: Literal[1, 2, "auto"] = "auto"
    round_to: int = 1
    protect: tuple[str, ...] = ()
    floors: tuple[float, ...] | None = None
    max_ratio: float = 1.0
    label: str | None = "x"
    mixed: int | str | None = 0
    inexact: bool = False


@dataclass(frozen=True)
class Strict(_Idle):
    name: ClassVar[str] = "strict"

    text: str
    count: int = 3

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be 0 or more, not {self.count}")


CLASSES: dict[str, type[Pass]] = {cls.name: cls for cls in (Plain, Trim, Strict)}


def lookup(name: str) -> type[Pass]:
    if name not in CLASSES:
        raise UsageError(f"unknown pass '{name}'")
    return CLASSES[name]


def parse(text: str) -> tuple[Pass, ...]:
    return parse_pipeline(text, lookup)


FLOATS = st.floats(allow_nan=False)
WORDS = st.text() | st.sampled_from(["none", "true", "1", "-0.5", "a b", "a,b", "{", "]", '"', "é"])
TRIMS = st.builds(
    Trim,
    ratio=st.none() | FLOATS,
    macs=st.none() | FLOATS,
    criterion=WORDS,
    scope=st.sampled_from(["local", "global"]),
    level=st.sampled_from([1, 2, "auto"]),
    round_to=st.integers(-(10**30), 10**30),
    protect=st.lists(WORDS).map(tuple),
    floors=st.none() | st.lists(FLOATS).map(tuple),
    max_ratio=FLOATS | st.integers(-9, 9),
    label=st.none() | WORDS,
    mixed=st.none() | st.integers(-99, 99) | WORDS,
    inexact=st.booleans(),
)
STRICTS = st.builds(Strict, text=WORDS, count=st.integers(0, 9))


@given(st.lists(TRIMS | STRICTS | st.just(Plain())))
def test_text_round_trips(passes: list[Pass]) -> None:
    text = format_pipeline(passes)
    assert parse(text) == tuple(passes)
    assert format_pipeline(parse(text)) == text


@given(st.text(alphabet='trim{}[]=," \\\n1-none', max_size=30))
def test_any_text_parses_or_is_a_one_line_usage_error(text: str) -> None:
    try:
        passes = parse(text)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert parse(format_pipeline(passes)) == passes


def test_values_get_the_types_of_their_fields() -> None:
    text = """
        plain, trim{ratio=0.3 macs=none criterion=l1 scope=local level=2 round-to=-8
                    protect=[a "b c" "]"] floors=[1 2.5] max-ratio=1 label=none mixed=7 inexact},
        strict{text="x,\\"y\\u00e9" count=0}
    """
    trim = Trim(0.3, None, "l1", "local", 2, -8, ("a", "b c", "]"), (1.0, 2.5), 1.0, None, 7, True)
    passes = parse(text)
    assert passes == (Plain(), trim, Strict('x,"yé', 0))
    assert isinstance(passes[1], Trim)
    assert type(passes[1].max_ratio) is float and type(passes[1].level) is int


def test_quotes_make_a_string() -> None:
    assert parse('trim{label="none" mixed="7"}') == (Trim(label="none", mixed="7"),)
    assert parse("trim{inexact=false protect=[]}") == (Trim(),)
    assert parse(" ") == ()


def test_defaults_are_not_printed() -> None:
    assert format_pipeline([Plain(), Trim(), Strict("a")]) == "plain,trim,strict{text=a}"
    assert format_pipeline([Trim(max_ratio=1)]) == "trim"
    assert format_pipeline([Trim(round_to=4)]) == "trim{round-to=4}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trm", "unknown pass 'trm' (at column 1)"),
        ("plain,", "expected the name of a pass, found the end (at column 7)"),
        ("plain plain", "expected ',' or the end after a pass, found 'plain' (at column 7)"),
        ("trim{ration=1}", "unknown option 'ration' of pass 'trim'; did you mean 'ratio'?"),
        ("trim{ration=1}", "(at column 6)"),
        ("trim{ratio=0.3,inexact}", "expected an option of pass 'trim' or '}', found ','"),
        ("trim{ratio=a}", "must be a number or none, not 'a' (at column 6)"),
        ('trim{ratio="1"}', 'must be a number or none, not "1"'),
        ("trim{ratio=nan}", "must be a number or none, not 'nan'"),
        ("trim{round-to=1.5}", "must be a whole number, not '1.5'"),
        ("trim{round-to=true}", "must be a whole number, not 'true'"),
        ("trim{round-to}", "must be a whole number, not true"),
        ("trim{inexact=1}", "must be true or false, not '1'"),
        ("trim{scope=all}", "must be one of local, global, not 'all'"),
        ("trim{protect=a}", "must be a list in brackets, each a string, not 'a'"),
        ("trim{protect=[[a]]}", "expected a value or ']', found '[' (at column 15)"),
        ("trim{ratio=[1]}", "must be a number or none, not a list"),
        ("trim{inexact inexact}", "option 'inexact' of pass 'trim' is given twice (at column 14)"),
        ("trim{round-to=1 round_to=1}", "option 'round-to' of pass 'trim' is given twice"),
        ("trim{ratio=", "expected a value or '[', found the end (at column 12)"),
        ("trim{protect=[a", "expected a value or ']', found the end (at column 16)"),
        ('plain, strict{text="a}', "the string that starts at column 20 has no end"),
        (r'strict{text="\x"}', "bad escape in the string"),
        ("plain,strict", "pass 'strict' needs the option 'text' (at column 7)"),
        ("strict{text=a count=-1}", "count must be 0 or more, not -1 (at column 1)"),
        ("plain{x=1}", "unknown option 'x' of pass 'plain'"),
        ("{}", "expected the name of a pass, found '{' (at column 1)"),
    ],
)
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_formatting_refuses_a_value_of_the_wrong_type() -> None:
    with pytest.raises(UsageError, match="'round-to' of pass 'trim' must be a whole number"):
        format_pipeline([Trim(round_to="8")])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'ratio' of pass 'trim'"):
        format_pipeline([Trim(ratio=math.nan)])


def test_a_field_that_text_cannot_express_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd(_Idle):
        name: ClassVar[str] = "odd"
        table: dict[str, Any] | None = None

    with pytest.raises(UsageError, match="option 'table' of pass 'odd' has the type"):
        pass_options(Odd)


# --- TOML ---


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipeline.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_gives_the_same_passes_as_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [[pipeline]]
        pass = "trim"
        ratio = 1
        protect = ["a b", "c"]
        round-to = 8
        max_ratio = 0.5
        label = "none"
        inexact = true
        [[pipeline]]
        pass = "plain"
        [context]
        seed = 7
        threads = 2
        dims = { batch = 4, "seq.len" = 16 }
        """,
    )
    passes, context = load_pipeline_toml(path, lookup)
    text = 'trim{ratio=1 protect=["a b" c] round-to=8 max-ratio=.5 label="none" inexact},plain'
    assert passes == parse(text)
    assert (context.seed, context.threads) == (7, 2)
    assert dict(context.dims) == {"batch": 4, "seq.len": 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pipeline]\n", "cannot read pipeline file"),
        ("pipelines = 1", "unknown key 'pipelines'"),
        ("pipeline = 1", "must be an array of tables"),
        ("[[pipeline]]\nratio = 1", "pipeline entry 1 needs a key pass"),
        ("[[pipeline]]\npass = 'plain'\n[[pipeline]]\npass = 'trm'", "entry 2: unknown pass 'trm'"),
        ("[[pipeline]]\npass = 'trim'\nratio = '1'", 'must be a number or none, not "1"'),
        ("[[pipeline]]\npass = 'trim'\ninexact = 1", "must be true or false, not 1"),
        ("[[pipeline]]\npass = 'trim'\nprotect = [1]", "each a string, not a list"),
        ("[[pipeline]]\npass = 'trim'\nratio = nan", "must be a number or none, not nan"),
        ("[[pipeline]]\npass = 'trim'\nround-to = {a = 1}", "a whole number, not a table"),
        ("[context]\nsede = 1", "unknown key 'sede' in [context]; did you mean 'seed'?"),
        ("[context]\nseed = true", "'seed' in [context] must be a whole number"),
        ("[context]\ndims = { n = -1 }", "'dims' in [context] must be a table of sizes"),
        ("context = 3", "'context' must be a table"),
    ],
)
def test_toml_errors(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_pipeline_toml(path, lookup)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toml_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read pipeline file"):
        load_pipeline_toml(tmp_path / "none.toml", lookup)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read pipeline file"):
        load_pipeline_toml(tmp_path / "bad.toml", lookup)


# --- Registry ---


def make_registry(**builtins: str) -> Registry[Any]:
    return Registry("thing", "secateur.tests.none", "secateur.passes", builtins, lambda _, o: o)


def test_the_registry_loads_lazily_and_suggests() -> None:
    registry = make_registry(good="base:Pass", broken="no_such_module:X", wrong="base:Nothing")
    assert registry.names() == ["broken", "good", "wrong"]
    assert registry.get("good") is Pass
    assert registry.provider("good") == "secateur"
    with pytest.raises(UsageError, match=r"unknown thing 'goood'; did you mean 'good'\?"):
        registry.get("goood")
    with pytest.raises(UsageError, match="known: broken, good, wrong"):
        registry.provider("zzz")
    for name in ("broken", "wrong"):
        with pytest.raises(UsageError, match=f"thing '{name}' of 'secateur' cannot be loaded"):
            registry.get(name)


def test_two_providers_of_one_name_are_an_error_that_names_both() -> None:
    registry = make_registry(good="base:Pass")
    with pytest.raises(UsageError, match="'good' is provided by both 'secateur' and 'other'"):
        registry.add("good", "other", lambda: Pass)


def test_entry_points_name_their_distribution() -> None:
    rows = {name: (provider, load) for name, provider, load in entry_points("pytest11")}
    provider, load = rows["hypothesispytest"]
    assert provider == "hypothesis"
    (point,) = importlib.metadata.entry_points(group="pytest11", name="hypothesispytest")
    assert load() is point.load()


def test_the_built_in_passes_are_listed() -> None:
    assert {"fold-constants", "fold-batchnorm", "eliminate-dead", "prune"} <= set(
        pass_registry().names()
    )
    cls = find_pass("fold-constants")
    assert cls.name == "fold-constants" and cls.contract is Contract.PRESERVES
    assert list(pass_options(cls)) == ["max-bytes"]
    assert parse_pipeline("fold-constants{max-bytes=0}")[0] == cls(max_bytes=0)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="did you mean 'fold-constants'"):
        parse_pipeline("fold-constant")
    with pytest.raises(UsageError, match="pass 'fold-constants': max-bytes must be 0 or more"):
        parse_pipeline("fold-constants{max-bytes=-1}")


def test_the_documented_pipeline_parses() -> None:
    pytest.importorskip("secateur.passes.prune")
    text = "fold-constants,prune{ratio=0.3 criterion=l1 protect=[a b]},eliminate-dead"
    passes = parse_pipeline(text)
    assert [p.name for p in passes] == ["fold-constants", "prune", "eliminate-dead"]
    assert (getattr(passes[1], "ratio", 0), getattr(passes[1], "protect", 0)) == (0.3, ("a", "b"))
    assert parse_pipeline(format_pipeline(passes)) == passes


def test_listing_describes_every_pass() -> None:
    pytest.importorskip("secateur.passes.prune")
    rows = {info.name: info for info in list_passes()}
    info = rows["fold-constants"]
    assert info.provider == "secateur" and info.contract is Contract.PRESERVES and info.summary
    assert [(o.key, o.default, o.type_text) for o in info.options] == [
        ("max-bytes", 16 << 20, "a whole number")
    ]


def test_names_are_listed_without_importing_a_pass() -> None:
    code = (
        "import sys; from secateur.passes.registry import pass_registry; pass_registry().names(); "
        "print([m for m in sys.modules if m in ('onnxruntime', 'secateur.passes.fold_constants')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
