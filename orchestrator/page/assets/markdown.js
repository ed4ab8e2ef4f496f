// Render the markdown of a model card. All text becomes text nodes, so that no markup gets through;
// links lead to http and https alone, and images are left out.

const TOP_HEADING = 3;
const ADDRESS = String.raw`\(((?:[^()\s]|\([^()\s]*\))+)\)`;
const INLINE = new RegExp(
  String.raw`${"`"}([^${"`"}]+)${"`"}|!\[[^\]]*\]${ADDRESS}|\[([^\]]+)\]${ADDRESS}|\*\*([^*]+)\*\*|\*([^*]+)\*`,
  "g",
);

/** @returns {DocumentFragment} */
export function renderMarkdown(source) {
  const fragment = document.createDocumentFragment();
  const lines = source.replaceAll("\r", "").split("\n");
  while (lines.length) {
    const made = takeBlock(lines);
    if (made) fragment.append(made);
  }
  return fragment;
}

/** Take the lines of one block from the front. */
function takeBlock(lines) {
  const line = lines[0];
  if (!line.trim()) return void lines.shift();
  if (line.startsWith("```")) return takeCode(lines);
  const heading = /^(#{1,6})\s+(.*)/.exec(line);
  if (heading) {
    lines.shift();
    const level = Math.min(heading[1].length + TOP_HEADING - 1, 6);
    return withInline(`h${level}`, heading[2]);
  }
  if (line.startsWith("|")) return takeTable(takeWhile(lines, (each) => each.startsWith("|")));
  if (itemOf(line)) return takeList(lines);
  const isText = (each) => each.trim() && !/^(#{1,6}\s|```|\|)/.test(each) && !itemOf(each);
  return withInline("p", takeWhile(lines, isText, 1).join(" "));
}

function takeWhile(lines, isWanted, least = 0) {
  let count = least;
  while (count < lines.length && isWanted(lines[count])) count++;
  return lines.splice(0, count);
}

function takeCode(lines) {
  lines.shift();
  const code = takeWhile(lines, (line) => !line.startsWith("```"));
  lines.shift();
  const [pre, inner] = [document.createElement("pre"), document.createElement("code")];
  inner.textContent = code.join("\n");
  pre.tabIndex = 0; // it may scroll
  pre.append(inner);
  return pre;
}

function itemOf(line) {
  return /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)/.exec(line);
}

function takeList(lines) {
  const list = document.createElement(itemOf(lines[0])[1] === undefined ? "ul" : "ol");
  while (lines.length && itemOf(lines[0])) {
    const first = itemOf(lines.shift())[2];
    const more = takeWhile(lines, (line) => /^\s+\S/.test(line) && !itemOf(line));
    list.append(withInline("li", [first, ...more.map((line) => line.trim())].join(" ")));
  }
  return list;
}

function takeTable(lines) {
  const rows = lines.map(cellsOf);
  const hasHead = rows.length > 1 && rows[1].every((cell) => /^:?-+:?$/.test(cell));
  const table = document.createElement("table");
  rows.forEach((cells, index) => {
    const isHead = hasHead && index === 0;
    if ((hasHead && index === 1) || cells.every((cell) => !cell)) return;
    const row = table.insertRow();
    cells.forEach((cell) => row.append(withInline(isHead && cell ? "th" : "td", cell)));
  });
  const frame = document.createElement("div");
  frame.className = "scroll";
  frame.tabIndex = 0;
  frame.append(table);
  return frame;
}

function cellsOf(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
}

function withInline(tag, text) {
  const made = document.createElement(tag);
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    made.append(text.slice(end, match.index), inlineOf(match));
    end = match.index + match[0].length;
  }
  made.append(text.slice(end));
  return made;
}

function inlineOf([whole, code, , label, address, strong, emphasis]) {
  if (code !== undefined) return tagged("code", code);
  if (strong !== undefined) return tagged("strong", strong);
  if (emphasis !== undefined) return tagged("em", emphasis);
  if (whole.startsWith("!")) return "";
  if (!/^https?:\/\//i.test(address)) return label;
  const link = tagged("a", label);
  link.href = address;
  link.rel = "noopener noreferrer";
  return link;
}

function tagged(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
