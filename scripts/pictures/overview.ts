/** Draws the overview: from image to registry, cache and VM. */

interface Box {
  x: number;
  title: string;
  lines: string[];
}

const WIDTH = 820;
const BOX = { y: 58, width: 140, height: 92 };

const BOXES: Box[] = [
  { x: 10, title: "image.qcow2", lines: ["your build", "makes it"] },
  { x: 230, title: "OCI registry", lines: ["ghcr.io or any,", "and mirrors"] },
  { x: 450, title: "cache", lines: ["verified by", "SHA-256, read-only"] },
  { x: 670, title: "VM", lines: ["QEMU; your tools,", "not your host"] },
];
const ARROWS = ["publish", "hydrate", "run"];
const NOTE = [
  ".toolsmith/tools.json, in your repository, names the image and its SHA-256",
  "in the VM: workspace read-only · no network · only exports are kept",
];

/** Draws the SVG for light and dark pages. */
export function overviewSvg(): string {
  const middle = BOX.y + BOX.height / 2;
  const boxes = BOXES.map(({ x, title, lines }) => {
    const centre = x + BOX.width / 2;
    const texts = lines.map((line, index) =>
      `<text class="d" x="${centre}" y="${
        BOX.y + 56 + index * 18
      }">${line}</text>`
    );
    return `<rect x="${x}" y="${BOX.y}" width="${BOX.width}" height="${BOX.height}" rx="8"/>
<text class="b" x="${centre}" y="${BOX.y + 30}">${title}</text>
${texts.join("\n")}`;
  });
  const arrows = ARROWS.map((verb, index) => {
    const from = BOXES[index].x + BOX.width + 4;
    const to = BOXES[index + 1].x - 4;
    return `<path class="a" d="M${from} ${middle}H${to - 8}"/>
<path class="h" d="M${to} ${middle}l-9 -5v10z"/>
<text class="v" x="${(from + to) / 2}" y="${middle - 10}">${verb}</text>`;
  });
  const pinned = `<path class="p" d="M300 ${BOX.y - 4}V34H520V${BOX.y - 4}"/>
<text class="d" x="410" y="26">tools.json</text>`;
  const notes = NOTE.map((line, index) =>
    `<text class="d" x="${WIDTH / 2}" y="${
      BOX.y + BOX.height + 32 + index * 20
    }">${line}</text>`
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} 214" role="img" aria-label="publish an image to a registry, hydrate it into the cache, run tools in a VM">
<style>
text{font:14px sans-serif;text-anchor:middle;fill:#1f2937}
.b{font-weight:bold;font-size:15px}
.d{font-size:13px;fill:#4b5563}
.v{font:bold 13px monospace;fill:#1d4ed8}
rect{fill:#f8fafc;stroke:#94a3b8;stroke-width:1.5}
.a{stroke:#1d4ed8;stroke-width:2;fill:none}
.h{fill:#1d4ed8}
.p{stroke:#94a3b8;stroke-dasharray:4 4;fill:none}
@media (prefers-color-scheme:dark){
text{fill:#e5e7eb}.d{fill:#9ca3af}.v{fill:#93c5fd}
rect{fill:#111827;stroke:#6b7280}.a{stroke:#93c5fd}.h{fill:#93c5fd}}
</style>
${[...boxes, ...arrows, pinned, ...notes].join("\n")}
</svg>
`;
}
