// What an eye would find wrong with an element of a page: of each visible piece of text, whether it can be read, is cut
// off, or lies on another. Returns a list of complaints.
(root, enough) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ancestors = (e) => (e ? [...ancestors(e.parentElement), e] : []);

  // the colours of text and of what is behind it, each element with its opacity painted over what is below it
  function colours(e, text) {
    let below = [255, 255, 255];
    let opacity = 1;
    for (const one of ancestors(e)) {
      const own = getComputedStyle(one);
      opacity *= Number(own.opacity);
      const [r, g, b, a] = rgba(own.backgroundColor);
      below = over([r, g, b, a * opacity], below);
    }
    const [r, g, b, a] = rgba(text.color);
    return [over([r, g, b, a * opacity], below), below];
  }

  function contrast(e, pseudo) {
    const style = pseudo ? getComputedStyle(e, pseudo) : getComputedStyle(e);
    let [text, below] = colours(e, style);
    if (pseudo) text = over([...text, Number(style.opacity)], below); // its own; that of an element is there already
    const [a, b] = [luminance(text), luminance(below)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }

  // the part of a box that is in sight, given what cuts it off and what can be scrolled; null: somewhere else
  function visible(box, e) {
    let { left, right, top, bottom } = box;
    let scrolls = false;
    for (let one = e; one && one !== root.parentElement; one = one.parentElement) {
      const { overflowX, overflowY } = getComputedStyle(one);
      if (overflowX === "visible" && overflowY === "visible") continue;
      const edge = one.getBoundingClientRect();
      const cut = left < edge.left - 1 || right > edge.right + 1 || top < edge.top - 2 || bottom > edge.bottom + 2;
      if (cut && !scrolls && !/auto|scroll/.test(overflowX + overflowY)) return "cut";
      scrolls ||= /auto|scroll/.test(overflowX + overflowY);
      left = Math.max(left, edge.left);
      right = Math.min(right, edge.right);
      top = Math.max(top, edge.top);
      bottom = Math.min(bottom, edge.bottom);
    }
    return right - left > 1 && bottom - top > 1 ? { left, right, top, bottom } : null;
  }

  const complaints = [];
  const boxes = [];
  const whole = root.getBoundingClientRect();
  if (whole.right > document.documentElement.clientWidth + 1) complaints.push("wider than the page");
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim().slice(0, 40);
    if (!text || e.closest("style, option") || !e.checkVisibility({ visibilityProperty: true })) continue;
    texts += 1;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects()) {
      if (box.width < 1) continue;
      const seen = visible(box, e);
      if (seen === "cut") complaints.push(`cut off: ${text}`);
      else if (seen) boxes.push([seen, text]);
    }
    const readable = contrast(e);
    if (readable < enough) complaints.push(`contrast ${readable.toFixed(2)}: ${text}`);
  }
  for (const e of root.querySelectorAll("input, select")) {
    if (!e.checkVisibility()) continue;
    if (e.tagName === "SELECT" && contrast(e) < enough) complaints.push(`contrast ${contrast(e).toFixed(2)}: ${e.ariaLabel}`);
    if (e.placeholder && contrast(e, "::placeholder") < enough) {
      complaints.push(`contrast ${contrast(e, "::placeholder").toFixed(2)}: placeholder of ${e.ariaLabel}`);
    }
  }
  boxes.forEach(([a, one], i) => {
    for (const [b, other] of boxes.slice(i + 1)) {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > 3) complaints.push(`on each other: ${one} | ${other}`);
    }
  });
  if (!texts) complaints.push("no text at all");
  return complaints;
}
