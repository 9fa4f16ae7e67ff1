// A canvas to paint a mask on, at the image's own resolution whatever the zoom.
export default {
  template: `
    <div class="mc">
      <div class="mc-tools" role="toolbar" aria-label="Painting tools">
        <button v-for="tool in ['brush', 'eraser', 'box']" :key="tool" type="button"
                :aria-pressed="mode === tool" :class="{on: mode === tool}"
                @click="mode = tool">{{ tool }}</button>
        <label>size <input type="range" min="1" :max="most" v-model.number="size"
               aria-label="Brush size in pixels"><output>{{ size }} px</output></label>
        <button type="button" @click="undo" :disabled="!past.length">undo</button>
        <button type="button" @click="clear">clear</button>
        <span class="mc-gap"></span>
        <button type="button" @click="zoomBy(1.5)" aria-label="Zoom in">+</button>
        <button type="button" @click="zoomBy(1 / 1.5)" aria-label="Zoom out">&minus;</button>
        <button type="button" @click="zoom = 1" aria-label="Image pixels as they are">1:1</button>
        <button type="button" @click="fit">fit</button>
        <output class="mc-zoom">{{ Math.round(100 * zoom) }} %</output>
      </div>
      <div class="mc-view" ref="view" tabindex="0" :aria-label="label" @wheel.prevent="wheel"
           @keydown="key">
        <div class="mc-stage" :style="{width: width * zoom + 'px', height: height * zoom + 'px'}">
          <img ref="image" :src="src" :alt="label" draggable="false" @load="loaded">
          <canvas ref="mask" @pointerdown="down" @pointermove="move" @pointerup="up"
                  @pointercancel="up"></canvas>
        </div>
      </div>
    </div>`,
  props: { src: String, label: String },
  data() {
    return { mode: 'brush', size: 12, most: 200, zoom: 1, width: 0, height: 0, past: [],
             last: null, from: null };
  },
  mounted() { window.maskCanvas = this; },
  methods: {
    loaded() {
      const image = this.$refs.image, mask = this.$refs.mask;
      this.width = image.naturalWidth;
      this.height = image.naturalHeight;
      mask.width = this.width;
      mask.height = this.height;
      this.most = Math.max(50, Math.round(Math.max(this.width, this.height) / 4));
      this.size = Math.max(3, Math.round(Math.max(this.width, this.height) / 25));
      this.past = [];
      this.fit();
      this.$emit('loaded', { width: this.width, height: this.height });
    },
    fit() {
      const view = this.$refs.view;
      this.zoom = Math.min(view.clientWidth / this.width, view.clientHeight / this.height);
    },
    zoomBy(factor) { this.zoom = Math.min(32, Math.max(0.02, this.zoom * factor)); },
    wheel(event) { this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15); },
    key(event) {
      if ((event.ctrlKey || event.metaKey) && event.key === 'z') this.undo();
      else if (event.key === '+') this.zoomBy(1.5);
      else if (event.key === '-') this.zoomBy(1 / 1.5);
      else if (event.key === 'b') this.mode = 'brush';
      else if (event.key === 'e') this.mode = 'eraser';
      else if (event.key === 'r') this.mode = 'box';
      else return;
      event.preventDefault();
    },
    at(event) {  // In whole pixels of the image.
      const box = this.$refs.mask.getBoundingClientRect();
      return [Math.floor((event.clientX - box.left) * this.width / box.width),
              Math.floor((event.clientY - box.top) * this.height / box.height)];
    },
    remember() {
      const mask = this.$refs.mask, copy = document.createElement('canvas');
      copy.width = mask.width;
      copy.height = mask.height;
      copy.getContext('2d').drawImage(mask, 0, 0);
      this.past.push(copy);
      if (this.past.length > 20) this.past.shift();
    },
    undo() {
      const before = this.past.pop();
      if (!before) return;
      const pen = this.$refs.mask.getContext('2d');
      pen.clearRect(0, 0, this.width, this.height);
      pen.drawImage(before, 0, 0);
      this.$emit('painted');
    },
    clear() {
      this.remember();
      this.$refs.mask.getContext('2d').clearRect(0, 0, this.width, this.height);
      this.$emit('painted');
    },
    down(event) {
      if (event.button) return;
      this.$refs.mask.setPointerCapture(event.pointerId);
      this.remember();
      this.last = this.from = this.at(event);
      if (this.mode !== 'box') this.dab(this.last, this.last);
    },
    move(event) {
      if (!this.last) return;
      const now = this.at(event);
      if (this.mode === 'box') this.box(this.from, now);
      else this.dab(this.last, now);
      this.last = now;
    },
    up() {
      if (!this.last) return;
      this.last = null;
      this.$emit('painted');
    },
    // Pixel by pixel: a canvas path would leave half covered pixels at its edge.
    dab(from, to) {
      const pen = this.$refs.mask.getContext('2d');
      pen.fillStyle = 'rgb(255, 45, 45)';
      const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
      const radius = this.size / 2, reach = Math.ceil(radius);
      const stride = Math.max(1, Math.floor(radius / 3));
      for (let n = 0; n <= steps; n += stride) {
        const x = Math.round(from[0] + (to[0] - from[0]) * n / steps);
        const y = Math.round(from[1] + (to[1] - from[1]) * n / steps);
        for (let dy = -reach; dy <= reach; dy++) {
          const half = Math.floor(Math.sqrt(Math.max(0, radius * radius - dy * dy)));
          if (radius * radius < dy * dy) continue;
          if (this.mode === 'eraser') pen.clearRect(x - half, y + dy, 2 * half + 1, 1);
          else pen.fillRect(x - half, y + dy, 2 * half + 1, 1);
        }
      }
    },
    box(from, to) {
      const pen = this.$refs.mask.getContext('2d'), before = this.past[this.past.length - 1];
      pen.clearRect(0, 0, this.width, this.height);
      pen.drawImage(before, 0, 0);
      pen.fillStyle = 'rgb(255, 45, 45)';
      const left = Math.min(from[0], to[0]), top = Math.min(from[1], to[1]);
      pen.fillRect(left, top, Math.abs(to[0] - from[0]) + 1, Math.abs(to[1] - from[1]) + 1);
    },
    png() { return this.$refs.mask.toDataURL('image/png'); },
    async show(source) {  // A suggested mask: opaque where the defect is to go.
      const image = new Image();
      image.src = source;
      await image.decode();
      this.remember();
      const pen = this.$refs.mask.getContext('2d');
      pen.clearRect(0, 0, this.width, this.height);
      pen.drawImage(image, 0, 0);
      this.$emit('painted');
    },
  },
};
