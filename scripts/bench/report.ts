/**
 * Writes what was measured into `docs/`, with a chart.
 *
 * @module
 */
import { run } from "../../lib/system/process.ts";
import { parts } from "../../tests/support/parts.ts";
import { importsFrom, ROOT } from "../deno.ts";
import { median, type Section, valueText } from "./measure.ts";

const WIDTH = 760;
const LABEL = 300;
const LINE = 22;

/**
 * Writes `docs/performance.md` and `docs/performance.svg`.
 *
 * @param sections What was measured.
 * @param options `append` adds them to the page that is there, without a chart.
 */
export async function writeReport(
  sections: Section[],
  { append }: { append: boolean },
) {
  const tables = sections.map(tableOf).join("\n");
  const path = `${ROOT}/docs/performance.md`;
  const how = await howMeasured();
  if (append) {
    const text = `\n# Measured besides\n\n${how}\n\n${tables}`;
    await Deno.writeTextFile(path, text, { append });
  } else {
    await Deno.writeTextFile(
      path,
      `# Performance\n\n${how}\n\n${TEXT}${tables}`,
    );
    await Deno.writeTextFile(`${ROOT}/docs/performance.svg`, chartOf(sections));
  }
  await run(Deno.execPath(), { args: ["fmt", "-q", path] });
  console.log(`\nwritten: ${path}`);
}

/** Which machine, which versions, which digest. */
async function howMeasured(): Promise<string> {
  const digest = await importsFrom() === "jsr"
    ? "`@std/crypto` (Wasm)"
    : "the stand-in over `node:crypto`, as jsr.io could not be reached";
  const day = new Date().toISOString().slice(0, 10);
  const cpu = /^model name\s*: (.+)$/m.exec(
    await Deno.readTextFile("/proc/cpuinfo").catch(() => ""),
  )?.[1] ?? "unknown processor";
  const gib = Math.round(Deno.systemMemoryInfo().total / 1024 ** 3);
  const versions = [`Deno ${Deno.version.deno}`];
  for (const name of ["oras", "skopeo", "curl"]) {
    const found = await run(parts.oras && name === "oras" ? parts.oras : name, {
      args: [name === "oras" ? "version" : "--version"],
    }).then(({ stdout }) => /\d+\.\d+\.\d+/.exec(stdout)?.[0], () => undefined);
    if (found) versions.push(`${name} ${found}`);
  }
  return `Measured by \`deno task bench\` on ${day}: ${navigator.hardwareConcurrency} processors (${cpu}), ${gib} GiB of memory, Linux ${Deno.osRelease()}, load ${
    Deno.loadavg()[0].toFixed(1)
  } at the end; ${versions.join(", ")}. The digest is ${digest}.`;
}

const TEXT =
  `Rivals ran in turns, in the same run; figures are medians, with the least and
the most. Machines differ: the ratios, to the first line of each table, are what
to quote. \`oras pull\`, \`curl\` and \`skopeo\` do not sync what they write, and
\`oras pull\` does not tell whether it is the image that was asked for; Toolsmith's
images are verified, synced and in their place.

![What was measured, relative to the longest of each group](performance.svg)

`;

function tableOf({ title, unit, rows }: Section): string {
  const first = median(rows[0].values);
  const lines = rows.map(({ name, values }) => {
    const [low, mid, high] = [
      Math.min(...values),
      median(values),
      Math.max(...values),
    ].map((value) => valueText(value, unit));
    const ratio = (median(values) / first).toFixed(2);
    return `| ${name} | ${mid} ${unit} | ${low}–${high} | ${ratio} × |`;
  });
  const heading = title[0].toUpperCase() + title.slice(1);
  return `## ${heading}\n\n| | median | range | ratio |\n| --- | ---: | ---: | ---: |\n${
    lines.join("\n")
  }\n`;
}

/** Bars, in each section relative to its longest. */
function chartOf(sections: Section[]): string {
  const parts: string[] = [];
  let y = 10;
  for (const { title, unit, rows } of sections) {
    y += LINE;
    parts.push(
      `<text x="10" y="${y}" font-weight="bold">${escape(title)}</text>`,
    );
    const most = Math.max(...rows.map(({ values }) => median(values)));
    for (const { name, values } of rows) {
      y += LINE;
      const value = median(values);
      const length = Math.max(1, value / most * (WIDTH - LABEL - 130));
      const color = name.startsWith("toolsmith") ? "#2563eb" : "#94a3b8";
      parts.push(
        `<text x="20" y="${y}">${escape(name)}</text>`,
        `<rect x="${LABEL}" y="${y - 12}" width="${
          length.toFixed(1)
        }" height="14" rx="2" fill="${color}"/>`,
        `<text x="${(LABEL + length + 8).toFixed(1)}" y="${y}">${
          valueText(value, unit)
        } ${unit}</text>`,
      );
    }
    y += 8;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${
    y + 14
  }" font-family="sans-serif" font-size="13" fill="#334155">
<rect width="100%" height="100%" fill="#ffffff"/>
${parts.join("\n")}
</svg>
`;
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
