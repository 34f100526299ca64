"""What every page of ours shares: one file that opens offline, is legible in the dark and on paper, runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --sheet: #f5f7f9; --ink: #1f2933; --faint: #52606d; --rule: #d9dee4;
  --passed: #17693a; --failed: #b3261e; --undecided: #8a5300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --sheet: #1d232a; --ink: #e6eaee; --faint: #a3afbb; --rule: #36404a;
    --passed: #6fcf97; --failed: #ff8a80; --undecided: #f2c14e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans KR", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: 0 0 .6rem; max-width: 70rem; }
.faint { color: var(--faint); }
.verdict { border-left: .4rem solid currentColor; padding: .2rem 0 .2rem 1rem; margin-bottom: 1rem; }
.passed { color: var(--passed); } .failed { color: var(--failed); } .undecided { color: var(--undecided); }
.verdict p { color: var(--ink); }
.badge { font-weight: 600; white-space: nowrap; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
.card { background: var(--sheet); border: 1px solid var(--rule); border-radius: .4rem; padding: 1rem; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--rule); }
thead th { color: var(--faint); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td, .name { overflow-wrap: anywhere; }
small { color: var(--faint); display: block; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .92em; }
figure { margin: 0 0 1.75rem; break-inside: avoid; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--rule); background: #fff; }
figcaption ul, .plain { margin: .2rem 0 0; padding-left: 1.1rem; }
@media print {
  :root {
    color-scheme: light;
    --paper: #fff; --sheet: #fff; --ink: #000; --faint: #444; --rule: #bbb;
    --passed: #17693a; --failed: #b3261e; --undecided: #8a5300;
  }
  body { padding: 0; font-size: 10.5pt; max-width: none; }
  .card, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
{% block main %}{% endblock %}
</main>
</body>
</html>
"""


def render_page(
    template: str, title: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None
) -> str:
    """A page of a template that extends "frame" and fills its block "main". Every value is escaped."""
    loader = DictLoader({"frame": FRAME, "page": template.lstrip()})
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=loader)
    environment.filters.update(filters or {})
    style = Markup(STYLE)  # noqa: S704 - ours, nothing of it comes from outside
    return environment.get_template("page").render(**values, title=title, style=style)
