"""The report as a page: its style and its template. It needs nothing but itself, in light, in dark and on paper.

Everything that comes from documents, models or names of files is escaped by jinja2; the figures alone are markup.
"""

from collections.abc import Mapping
from typing import Any

_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
"""Control characters may not stand in HTML: shown as their pictures."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --panel: #f6f7f9; --line: #dcdfe5; --text: #1b1e24; --ink: #59606d; --bar: #6b7688;
  --chosen: #0a6ebd; --rejected: #c2560c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --panel: #1c1f25; --line: #343942; --text: #e4e7ec; --ink: #a0a8b5; --bar: #8e99ab;
    --chosen: #5cb0f2; --rejected: #f09a55;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--text); -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 72rem; overflow-wrap: anywhere;
  font: 0.9375rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 0.3rem; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3rem 0 0.6rem; }
h3 { font-size: 0.9375rem; margin: 0; }
p { margin: 0.4rem 0 1rem; max-width: 46rem; }
.soft, figcaption, th, dt, .step td.share { color: var(--ink); }
.charts, .answers, dl.numbers { display: grid; gap: 1rem; }
dl.numbers { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin: 1.5rem 0 0; }
dl.numbers div { background: var(--panel); border-radius: 0.5rem; padding: 0.7rem 0.9rem; }
dt { font-size: 0.8125rem; }
dd { margin: 0; }
dl.numbers dd { font-size: 1.3rem; font-weight: 600; line-height: 1.35; }
dl.numbers dd.soft { font-size: 0.8125rem; font-weight: 400; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 500; font-size: 0.8125rem; text-align: left; }
th, td { padding: 0.22rem 0.9rem 0.22rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.wide { overflow-x: auto; }
.made { columns: 2 24rem; column-gap: 3rem; }
.made section { break-inside: avoid; margin-bottom: 1.4rem; }
.made h3 { margin-bottom: 0.25rem; }
.made td { width: 62%; }
.made td.changed { font-weight: 600; }
.made td .soft { font-weight: 400; }
.step { min-width: 36rem; }
.step td { vertical-align: middle; }
.step td:first-child { width: 15rem; }
.step td.n { width: 5.5rem; }
.step tr.total td { font-weight: 600; }
.step tr.drop td:first-child { padding-left: 1.1rem; }
.step tr.none td { color: var(--ink); }
.track { position: relative; height: 0.85rem; min-width: 10rem; }
.track i { position: absolute; top: 0; bottom: 0; background: var(--bar); border-radius: 2px; min-width: 1px; }
.drop .track i { background: var(--rejected); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1.6rem 2.5rem; margin: 1rem 0; }
figure { margin: 0; }
figcaption { font-size: 0.8125rem; margin-bottom: 0.2rem; }
figcaption b { color: var(--text); font-size: 0.9375rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
.split { display: flex; height: 1.1rem; gap: 2px; margin: 0.3rem 0; }
.split i { border-radius: 2px; background: var(--bar); }
.split .chosen, .key.chosen { background: var(--chosen); }
.split .rejected, .key.rejected { background: var(--rejected); }
.key { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 2px; background: var(--bar); }
.lengths { table-layout: fixed; min-width: 42rem; }
.lengths th:first-child { width: 9rem; }
.sources { max-width: 30rem; }
article { border: 1px solid var(--line); border-radius: 0.6rem; margin: 1.4rem 0; padding: 1rem 1.2rem 1.1rem; }
article header { border-bottom: 1px solid var(--line); margin-bottom: 0.9rem; padding-bottom: 0.5rem; }
.turn { margin-top: 1rem; }
.turn + .turn, details.turn { border-top: 1px solid var(--line); padding-top: 0.9rem; }
.label, article header p { font-size: 0.8125rem; color: var(--ink); margin: 0 0 0.25rem; max-width: none; }
.text {
  white-space: pre-wrap;
  font: 0.9688rem/1.6 Charter, "Bitstream Charter", Cambria, Georgia, "Liberation Serif", serif;
}
.instruction { font-weight: 600; margin-bottom: 0.8rem; }
.answers { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem; }
.answers > div {
  border-top: 3px solid var(--chosen); background: var(--panel);
  padding: 0.5rem 0.9rem 0.8rem; border-radius: 0 0 0.4rem 0.4rem;
}
.answers > div.rejected { border-color: var(--rejected); }
.answers b { color: var(--chosen); } .answers .rejected b { color: var(--rejected); }
summary { cursor: pointer; }
.turn > details { margin-top: 0.8rem; }
.turn > details .text {
  max-height: 32rem; overflow-y: auto; margin-top: 0.4rem; padding-left: 1rem; border-left: 2px solid var(--line);
}
@media (max-width: 44rem) { .answers { grid-template-columns: minmax(0, 1fr); } body { padding: 1.5rem 1rem; } }
@page { margin: 14mm; }
@media print {
  :root {
    color-scheme: light;
    --paper: #fff; --panel: #f6f7f9; --line: #dcdfe5; --text: #000; --ink: #444; --bar: #6b7688;
    --chosen: #0a6ebd; --rejected: #c2560c;
  }
  html { font-size: 11.5px; }
  body { max-width: none; padding: 0; }
  .made { columns: 2; }
  .made section { break-inside: auto; }
  dl.numbers { grid-template-columns: repeat(6, 1fr); }
  .charts { grid-template-columns: 1fr 1fr; }
  .answers { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  h2, h3, h2 + p, .label, .instruction, article header { break-after: avoid; }
  figure, tr, dl.numbers div, article header { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = """\
{%- macro share(part, whole) -%}{{ "%.1f"|format(100 * part / (whole or 1)) }}%{%- endmacro -%}
{%- macro number(value) -%}{{ "{:,}".format(value) }}{%- endmacro -%}
{%- macro answer(side, text, length) -%}
<div class="{{ side }}">
<p class="label"><b>{{ side }}</b> &middot; {{ number(length) }} {{ unit }}</p>
<div class="text" dir="auto">{{ text }}</div>
</div>
{%- endmacro -%}
{%- macro turn_body(turn, lengths, about) -%}
<p class="label">{{ about }}</p>
<div class="text instruction" dir="auto">{{ turn.instruction }}</div>
<div class="answers">
{{ answer("chosen", turn.chosen, lengths[1]) }}
{{ answer("rejected", turn.rejected, lengths[2]) }}
</div>
<details><summary class="label">short context, {{ number(lengths[0]) }} {{ unit }}</summary>
<div class="text" dir="auto">{{ turn.short_context }}</div>
</details>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ file_name }}: self-generated pairs</title>
<style>{{ style }}</style>
</head>
<body>
<h1>Self-generated pairs</h1>
<p class="soft">{{ file_name }}{% if written %} &middot; written {{ written }}{% endif %}</p>
<dl class="numbers">
{% for name, value, note in key_numbers %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd><dd class="soft">{{ note }}</dd></div>
{% endfor %}
</dl>

<h2>What made them</h2>
<div class="made">
{% for title, rows in made %}
<section><h3>{{ title }}</h3>
<table>
{% for row in rows %}
<tr><th scope="row">{{ row.name }}</th>
<td{% if row.usual is not none %} class="changed"{% endif %}>{{ row.value }}
{%- if row.usual is not none %} <span class="soft">(recipe: {{ row.usual }})</span>{% endif %}</td></tr>
{% endfor %}
</table></section>
{% endfor %}
</div>

<h2>What became of the chunks</h2>
<p>Every chunk that the model was asked about is dropped by the first filter that finds fault with it, or becomes a
turn. Shares are of all chunks asked about.
{% if num_whole_contexts %}Before that, {{ number(num_whole_contexts) }} long contexts were left out whole because they
hold control tokens.{% endif %}</p>
<div class="wide"><table class="step">
{% for step in steps %}
<tr class="{{ 'drop' if step.is_drop else 'total' }}{{ '' if step.count else ' none' }}">
<td>{{ step.name }}{% if step.name in keep and not step.count %} (off){% endif %}</td>
<td class="n">{{ "&minus;"|safe if step.is_drop and step.count }}{{ number(step.count) }}</td>
<td class="n share">{{ share(step.count, steps[0].count) }}</td>
<td><div class="track">
{% if step.count %}
<i style="left: {{ bar(step)[0] }}%; width: {{ bar(step)[1] }}%"></i>
{% endif %}
</div></td>
</tr>
{% endfor %}
</table></div>

<h2>Lengths</h2>
<div class="wide"><table class="lengths">
<tr><th scope="col">{{ unit }}</th>
{% for name in ("number", "least", "median", "mean", "90% at most", "greatest") %}
<th scope="col" class="n">{{ name }}</th>
{% endfor %}
</tr>
{% for row in length_rows %}
<tr><td>{{ row[0] }}</td>{% for value in row[1:] %}<td class="n">{{ number(value) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<div class="charts">
{% for title, note, figure in figures %}
<figure><figcaption><b>{{ title }}</b>{% if note %}<br>{{ note }}{% endif %}</figcaption>
{{ figure }}
</figure>
{% endfor %}
</div>

<h2>Differences in length</h2>
<p>A preference for length is learnt too: where chosen answers are mostly the longer ones, or mostly the shorter ones,
the loss falls already when the policy writes more, or less. Halves of equal size and a median near 0 leave little of
that kind to learn.</p>
<div class="charts">
<figure><figcaption><b>Chosen minus rejected</b>
<br>median {{ difference.median }}, mean {{ difference.mean }} {{ unit }} a turn</figcaption>
{{ difference.figure }}
</figure>
<div>
<h3>Which answer is the longer one</h3>
<div class="split">
{% for side, count in difference.sides if count %}
<i class="{{ side }}" style="flex: {{ count }} 0 2px"></i>
{% endfor %}
</div>
<table>
{% for side, count in difference.sides %}
<tr><td><span class="key {{ side }}"></span>&ensp;{{ "neither" if side == "equal" else side }}</td>
<td class="n">{{ number(count) }}</td><td class="n">{{ share(count, difference.num_turns) }}</td></tr>
{% endfor %}
</table>
</div>
</div>

<h2>Sources</h2>
<table class="sources">
{% for name, count in sources %}
<tr><td>{{ name }}</td><td class="n">{{ number(count) }}</td></tr>
{% else %}
<tr><td>nothing is known of them</td></tr>
{% endfor %}
</table>

<h2>{{ "One pair" if shown|length == 1 else "%d pairs"|format(shown|length) }}, drawn with seed {{ seed }}</h2>
{% for one in shown %}
<article>
<header><h3><bdi>{{ one.pair.id }}</bdi></h3>
<p>{{ one.note }}</p>
<p>begins with <bdi>{{ one.opening }}</bdi></p></header>
{% for turn in one.pair.turns %}
{% if loop.first %}
<section class="turn">{{ turn_body(turn, one.lengths[0], one.about[0]) }}
</section>
{% else %}
<details class="turn"><summary>Turn {{ loop.index }}: <bdi>{{ turn.instruction|truncate(120) }}</bdi></summary>
{{ turn_body(turn, one.lengths[loop.index0], one.about[loop.index0]) }}
</details>
{% endif %}
{% endfor %}
</article>
{% endfor %}
</body>
</html>
"""


def render(values: Mapping[str, Any]) -> str:
    """The page with ``values`` in the template's places; a place without a value is an error.

    A value is escaped unless it is a `markupsafe.Markup`.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(PAGE).render(**values, style=Markup(STYLE))
    return text.translate(_CONTROLS)
