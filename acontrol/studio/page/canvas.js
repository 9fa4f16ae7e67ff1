// A mask painted on an image, at the image's own resolution.
//
// The mask is an array with one byte a pixel, 0 or 255: nothing is smoothed, so what is painted
// is what is sent. The screen shows it through a scale and an offset; a screen point belongs to
// the image pixel floor((point - offset) / scale).

const TINT = [255, 48, 48, 120];

export class MaskCanvas {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.tool = "brush";
    this.size = 6;
    this.image = null;
    this.width = this.height = 0;
    this.scale = 1;
    this.x = this.y = 0;
    this.undone = [];
    this.corners = [];
    this.hover = null;
    const on = (name, work) => canvas.addEventListener(name, work.bind(this));
    on("pointerdown", this.down);
    on("pointermove", this.move);
    on("pointerup", this.up);
    on("pointercancel", this.up);
    on("pointerleave", () => { this.hover = null; this.draw(); });
    on("dblclick", this.close);
    on("wheel", this.wheel);
    on("keydown", this.key);
    new ResizeObserver(() => { this.resize(); if (this.fitted) this.fit(); }).observe(canvas);
  }

  load(image) {
    this.image = image;
    this.width = image.naturalWidth;
    this.height = image.naturalHeight;
    this.mask = new Uint8Array(this.width * this.height);
    this.layer = document.createElement("canvas");
    this.layer.width = this.width;
    this.layer.height = this.height;
    this.undone = [];
    this.corners = [];
    this.resize();
    this.fit();
    this.changed();
  }

  get painted() { return this.mask ? this.mask.reduce((sum, v) => sum + (v > 0), 0) : 0; }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    this.draw();
  }

  fit() {
    if (!this.image) return;
    const { clientWidth: w, clientHeight: h } = this.canvas;
    this.scale = Math.min(w / this.width, h / this.height);
    if (this.scale > 1) this.scale = Math.floor(this.scale);
    this.x = Math.round((w - this.width * this.scale) / 2);
    this.y = Math.round((h - this.height * this.scale) / 2);
    this.fitted = true;
    this.draw();
  }

  zoom(scale, cx = this.canvas.clientWidth / 2, cy = this.canvas.clientHeight / 2) {
    if (!this.image) return;
    scale = Math.min(64, Math.max(0.02, scale));
    const u = (cx - this.x) / this.scale, v = (cy - this.y) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.x = Math.round(cx - u * scale);
    this.y = Math.round(cy - v * scale);
    this.draw();
  }

  pixel(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      Math.floor((event.clientX - box.left - this.x) / this.scale),
      Math.floor((event.clientY - box.top - this.y) / this.scale),
    ];
  }

  // What a stroke changes is remembered by its box.
  begin() {
    this.before = this.mask.slice();
    this.dirty = [this.width, this.height, 0, 0];
  }

  end() {
    const [left, top, right, bottom] = this.dirty;
    if (right > left && bottom > top) {
      const w = right - left, part = new Uint8Array(w * (bottom - top));
      for (let row = top; row < bottom; row++) {
        const from = row * this.width + left;
        part.set(this.before.subarray(from, from + w), (row - top) * w);
      }
      this.undone.push([left, top, right, bottom, part]);
      if (this.undone.length > 50) this.undone.shift();
    }
    this.before = null;
    this.changed();
  }

  undo() {
    const last = this.undone.pop();
    if (!last) return;
    const [left, top, right, bottom, part] = last, w = right - left;
    for (let row = top; row < bottom; row++) {
      this.mask.set(part.subarray((row - top) * w, (row - top + 1) * w), row * this.width + left);
    }
    this.show(left, top, right, bottom);
    this.changed();
  }

  clear() {
    if (!this.image) return;
    this.begin();
    this.fill(0, 0, this.width - 1, this.height - 1, 0);
    this.end();
  }

  // Both corners are inside.
  fill(x0, y0, x1, y1, value) {
    const left = Math.max(0, Math.min(x0, x1)), right = Math.min(this.width, Math.max(x0, x1) + 1);
    const top = Math.max(0, Math.min(y0, y1)), bottom = Math.min(this.height, Math.max(y0, y1) + 1);
    for (let row = top; row < bottom; row++) {
      if (right > left) this.mask.fill(value, row * this.width + left, row * this.width + right);
    }
    this.touch(left, top, right, bottom);
  }

  disc(cx, cy, value) {
    const radius = this.size / 2, reach = Math.ceil(radius);
    const shift = this.size % 2 ? 0 : 0.5;
    for (let dy = -reach; dy <= reach; dy++) {
      const y = cy + dy;
      if (y < 0 || y >= this.height) continue;
      const inside = radius * radius - (dy + shift) * (dy + shift);
      if (inside < 0) continue;
      const half = Math.sqrt(inside);
      const left = Math.max(0, Math.ceil(cx - shift - half)), right = Math.min(this.width - 1, Math.floor(cx - shift + half));
      if (right >= left) this.mask.fill(value, y * this.width + left, y * this.width + right + 1);
    }
    this.touch(
      Math.max(0, cx - reach - 1), Math.max(0, cy - reach - 1),
      Math.min(this.width, cx + reach + 2), Math.min(this.height, cy + reach + 2));
  }

  stroke(from, to, value) {
    const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    for (let step = 0; step <= steps; step++) {
      const share = step / steps;
      this.disc(Math.round(from[0] + (to[0] - from[0]) * share), Math.round(from[1] + (to[1] - from[1]) * share), value);
    }
  }

  // Pixels whose centre is inside, by the even-odd rule.
  polygon(corners) {
    const ys = corners.map((c) => c[1]);
    const top = Math.max(0, Math.min(...ys)), bottom = Math.min(this.height - 1, Math.max(...ys));
    for (let y = top; y <= bottom; y++) {
      const cuts = [];
      corners.forEach(([x0, y0], index) => {
        const [x1, y1] = corners[(index + 1) % corners.length];
        if ((y0 <= y) !== (y1 <= y)) cuts.push(x0 + ((y - y0) * (x1 - x0)) / (y1 - y0));
      });
      cuts.sort((a, b) => a - b);
      for (let i = 0; i + 1 < cuts.length; i += 2) this.fill(Math.ceil(cuts[i]), y, Math.floor(cuts[i + 1]), y, 255);
    }
  }

  touch(left, top, right, bottom) {
    if (right <= left || bottom <= top) return;
    const d = this.dirty;
    this.dirty = [Math.min(d[0], left), Math.min(d[1], top), Math.max(d[2], right), Math.max(d[3], bottom)];
    this.show(left, top, right, bottom);
  }

  show(left, top, right, bottom) {
    const w = right - left, h = bottom - top, data = new ImageData(w, h);
    for (let row = 0; row < h; row++) {
      for (let col = 0; col < w; col++) {
        if (this.mask[(top + row) * this.width + left + col]) data.data.set(TINT, 4 * (row * w + col));
      }
    }
    this.layer.getContext("2d").putImageData(data, left, top);
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.paint(); });
  }

  paint() {
    const pen = this.canvas.getContext("2d"), ratio = this.canvas.width / Math.max(1, this.canvas.clientWidth);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image) return;
    pen.setTransform(this.scale * ratio, 0, 0, this.scale * ratio, this.x * ratio, this.y * ratio);
    pen.imageSmoothingEnabled = this.scale < 1;
    pen.drawImage(this.image, 0, 0);
    pen.drawImage(this.layer, 0, 0);
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = 1.5 / this.scale;
    if (this.rectangle) {
      const [x0, y0, x1, y1] = this.rectangle;
      pen.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0) + 1, Math.abs(y1 - y0) + 1);
    }
    if (this.corners.length) {
      pen.beginPath();
      this.corners.forEach(([x, y], index) => index ? pen.lineTo(x + 0.5, y + 0.5) : pen.moveTo(x + 0.5, y + 0.5));
      if (this.hover) pen.lineTo(this.hover[0] + 0.5, this.hover[1] + 0.5);
      pen.stroke();
    } else if (this.hover && (this.tool === "brush" || this.tool === "eraser")) {
      pen.beginPath();
      pen.arc(this.hover[0] + 0.5, this.hover[1] + 0.5, this.size / 2, 0, 7);
      pen.stroke();
    }
    // For whoever drives the page: where image pixels are on the screen.
    Object.assign(this.canvas.dataset, { scale: this.scale, x: this.x, y: this.y });
  }

  down(event) {
    if (!this.image) return;
    this.canvas.setPointerCapture(event.pointerId);
    if (event.button === 1 || event.shiftKey) {
      this.pan = [event.clientX - this.x, event.clientY - this.y];
      event.preventDefault();
      return;
    }
    if (event.button !== 0) return;
    const at = this.pixel(event);
    if (this.tool === "polygon") {
      this.corners.push(at);
    } else if (this.tool === "rectangle") {
      this.rectangle = [...at, ...at];
    } else {
      this.begin();
      this.last = at;
      this.disc(...at, this.tool === "brush" ? 255 : 0);
    }
    this.draw();
  }

  move(event) {
    if (!this.image) return;
    const at = this.hover = this.pixel(event);
    if (this.pan) {
      this.x = Math.round(event.clientX - this.pan[0]);
      this.y = Math.round(event.clientY - this.pan[1]);
    } else if (this.rectangle) {
      this.rectangle.splice(2, 2, ...at);
    } else if (this.last) {
      this.stroke(this.last, at, this.tool === "brush" ? 255 : 0);
      this.last = at;
    }
    this.draw();
  }

  up() {
    this.pan = null;
    if (this.rectangle) {
      this.begin();
      this.fill(...this.rectangle, 255);
      this.rectangle = null;
      this.end();
    } else if (this.last) {
      this.last = null;
      this.end();
    }
    this.draw();
  }

  close() {
    if (this.corners.length > 2) {
      this.begin();
      this.polygon(this.corners);
      this.end();
    }
    this.corners = [];
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    this.zoom(this.scale * 1.2 ** -Math.sign(event.deltaY), event.clientX - box.left, event.clientY - box.top);
  }

  key(event) {
    const step = 40, moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) {
      this.x += moves[event.key][0];
      this.y += moves[event.key][1];
      event.preventDefault();
    } else if (event.key === "Escape") {
      this.corners = [];
    } else if (event.key === "Enter") {
      this.close();
    }
    this.draw();
  }

  // Replace the mask by a picture's: white is inside.
  async set(blob) {
    const picture = await createImageBitmap(blob);
    const copy = new OffscreenCanvas(this.width, this.height).getContext("2d");
    copy.drawImage(picture, 0, 0);
    const data = copy.getImageData(0, 0, this.width, this.height).data;
    this.begin();
    for (let i = 0; i < this.mask.length; i++) this.mask[i] = data[4 * i] > 127 ? 255 : 0;
    this.touch(0, 0, this.width, this.height);
    this.end();
  }

  // The mask as a PNG in black and white; opaque, so that no browser changes its levels.
  png() {
    const copy = new OffscreenCanvas(this.width, this.height), data = new ImageData(this.width, this.height);
    const words = new Uint32Array(data.data.buffer);
    for (let i = 0; i < words.length; i++) words[i] = this.mask[i] ? 0xffffffff : 0xff000000;
    copy.getContext("2d").putImageData(data, 0, 0);
    return copy.convertToBlob({ type: "image/png" });
  }
}
