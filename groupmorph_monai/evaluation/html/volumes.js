"use strict";
// The series and its overlays, in RAS+ orientation, last axis fastest.

const report = JSON.parse(document.getElementById("report").textContent);
const packed = JSON.parse(document.getElementById("volumes").textContent);
const series = {};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// Convert 16-bit values to the scans' unit; 0 marks voxels outside the scan's field of view.
function signal(buffer, { low, high }) {
  return Float32Array.from(new Uint16Array(buffer), (v) => (v ? low + ((v - 1) / 65534) * (high - low) : NaN));
}

async function unpackAll() {
  for (const [name, volume] of Object.entries(packed.volumes)) {
    const size = volume.shape.reduce((a, b) => a * b, 1);
    const buffer = await unpack(volume.data);
    series[name] = { ...volume, size, data: volume.window ? signal(buffer, volume) : new Uint8Array(buffer) };
  }
}

// Volume axes that run to the right, down, and through the slices of each plane. All three are reversed: the patient's
// right is on the left of the screen; anterior and superior are up.
const PLANES = { axial: { right: 0, down: 1, through: 2 }, coronal: { right: 0, down: 2, through: 1 }, sagittal: { right: 1, down: 2, through: 0 } };

function strides(shape) {
  return [shape[1] * shape[2], shape[2], 1];
}

// Nearest-neighbour indices into a volume of `shape` for every pixel of a slice of the images' `full` shape.
function lookup(plane, slice, shape, full) {
  const { right, down, through } = PLANES[plane];
  const step = strides(shape);
  const place = (axis, n) => Math.min(shape[axis] - 1, Math.floor(((n + 0.5) * shape[axis]) / full[axis]));
  const columns = Int32Array.from({ length: full[right] }, (_, x) => place(right, full[right] - 1 - x) * step[right]);
  const rows = Int32Array.from({ length: full[down] }, (_, y) => place(down, full[down] - 1 - y) * step[down]);
  const start = place(through, slice) * step[through];
  const result = new Int32Array(full[right] * full[down]);
  for (let y = 0, n = 0; y < rows.length; y++) for (let x = 0; x < columns.length; x++, n++) result[n] = start + rows[y] + columns[x];
  return result;
}

function scanSlice(which, time, indices) {
  const { data, size } = series[which];
  return Float32Array.from(indices, (i) => data[time * size + i]);
}

function subtractionSlice(which, time, indices) {
  const { data, size } = series[which];
  return Float32Array.from(indices, (i) => data[time * size + i] - data[i]);
}

const projections = new Map();

function projectedSlice(which, time, plane) {
  const key = [which, time, plane].join();
  if (!projections.has(key)) {
    const { shape } = series[which];
    let best = null;
    for (let s = 0; s < shape[PLANES[plane].through]; s++) {
      const values = subtractionSlice(which, time, lookup(plane, s, shape, shape));
      if (best === null) best = values;
      else values.forEach((v, n) => { if (v > best[n] || Number.isNaN(best[n])) best[n] = v; });
    }
    projections.set(key, best);
  }
  return projections.get(key);
}

// Displacement in mm along the three axes at one index of its grid.
function displacementAt(time, index) {
  const { data, size, scale } = series.displacement;
  return [0, 1, 2].map((axis) => (data[(3 * time + axis) * size + index] - 128) * scale);
}

function overlaySlice(name, time, plane, slice, full) {
  const volume = series[name];
  const indices = lookup(plane, slice, volume.shape, full);
  if (name === "displacement") return Float32Array.from(indices, (i) => Math.hypot(...displacementAt(time, i)));
  const { data, size, low, high } = volume;
  return Float32Array.from(indices, (i) => low + (data[time * size + i] / 255) * (high - low));
}

// Mean signal per timepoint, in the scans' unit, over the voxels inside the scan's field of view; NaN if there are none.
function curve(which, voxels) {
  const { data, size } = series[which];
  return packed.timepoints.map((_, time) => {
    const values = Array.from(voxels, (i) => data[time * size + i]).filter(Number.isFinite);
    return values.reduce((total, v) => total + v, 0) / values.length;
  });
}
