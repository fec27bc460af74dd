// Display state, drawing, and user interaction.

const FLICKER_MS = 500;
const GRID_STEP = 8; // voxels between the lines of a deformation grid
const state = { time: 0, mode: "after", swipe: 0.5, content: "scan", overlay: "none", level: 0.5, width: 1, cross: [0, 0, 0], flickers: false, region: null, drawing: null };
const element = (id) => document.getElementById(id);
const shape = () => series.before.shape;

function slicePixels(which, plane, slice) {
  if (state.content === "mip") return projectedSlice(which, state.time, plane);
  const indices = lookup(plane, slice, shape(), shape());
  return state.content === "scan" ? scanSlice(which, state.time, indices) : subtractionSlice(which, state.time, indices);
}

// Window width, relative to the initial one, that covers the full intensity range at medium brightness.
function widest() {
  const { low, high, window } = series.before, span = window[1] - window[0] || 1;
  return Math.max(1, 2 * ((high - window[0]) / span) - 1, 1 - 2 * ((low - window[0]) / span));
}

// Grey value of a pixel. A difference of 0 is medium grey, or black in a projection; unknown values are black.
function grey(value) {
  const { window } = series.before;
  const share = (state.content === "scan" ? value - window[0] : value) / (window[1] - window[0] || 1);
  const centre = state.content === "subtraction" ? 1 - 2 * state.level : 1 - state.level;
  const reach = state.content === "subtraction" ? 2 * state.width : state.width;
  return 255 * ((share - centre) / reach + 0.5);
}

// Tint a pixel red above the neutral value and blue below; displacement and uncertainty are never below it.
function tint(pixels, n, value, middle, reach) {
  const share = Math.max(-1, Math.min(1, (value - middle) / reach));
  const strength = 0.65 * Math.abs(share);
  const colour = share > 0 ? [255, 60, 40] : [60, 120, 255];
  for (let c = 0; c < 3; c++) pixels[4 * n + c] = (1 - strength) * pixels[4 * n + c] + strength * colour[c];
}

function paintOverlay(pixels, plane, slice) {
  if (!series[state.overlay]) return;
  const values = overlaySlice(state.overlay, state.time, plane, slice, shape());
  const reach = series[state.overlay].reach;
  values.forEach((value, n) => tint(pixels, n, state.overlay === "jacobian" ? Math.log2(Math.max(value, 1e-3)) : value, 0, reach));
}

function paintGrid(context, plane, slice) {
  const { right, down } = PLANES[plane];
  const full = shape(), [columns, rows] = [full[right], full[down]];
  const indices = lookup(plane, slice, series.displacement.shape, full);
  const place = (x, y) => {
    const offset = displacementAt(state.time, indices[y * columns + x]);
    return [x + 0.5 - offset[right] / packed.spacing_mm[right], y + 0.5 - offset[down] / packed.spacing_mm[down]];
  };
  context.strokeStyle = "#ffd54f";
  context.lineWidth = 0.25;
  context.beginPath();
  for (let y = GRID_STEP >> 1; y < rows; y += GRID_STEP) for (let x = 0; x < columns; x++) context[x ? "lineTo" : "moveTo"](...place(x, y));
  for (let x = GRID_STEP >> 1; x < columns; x += GRID_STEP) for (let y = 0; y < rows; y++) context[y ? "lineTo" : "moveTo"](...place(x, y));
  context.stroke();
}

// The series, "before" or "after", to show in a column of the screen, 0 to 1 from the left.
function shown(column) {
  if (state.mode === "swipe") return column < state.swipe ? "before" : "after";
  if (state.mode === "flicker") return state.flickers ? "before" : "after";
  return state.mode;
}

