// Moves the controls of report.html as a person would and notes what the canvases show.
HTMLCanvasElement.prototype.setPointerCapture = () => {};
const found = { error: null };

function set(id, value, type = "input") {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event(type, { bubbles: true }));
}

// Colour at a place of a canvas, from 0 to 1 to the right and down.
function pixel(plane, x = 0.3, y = 0.3) {
  const canvas = document.getElementById(plane);
  const data = canvas.getContext("2d").getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data;
  return [...data].slice(0, 3);
}

function press(key, id) {
  (id ? document.getElementById(id) : document.body).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
}

function pointer(plane, type, x, y, buttons = 1) {
  const canvas = document.getElementById(plane), box = canvas.getBoundingClientRect();
  const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
  canvas.dispatchEvent(new PointerEvent(type, { ...place, buttons, pointerId: 1, bubbles: true }));
}

function rows() {
  const cells = [...document.getElementById("curve-numbers").rows].slice(1).map((row) => [...row.cells].map((cell) => cell.textContent));
  return Object.fromEntries(cells.map(([name, ...values]) => [name, values]));
}

// Whether a line is drawn at a place of a canvas.
function green(plane, x, y) {
  const [red, middle] = pixel(plane, x, y);
  return middle > red + 60;
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function drive() {
  while (!document.body.dataset.ready) await wait(50);
  found["cross at the start"] = ["sagittal", "coronal", "axial"].map((plane) => Number(document.getElementById(`${plane}-slice`).value));
  found["file at the start"] = rows();
  found["text of the file"] = document.getElementById("region").textContent;
  // The box spans 4 to 7 of 12 rows from the back, 3 to 5 of 8 slices, and from before to after moves from columns 9 to 12 to 10 to 13 of 16.
  const edges = (first) => ({ axial: green("axial", 1 - first / 16, 1 - 4.5 / 12), coronal: green("coronal", 1 - (first + 3) / 16, 1 - 4.5 / 8), sagittal: green("sagittal", 1 - 4 / 12, 1 - 4.5 / 8) });
  found["edges after"] = edges(10);
  set("mode", "before", "change");
  found["edges before"] = edges(9);
  found["edge after, shown before"] = green("axial", 1 - 13 / 16, 1 - 4.5 / 12);
  set("mode", "after", "change");
  set("time", 0);
  set("axial-slice", 4);
  found["slice 4, timepoint 0, after"] = pixel("axial");
  set("axial-slice", 6);
  found["slice 6, timepoint 0, after"] = pixel("axial");
  set("axial-slice", 7);
  set("coronal-slice", 11);
  set("sagittal-slice", 15);
  found.corners = Object.fromEntries(["axial", "coronal", "sagittal"].map((plane) => [plane, [[0.02, 0.02], [0.98, 0.98]].map(([x, y]) => pixel(plane, x, y)[0] > 250)]));
  set("axial-slice", 4);
  set("coronal-slice", 6);
  set("sagittal-slice", 8);
  set("time", 2);
  found["slice 4, timepoint 2, after"] = pixel("axial");
  set("mode", "before", "change");
  found["slice 4, timepoint 2, before"] = pixel("axial");
  set("mode", "swipe", "change");
  [found["swipe, left"], found["swipe, right"]] = [pixel("axial", 0.2), pixel("axial", 0.8)];
  set("swipe", 90);
  [found["swipe moved, left"], found["swipe moved, right"]] = [pixel("axial", 0.2), pixel("axial", 0.8)];
  set("mode", "flicker", "change");
  found.flicker = new Set();
  for (let n = 0; n < 12; n++) { await wait(200); found.flicker.add(pixel("axial")[0]); }
  found.flicker = [...found.flicker];
  set("mode", "after", "change");
  set("content", "subtraction", "change");
  found.subtraction = pixel("axial");
  set("content", "mip", "change");
  found.projection = pixel("axial");
  set("content", "scan", "change");
  set("time", 1);
  set("overlay", "jacobian", "change");
  found.jacobian = pixel("axial");
  set("overlay", "none", "change");
  set("time", 2);
  set("width", -1);
  found["more contrast"] = pixel("axial");
  set("width", 0);
  set("level", 40);
  found["less bright"] = pixel("axial");
  set("level", 50);
  press("ArrowLeft");
  press("ArrowUp", "axial");
  press(" ");
  found.keys = { time: Number(document.getElementById("time").value), slice: Number(document.getElementById("axial-slice").value), mode: document.getElementById("mode").value };
  press("ArrowDown", "axial");
  document.getElementById("here").click();
  found["region at the cross"] = rows();
  document.getElementById("draw").click();
  const corners = [[2, 2], [6, 2], [6, 5], [2, 5]].map(([x, y]) => [x / 16, y / 12]);
  pointer("axial", "pointerdown", ...corners[0]);
  for (const corner of corners.slice(1)) pointer("axial", "pointermove", ...corner);
  pointer("axial", "pointerup", ...corners[3], 0);
  found["region drawn"] = rows();
  found["voxels drawn"] = parseInt(document.getElementById("region").textContent, 10);
  set("axial-slice", 2);
  const around = [[13, 9], [14, 9], [14, 10], [13, 10]].map(([x, y]) => [x / 16, y / 12]);
  pointer("axial", "pointerdown", ...around[0]);
  for (const corner of around.slice(1)) pointer("axial", "pointermove", ...corner);
  pointer("axial", "pointerup", ...around[3], 0);
  found.lesion = rows();
  set("mode", "after", "change");
  set("time", 2);
  found["lesion in the first window"] = pixel("axial", 13.5 / 16, 9.5 / 12)[0];
  set("width", document.getElementById("width").max);
  found["lesion in the widest window"] = pixel("axial", 13.5 / 16, 9.5 / 12)[0];
  document.getElementById("file").click();
  found["file again"] = rows();
  document.getElementById("here").click();
  found["edge, drawn region"] = edges(10).coronal;
  found.motion = [...document.querySelectorAll("#motion > *")].map((node) => node.tagName + node.textContent);
  found.background = [0, 1].map(() => {
    document.getElementById("theme").click();
    return getComputedStyle(document.body).backgroundColor;
  });
}

drive().catch((error) => { found.error = String(error); }).finally(() => {
  const note = document.createElement("pre");
  note.id = "results";
  note.textContent = JSON.stringify(found);
  document.body.append(note);
});
