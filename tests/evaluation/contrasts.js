// The contrast of every text that is shown with its background, by WCAG 2: [text, ratio of luminances].
(() => {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  const isOpaque = ([, , , alpha = 1]) => alpha > 0;

  function background(element) {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (isOpaque(colour)) return colour;
    }
    return [255, 255, 255];
  }

  // Letters that lie on the images have a shadow of their own.
  const isShown = (e) => e.getClientRects().length && !e.closest("script, style, .view");
  const hasText = (e) => [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...document.body.querySelectorAll("*")].filter((e) => isShown(e) && hasText(e)).map((e) => {
    const style = getComputedStyle(e), text = e instanceof SVGElement ? style.fill : style.color;
    const [dark, bright] = [luminance(numbers(text)), luminance(background(e))].sort((a, b) => a - b);
    return [e.textContent.slice(0, 40), (bright + 0.05) / (dark + 0.05)];
  });
})()
