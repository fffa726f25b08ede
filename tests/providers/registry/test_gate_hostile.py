"""Rules, names and sentences written by somebody with other plans: refused, or carried without harm."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates import AtMost, Recorded, judge_recorded, parse_rule
from nighttrain.providers.registry.gates.recorded_files import (
    UnreadableFileError,
    read_checks,
    read_paired_losses,
    read_slices,
)
from nighttrain.providers.registry.gates.signatures import UnreadableSignatureError, read_signature
from nighttrain.providers.registry.gates.verdicts import Evidence, Verdict, VerdictKind
from nighttrain.providers.registry.markdown import cell

thoroughly = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

HOSTILE = [
    "a | b || c",
    "line\nbreak | x\r\n| --- |",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil.example/x.png) [y](javascript:alert(1))",
    "http://evil.example www.evil.example me@evil.example",
    "`code` ``more`` *a* _b_ **c** ~~d~~ # e",
    "&lt;b&gt; &#60;i&#62; \\| \\\\| \\",
    "' OR 1=1 -- \" ; DROP TABLE",
    "../../etc/passwd %2e%2e%2f",
    "right\u202eto left \u200b invisible \u0000 null \ud800 half",
    "é 漢字 🛩",
    "x" * 10_000,
]
RENDERER = MarkdownIt("gfm-like")
"""Also makes links of addresses, as the pages of Airflow and MLflow do."""
# GitHub's rules know no link without a scheme but www., for which the tests look themselves: a metric's name
# such as test.ai would be one.
RENDERER.linkify.set({"fuzzy_link": False, "fuzzy_email": True})
RENDERER.linkify.add("//", None)


def cells(markdown: str) -> list[list[str]]:
    """The table as a page shows it, as text."""
    page = RENDERER.render(markdown)
    rows = re.findall(r"<tr>\n(.*?)</tr>", page, flags=re.DOTALL)
    found = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in rows]
    assert re.sub(r"</?(table|thead|tbody|tr|td|th)>", "", page).count("<") == 0, page
    return [[html.unescape(cell) for cell in row] for row in found]


def shown(text: str) -> str:
    """What a reader should see of a text."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line.replace("\u202e", "\ufffd").replace("\u200b", "\ufffd").replace("\x00", "\ufffd")


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:30])
def test_a_hostile_text_stays_in_its_cell_as_it_is_written(text: str) -> None:
    evidence = Evidence(text, text, None, 1.0, VerdictKind.REJECTED, text, reference=text, note=text)
    table = Verdict(VerdictKind.REJECTED, (evidence, evidence)).markdown_table()
    found = cells(table)
    assert [len(row) for row in found] == [6, 6, 6]
    if len(text) < 1_000 and "\ud800" not in text and "\x00" not in text:
        assert found[1][0] == shown(text)
        assert found[1][5] == shown(text)
    assert not re.search(r"https?:|www\.|@|javascript:|<|\n\n", table)
    table.encode()
    assert len(found[1][0]) <= 1_000


@thoroughly
@given(st.text(max_size=60))
@example("\\|")
@example("a\u2028b")
@example("evil.com //evil.com ftp://evil.com mailto:me@evil.com HTTPS://evil.com")
def test_any_text_leaves_the_table_whole(text: str) -> None:
    evidence = Evidence(text, None, None, None, VerdictKind.INCONCLUSIVE, f"x{text}")
    found = cells(Verdict(VerdictKind.INCONCLUSIVE, (evidence,)).markdown_table())
    assert [len(row) for row in found] == [6, 6]
    assert "\n" not in cell(text)
    plain = Verdict(VerdictKind.INCONCLUSIVE, (evidence,)).table()
    assert len(plain.split("\n")) == 3


pieces = st.sampled_from(
    [
        *("mae", "champion", "baseline", "version:12", "alias:x", "candidate.", "[", "]", "carrier=AA", "*"),
        *(
            "<=",
            ">=",
            "<",
            ">",
            "=",
            "1.02",
            "-",
            "+",
            "(",
            ")",
            "paired",
            "confidence 0.9",
            "rows >= 5",
            ",",
        ),
        *("tag:", "custom:", "signature compatible", "data_age", "2d", "50MB", " ", "\n", "'", '"', "`", "|"),
        *("<b>", "../", "é", "\u202e", "\x00", "nan", "1e400", "%", "samples(", "{{", "\\"),
    ]
)


@thoroughly
@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=9).map("".join)))
def test_whatever_is_written_as_a_rule_is_refused_or_read_back(line: str) -> None:
    try:
        rule = parse_rule(line)
    except ConfigurationError:
        return
    assert parse_rule(rule.text()) == rule
    assert rule.text().isprintable()
    verdict = judge_recorded([rule], Recorded({}, has_champion=True))
    assert verdict.kind is not VerdictKind.ACCEPTED
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:30])
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "{} <= 5",
        "mae <= {}",
        "mae <= {}.mae",
        "mae[{}",
        "mae <= champion * {}",
        "mae <= champion (paired, {})",
        "custom:{}",
        "signature compatible with {}",
        "tag:|{}",
    ],
)
def test_hostile_parts_of_a_rule_are_refused(form: str, text: str) -> None:
    line = form.format(text)
    with pytest.raises(ConfigurationError) as caught:
        parse_rule(line)
    assert len(str(caught.value)) < 1_000


