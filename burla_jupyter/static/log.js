// A list of log lines that draws only the rows in sight. Lines come as messages, numbered, many at a time.

const ROW_PX = 18;
const KEPT = 200_000; // lines; the oldest go first
const DROPPED_AT_ONCE = 20_000;
const HELLOS = 20;
const HELLO_EVERY_MS = 100;
const CONTROL = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])|[\x00-\x08\x0b-\x1f\x7f]/g;
const NAMES = { 1: "stdout", 2: "stderr" };

class Lines {
  constructor() {
    this.lines = [];
    this.first = 0; // the number of lines[0]
    this.next = 0; // the number that is expected next
    this.missed = 0; // lines that never came here
    this.listeners = new Set();
  }

  take(batch) {
    const from = Math.max(0, this.next - batch.first); // what is here already is sent again when a page was reloaded
    const missed = Math.max(0, batch.first - this.next);
    const count = batch.text.length;
    if (from >= count) return;
    this.missed += missed;
    const added = [];
    for (let i = from; i < count; i++) {
      added.push({ index: batch.index[i], stream: batch.stream[i], text: batch.text[i].replace(CONTROL, "") });
    }
    for (const line of added) this.lines.push(line);
    this.next = batch.first + count;
    let dropped = 0;
    if (this.lines.length > KEPT + DROPPED_AT_ONCE) {
      dropped = this.lines.length - KEPT;
      this.lines = this.lines.slice(dropped);
      this.first += dropped;
    }
    for (const listener of this.listeners) listener(added, dropped);
  }
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function matcher(index, stream, text) {
  const wanted = text.toLowerCase();
  return (line) =>
    (index === null || line.index === index) &&
    (stream === 0 || line.stream === stream) &&
    (wanted === "" || line.text.toLowerCase().includes(wanted));
}

function draw(lines, el) {
  const keys = { "data-lm-suppress-shortcuts": "true" }; // else a notebook takes the keys for its commands
  const input = element("input", { type: "number", min: "0", placeholder: "all", "aria-label": "Only input", ...keys });
  const stream = element(
    "select",
    { "aria-label": "Only stream", ...keys },
    element("option", { value: "0" }, "all"),
    element("option", { value: "1" }, "stdout"),
    element("option", { value: "2" }, "stderr"),
  );
  const text = element("input", { type: "search", placeholder: "all", "aria-label": "Only lines that contain", ...keys });
  const follow = element("input", { type: "checkbox", ...keys });
  follow.checked = true;
  const count = element("span", { class: "burla-log-count" });
  const field = (name, control) => element("label", {}, element("span", {}, name), control);
  const tools = element(
    "div",
    { class: "burla-log-tools", role: "group", "aria-label": "Filter of the log" },
    field("Input", input),
    field("Stream", stream),
    field("Text", text),
    field("Follow", follow),
    count,
  );
  const rows = element("div", { class: "burla-log-rows" });
  const room = element("div", { class: "burla-log-room" }, rows);
  const view = element("div", { class: "burla-log-view", tabindex: "0", role: "region", "aria-label": "Log", ...keys }, room);
  const root = element("div", { class: "burla-log" }, tools, view);
  el.append(root);
  for (const type of ["keydown", "keyup", "keypress"]) root.addEventListener(type, (event) => event.stopPropagation());

  let matches = matcher(null, 0, "");
  let all = true; // without a filter the list is the lines themselves
  let found = [];
  let scheduled = 0;
  let placed = -1; // where we put the scroll bar ourselves
  let columns = 1;

  const shown = () => (all ? lines.lines : found);

  function filter() {
    const index = input.value === "" ? null : Number(input.value);
    all = index === null && stream.value === "0" && text.value === "";
    matches = matcher(index, Number(stream.value), text.value);
    found = all ? [] : lines.lines.filter(matches);
    schedule();
  }

  function schedule() {
    if (!scheduled) scheduled = requestAnimationFrame(paint);
  }

  function paint() {
    scheduled = 0;
    const list = shown();
    const gone = lines.first + lines.missed;
    const total = lines.next.toLocaleString("en");
    const parts = [all ? `${total} lines` : `${list.length.toLocaleString("en")} of ${total} lines`];
    if (gone) parts.push(`the first ${gone.toLocaleString("en")} are not kept here`);
    count.textContent = parts.join(", ");
    if (!view.clientHeight) return; // folded
    room.style.height = `${list.length * ROW_PX}px`;
    if (follow.checked) {
      view.scrollTop = list.length * ROW_PX;
      placed = view.scrollTop;
    }
    const from = Math.max(0, Math.floor(view.scrollTop / ROW_PX) - 2);
    const to = Math.min(list.length, from + Math.ceil(view.clientHeight / ROW_PX) + 4);
    rows.style.transform = `translateY(${from * ROW_PX}px)`;
    const drawn = [];
    for (let i = from; i < to; i++) {
      const { index, stream: number, text: written } = list[i];
      columns = Math.max(columns, String(index).length);
      const label = element("span", { class: "burla-log-index", title: `input ${index}, ${NAMES[number]}` }, String(index));
      drawn.push(element("div", { class: `burla-log-row burla-log-${NAMES[number]}` }, label, element("span", {}, written)));
    }
    rows.style.setProperty("--burla-log-index", `${columns}ch`);
    rows.replaceChildren(...drawn);
  }

  view.addEventListener("scroll", () => {
    if (Math.abs(view.scrollTop - placed) > 1) {
      follow.checked = view.scrollTop + view.clientHeight >= view.scrollHeight - ROW_PX;
    }
    schedule();
  });
  for (const control of [input, stream, text]) control.addEventListener("input", filter);
  follow.addEventListener("change", schedule);

  function added(newest, dropped) {
    if (!all) {
      // those that were dropped stand at the front
      found = dropped ? lines.lines.filter(matches) : found.concat(newest.filter(matches));
    }
    if (dropped && all && !follow.checked) {
      placed = Math.max(0, view.scrollTop - dropped * ROW_PX);
      view.scrollTop = placed;
    }
    schedule();
  }

  lines.listeners.add(added);
  const watcher = new ResizeObserver(schedule);
  watcher.observe(view);
  schedule();
  return () => {
    lines.listeners.delete(added);
    watcher.disconnect();
    cancelAnimationFrame(scheduled);
  };
}

export default () => {
  const lines = new Lines();
  let welcome = false; // the kernel has heard us
  return {
    initialize({ model }) {
      const decoder = new TextDecoder();
      model.on("msg:custom", (message, buffers) => {
        if (message.kind === "welcome") welcome = true;
        if (message.kind === "lines") lines.take(JSON.parse(decoder.decode(buffers[0])));
      });
    },
    render({ model, el }) {
      const end = draw(lines, el);
      const id = crypto.getRandomValues(new Uint32Array(1))[0];
      let asked = 0;
      // The first messages of a widget may have to wait until its cell ends: only after them the notebook opens the way
      // by which later ones are heard at once.
      function hello() {
        if (welcome || asked++ === HELLOS) return;
        model.send({ kind: "hello", id });
        timer = setTimeout(hello, HELLO_EVERY_MS);
      }
      let timer = 0;
      hello();
      return () => {
        clearTimeout(timer);
        end();
      };
    },
  };
};
