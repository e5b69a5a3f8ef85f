"""The plot of docs/BENCHMARKS.md, as plain SVG: one bar a contender, one panel a load."""

from statistics import median

WIDTH, LEFT, BAR, GAP, TITLE = 860, 215, 22, 8, 44
RIGHT = 120
LEGEND = (
    "Red: Pixel, durable before the answer, counted when written to the output. Blue: counted when written.",
    "Grey: answers only, nothing durable. Bars are medians, thin lines the least and the greatest round.",
)
COLOURS = {"none": "#b8bec7", "peer": "#7f93b2", "pixel": "#d9534f"}


def throughput(tables, order):
    panels, top = [], 10
    for load, contenders in tables.items():
        panel, top = one_panel(load, contenders, order, top)
        panels.append(panel)
    legend = "".join(
        f'<text x="12" y="{top + 14 + 18 * line}" class="small">{text}</text>'
        for line, text in enumerate(LEGEND))
    height = top + 46
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" \
width="{WIDTH}" height="{height}" role="img" aria-label="Visits a second by contender">
<style>text {{ font: 14px sans-serif; fill: #222; }} .title {{ font-weight: bold; }} \
.small {{ font-size: 12px; fill: #555; }}</style>
<rect width="100%" height="100%" fill="#fff"/>
{"".join(panels)}{legend}
</svg>
"""


def one_panel(load, contenders, order, top):
    names = [name for name in order if name in contenders]
    rates = {name: [figures["rate"] for figures in contenders[name]] for name in names}
    scale = (WIDTH - LEFT - RIGHT) / max(max(values) for values in rates.values())
    parts = [f'<text x="12" y="{top + 24}" class="title">Visits a second, '
             f'{load}</text>\n']
    y = top + TITLE
    for name in names:
        values = rates[name]
        middle, low, high = median(values), min(values), max(values)
        centre = y + BAR / 2
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 16}" text-anchor="end">{name}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{middle * scale:.1f}" height="{BAR}" '
            f'fill="{colour(name, contenders[name])}"/>'
            f'<path d="M{LEFT + low * scale:.1f} {centre}H{LEFT + high * scale:.1f}" stroke="#222"/>'
            f'<text x="{LEFT + high * scale + 8:.1f}" y="{y + 16}">{middle:,.0f}</text>\n')
        y += BAR + GAP
    return "".join(parts), y + 12


def colour(name, rounds):
    if name.startswith("pixel"):
        return COLOURS["pixel"]
    return COLOURS["peer" if rounds[0]["written"] else "none"]