LINES = [text for text in HOSTILE if text.isprintable() and len(text) < 200]


@pytest.mark.parametrize("value", [text for text in LINES if not set("[]*") & set(text)])
def test_a_slices_hostile_name_is_carried_without_harm(value: str) -> None:
    rule = parse_rule(f"mae[carrier={value}] <= 5")
    assert parse_rule(rule.text()) == rule
    verdict = judge_recorded([rule], Recorded({"candidate": {rule.metric: 7.0}}, has_champion=True))
    assert verdict.kind is VerdictKind.REJECTED
    assert value in cells(verdict.markdown_table())[1][0]


@pytest.mark.parametrize("value", LINES)
def test_a_tags_hostile_value_is_carried_without_harm(value: str) -> None:
    rule = parse_rule(f"tag:reviewed = {value}")
    assert parse_rule(rule.text()) == rule
    verdict = judge_recorded([rule], Recorded({}, has_champion=True, tags={"reviewed": f"<b>{value}"}))
    assert verdict.kind is VerdictKind.REJECTED
    assert [len(row) for row in cells(verdict.markdown_table())] == [6, 6]


READERS: tuple[Callable[[bytes], object], ...] = (read_slices, read_paired_losses, read_checks)


def refusal(read: Callable[[bytes], object], content: bytes) -> str | None:
    try:
        read(content)
    except UnreadableFileError as error:
        return str(error)
    return None


def with_name(name: Any) -> dict[str, bytes]:
    return {
        "group": json.dumps({name: {"carrier": {"AA": {"mae": 1}}}}).encode(),
        "dimension": json.dumps({"candidate": {name: {"AA": {"mae": 1}}}}).encode(),
        "slice": json.dumps({"candidate": {"carrier": {name: {"mae": 1}}}}).encode(),
        "metric": json.dumps({"candidate": {"carrier": {"AA": {name: 1}}}}).encode(),
    }


@pytest.mark.parametrize("place", ["group", "dimension", "slice", "metric"])
@pytest.mark.parametrize("name", ["", "a\nb", "a]b", "[", "x" * 201, "\u202e", "\ud800", "\x00"])
def test_hostile_names_of_slices_are_refused(place: str, name: str) -> None:
    with pytest.raises(UnreadableFileError, match="printable characters without brackets") as caught:
        read_slices(with_name(name)[place])
    assert str(caught.value).isascii() or "…" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["<b>AA</b>", "A|A", "`x`", "' or '1'='1", "../x", "é", "*", "=", "x" * 200]
)
def test_a_slice_with_an_odd_name_is_judged_and_stays_in_its_cell(value: str) -> None:
    content = {"candidate": {"carrier": {value: {"mae": 9, "rows": 500}}}}
    recorded = Recorded(read_slices(json.dumps(content).encode()), has_champion=True)
    verdict = judge_recorded(["mae[carrier=*] <= 5 (rows >= 200)"], recorded)
    assert verdict.kind is VerdictKind.REJECTED
    assert value in verdict.evidence[0].sentence
    assert value in cells(verdict.markdown_table())[1][5]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b'{"candidate": []}',
        b"[" * 100_000,
        b'{"mae": {"groups": ["a"], "rows": [1], "sums": {"candidate": [NaN]}}}',
        b'{"mae": {"groups": ["a"], "rows": [1], "sums": {"candidate": [1e400]}}}',
        b'{"mae": {"groups": ["a"], "rows": [0], "sums": {"candidate": [1]}}}',
        b'{"mae": {"groups": ["a"], "rows": [true], "sums": {"candidate": [1]}}}',
        b'{"mae": {"groups": ["a", "a"], "rows": [1, 1], "sums": {"candidate": [1, 1]}}}',
        b'{"mae": {"groups": ["a"], "rows": [1], "sums": {"candidate": [1, 2]}}}',
        b'{"mae": {"groups": [], "rows": [], "sums": {}}}',
        b'{"my.check": {"verdict": "perfect"}}',
        b'{"my.check": {"verdict": null}}',
        b'{"my.check": {"verdict": "accepted", "sentence": 7}}',
    ],
    ids=lambda content: ascii(content)[:50],
)
def test_files_of_another_form_are_refused_by_each_reader_that_they_could_be_for(content: bytes) -> None:
    found = [refusal(read, content) for read in READERS]
    assert sum(each is not None for each in found) >= 2
    assert all(len(each or "") < 300 for each in found)


@thoroughly
@given(st.binary(max_size=200))
def test_any_bytes_as_a_file_or_an_mlmodel_raise_only_what_is_expected(content: bytes) -> None:
    for read in READERS:
        refusal(read, content)
    with contextlib.suppress(UnreadableSignatureError):
        read_signature(content)


