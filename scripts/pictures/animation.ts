/** Draws a recording of a terminal as an SVG that plays by CSS alone. */

/** The screen of a terminal at one time. */
export interface ScreenSample {
  /** Since the start, in milliseconds. */
  at: number;
  /** The screen's lines with colour codes (ECMA-48, SGR). */
  screen: string;
}

/** What {@linkcode animatedSvg} takes. */
export interface AnimationOptions {
  /** The width, in characters. */
  columns: number;
  /** The height, in lines. */
  rows: number;
  /** The text below the screen. */
  caption: string;
  /** What a reader should see last. @default {undefined} */
  climax?: Climax;
}

/** Marks the last line that fits, with a note at its right end. */
export interface Climax {
  line: RegExp;
  note: string;
}

/** A line shown in one row for some time. */
interface ShownLine {
  row: number;
  text: string;
  from: number;
  /** Absent if it is on the last screen. */
  to?: number;
}

const CHARACTER_SIZE = { width: 7.8, height: 17 };
const MARGIN = 12;
// deno-lint-ignore no-control-regex
const SGR_PATTERN = /\x1b\[([\d;]*)m/;

/**
 * Draws a recording.
 *
 * @param samples The screens, in order.
 * @param options Size and caption.
 * @returns The SVG; with `prefers-reduced-motion` it shows the last screen.
 */
export function animatedSvg(
  samples: ScreenSample[],
  { columns, rows, caption, climax }: AnimationOptions,
): string {
  const width = Math.ceil(columns * CHARACTER_SIZE.width) + 2 * MARGIN;
  const height = (rows + 2) * CHARACTER_SIZE.height + 2 * MARGIN;
  const shown = shownLines(samples);
  const marked = shown.findLast(({ text }) => climax?.line.test(text));
  const mark = marked && climax ? climaxMark(marked, climax.note, width) : "";
  const lines = shown.map(({ row, text, from, to }) => {
    const y = MARGIN + (row + 1) * CHARACTER_SIZE.height - 4;
    const delay = `animation-delay:${formatSeconds(from)}`;
    const style = to === undefined
      ? delay
      : `${delay};animation-duration:${formatSeconds(to - from)}`;
    const kind = to === undefined ? "k" : "t";
    return `<text class="${kind}" style="${style}" x="${MARGIN}" y="${y}">${
      colouredSpans(text)
    }</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="a terminal: toolsmith init, hydrate, run, and run again from the snapshot">
<style>
text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1f2937;white-space:pre}
.t,.k{visibility:hidden}
.t{animation:s linear}
.k{animation:s .01s linear forwards}
@keyframes s{from,to{visibility:visible}}
rect{fill:#f8fafc;stroke:#cbd5e1}
.c{font:11px sans-serif;fill:#6b7280}
.m1{fill:#dbeafe;stroke:none}.m2{fill:#1d4ed8;font-weight:bold;text-anchor:end}
.r{fill:#b91c1c}.g{fill:#15803d}.y{fill:#a16207}.m{fill:#0e7490}.b{font-weight:bold}
@media (prefers-color-scheme:dark){
text{fill:#e5e7eb}rect{fill:#0f172a;stroke:#334155}.c{fill:#9ca3af}.m1{fill:#1e3a8a}.m2{fill:#bfdbfe}
.r{fill:#fca5a5}.g{fill:#86efac}.y{fill:#fde047}.m{fill:#67e8f9}}
@media (prefers-reduced-motion:reduce){.t,.k{animation:none}.k{visibility:visible}}
</style>
<rect x=".5" y=".5" width="${width - 1}" height="${height - 1}" rx="8"/>${mark}
${lines.join("\n")}
<text class="c" x="${MARGIN}" y="${height - MARGIN}">${
    escapeXml(caption)
  }</text>
</svg>
`;
}

function climaxMark(
  { row, from }: ShownLine,
  note: string,
  width: number,
): string {
  const y = MARGIN + row * CHARACTER_SIZE.height;
  const style = `style="animation-delay:${formatSeconds(from)}"`;
  const right = width - MARGIN;
  return `
<rect class="k m1" ${style} x="${MARGIN - 5}" y="${y}" width="${
    right - MARGIN + 10
  }" height="${CHARACTER_SIZE.height}" rx="3"/>
<text class="k m2" ${style} x="${right}" y="${y + CHARACTER_SIZE.height - 4}">${
    escapeXml(note)
  }</text>`;
}

/** Finds when each line was shown in its row. */
function shownLines(samples: ScreenSample[]): ShownLine[] {
  const found: ShownLine[] = [];
  const open = new Map<number, ShownLine>();
  for (const { at, screen } of samples) {
    const lines = screen.trimEnd().split("\n");
    for (const row of new Set([...open.keys(), ...lines.keys()])) {
      const text = lines[row]?.trimEnd() ?? "";
      const before = open.get(row);
      if (before?.text === text || (!before && text === "")) continue;
      if (before) before.to = at;
      open.delete(row);
      if (text === "") continue;
      const shown = { row, text, from: at };
      open.set(row, shown);
      found.push(shown);
    }
  }
  return found;
}

const COLOURS: Record<string, string> = {
  "1": "b",
  "31": "r",
  "32": "g",
  "33": "y",
  "36": "m",
};

/** Converts colour codes to SVG spans. */
function colouredSpans(text: string): string {
  const [plain, ...rest] = text.split(SGR_PATTERN);
  let out = escapeXml(plain);
  for (let at = 0; at < rest.length; at += 2) {
    const classes = rest[at].split(";").flatMap((code) => COLOURS[code] ?? []);
    const words = escapeXml(rest[at + 1]);
    out += classes.length > 0 && words
      ? `<tspan class="${classes.join(" ")}">${words}</tspan>`
      : words;
  }
  return out;
}

function formatSeconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)}s`;
}

function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
