"""How a report looks: one column, the system's own typeface, thin rules, and colours for light and for dark screens."""

COLOURS = {
    "light": {
        "ground": "#ffffff", "raised": "#f5f6f8", "text": "#1b1f24", "quiet": "#59626d", "rule": "#dfe3e8",
        "series-0": "#1c5fc0", "series-1": "#b34b09", "series-2": "#0b7459",
    },
    "dark": {
        "ground": "#14171b", "raised": "#1d2127", "text": "#e7e9ec", "quiet": "#a3abb5", "rule": "#30363e",
        "series-0": "#7fb2f7", "series-1": "#f0a36d", "series-2": "#5ecba9",
    },
}  # fmt: skip
TEXT_COLOURS = ("text", "quiet", "series-0", "series-1", "series-2")


SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace'


def _variables(scheme: str) -> str:
    return " ".join(f"--{name}: {value};" for name, value in COLOURS[scheme].items())


RULES = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.55 var(--sans);
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 21px; line-height: 1.3; font-weight: 650; margin: 0 0 12px; }
h3 { font-size: 16px; font-weight: 650; margin: 28px 0 8px; }
p { margin: 0 0 14px; max-width: 74ch; }
.lead { font-size: 18px; }
.note, figcaption, .legend { color: var(--quiet); font-size: 14px; }
section { border-top: 1px solid var(--rule); margin-top: 44px; padding-top: 28px; scroll-margin-top: 8px; }
nav { display: flex; flex-wrap: wrap; gap: 2px 18px; margin-top: 24px; font-size: 14px; }
nav a { padding: 4px 0; }
a { color: var(--series-0); text-underline-offset: 3px; }
:focus-visible { outline: 2px solid var(--series-0); outline-offset: 2px; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 28px; }
.tiles div { background: var(--raised); border-radius: 8px; padding: 14px 16px; min-width: 0; }
.tiles b { display: block; font-size: 26px; line-height: 1.2; font-weight: 600; }
.tiles span { display: block; color: var(--quiet); font-size: 13px; line-height: 1.4; }

dl { display: grid; grid-template-columns: minmax(110px, max-content) minmax(0, 1fr); gap: 5px 20px; margin: 0 0 18px; font-size: 15px; }
dt { color: var(--quiet); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }

.scroll { overflow-x: auto; margin: 0 0 16px; max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4; min-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 2px; }
thead th { color: var(--quiet); font-weight: 500; vertical-align: bottom; white-space: nowrap; }
.group th { padding-top: 18px; font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.code, code { font: 13px/1.5 var(--mono); overflow-wrap: anywhere; }
.code { white-space: nowrap; }
pre { margin: 0 0 16px; padding: 12px 14px; background: var(--raised); border-radius: 8px; overflow-x: auto; font: 13px/1.6 var(--mono); }
td small { display: block; color: var(--quiet); font-size: 12px; }
table.titles { min-width: 560px; width: 100%; }
.bar { display: block; height: 10px; margin-top: 5px; min-width: 2px; border-radius: 2px; background: var(--series-0); }
.measure { width: 45%; min-width: 120px; }

.badge { display: inline-block; padding: 0 7px; border: 1px solid currentColor; border-radius: 9px; font-size: 12px; line-height: 17px; white-space: nowrap; }
.target { color: var(--series-2); font-weight: 600; }
.seen { color: var(--quiet); }

details { border-top: 1px solid var(--rule); }
details > summary { cursor: pointer; padding: 9px 0; overflow-wrap: anywhere; }
details > summary small { color: var(--quiet); font-size: 14px; margin-left: 6px; }
details > div { padding: 2px 0 8px 18px; }
details[open] > summary { font-weight: 600; }
details[open] > summary small { font-weight: 400; }
ul.items { list-style: none; margin: 0 0 4px; padding: 0; font-size: 14px; }
ul.items li { padding: 3px 0; }
ul.items code { color: var(--quiet); margin-right: 10px; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 24px 36px; margin: 8px 0 20px; }
figure { margin: 0; min-width: 0; max-width: 470px; }
figcaption { margin-bottom: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin-bottom: 6px; }
.swatch { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin: 0 7px 4px 0; }
.swatch.series-0 { background: var(--series-0); } .swatch.series-1 { background: var(--series-1); } .swatch.series-2 { background: var(--series-2); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px var(--sans); font-variant-numeric: tabular-nums; fill: var(--quiet); }
svg .name { fill: var(--text); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .reference { stroke: var(--text); stroke-width: 1; stroke-dasharray: 4 3; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .line.series-0 { stroke: var(--series-0); } svg .line.series-1 { stroke: var(--series-1); } svg .line.series-2 { stroke: var(--series-2); }
svg .dot.series-0, svg .area.series-0 { fill: var(--series-0); } svg .dot.series-1 { fill: var(--series-1); } svg .dot.series-2 { fill: var(--series-2); }
svg .area { fill-opacity: .5; }
svg .run { fill-opacity: .45; }

@media (max-width: 560px) {
  main { padding: 24px 16px 60px; }
  h1 { font-size: 25px; }
  .lead { font-size: 17px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 8px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  details > div { padding-left: 10px; }
}
@media print { .scroll { overflow: visible; } }
"""

STYLE = f"""
:root {{ color-scheme: light dark; --sans: {SANS}; --mono: {MONO}; {_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables("dark")} }} }}
{RULES}"""