function paint(plane) {
  const { right, down, through } = PLANES[plane];
  const full = shape(), slice = state.cross[through], [columns, rows] = [full[right], full[down]];
  const canvas = element(plane), context = canvas.getContext("2d");
  const zoom = Math.max(1, Math.round(512 / Math.max(columns, rows)));
  canvas.width = columns * zoom;
  canvas.height = rows * zoom;
  const ratio = (columns * packed.spacing_mm[right]) / (rows * packed.spacing_mm[down]);
  canvas.style.aspectRatio = ratio;
  canvas.parentElement.style.width = `min(100%, ${70 * ratio}vh)`;
  const sides = { before: null, after: null };
  const picture = new ImageData(columns, rows);
  for (let x = 0; x < columns; x++) {
    const which = shown((x + 0.5) / columns);
    sides[which] = sides[which] || slicePixels(which, plane, slice);
    for (let n = x; n < columns * rows; n += columns) {
      picture.data.fill(grey(sides[which][n]), 4 * n, 4 * n + 3);
      picture.data[4 * n + 3] = 255;
    }
  }
  if (!["none", "grid"].includes(state.overlay)) paintOverlay(picture.data, plane, slice);
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(picture, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  context.scale(zoom, zoom);
  if (state.overlay === "grid") paintGrid(context, plane, slice);
  paintMarks(context, plane, columns, rows);
  canvas.setAttribute("aria-label", `${plane} slice ${slice + 1} of ${full[through]}, ${packed.timepoints[state.time]}, ${state.content}, ${state.mode}, overlay ${state.overlay}`);
}

function paintMarks(context, plane, columns, rows) {
  const { right, down, through } = PLANES[plane];
  const [x, y] = [columns - state.cross[right] - 0.5, rows - state.cross[down] - 0.5];
  context.lineWidth = 0.3;
  context.strokeStyle = "rgba(0, 220, 120, 0.8)";
  context.stroke(new Path2D(`M${x - 4} ${y}h3 M${x + 1} ${y}h3 M${x} ${y - 4}v3 M${x} ${y + 1}v3`));
  if (state.mode === "swipe") context.stroke(new Path2D(`M${state.swipe * columns} 0V${rows}`));
  const region = state.drawing || state.region;
  if (region?.file) paintEdges(context, plane, state.cross[through]);
  else if (region?.plane === plane && region.slice === state.cross[through]) context.stroke(region.path);
}

// Outline of the file's region in a slice: as drawn on images before registration, and as the aligned scan shows it on
// those after.
function paintEdges(context, plane, slice) {
  const { right, down } = PLANES[plane];
  const [columns, rows] = [shape()[right], shape()[down]];
  const indices = lookup(plane, slice, shape(), shape()), { data, size } = series.region;
  const inside = (x, y) => x >= 0 && y >= 0 && x < columns && y < rows && data[(shown((x + 0.5) / columns) === "before" ? 0 : size) + indices[y * columns + x]];
  const edges = new Path2D();
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    if (!inside(x, y)) continue;
    if (!inside(x - 1, y)) edges.addPath(new Path2D(`M${x} ${y}v1`));
    if (!inside(x + 1, y)) edges.addPath(new Path2D(`M${x + 1} ${y}v1`));
    if (!inside(x, y - 1)) edges.addPath(new Path2D(`M${x} ${y}h1`));
    if (!inside(x, y + 1)) edges.addPath(new Path2D(`M${x} ${y + 1}h1`));
  }
  context.stroke(edges);
}

function describe() {
  const unit = { jacobian: `red: more room in the timepoint than in the common space, blue: less; full colour at a factor of ${(2 ** (series.jacobian?.reach || 0)).toPrecision(3)}`, displacement: `full colour at ${series.displacement?.reach.toPrecision(3)} mm`, std: `full colour at a standard deviation of ${series.std?.reach.toPrecision(3)} mm`, grid: `every ${GRID_STEP}th line of the common space, where it lies in the timepoint`, none: "" }[state.overlay];
  const what = { scan: "Scan", subtraction: "Timepoint minus the first: grey is no change", mip: "Maximum signal increase since the first timepoint over all slices" }[state.content];
  const which = { before: "before registration", after: "after registration", flicker: "before and after in turn", swipe: "before on the left of the line, after on the right" }[state.mode];
  element("legend").textContent = `${what}; ${which}${unit ? `. Overlay: ${unit}` : ""}.`;
  element("time-name").textContent = packed.timepoints[state.time];
}

function update() {
  state.cross = state.cross.map((n, axis) => Math.max(0, Math.min(shape()[axis] - 1, Math.round(n))));
  for (const plane of Object.keys(PLANES)) {
    const slider = element(`${plane}-slice`), n = state.cross[PLANES[plane].through];
    slider.value = n;
    slider.parentElement.nextElementSibling.textContent = `${n + 1} of ${shape()[PLANES[plane].through]}`;
    paint(plane);
  }
  for (const id of ["time", "mode", "content", "overlay"]) element(id).value = state[id];
  for (const id of ["swipe", "level"]) element(id).value = 100 * state[id];
  element("width").value = Math.log2(state.width);
  describe();
}

// Indices of the voxels inside a closed path in a slice.
function voxelsInside(plane, slice, path) {
  const { right, down } = PLANES[plane];
  const indices = lookup(plane, slice, shape(), shape()), columns = shape()[right];
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  return indices.filter((_, n) => context.isPointInPath(path, (n % columns) + 0.5, Math.floor(n / columns) + 0.5));
}

function setRegion(plane, path) {
  const slice = state.cross[PLANES[plane].through];
  const voxels = voxelsInside(plane, slice, path);
  if (!voxels.length) return;
  state.region = { plane, slice, path, text: `${voxels.length} voxels of ${plane} slice ${slice + 1}.`, curves: { before: curve("before", voxels), after: curve("after", voxels) } };
  showCurves();
}

// The region given as a file, whose curves are means over the voxels of the files.
function regionOfFile() {
  const { file, voxels } = report.region, signal = packed.region_signal, known = (values) => values.map((v) => v ?? NaN);
  const number = voxels.before === voxels.after ? voxels.after : `${voxels.before} (before) and ${voxels.after} (after)`;
  state.region = { file, text: `${number} voxels of ${file}.`, curves: { before: known(signal.before), after: known(signal.after) } };
  showCurves();
}

