// Signal curves of a region and the motion of every timepoint, as SVG.

const WIDE = 560, HIGH = 240, LEFT = 62, BOTTOM = 36, TOP = 12;

function svg(parent, name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return parent.appendChild(node);
}

const short = (value) => (value === null || !Number.isFinite(value) ? "–" : Number(value.toPrecision(4)).toString());

// Draw empty axes; returns the functions that map values to positions.
function axes(id, across, low, high, labelX, labelY) {
  const chart = element(id);
  chart.replaceChildren();
  chart.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
  const [first, last] = [Math.min(...across), Math.max(...across)];
  const x = (value) => LEFT + 14 + ((value - first) / (last - first || 1)) * (WIDE - LEFT - 34);
  const y = (value) => HIGH - BOTTOM - ((value - low) / (high - low || 1)) * (HIGH - BOTTOM - TOP);
  svg(chart, "path", { class: "axis", d: `M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - 6}` });
  for (const value of [low, (low + high) / 2, high]) svg(chart, "text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value));
  const every = Math.ceil(across.length / 10);
  across.forEach((value, n) => { if (n % every === 0) svg(chart, "text", { x: x(value), y: HIGH - BOTTOM + 16, "text-anchor": "middle" }, short(value)); });
  svg(chart, "text", { x: WIDE / 2, y: HIGH - 4, "text-anchor": "middle" }, labelX);
  svg(chart, "text", { x: 13, y: HIGH / 2, transform: `rotate(-90 13 ${HIGH / 2})`, "text-anchor": "middle" }, labelY);
  return { chart, x, y };
}

const timed = packed.times_s && packed.times_s.every(Number.isFinite);
const times = () => (timed ? packed.times_s : packed.timepoints.map((_, k) => k));

// Peak enhancement, time to peak, and ratio of early to late enhancement of one curve.
function kinetics(values) {
  const rise = values.map((v) => v - values[0]);
  const peak = rise.indexOf(Math.max(...rise.filter(Number.isFinite)));
  return { "peak enhancement, %": (100 * rise[peak]) / values[0], [timed ? "time to peak, s" : "timepoint of the peak"]: times()[peak], "signal enhancement ratio": rise[1] / rise[rise.length - 1] };
}

function showCurves() {
  const { voxels, plane, slice } = state.region;
  const curves = { before: curve("before", voxels), after: curve("after", voxels) };
  const all = [...curves.before, ...curves.after].filter(Number.isFinite);
  const { chart, x, y } = axes("curve", times(), Math.min(0, ...all), all.length ? Math.max(...all) : 1, timed ? "time, s" : "timepoint", "signal");
  for (const [which, values] of Object.entries(curves)) {
    svg(chart, "polyline", { class: which, points: values.map((v, k) => (Number.isFinite(v) ? `${x(times()[k])},${y(v)}` : "")).join(" ") });
    svg(chart, "text", { x: LEFT + 16, y: which === "before" ? TOP + 10 : TOP + 26, fill: "currentColor" }, which === "before" ? "- - before" : "— after");
  }
  element("region").textContent = `${voxels.length} voxels of ${plane} slice ${slice + 1}.`;
  const table = element("curve-numbers");
  const columns = { before: { ...named(curves.before), ...kinetics(curves.before) }, after: { ...named(curves.after), ...kinetics(curves.after) } };
  table.replaceChildren(table.caption);
  table.insertRow().innerHTML = "<th scope=col></th><th scope=col>before</th><th scope=col>after</th>";
  for (const name of Object.keys(columns.before)) {
    const row = table.insertRow();
    for (const text of [name, short(columns.before[name]), short(columns.after[name])]) row.insertCell().textContent = text;
  }
}

const named = (values) => Object.fromEntries(values.map((v, k) => [`signal, ${packed.timepoints[k]}`, v]));

function showMotion() {
  const rows = packed.motion_mm, across = rows.map((_, k) => k);
  const { chart, x, y } = axes("motion", across, 0, Math.max(...rows.map((row) => row[4]), 1e-3), "timepoint", "displacement, mm");
  rows.forEach((row, k) => {
    if (!row.every(Number.isFinite)) return svg(chart, "text", { x: x(k), y: y(0) - 4, "text-anchor": "middle" }, "–");
    const [least, low, middle, high, most] = row;
    svg(chart, "path", { class: "axis", d: `M${x(k)} ${y(least)}V${y(most)}` });
    svg(chart, "rect", { class: "box", x: x(k) - 8, width: 16, y: y(high), height: Math.max(0, y(low) - y(high)) });
    svg(chart, "path", { class: "after", d: `M${x(k) - 8} ${y(middle)}h16` });
  });
}
