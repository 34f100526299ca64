"""The page of `report.html`, inside of the frame that `app.toolkit.page` gives it."""

from __future__ import annotations

PAGE = """
{% extends "frame" %}
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
{% block main %}
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
{% endblock %}
"""