@pytest.mark.parametrize(
    "mlmodel",
    [
        "signature: 7",
        "signature: {inputs: 7}",
        "signature: {inputs: '[7]'}",
        "signature: {inputs: '{}'}",
        'signature: {inputs: \'[{"name": "x"}]\'}',
        "!!python/object/apply:os.system ['true']",
        "a: &a [*a, *a]",
        "[" * 5_000,
    ],
    ids=lambda text: text[:40],
)
def test_an_mlmodel_of_another_form_is_refused_and_runs_nothing(mlmodel: str) -> None:
    with contextlib.suppress(UnreadableSignatureError):
        assert read_signature(mlmodel.encode()) is None


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("data_age >= 2d", "write 'data_age <= 2d'"),
        ("data_age > 2d", "write 'data_age <= 2d'"),
        ("data_age = 2d", "write 'data_age <= 2d'"),
        ("candidate.data_age < 2d", "write 'data_age <= 2d'"),
        ("data_age <= champion", "write 'data_age <= 2d'"),
        ("data_age <= champion * 1.1", "write 'data_age <= 2d'"),
        ("data_age <= champion (paired)", "write 'data_age <= 2d'"),
        ("data_age <= 2d (paired)", "write 'data_age <= 2d'"),
        ("data_age[carrier=AA] <= 2d", "write 'data_age <= 2d'"),
        ("samples(data_age) >= 5", "write 'data_age <= 2d'"),
        ("data_age <= 50MB", "use ms, s, min, h, d"),
        ("artifact_bytes <= 2d", "use B, kB"),
        ("artifact_bytes <= champion + 2d", "use B, kB"),
        ("artifact_bytes[carrier=AA] <= 50MB", "write 'artifact_bytes <= 50MB'"),
        ("champion.mae <= 25", "write 'mae <= champion.mae'"),
        ("baseline.mae <= 25", "write 'mae <= champion.mae'"),
        ("version:12.mae <= 25", "write 'mae <= champion.mae'"),
        ("alias:last-good <= 25", "write 'mae <= champion.mae'"),
        ("champion <= 25", "write 'mae <= champion.mae'"),
        ("candidate.candidate.mae <= 25", "write 'mae <= champion.mae'"),
        ("mae <= Champion.mae", "write champion"),
        ("mae <= BASELINE.mae * 0.98", "write baseline"),
        ("signature >= 1", "write 'signature compatible'"),
        ("signature not compatible", "write 'signature compatible'"),
        ("tag:owner >= 5", "'tag:reviewed = yes'"),
        ("tag: owner", "write 'tag:owner'"),
        ("samples(n) <= 500", r"write 'samples\(n\) >= 500'"),
        ("mae[carrier=A*] <= 5", r"every slice is written 'mae\[carrier=\*\]'"),
        ("mae[carrier=*A] <= champion * 1.05", r"every slice is written 'mae\[carrier=\*\]'"),
        ("mae[carrier= *] <= 5", r"every slice is written 'mae\[carrier=\*\]'"),
        ("mae[carrier=* ] <= 5 (rows >= 200)", r"every slice is written 'mae\[carrier=\*\]'"),
        ("mae[carr*=AA] <= 5", "every slice is written"),
        ("samples(n[carrier=*]) >= 5", r"\(rows >= 200\)"),
        ("mae[carrier= AA] <= 5", r"write 'mae\[carrier=AA\]', without blanks"),
        ("mae[ carrier =AA ] <= champion", r"write 'mae\[carrier=AA\]', without blanks"),
        ({"rule": "at_most", "metric": "data_age", "limit": 5}, "write 'data_age <= 2d'"),
        ({"rule": "at_most", "metric": "champion.mae", "limit": 5}, "write 'mae <= champion.mae'"),
        ({"rule": "at_most", "metric": "mae[carrier=*]", "limit": 5}, "EverySlice"),
        (AtMost("mae[carrier=*]", 5), "EverySlice"),
    ],
)
def test_a_word_that_means_something_else_is_no_name_of_a_metric(line: Any, fix: str) -> None:
    with pytest.raises(ConfigurationError, match=fix) as caught:
        parse_rule(line)
    assert caught.value.field in ("rule", "metric", "against")
    assert caught.value.value


@pytest.mark.parametrize(
    "line",
    [
        "data_age_hours <= 5",
        "champion_gap <= 5",
        "signature_score >= 0.5",
        "baselines.mae <= 5",
        "mae[carrier=New York] <= 5",
        "mae <= baseline.mae",
        "artifact_bytes <= champion + 5MB",
        "candidate.data_age <= 2 d",
        "artifact_bytes >= 1kB",
    ],
)
def test_what_only_begins_like_such_a_word_is_read(line: str) -> None:
    rule = parse_rule(line)
    assert parse_rule(rule.text()) == rule


def test_a_slice_whose_own_name_has_a_star_is_named_by_a_class() -> None:
    measured = {"candidate": {"mae[stars=5*]": 7.0, "rows[stars=5*]": 300}}
    recorded = Recorded(measured, has_champion=True)
    for rule in (AtMost("mae[stars=5*]", 5), AtMost("mae[stars=5*]", 5).to_dict(), "mae[stars=*] <= 5"):
        assert judge_recorded([rule], recorded).kind is VerdictKind.REJECTED
