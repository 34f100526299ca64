"""The page of `report.html`: no script, no address outside itself, legible in the dark and on paper."""

from __future__ import annotations

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

PAGE = """
{%- macro badge(verdict) -%}
<span class="badge {{ verdict }}">{{ marks[verdict] }} {{ verdict }}</span>
{%- endmacro -%}
{%- macro table(rows, headings) -%}
<div class="scroll"><table>
<thead><tr>{% for heading in headings %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell | shown }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ facts.verdict }}: {{ facts.candidate.path }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<div class="verdict {{ facts.verdict }}">
<h1>{{ marks[facts.verdict] }} {{ verdict }}</h1>
<p><span class="name">{{ facts.candidate.path }}</span> ({{ facts.candidate.dtype | upper }})
against <span class="name">{{ facts.reference.path }}</span> ({{ facts.reference.dtype | upper }}),
on {{ facts.sampled_images }} {{ "image" if facts.sampled_images == 1 else "images" }}.</p>
</div>
{% if reasons %}
<ul class="plain">{% for reason in reasons %}<li>{{ reason }}</li>{% endfor %}</ul>
{% endif %}
{% if advice %}
<h2>Where to look</h2>
<ul class="plain">{% for line in advice %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}

<h2>The two answers</h2>
<div class="pair">
{% for answer in answers %}
<section class="card">
<h3>{{ answer.title }}: {{ badge(answer.comparison.verdict) }}</h3>
<p class="faint">{{ answer.meaning }}</p>
<div class="scroll"><table>
<thead><tr><th scope="col">limit</th><th scope="col" class="number">measured</th>
<th scope="col" class="number">at most</th><th scope="col" class="number">interval</th>
<th scope="col">verdict</th></tr></thead>
<tbody>
{% for gate in answer.comparison.gates %}
<tr><th scope="row"><code>{{ gate.name }}</code><small>{{ gate.name | meaning }}</small></th>
<td class="number">{{ gate.measured | shown }}</td><td class="number">{{ gate.limit | shown }}</td>
<td class="number">{{ gate | interval }}</td>
<td>{{ badge(gate.verdict) }}{% if gate.leans %}<small>leans to {{ gate.leans }}</small>{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endfor %}
</div>

<h2>Figures</h2>
{{ table(figures, ["", "kernel parity", "pipeline parity"]) }}

<h2>Preprocessing</h2>
{% if facts.preprocessing_differences %}
<p>The two models prepare an image differently:</p>
{{ table(differences, ["step", "reference", "candidate"]) }}
{% else %}
<p>Both prepare an image in the same way, so pipeline parity is kernel parity.</p>
{% endif %}

{% if pictures %}
<h2>The images that differ most</h2>
<p class="faint">Left the reference, right the candidate. Blue: both say so. Orange, of boxes dashed and marked "only
here": the other does not.</p>
{% for picture in pictures %}
<figure>
<img src="{{ picture.data_uri }}" alt="{{ picture.name }}: {{ picture.lines | join('; ') }}">
<figcaption><strong class="name">{{ picture.name }}</strong> <span class="faint">{{ picture.caption }}</span>
<ul>{% for line in picture.lines %}<li>{{ line }}</li>{% endfor %}</ul></figcaption>
</figure>
{% endfor %}
{% endif %}

{% for title, rows, headings in lists %}
<h2>{{ title }}</h2>
{% if rows %}{{ table(rows, headings) }}{% else %}<p>None.</p>{% endif %}
{% endfor %}

<h2>The models</h2>
{{ table(models, ["", "reference", "candidate"]) }}

<h2>How it was sampled</h2>
{{ table(sampling, ["", ""]) }}
{% if facts.notes %}
<ul class="plain">{% for note in facts.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endif %}
{% if unreadable %}
<h3>Images that could not be read: {{ facts.unreadable | length }}</h3>
{{ table(unreadable, ["image", "why"]) }}
{% endif %}

<h2>Versions and times</h2>
<div class="pair">{{ table(versions, ["what", "version"]) }}{{ table(seconds, ["phase", "seconds"]) }}</div>
</main>
</body>
</html>
"""
