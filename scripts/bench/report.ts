/** Writes the results and a chart to `docs/`. */
import { basename } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools } from "../../tests/support/parts.ts";
import { PROJECT_ROOT } from "../deno.ts";
import { headlineSvg } from "./headline.ts";
import { formatValue, median, type ReportSection } from "./measure.ts";

/** The host's load average at the start. */
const HOST_LOAD = Deno.loadavg()[0];

const CHART_WIDTH = 760;
const LABEL_WIDTH = 300;
const LINE_HEIGHT = 22;

/** A section with the circumstances of its measurement. */
interface DatedSection extends ReportSection {
  /** Date, host, load and versions. */
  how: string;
  /** Where, and with which versions. */
  machine: string;
}

/**
 * Stores the sections in `docs/performance.json`, replacing earlier ones of the same
 * title, and generates `docs/performance.md`, `docs/performance.svg` and
 * `docs/pictures/headline.svg` from it.
 */
export async function writeReport(sections: ReportSection[]) {
  const path = `${PROJECT_ROOT}/docs/performance`;
  const kept: DatedSection[] = JSON.parse(
    await Deno.readTextFile(`${path}.json`).catch(() => "[]"),
  );
  const how = [
    new Date().toISOString().slice(0, 10),
    `load before ${HOST_LOAD.toFixed(1)}`,
    ...await priorityNotes(),
    "digests: the runtime's own and `@std/crypto`",
  ].join("; ");
  const machine = await describeHost();
  const all = new Map(kept.map((section) => [section.title, section]));
  for (const section of sections) {
    const rows = section.rows.map(({ name, values }) => ({
      name,
      values: values.map((value) => Number(value.toPrecision(4))),
    }));
    all.set(section.title, { ...section, rows, how, machine });
  }
  const measured = [...all.values()];
  await Deno.writeTextFile(`${path}.json`, JSON.stringify(measured));
  await Deno.writeTextFile(`${path}.md`, reportPage(measured));
  await Deno.writeTextFile(`${path}.svg`, chartSvg(measured));
  await Deno.writeTextFile(
    `${PROJECT_ROOT}/docs/pictures/headline.svg`,
    headlineSvg(measured),
  );
  await runProcess(Deno.execPath(), {
    args: ["fmt", "-q", `${path}.md`, `${path}.json`],
  });
  console.log(`\nwritten: ${path}.md, .svg and .json, and headline.svg`);
}

function reportPage(measured: DatedSection[]): string {
  const machines = Map.groupBy(measured, ({ machine }) => machine);
  const lines = [...machines].map(([machine, there]) => {
    const dates = new Set(there.map(({ how }) => how.slice(0, 10)));
    return `- ${[...dates].sort().join(", ")}: ${machine}`;
  });
  return `# Performance\n\n${REPORT_INTRO}${
    lines.sort().join("\n")
  }\n\n${CHART_INTRO}${
    measured.map(sectionTable).join("\n")
  }\n${REPORT_LIMITS}`;
}

/** Reports a real-time priority, or a nice value that is not 0 (proc_pid_stat(5)). */
export async function priorityNotes(): Promise<string[]> {
  const stat = await Deno.readTextFile("/proc/self/stat").catch(() => "");
  const fields = stat.split(") ").at(-1)?.split(" ") ?? [];
  const [priority, nice = "0"] = fields.slice(15);
  if (priority?.startsWith("-")) return ["real-time priority"];
  return nice === "0" ? [] : [`nice ${nice}`];
}

/** Describes the host and the versions of the programs. */
async function describeHost(): Promise<string> {
  const cpu = /^model name\s*: (.+)$/m.exec(
    await Deno.readTextFile("/proc/cpuinfo").catch(() => ""),
  )?.[1] ?? "unknown";
  const gib = Math.round(Deno.systemMemoryInfo().total / 1024 ** 3);
  const versions = [`Deno ${Deno.version.deno}`];
  const programs: [string, string][] = [
    [foundTools.oras!, "version"],
    [foundTools.skopeo ?? "skopeo", "--version"],
    ["curl", "--version"],
  ];
  for (const [program, flag] of programs) {
    const text = await runProcess(program, { args: [flag] })
      .then(({ stdout }) => stdout, () => "");
    const version = /\d+\.\d+\.\d+/.exec(text)?.[0];
    if (version) versions.push(`${basename(program)} ${version}`);
  }
  const { hardwareConcurrency: processors } = navigator;
  return `${processors} processors (${cpu}), ${gib} GiB of memory, ${Deno.build.os} ${Deno.osRelease()}; ${
    versions.join(", ")
  }.`;
}

