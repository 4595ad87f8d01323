"""Style: the page's look, light and dark, on a wide screen and on a phone."""

CSS = """
:root { color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1c2024; --soft: #646b73; --line: #e3e1dc; --accent: #0a7f77;
  --wash: #e2f1ef; --warn: #b45309; --warnwash: #fbeedd; --before: #dcd9d2; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #131619; --card: #1a1e22; --ink: #e7e9eb; --soft: #9aa3ac; --line: #2d3339; --accent: #4fc9bd;
  --wash: #17332f; --warn: #f0a95b; --warnwash: #3a2a16; --before: #3a4148; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
header p { margin: 0; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; margin: 4px 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 52px 0 6px; }
section > p { color: var(--soft); margin: 0 0 14px; max-width: 72ch; }
.over { color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
.verdict { display: inline-block; font-weight: 600; padding: 4px 12px; border-radius: 99px; margin-right: 10px;
  color: var(--accent); background: var(--wash); }
.verdict.not { color: var(--warn); background: var(--warnwash); }
.goal { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; margin: 28px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.tile b { display: block; font-size: 30px; line-height: 1.15; letter-spacing: -.02em; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 14px; }
.tile small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; margin-top: 6px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.scroll.pad { padding: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 14px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; font-size: 13px; color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
td.n, th.n { text-align: right; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: 12px; }
td.from { color: var(--soft); font-size: 13px; min-width: 200px; }
.modelled { color: var(--warn); }
tr.chosen { background: var(--wash); }
tr.chosen th { font-weight: 650; }
code, pre { font: 13.5px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; padding: 14px 16px; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
ul, ol { margin: 0; padding-left: 22px; } li { margin: 4px 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 0; font-size: 14.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: block; height: 10px; border-radius: 3px; background: var(--before); width: var(--of); margin-top: 7px; }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--accent); width: var(--left); }
td.wide { width: 34%; min-width: 140px; }
.gone { color: var(--warn); }
summary { cursor: pointer; color: var(--soft); padding: 10px 14px; }
svg { display: block; width: 100%; min-width: 560px; height: auto; font: 13px system-ui, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
svg text { fill: var(--soft); } svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .point { fill: var(--before); stroke: var(--soft); fill-opacity: .75; }
svg .point.chosen { fill: var(--accent); stroke: var(--accent); fill-opacity: .85; }
svg .point.control { fill: none; stroke-dasharray: 3 2; }
svg .name { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .name.chosen { fill: var(--accent); font-weight: 650; }
svg .whisker { stroke: var(--soft); stroke-opacity: .7; } svg .whisker.chosen { stroke: var(--accent); }
svg .bound { stroke: var(--warn); stroke-dasharray: 5 4; } svg .boundname { fill: var(--warn); font-size: 12px;
  paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .frontline { fill: none; stroke: var(--accent); stroke-opacity: .35; stroke-width: 1.5; }
svg g:hover .point { stroke-width: 2.5; }
svg .alone { fill: var(--accent); } svg .rest { fill: var(--before); } svg .inside { fill: var(--wash); }
.stages { display: flex; height: 26px; border-radius: 6px; overflow: hidden; gap: 2px; }
.stages i { background: var(--accent); min-width: 2px; flex: var(--share) 1 0; opacity: var(--tone); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 10px; font-size: 13.5px; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; background: var(--accent);
  opacity: var(--tone); margin-right: 6px; }
footer { color: var(--soft); font-size: 13px; margin-top: 60px; }
@media (max-width: 640px) { main { padding: 24px 14px 60px; } h1 { font-size: 27px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; } .tile { padding: 12px 13px; } .tile b { font-size: 23px; }
  th, td { padding: 8px 10px; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; } }
@media print { main { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""
