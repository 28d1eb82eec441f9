/**
 * Draws a recording of a terminal as an SVG that plays by CSS alone, in the time
 * that it took.
 *
 * @module
 */

/** What a terminal showed at a time. */
export interface Sample {
  /** Since the start, in milliseconds. */
  at: number;
  /** The screen's lines, with the codes of colours (ECMA-48, SGR). */
  screen: string;
}

/** What {@linkcode animate} takes. */
export interface AnimationOptions {
  /** The width, in characters. */
  columns: number;
  /** The height, in lines. */
  rows: number;
  /** What is written below. */
  caption: string;
}

/** A line that stood in one row for a while. */
interface Shown {
  row: number;
  text: string;
  from: number;
  /** Absent for what is there at the end. */
  to?: number;
}

const CELL = { width: 7.8, height: 17 };
const MARGIN = 12;
// deno-lint-ignore no-control-regex
const SGR = /\x1b\[([\d;]*)m/;

/**
 * Draws a recording.
 *
 * @param samples What was seen, in order.
 * @param options Size and caption.
 * @returns The SVG. Where motion is not wanted it shows the last screen.
 */
export function animate(
  samples: Sample[],
  { columns, rows, caption }: AnimationOptions,
): string {
  const width = Math.ceil(columns * CELL.width) + 2 * MARGIN;
  const height = (rows + 2) * CELL.height + 2 * MARGIN;
  const lines = shownLines(samples).map(({ row, text, from, to }) => {
    const y = MARGIN + (row + 1) * CELL.height - 4;
    const delay = `animation-delay:${seconds(from)}`;
    const style = to === undefined
      ? delay
      : `${delay};animation-duration:${seconds(to - from)}`;
    const kind = to === undefined ? "k" : "t";
    return `<text class="${kind}" style="${style}" x="${MARGIN}" y="${y}">${
      coloured(text)
    }</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="a terminal: toolsmith publish, hydrate, run, and run again">
<style>
text{font:13px ui-monospace,monospace;fill:#1f2937;white-space:pre}
.t,.k{visibility:hidden}
.t{animation:s linear}
.k{animation:s .01s linear forwards}
@keyframes s{from,to{visibility:visible}}
rect{fill:#f8fafc;stroke:#cbd5e1}
.c{font:11px sans-serif;fill:#6b7280}
.r{fill:#b91c1c}.g{fill:#15803d}.y{fill:#a16207}.m{fill:#0e7490}.b{font-weight:bold}
@media (prefers-color-scheme:dark){
text{fill:#e5e7eb}rect{fill:#0f172a;stroke:#334155}.c{fill:#9ca3af}
.r{fill:#fca5a5}.g{fill:#86efac}.y{fill:#fde047}.m{fill:#67e8f9}}
@media (prefers-reduced-motion:reduce){.t,.k{animation:none}.k{visibility:visible}}
</style>
<rect x=".5" y=".5" width="${width - 1}" height="${height - 1}" rx="8"/>
${lines.join("\n")}
<text class="c" x="${MARGIN}" y="${height - MARGIN}">${escape(caption)}</text>
</svg>
`;
}

/** How long each line stood in its row. */
function shownLines(samples: Sample[]): Shown[] {
  const found: Shown[] = [];
  const open = new Map<number, Shown>();
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

/** Makes spans of the codes of colours. */
function coloured(text: string): string {
  const [plain, ...rest] = text.split(SGR);
  let out = escape(plain);
  for (let at = 0; at < rest.length; at += 2) {
    const classes = rest[at].split(";").flatMap((code) => COLOURS[code] ?? []);
    const words = escape(rest[at + 1]);
    out += classes.length > 0 && words
      ? `<tspan class="${classes.join(" ")}">${words}</tspan>`
      : words;
  }
  return out;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)}s`;
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
