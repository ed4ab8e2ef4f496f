// Convert between canvases, PNG and the model's planes. Colours are not converted.

export function canvasOf(width, height = width) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** The pen of a canvas whose pixels are read. */
export function penOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** Decode a PNG, JPEG or WebP. */
export async function bitmapOf(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

export async function pictureOf(blob) {
  const bitmap = await bitmapOf(blob);
  const canvas = canvasOf(bitmap.width, bitmap.height);
  penOf(canvas).drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}

export function pngOf(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

/** Canvas -> uint8 (C, H, W); grey as Pillow's "L" rounds it. */
export function planesOf(canvas, channels) {
  const { width, height } = canvas;
  const rgba = penOf(canvas).getImageData(0, 0, width, height).data;
  const area = width * height;
  const planes = new Uint8Array(channels * area);
  for (let i = 0; i < area; i++) {
    const [red, green, blue] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) {
      planes[i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      planes[i] = red;
      planes[area + i] = green;
      planes[2 * area + i] = blue;
    }
  }
  return planes;
}

/** uint8 (C, H, W) -> canvas. */
export function pictureOfPlanes(planes, size, channels) {
  const image = new ImageData(size, size);
  const area = size * size;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = planes[(channels === 1 ? 0 : c) * area + i];
    image.data[4 * i + 3] = 255;
  }
  const canvas = canvasOf(size);
  penOf(canvas).putImageData(image, 0, 0);
  return canvas;
}

/** Show a picture on a canvas of the page. */
export function show(canvas, picture) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

/** Draw a picture on a square of a canvas: cut (crop), with white edges (pad) or stretched. */
export function drawFitted(pen, picture, size, fit) {
  const ratio = picture.width / picture.height;
  let [width, height] = [size, size];
  if (fit === "crop" ? ratio > 1 : fit === "pad" && ratio < 1) width = size * ratio;
  if (fit === "crop" ? ratio < 1 : fit === "pad" && ratio > 1) height = size / ratio;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, (size - width) / 2, (size - height) / 2, width, height);
}

export async function save(canvas, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await pngOf(canvas));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
