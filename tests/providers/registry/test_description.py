"""A version's description: a verdict, a table, links; and whatever the names hold, only text."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nighttrain.providers.registry.markdown import cell, link, text
from nighttrain.providers.registry.version_page.description import (
    BEGIN,
    END,
    Endpoint,
    VersionFacts,
    compose,
    describe,
    persons_part,
)
from nighttrain.providers.tracking.names import MAX_DESCRIPTION, check_description

FACTS = VersionFacts(
    name="delay",
    version="3",
    verdict="rejected",
    reasons="rejected: mae 18.87 is above the baseline's 18.01",
    measurements={
        "candidate": {"mae": 18.87, "rows": 900.0},
        "champion": {"mae": 19.5, "rows": 900.0},
        "baseline": {"mae": 18.01, "r2": "NaN"},
    },
    champion_version="2",
    night="2026-11-25",
    interval=("2026-11-25T00:00:00+00:00", "2026-11-26T00:00:00+00:00"),
    dag_run="nightly/scheduled__2026-11-25",
    dag_run_url="https://airflow.example.com/dags/nightly/runs/scheduled__2026-11-25",
    job="ml/nightly-train-1",
    serving=(Endpoint("ml/delay", "http://delay.ml.svc:8080"),),
)


def test_a_person_reads_the_verdict_what_serves_the_numbers_and_where_it_comes_from() -> None:
    assert describe(FACTS).splitlines() == [
        "**Rejected**: mae 18.87 is above the baseline&#39;s 18.01",
        "",
        "**Serves** [ml/delay](http://delay.ml.svc:8080)",
        "",
        "|  | candidate (version 3) | champion (version 2) | baseline |",
        "| :-- | --: | --: | --: |",
        "| mae | 18.87 | 19.50 | 18.01 |",
        "| rows | 900 | 900 | - |",
        "| r2 | - | - | NaN |",
        "",
        "- Night 2026-11-25, data from 2026-11-25T00:00:00+00:00 to 2026-11-26T00:00:00+00:00",
        "- DAG run [nightly/scheduled&#95;&#95;2026-11-25]"
        "(https://airflow.example.com/dags/nightly/runs/scheduled%5F%5F2026-11-25)",
        "- Job ml/nightly-train-1",
    ]


def test_before_the_gate_and_without_an_origin_it_says_so() -> None:
    assert describe(VersionFacts()).splitlines() == [
        "**Not judged yet.**",
        "",
        "No endpoint of nighttrain's serves it.",
    ]
    assert describe(VersionFacts(verdict="accepted")).startswith("**Accepted.**")


HOSTILE = [
    "a|b",
    "one\ntwo\r\nthree\u2028four",
    "# heading",
    "- item",
    "1. item",
    "**bold** _under_ ~~gone~~ `code`",
    "[name](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "<script>alert(1)</script>",
    "<!-- /nighttrain -->",
    "https://evil.example www.evil.example me@evil.example",
    "../../etc/passwd",
    "\x00\ud800\u202etxt.exe",
    "&lt;b&gt;",
    "x" * 10_000,
    "'\"",
    "$(id) {{ 7*7 }} ${HOME}",
    "☃ Δ 山",
]


def plain(markdown: str) -> str:
    """What a renderer shows of escaped text: its entities resolved."""
    return re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), markdown)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(value: str) -> None:
    shown = text(value)
    assert not set(shown) & set("<>|*_[]()`\\~!@\n\r\u2028\u202e\x00\"'")
    assert not re.search(r"&(?!#\d+;)|#(?!\d+;)|://|www\.", shown)
    assert not re.match(r"[-+=]|\d+[.)]", shown)
    # Nothing is lost but what cannot be seen, and what is too long.
    visible = re.sub(r"[\x00-\x20\u2028\u202e]+", " ", value.replace("\ud800", "\ufffd")).strip()
    assert plain(shown)[:150] == visible[:150]


@given(st.text(max_size=400))
def test_whatever_it_is_it_is_text_on_one_line(value: str) -> None:
    shown = text(value, 400)
    assert len(shown.splitlines()) <= 1
    assert not set(shown) & set("<>|*_[]()`\\~!@\"'")
    assert not re.search(r"&(?!#\d+;)|#(?!\d+;)", shown)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_description_of_hostile_facts_keeps_its_form(value: str) -> None:
    facts = VersionFacts(
        name=value,
        version=value,
        verdict="rejected",
        reasons=value,
        measurements={"candidate": {value: 1.0}, value: {value: 2.0, "mae": 3.0}},
        champion_version=value,
        night=value,
        interval=(value, value),
        dag_run=value,
        dag_run_url=value,
        job=value,
        serving=(Endpoint(value, value),),
    )
    lines = describe(facts).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) >= 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {4}
    assert len([line for line in lines if line.startswith("**")]) == 2
    assert "](" not in "\n".join(lines)
    check_description(compose("", describe(facts)))


def test_an_address_that_is_none_of_the_webs_is_no_link() -> None:
    for url in ("javascript:alert(1)", "", "ftp://x/y", "http://", "https://u:p@h/x", "http://h/ x", "//h/x"):
        assert link("name", url) == "name"
    broken = link("na](me", "https://h/a)b|c\"d'e<f>*g_h")
    assert broken == "[na&#93;&#40;me](https://h/a%29b%7Cc%22d%27e%3Cf%3E%2Ag%5Fh)"


MANY = VersionFacts(
    verdict="accepted",
    reasons="r" * 9_000,
    measurements={who: {f"{'|' * 60}{n}": float(n) for n in range(500)} for who in ("candidate", "champion")},
    dag_run="<" * 5_000,
)


def test_a_long_description_is_cut_after_a_whole_line() -> None:
    for limit in (MAX_DESCRIPTION, 900, 300):
        shown = describe(MANY, limit=limit)
        assert len(shown) <= limit
    shown = describe(MANY, limit=3_000)
    assert shown.endswith("(The rest does not fit here.)")
    for line in shown.splitlines():
        assert not line.startswith("|") or line.endswith("|")


# What is a person's.


def test_ours_is_written_anew_and_a_persons_text_stays_around_it() -> None:
    first = compose("", "ours")
    assert first == f"{BEGIN}\nours\n{END}"
    person = f"Mine, above.\n\n{first}\n\nMine, below."
    second = compose(person, "ours, later")
    assert second == person.replace("\nours\n", "\nours, later\n")
    assert persons_part(second) == "Mine, above.\n\n\n\nMine, below."


def test_a_text_without_ours_comes_after_it() -> None:
    assert compose("Mine.", "ours") == f"{BEGIN}\nours\n{END}\n\nMine."


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=80))
def test_a_persons_text_is_never_changed(before: str, after: str, ours: str) -> None:
    existing = f"{before}{compose('', 'first')}{after}"
    changed = compose(existing, text(ours) or "x")
    assert changed.startswith(before)
    assert changed.endswith(after)
    assert compose(changed, text(ours) or "x") == changed


@pytest.mark.parametrize(
    "existing", [f"mine {BEGIN} and no end", f"no begin {END}", f"{END} then {BEGIN}", "x" * MAX_DESCRIPTION]
)
def test_where_it_is_not_clear_what_is_ours_or_there_is_no_room_nothing_changes(existing: str) -> None:
    assert compose(existing, "ours") == existing


def test_with_little_room_a_persons_text_stays_whole_and_ours_is_cut() -> None:
    mine = "m" * (MAX_DESCRIPTION - 300)
    whole = compose(mine, "\n".join(f"line {number}" for number in range(100)))
    assert len(whole) <= MAX_DESCRIPTION
    assert whole.endswith(mine)
    assert "line 3\n" in whole


@pytest.mark.parametrize("show", [text, cell])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("git+ssh://h/x ://h", "git+ssh&#58;//h/x &#58;//h"),
        ("mailto:a javascript:b data:c http:d", "mailto&#58;a javascript&#58;b data&#58;c http&#58;d"),
        ("{{ x }} ^a^ $b$", "&#123;&#123; x &#125;&#125; &#94;a&#94; &#36;b&#36;"),
        ("so\u00adft \u180e \ue000 \u061c end", "so ft end"),
        ("mae 12.5, test.ai: 3", "mae 12.5, test.ai: 3"),
    ],
)
def test_a_verdicts_table_and_a_description_escape_alike(
    show: Callable[[str], str], value: str, shown: str
) -> None:
    assert show(value) == shown
