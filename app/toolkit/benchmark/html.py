"""`benchmark.html`: a benchmark for a person, in one file that opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from app.toolkit.benchmark.result import BenchmarkResult
from app.toolkit.benchmark.tables import benchmark_tables, method, verdict
from app.toolkit.page import render_page

CAPTIONS = {
    "latency": "Latency by way, with the 95 % interval of the median.",
    "throughput": "Images a second by batch size.",
    "accuracy": "Accuracy against latency: up and to the left is better.",
}

PAGE = """
{% extends "frame" %}
{% block main %}
<div class="verdict {{ 'passed' if result.stable else 'undecided' }}">
<h1>{{ "✓" if result.stable else "?" }} {{ verdict }}</h1>
<p>Benchmark of <span class="name">{{ result.model.name }}</span>.</p>
</div>

{% for table in tables[:1] %}{{ show(table) }}{% endfor %}

{% for picture in pictures %}
<figure>
<img src="data:image/png;base64,{{ picture.data }}" alt="{{ picture.caption }}">
<figcaption class="faint">{{ picture.caption }}</figcaption>
</figure>
{% endfor %}

{% for table in tables[1:] %}{{ show(table) }}{% endfor %}

{% if result.notes %}
<h2>Notes</h2>
<ul class="plain">{% for note in result.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endif %}
<h2>How it was measured</h2>
<ul class="plain">{% for line in method %}<li>{{ line }}</li>{% endfor %}</ul>
{% endblock %}
{% macro show(table) %}
<h2>{{ table.title }}</h2>
<div class="scroll"><table>
<thead><tr>
{%- for heading in table.headings %}<th scope="col"{{ number(table, loop.index0) }}>{{ heading }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td{{ number(table, loop.index) }}>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{% endmacro %}
{% macro number(table, column) %}{% if table.numeric[column] %} class="number"{% endif %}{% endmacro %}
"""


def benchmark_html(result: BenchmarkResult, pictures: Mapping[str, bytes]) -> str:
    """The page; `pictures` are `benchmark_pictures`', PNGs by name."""
    values = {
        "result": result,
        "verdict": verdict(result),
        "tables": benchmark_tables(result),
        "pictures": [
            {"caption": CAPTIONS.get(name, name), "data": base64.b64encode(picture).decode()}
            for name, picture in pictures.items()
        ],
        "method": list(method(result)),
    }
    return render_page(PAGE, f"Benchmark of {result.model.get('name', 'a model')}", values)
