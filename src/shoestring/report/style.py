"""The report's style: one column, quiet, light and dark."""

STYLE = """
:root{color-scheme:light dark;--bg:#fcfbf9;--card:#fff;--ink:#1c2025;--soft:#666c74;--line:#e4e2dc;--grid:#eceae4;
--tuned:#0b6b60;--base:#5a6b8c;--warn:#a8480f;--good:#0b6b60;--bar:#a8480f;--band:#cfe3df;--c1:#0b6b60;--c2:#5a6b8c;
--s0:#0b6b60;--s1:#5f9f95;--s2:#5a6b8c;--s3:#c98a5b;--mark:#fbe2c4}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1c1f23;--ink:#e8e6e1;--soft:#9aa1a9;--line:#30343a;
--grid:#282c31;--tuned:#56c4b3;--base:#9aaed6;--warn:#f09a62;--good:#56c4b3;--bar:#f09a62;--band:#234a45;--c1:#56c4b3;
--c2:#9aaed6;--s0:#3fa797;--s1:#2c6f65;--s2:#6f83ab;--s3:#b9774a;--mark:#6b4521}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","DejaVu Sans",sans-serif;overflow-wrap:break-word}
main{max-width:880px;margin:0 auto;padding:32px 20px 72px}
h1,h2,h3{line-height:1.25;font-weight:600;margin:0}
h1{font-size:1.85rem;letter-spacing:-.01em;margin:.1em 0 .35em}
h2{font-size:1.15rem}
h3{font-size:1rem;margin:1.4em 0 .5em}
p{margin:.5em 0}
section{margin-top:44px;padding-top:20px;border-top:1px solid var(--line)}
.over{color:var(--soft);font-size:.875rem;margin:0}
.lead,.note,.none,.foot{color:var(--soft);font-size:.9rem}
.lead{margin:.25em 0 1.1em}
.verdict{background:var(--card);border:1px solid var(--line);border-left:5px solid var(--soft);border-radius:8px;
padding:22px 24px;margin-top:18px}
.verdict.met{border-left-color:var(--good)}.verdict.unmet{border-left-color:var(--warn)}
.verdict p{max-width:62ch}
.state{font-weight:600;font-size:.9rem;color:var(--soft)}.met .state{color:var(--good)}.unmet .state{color:var(--warn)}
.verdict .next{max-width:none;border-top:1px solid var(--line);margin:1em 0 0;padding-top:.8em}
dl.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:14px 22px;margin:18px 0 0}
dl.figures dt{color:var(--soft);font-size:.8rem}dl.figures dd{margin:0;font-size:1.2rem;font-weight:600;
font-variant-numeric:tabular-nums}
dl.figures small{display:block;font-weight:400;font-size:.8rem;color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;font-weight:600;color:var(--soft);font-size:.8rem;padding:6px 9px;
border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:bottom}
td{padding:8px 9px;border-bottom:1px solid var(--grid);vertical-align:top}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
.yes{color:var(--good)}.no{color:var(--soft)}svg.chart{margin:6px 0 14px}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td b{font-weight:600}
details{border-bottom:1px solid var(--grid)}
summary{cursor:pointer;padding:10px 0;font-size:.95rem}
summary small{color:var(--soft)}
details[open]{padding-bottom:16px}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,
"DejaVu Sans Mono",monospace;unicode-bidi:isolate}
.row{margin:0 0 14px;padding:12px 14px;background:var(--card);border:1px solid var(--line);border-radius:6px}
.row dl{display:grid;grid-template-columns:84px 1fr;gap:6px 12px;margin:0}
.row dt{color:var(--soft);font-size:.8rem;padding-top:1px}.row dd{margin:0;font-size:.9rem}
.row .why{color:var(--warn);font-size:.82rem}
@media(min-width:561px){td pre{min-width:300px}}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
ol.stages{list-style:none;margin:1em 0 0;padding:0;display:flex;flex-wrap:wrap;gap:6px 18px;font-size:.9rem}
ol.stages li::before{content:"○ ";color:var(--soft)}ol.stages li.done::before{content:"● ";color:var(--good)}
ol.stages li{color:var(--soft)}ol.stages li.done{color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:18px 36px}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.85rem;color:var(--soft);margin:.7em 0 1.4em}
.swatch{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
svg.chart{display:block;overflow:visible;font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
svg text{fill:var(--ink);paint-order:stroke;stroke:var(--bg);stroke-width:4px;stroke-linejoin:round}
svg .tick{fill:var(--soft);font-size:11px;font-variant-numeric:tabular-nums}
svg .title{font-weight:600}svg .key{font-size:12px}svg .key .a{fill:var(--c1)}svg .key .b{fill:var(--c2)}
svg .value{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
svg .name.chosen,svg .value.chosen{font-weight:600;fill:var(--ink)}
svg .barname{fill:var(--bar);font-size:12px}
svg .grid{stroke:var(--grid)}svg .grid.strong{stroke:var(--soft)}svg .track{stroke:var(--grid)}
svg .bar{stroke:var(--bar);stroke-width:1.5;stroke-dasharray:5 4}
svg .bar.solid{stroke-width:2;stroke-dasharray:none}
svg .mark{stroke:var(--soft);stroke-dasharray:2 3}
svg .pareto{stroke:var(--soft);stroke-width:1.5}svg .foretold{stroke:var(--s3);stroke-width:7;opacity:.55}
svg .interval{stroke-width:3;stroke-linecap:round}
svg .interval.tuned{stroke:var(--tuned)}svg .interval.base{stroke:var(--base)}
svg .dot{stroke-width:2.5;stroke:var(--base)}
svg .dot.tuned{stroke:var(--tuned)}svg .dot.unmet{fill:var(--bg)}
svg .dot.met.tuned{fill:var(--tuned)}svg .dot.met.base{fill:var(--base)}
svg .dot.inside{fill:var(--good);stroke:none}svg .dot.outside{fill:var(--warn);stroke:none}
svg .band{fill:var(--band)}
svg .curve{fill:none;stroke-width:1.8;stroke-linejoin:round}svg .curve.a{stroke:var(--c1)}svg .curve.b{stroke:var(--c2)}
svg .option{fill:var(--soft);opacity:.45}svg .option.best{fill:var(--s0);opacity:1}
svg .option.pick{fill:var(--bg);stroke:var(--s0);stroke-width:3.5;opacity:1}
svg .curve.l0{stroke:var(--s0);stroke-width:3}svg .curve.l1{stroke:var(--s1);stroke-width:2.4}
svg .curve.l2{stroke:var(--s0);stroke-dasharray:7 4}svg .curve.l3{stroke:var(--s2)}
svg .curve.l4{stroke:var(--s2);stroke-dasharray:7 4}svg .curve.l5{stroke:var(--s3)}
.swatch.l0,.swatch.l2{background:var(--s0)}.swatch.l1{background:var(--s1)}.swatch.l3,.swatch.l4{background:var(--s2)}
.swatch.l5{background:var(--s3)}.swatch.l2,.swatch.l4{height:4px;vertical-align:middle}
svg .point.a{fill:var(--c1)}svg .point.b{fill:var(--c2)}
.share.s0,.swatch.s0{fill:var(--s0);background:var(--s0)}.share.s1,.swatch.s1{fill:var(--s1);background:var(--s1)}
.share.s2,.swatch.s2{fill:var(--s2);background:var(--s2)}.share.s3,.swatch.s3{fill:var(--s3);background:var(--s3)}
mark{background:var(--mark);color:inherit;border-radius:2px;padding:0 1px}
.two{display:grid;grid-template-columns:1fr 1fr;gap:6px 22px}.two>div{min-width:0}
.at{color:var(--soft);font-size:.78rem;margin:0 0 4px}
pre.answer{border-top:1px dashed var(--line);margin-top:6px;padding-top:6px}
svg .barlabel{font-size:12px}
.ratio svg.chart{margin:0}.ratio{display:block;min-width:120px;padding:2px 6px}
@media(max-width:560px){main{padding:20px 16px 56px}h1{font-size:1.45rem}
.verdict{padding:16px 16px}section{margin-top:34px}
.scroll thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.scroll table,.scroll tbody,.scroll tr,.scroll td{display:block}
.scroll tr{display:grid;grid-template-columns:1fr 1fr;gap:1px 18px;padding:10px 0;border-bottom:1px solid var(--line)}
.scroll td{border:0;padding:1px 0;text-align:left;white-space:normal;min-width:0}
.scroll td:first-child{grid-column:1/-1;font-weight:600}
.scroll td:not(:first-child)::before{content:attr(data-label);color:var(--soft);font-size:.78rem;margin-right:8px}
.scroll td.wide{grid-column:1/-1}
.two{grid-template-columns:1fr}.two>div+div{border-top:1px solid var(--line);padding-top:8px}
.row dl{grid-template-columns:1fr;gap:2px}.row dd{margin-bottom:8px}}
@media print{body{background:#fff}.verdict,.row{break-inside:avoid}}
"""