const REPORT_INTRO =
  `    deno task bench          # measure all of it: rivals in turns, in the same run
    deno task bench cold     # a part

![Toolsmith beside what else gets and starts an image](pictures/headline.svg)

Each table has medians, with the least and the most, and the number of runs. The
ratios, to the first line of each table, are what to quote: machines differ.

**What was measured is what users get**: the single file, with JSR's packages.
An image of 64 MiB or more is hashed by the runtime's own SHA-256, a smaller one
by \`@std/crypto\`'s Wasm; with \`TOOLSMITH_DIGEST=std\`, \`@std/crypto\` hashes all
of them. The stand-in for \`@std/crypto\`, which only a checkout without JSR uses,
appears in one table, [SHA-256 of a stream](#sha-256-of-a-stream), and nowhere
else.

The machines:

`;

const REPORT_LIMITS = `## Limits

- One or two runs say little.
- In the headline chart, the bytes of \`oras pull\` after a kill were counted in another
  run than Toolsmith's. A table never mixes runs.
- Where the load is far above the processors of a machine, the figures say little
  of a quiet host. Where a table says \`nice\`, the runs had that priority: -20 is
  the highest.
- \`oras pull\`, \`curl\` and \`skopeo copy\` do not sync what they write. Toolsmith's
  images are verified, synced, and in their place.
- A guest whose accelerator is tcg is emulated. Those figures say nothing of KVM.
`;

const CHART_INTRO =
  `![What was measured, relative to the longest of each group](performance.svg)

`;

function sectionTable(
  { title, unit, rows, how, note = "" }: DatedSection,
): string {
  const first = median(rows[0].values);
  const lines = rows.map(({ name, values }) => {
    const [low, mid, high] = [
      Math.min(...values),
      median(values),
      Math.max(...values),
    ].map((value) => formatValue(value, unit));
    const ratio = (median(values) / first).toFixed(2);
    return `| ${name} | ${values.length} | ${mid} ${unit} | ${low}–${high} | ${ratio} × |`;
  });
  const heading = title[0].toUpperCase() + title.slice(1);
  const table = [
    "| | runs | median | range | ratio |",
    "| --- | ---: | ---: | ---: | ---: |",
  ].concat(lines).join("\n");
  const [, reason = ""] =
    FIGURE_EXPLANATIONS.find(([begin]) => title.startsWith(begin)) ?? [];
  return `## ${heading}\n\n${table}\n\n${how}. ${note} ${reason}\n`;
}

/** Explanations of results, by the start of the section's title. */
const FIGURE_EXPLANATIONS = [
  [
    "bytes of an update",
    "Debian 12, before and after; headers and the chunk index count. The other programs update the same package in place: `zstd` and `xdelta3` need both images to make a patch, and show what is possible.",
  ],
  [
    "update from this host",
    "The registry is on this host: Toolsmith finds that downloading the whole image is as fast.",
  ],
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
    "hydrate returns once the image is on the disk: a disk that is slower than the network bounds Toolsmith, and no rival.",
  ],
];

/**
 * Draws a bar chart as SVG for light and dark pages; bars are relative to the longest
 * of their section.
 */
export function chartSvg(sections: ReportSection[]): string {
  const parts: string[] = [];
  let y = 10;
  for (const { title, unit, rows } of sections) {
    y += LINE_HEIGHT;
    parts.push(
      `<text x="10" y="${y}" class="b">${escapeXml(title)}</text>`,
    );
    const most = Math.max(...rows.map(({ values }) => median(values)));
    for (const { name, values } of rows) {
      y += LINE_HEIGHT;
      const value = median(values);
      const length = Math.max(
        1,
        value / most * (CHART_WIDTH - LABEL_WIDTH - 160),
      );
      const own = name.startsWith("toolsmith") ? ' class="own"' : "";
      parts.push(
        `<text x="20" y="${y}">${escapeXml(name)}</text>`,
        `<rect x="${LABEL_WIDTH}" y="${y - 12}" width="${
          length.toFixed(1)
        }" height="14" rx="2"${own}/>`,
        `<text x="${(LABEL_WIDTH + length + 8).toFixed(1)}" y="${y}">${
          formatValue(value, unit)
        } ${unit}</text>`,
      );
    }
    y += 8;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${CHART_WIDTH} ${
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

function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