function regionAtCross(plane = "axial") {
  const { right, down } = PLANES[plane];
  const path = new Path2D();
  path.arc(shape()[right] - state.cross[right] - 0.5, shape()[down] - state.cross[down] - 0.5, 2.2, 0, 2 * Math.PI);
  setRegion(plane, path);
  update();
}

function onPointer(plane, event) {
  const { right, down } = PLANES[plane];
  const canvas = element(plane), box = canvas.getBoundingClientRect();
  const [columns, rows] = [shape()[right], shape()[down]];
  const [x, y] = [((event.clientX - box.left) / box.width) * columns, ((event.clientY - box.top) / box.height) * rows];
  const draws = element("draw").getAttribute("aria-pressed") === "true" || event.shiftKey;
  if (event.type === "pointerdown") {
    canvas.setPointerCapture(event.pointerId);
    if (draws) state.drawing = { plane, slice: state.cross[PLANES[plane].through], path: new Path2D(`M${x} ${y}`) };
  }
  if (state.drawing) state.drawing.path.lineTo(x, y);
  else if (event.buttons) [state.cross[right], state.cross[down]] = [columns - x - 0.5, rows - y - 0.5];
  if (event.type === "pointerup" && state.drawing) {
    state.drawing.path.closePath();
    const { path } = state.drawing;
    state.drawing = null;
    setRegion(plane, path);
  }
  if (event.buttons || event.type === "pointerup") update();
}

function next(id) {
  const options = [...element(id).options].map((option) => option.value);
  state[id] = options[(options.indexOf(state[id]) + 1) % options.length];
}

const KEYS = {
  ArrowLeft: () => (state.time = Math.max(0, state.time - 1)),
  ArrowRight: () => (state.time = Math.min(packed.timepoints.length - 1, state.time + 1)),
  ArrowUp: (plane) => (state.cross[PLANES[plane].through] += 1),
  ArrowDown: (plane) => (state.cross[PLANES[plane].through] -= 1),
  " ": () => (state.mode = state.mode === "before" ? "after" : "before"),
  f: () => (state.mode = "flicker"),
  s: () => (state.mode = "swipe"),
  m: () => next("content"),
  o: () => next("overlay"),
  "+": () => (state.width = Math.max(2 ** element("width").min, state.width / 1.2)),
  "-": () => (state.width = Math.min(widest(), state.width * 1.2)),
  r: (plane) => regionAtCross(plane),
};

// Keys that a control with the focus needs for itself.
const OWN_KEYS = { INPUT: /^Arrow/, SELECT: /./, BUTTON: /^ $/, SUMMARY: /^ $/ };

function onKey(event) {
  const target = event.target.tagName;
  if (!KEYS[event.key] || event.ctrlKey || event.metaKey || OWN_KEYS[target]?.test(event.key)) return;
  event.preventDefault();
  KEYS[event.key](target === "CANVAS" ? event.target.id : "axial");
  update();
}

function connect() {
  element("time").max = packed.timepoints.length - 1;
  for (const id of ["mode", "content", "overlay"]) element(id).addEventListener("change", (e) => { state[id] = e.target.value; update(); });
  element("time").addEventListener("input", (e) => { state.time = Number(e.target.value); update(); });
  for (const id of ["swipe", "level"]) element(id).addEventListener("input", (e) => { state[id] = e.target.value / 100; update(); });
  element("width").max = Math.log2(widest());
  element("width").addEventListener("input", (e) => { state.width = 2 ** e.target.value; update(); });
  for (const plane of Object.keys(PLANES)) {
    const slider = element(`${plane}-slice`);
    slider.max = shape()[PLANES[plane].through] - 1;
    slider.addEventListener("input", () => { state.cross[PLANES[plane].through] = Number(slider.value); update(); });
    for (const type of ["pointerdown", "pointermove", "pointerup"]) element(plane).addEventListener(type, (e) => onPointer(plane, e));
  }
  if (!series.std) element("overlay").querySelector('[value="std"]').remove();
  element("draw").addEventListener("click", (e) => e.target.setAttribute("aria-pressed", e.target.getAttribute("aria-pressed") !== "true"));
  element("here").addEventListener("click", () => regionAtCross());
  if (report.region) {
    element("file").hidden = false;
    element("file").addEventListener("click", () => { state.cross = packed.start; regionOfFile(); update(); });
    regionOfFile();
  }
  element("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  });
  document.addEventListener("keydown", onKey);
  setInterval(() => { if (state.mode === "flicker") { state.flickers = !state.flickers; update(); } }, FLICKER_MS);
}

unpackAll().then(() => {
  state.cross = packed.start;
  state.time = packed.late;
  connect();
  update();
  showMotion();
  document.body.dataset.ready = "true";
});
