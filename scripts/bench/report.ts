/**
 * Writes what was measured into `docs/`, with a chart.
 *
 * @module
 */
import { basename } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { parts } from "../../tests/support/parts.ts";
import { ROOT } from "../deno.ts";
import { median, type Section, valueText } from "./measure.ts";

/** How busy the host was with other work. */
const LOAD = Deno.loadavg()[0];

const WIDTH = 760;
const LABEL = 300;
const LINE = 22;

/** What was measured once, and how. */
interface Measured extends Section {
  /** When, with which digest, on how busy a host. */
  how: string;
}

/**
 * Keeps what was measured in `docs/performance.json`, in place of what was
 * measured of the same before, and writes `docs/performance.md` and
 * `docs/performance.svg` from all that is there.
 *
 * @param sections What was measured.
 */
export async function writeReport(sections: Section[]) {
  const path = `${ROOT}/docs/performance`;
  const kept: Measured[] = JSON.parse(
    await Deno.readTextFile(`${path}.json`).catch(() => "[]"),
  );
  const how = [
    new Date().toISOString().slice(0, 10),
    `load before ${LOAD.toFixed(1)}`,
    ...await niceness(),
    "digests: the runtime's own and `@std/crypto`",
  ].join("; ");
  const all = new Map(kept.map((section) => [section.title, section]));
  for (const section of sections) {
    const rows = section.rows.map(({ name, values }) => ({
      name,
      values: values.map((value) => Number(value.toPrecision(4))),
    }));
    all.set(section.title, { ...section, rows, how });
  }
  const measured = [...all.values()];
  const page = `# Performance\n\n${TEXT}${await machine()}\n\n${CHART}${
    measured.map(tableOf).join("\n")
  }`;
  await Deno.writeTextFile(`${path}.json`, JSON.stringify(measured));
  await Deno.writeTextFile(`${path}.md`, page);
  await Deno.writeTextFile(`${path}.svg`, chartOf(measured));
  await run(Deno.execPath(), {
    args: ["fmt", "-q", `${path}.md`, `${path}.json`],
  });
  console.log(`\nwritten: ${path}.md, .svg and .json`);
}

/** Whether this had another priority than what else ran; proc_pid_stat(5). */
async function niceness(): Promise<string[]> {
  const stat = await Deno.readTextFile("/proc/self/stat").catch(() => "");
  const nice = stat.split(") ").at(-1)?.split(" ")[16] ?? "0";
  return nice === "0" ? [] : [`nice ${nice}`];
}

/** Which machine, and which versions. */
async function machine(): Promise<string> {
  const cpu = /^model name\s*: (.+)$/m.exec(
    await Deno.readTextFile("/proc/cpuinfo").catch(() => ""),
  )?.[1] ?? "unknown";
  const gib = Math.round(Deno.systemMemoryInfo().total / 1024 ** 3);
  const versions = [`Deno ${Deno.version.deno}`];
  const programs: [string, string][] = [
    [parts.oras!, "version"],
    [parts.skopeo ?? "skopeo", "--version"],
    ["curl", "--version"],
  ];
  for (const [program, flag] of programs) {
    const text = await run(program, { args: [flag] })
      .then(({ stdout }) => stdout, () => "");
    const version = /\d+\.\d+\.\d+/.exec(text)?.[0];
    if (version) versions.push(`${basename(program)} ${version}`);
  }
  const { hardwareConcurrency: processors } = navigator;
  return `The machine: ${processors} processors (${cpu}), ${gib} GiB of memory, ${Deno.build.os} ${Deno.osRelease()}; ${
    versions.join(", ")
  }.`;
}

const TEXT =
  `What \`deno task bench\` measured: rivals in turns, in the same run; medians, with
the least and the most, and the number of runs: one or two say little. Machines
differ, and so does what else they do: the ratios, to the first line of each
table, are what to quote, and those of a table whose load is far above its
processors say little of a quiet host. Where a table says \`nice\`, the runs had
that priority: -20 is the highest.

The program is the one that users get, with JSR's packages. SHA-256 is the
runtime's own for images of 64 MiB or more, \`@std/crypto\`'s Wasm below, and
everywhere with \`TOOLSMITH_DIGEST=std\`.

\`oras pull\`, \`curl\` and \`skopeo copy\` do not sync what they write. Toolsmith's
images are verified, synced, and in their place.

`;

const CHART =
  `![What was measured, relative to the longest of each group](performance.svg)

`;

function tableOf({ title, unit, rows, how, note = "" }: Measured): string {
  const first = median(rows[0].values);
  const lines = rows.map(({ name, values }) => {
    const [low, mid, high] = [
      Math.min(...values),
      median(values),
      Math.max(...values),
    ].map((value) => valueText(value, unit));
    const ratio = (median(values) / first).toFixed(2);
    return `| ${name} | ${values.length} | ${mid} ${unit} | ${low}–${high} | ${ratio} × |`;
  });
  const heading = title[0].toUpperCase() + title.slice(1);
  const table = [
    "| | runs | median | range | ratio |",
    "| --- | ---: | ---: | ---: | ---: |",
  ].concat(lines).join("\n");
  const [, reason = ""] = WHY.find(([begin]) => title.startsWith(begin)) ?? [];
  return `## ${heading}\n\n${table}\n\n${how}. ${note} ${reason}\n`;
}

/** What bounds a figure, where that is not plain to see, by how a title begins. */
const WHY = [
  [
    "bytes from the registry, eight hosts",
    "A cold cache of distribution asks upstream anew for each request that comes while it is being filled; nginx joins them, with the configuration of [fleets.md](fleets.md).",
  ],
  [
    "bytes on the wire",
    "A killed process loses what lies in its sockets: the busier the host, the more.",
  ],
  [
    "first hydrate of 1024 MiB, loopback, into memory",
    "Receiving, writing and hashing share the processors with the registry; what else is busy there costs them more than a program with one thread of work.",
  ],
  [
    "first hydrate of 1024 MiB, loopback",
    "No image is there before the disk has it: where the disk is slower than the network, it is what bounds Toolsmith, and nobody else.",
  ],
];

/**
 * Draws bars, in each section relative to its longest, for a light and a dark
 * page.
 *
 * @param sections What was measured.
 * @returns An SVG.
 */
export function chartOf(sections: Section[]): string {
  const parts: string[] = [];
  let y = 10;
  for (const { title, unit, rows } of sections) {
    y += LINE;
    parts.push(
      `<text x="10" y="${y}" class="b">${escape(title)}</text>`,
    );
    const most = Math.max(...rows.map(({ values }) => median(values)));
    for (const { name, values } of rows) {
      y += LINE;
      const value = median(values);
      const length = Math.max(1, value / most * (WIDTH - LABEL - 160));
      const own = name.startsWith("toolsmith") ? ' class="own"' : "";
      parts.push(
        `<text x="20" y="${y}">${escape(name)}</text>`,
        `<rect x="${LABEL}" y="${y - 12}" width="${
          length.toFixed(1)
        }" height="14" rx="2"${own}/>`,
        `<text x="${(LABEL + length + 8).toFixed(1)}" y="${y}">${
          valueText(value, unit)
        } ${unit}</text>`,
      );
    }
    y += 8;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${
    y + 14
  }">
<style>
text{font:13px sans-serif;fill:#334155}
.b{font-weight:bold}
rect{fill:#94a3b8}
.own{fill:#2563eb}
@media (prefers-color-scheme:dark){
text{fill:#e5e7eb}rect{fill:#6b7280}.own{fill:#60a5fa}}
</style>
${parts.join("\n")}
</svg>
`;
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
