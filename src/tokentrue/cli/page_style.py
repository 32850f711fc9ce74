"""Style and script of an episode's page. Colours hold in light and in dark; none of them is the only sign."""

STYLE = """
:root { --bg: #ffffff; --fg: #1c2024; --soft: #60646c; --line: #d9d9e0; --panel: #f4f4f7;
  --sc: #5d6470; --sc-bg: #eef0f3; --bo: #0b4fa8; --bo-bg: #dcebff; --bs: #8a4b00; --bs-bg: #fdf0d5;
  --bb: #7a3300; --bb-bg: #ffd9a8; --sa: #0a5c2b; --sa-bg: #d3f3dd; --un: #6b1f7a; --un-bg: #f5dcfa;
  --bad: #c4162a; --ok: #2f9e5b; --todo: #f0a63a; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #16181c; --fg: #eceef2; --soft: #a3a9b4; --line: #363a42; --panel: #1f2228;
  --sc: #aab1bd; --sc-bg: #262a31; --bo: #a9cdff; --bo-bg: #17365f; --bs: #f5c97b; --bs-bg: #3a2c10;
  --bb: #ffcf94; --bb-bg: #63400c; --sa: #a5efbf; --sa-bg: #12482a; --un: #eab6f5; --un-bg: #4a1d55;
  --bad: #ff7480; --ok: #3fb86f; --todo: #d98a1f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 75rem; margin: 0 auto; padding: 0 1.25rem; }
main { padding-bottom: 5rem; }
h1 { font-size: 1.5rem; margin: 1.25rem 0 0.25rem; } header p { color: var(--soft); margin: 0 0 1rem; }
h2 { font-size: 0.95rem; margin: 0 0 0.4rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
section { border-top: 2px solid var(--line); padding: 0.8rem 0 1rem; content-visibility: auto;
  contain-intrinsic-size: auto 16rem; }
.tokens { font: 13.5px/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; border-radius: 6px; padding: 0.2rem; }
.tokens:focus-visible { outline: 2px solid var(--bo); outline-offset: 2px; }
b { font-weight: inherit; border-left: 1px solid var(--bg); border-radius: 3px; }
u { text-decoration: none; opacity: 0.55; }
.known { color: var(--soft); font-style: italic; margin-right: 0.5em; }
.sc { color: var(--sc); } .sc b { background: var(--sc-bg); }
.bo { color: var(--bo); } .bo b { background: var(--bo-bg); }
.bs { color: var(--bs); font-style: italic; } .bs b { background: var(--bs-bg); }
.bb { color: var(--bb); font-style: italic; } .bb b { background: var(--bb-bg); }
.sa { color: var(--sa); } .sa b { background: var(--sa-bg); font-weight: 650; }
.un { color: var(--un); } .un b { background: var(--un-bg); }
b.x { text-decoration: underline wavy var(--bad) 1.5px; text-underline-offset: 3px; }
b.g { border-left: 3px solid var(--bad); }
b.on { outline: 2px solid var(--fg); outline-offset: 0; }
.key { font: 13.5px ui-monospace, monospace; padding: 0 0.3em; } .key:not(:has(b)) { border-radius: 3px; }
.sc.key { background: var(--sc-bg); } .bo.key { background: var(--bo-bg); } .bs.key { background: var(--bs-bg); }
.bb.key { background: var(--bb-bg); } .sa.key { background: var(--sa-bg); } .un.key { background: var(--un-bg); }
.legend { list-style: none; margin: 0.5rem 0 1.2rem; padding: 0.6rem 0.9rem; background: var(--panel);
  border-radius: 8px; display: grid; gap: 0.25rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  font-size: 0.88rem; }
.drift { color: var(--bad); margin: 0 0 0.4rem; font-size: 0.88rem; } .drift::before { content: "≠ "; }
footer { position: fixed; inset: auto 0 0 0; background: var(--panel); border-top: 1px solid var(--line);
  padding: 0.55rem 1.25rem; font: 13.5px ui-monospace, monospace; min-height: 2.4rem; white-space: pre-wrap; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--fg); } svg .soft { fill: var(--soft); } svg .kept { fill: var(--ok); }
svg .todo { fill: var(--todo); } svg .new { fill: var(--line); } svg .bad { fill: var(--bad); }
svg .grid { stroke: var(--bg); stroke-width: 1; }
table.sides { border-collapse: collapse; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace;
  margin: 0.4rem 0; }
table.sides td, table.sides th { border: 1px solid var(--line); padding: 0.15rem 0.45rem; text-align: center;
  white-space: pre; }
table.sides th { text-align: left; font-family: system-ui, sans-serif; font-weight: 600;
  background: var(--panel); }
table.sides td.off { background: color-mix(in srgb, var(--bad) 22%, transparent); }
table.sides small { color: var(--soft); display: block; }
.scroll { overflow-x: auto; }
.lede { font-size: 1.02rem; max-width: 62rem; }
"""

SCRIPT = """
"use strict";
const all = [...document.querySelectorAll("section b")], about = document.getElementById("about");
const rest = about.textContent, place = new Map(all.map((el, i) => [el, i]));
let at = -1;
function show(el) {
  const run = el.parentElement, d = el.dataset, section = el.closest("section");
  const first = place.get(section.querySelector("b")), position = +section.dataset.start + place.get(el) - first;
  const parts = ["id " + d.i, JSON.stringify(el.textContent.replace(/[⏎⇥](?=[\\n\\t])/g, "")),
    run.dataset.w, run.dataset.o ? "message " + run.dataset.o + " (" + (run.dataset.r || "?") + ")" : "no message",
    "position " + position];
  if (d.l) parts.push("logprob " + d.l + " (p " + Math.exp(+d.l).toFixed(3) + ")");
  if (d.x) parts.push("LOST from turn " + d.x + " on, if rendered from text");
  if (d.g) parts.push("further ids in front of it from turn " + d.g + " on, if rendered from text");
  about.textContent = parts.join("  ·  ");
}
function select(i) {
  if (at >= 0) all[at].classList.remove("on");
  at = i;
  if (i < 0) { about.textContent = rest; return; }
  all[i].classList.add("on"); all[i].scrollIntoView({block: "nearest"}); show(all[i]);
}
function turn(step) {
  const sections = [...document.querySelectorAll("section")];
  const now = at < 0 ? -1 : sections.indexOf(all[at].closest("section"));
  const next = sections[Math.min(Math.max(now + step, 0), sections.length - 1)];
  next.scrollIntoView({block: "start"}); next.querySelector(".tokens").focus({preventScroll: true});
  select(place.get(next.querySelector("b")));
}
const hit = e => e.target.closest("section b");
document.addEventListener("mouseover", e => { if (hit(e)) show(hit(e)); });
document.addEventListener("click", e => { if (hit(e)) select(place.get(hit(e))); });
document.addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "ArrowRight") select(Math.min(at + 1, all.length - 1));
  else if (e.key === "ArrowLeft") select(Math.max(at - 1, 0));
  else if (e.key === "n") turn(1);
  else if (e.key === "p") turn(-1);
  else if (e.key === "d") {
    const i = all.findIndex((el, k) => k > at && (el.dataset.x || el.dataset.g)); if (i >= 0) select(i);
  }
  else if (e.key === "Escape") select(-1);
  else return;
  e.preventDefault();
});
"""
