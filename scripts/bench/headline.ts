/**
 * Draws the chart of the README: a few comparisons out of all that was measured.
 */
import { type MeasuredUnit, median, type ReportSection } from "./measure.ts";

const CHART_WIDTH = 830;
const LABEL_WIDTH = 290;
const LONGEST_BAR = CHART_WIDTH - LABEL_WIDTH - 150;
const LINE_HEIGHT = 24;

/** A bar: a row of a section, under a name that needs no context. */
interface HeadlineBar {
  section: string;
  row: string;
  label: string;
}

/** The first bar of each group is Toolsmith's; ratios are to it. */
const HEADLINE_GROUPS: {
  title: string;
  conditions: string;
  bars: HeadlineBar[];
}[] = [
  {
    title: "Cold download",
    conditions: "1 GiB, from a registry on the same host",
    bars: [
      headlineBar(
        "first hydrate of 1024 MiB, loopback",
        "toolsmith hydrate, 4 connections",
        "toolsmith hydrate",
      ),
      headlineBar(
        "first hydrate of 1024 MiB, loopback",
        "oras pull && sha256sum && mv",
      ),
      headlineBar(
        "first hydrate of 1024 MiB, loopback",
        "oras pull",
        "oras pull alone, not synced",
      ),
      headlineBar(
        "first hydrate of 1024 MiB, loopback",
        "toolsmith hydrate, TOOLSMITH_DIGEST=std",
        "toolsmith hydrate, @std/crypto only",
      ),
    ],
  },
  {
    title: "Slow link",
    conditions: "1 GiB, 60 MiB/s a connection, round trips of 20 ms",
    bars: [
      headlineBar(
        "first hydrate of 1024 MiB, 60 MiB/s a connection, round trips of 20 ms",
        "toolsmith hydrate, 4 connections",
        "toolsmith hydrate",
      ),
      headlineBar(
        "first hydrate of 1024 MiB, 60 MiB/s a connection, round trips of 20 ms",
        "oras pull",
      ),
    ],
  },
  {
    title: "Interrupted download",
    conditions: "bytes transferred for 1 GiB, killed at 60 % and run again",
    bars: [
      headlineBar(
        "bytes on the wire, 1024 MiB",
        "killed at 60 %, and run again",
        "toolsmith hydrate",
      ),
      headlineBar(
        "bytes on the wire, 1024 MiB, by hand",
        "oras pull, killed at 60 %, and run again",
        "oras pull",
      ),
    ],
  },
  {
    title: "Second start of a VM",
    conditions: "Debian with systemd",
    bars: [
      headlineBar(
        "a command in Debian, as a whole process",
        "toolsmith run -- true, restored",
        "toolsmith run, from its snapshot",
      ),
      headlineBar("the first start of Debian", "until it has booted", "a boot"),
      headlineBar(
        "a command in Debian, as a whole process",
        "QEMU by hand: mapped, the same work",
        "a snapshot, with QEMU by hand",
      ),
    ],
  },
  {
    title: "Eight at once",
    conditions: "eight processes on one host that need the same 1 GiB",
    bars: [
      headlineBar(
        "first hydrate of 1024 MiB, eight at once",
        "toolsmith hydrate",
        "toolsmith hydrate",
      ),
      headlineBar(
        "first hydrate of 1024 MiB, eight at once",
        "oras pull && sha256sum && mv",
      ),
    ],
  },
];

function headlineBar(section: string, row: string, label = row): HeadlineBar {
  return { section, row, label };
}

/**
 * Draws the headline chart, for a light and a dark page.
 *
 * @param sections What was measured; a group that lacks a bar is left out.
 * @returns An SVG.
 */
export function headlineSvg(
  sections: (ReportSection & { how?: string })[],
): string {
  const parts: string[] = [];
  let y = 30;
  for (const { title, conditions, bars } of HEADLINE_GROUPS) {
    const found = bars.map(({ section, row, label }) => {
      const { unit, rows = [] } = sections.find((one) =>
        one.title === section
      ) ?? {};
      const values = rows.find(({ name }) => name === row)?.values;
      return { label, unit: unit!, value: values ? median(values) : NaN };
    });
    const facts = bars.map(({ section }) =>
      sections.find(({ title }) => title === section)
    ).map((section) => `${section?.how} ${section?.note}`).join(" ");
    const [, load] = /load before ([\d.]+)/.exec(facts) ?? [];
    const emulated = facts.includes("Accelerator: tcg") ? ", emulated" : "";
    const all = `${conditions}${emulated}${load ? ` · load ${load}` : ""}`;
    if (found.some(({ value }) => Number.isNaN(value))) continue;
    y += LINE_HEIGHT + 12;
    parts.push(
      `<text x="10" y="${y}"><tspan class="b">${title}</tspan><tspan class="q" dx="8">${
        escapeXml(all)
      }</tspan></text>`,
    );
    const most = Math.max(...found.map(({ value }) => value));
    for (const { label, unit, value } of found) {
      y += LINE_HEIGHT;
      const length = Math.max(2, value / most * LONGEST_BAR);
      const own = /^toolsmith /.test(label) ? ' class="own"' : "";
      parts.push(
        `<text x="24" y="${y}">${escapeXml(label)}</text>`,
        `<rect x="${LABEL_WIDTH}" y="${y - 13}" width="${
          length.toFixed(1)
        }" height="16" rx="3"${own}/>`,
        `<text x="${
          (LABEL_WIDTH + length + 8).toFixed(1)
        }" y="${y}"><tspan class="b">${
          formatRatio(value / found[0].value)
        }</tspan><tspan class="q" dx="8">${
          formatHeadlineValue(value, unit)
        }</tspan></text>`,
      );
    }
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${CHART_WIDTH} ${
    y + 20
  }" role="img" aria-label="Toolsmith beside what else gets and starts an image; the figures are in docs/performance.md">
<style>
text{font:14px sans-serif;fill:#1f2937}
.b{font-weight:bold}
.q{font-size:13px;fill:#57606a}
rect{fill:#8c959f}
.own{fill:#2563eb}
@media (prefers-color-scheme:dark){
text{fill:#e5e7eb}.q{fill:#9ca3af}rect{fill:#768390}.own{fill:#60a5fa}}
</style>
<rect x="10" y="13" width="14" height="14" rx="3" class="own"/>
<text x="31" y="25">Toolsmith</text>
<rect x="116" y="13" width="14" height="14" rx="3"/>
<text x="137" y="25">by hand</text>
<text x="${
    CHART_WIDTH - 10
  }" y="25" text-anchor="end" class="q">shorter is better; × compares with the first bar of each group</text>
${parts.join("\n")}
</svg>
`;
}

function formatRatio(ratio: number): string {
  return `${ratio.toFixed(ratio < 10 ? ratio < 0.95 ? 2 : 1 : 0)} ×`;
}

function formatHeadlineValue(value: number, unit: MeasuredUnit): string {
  // Each image of the headline has 1 GiB.
  if (unit !== "ms") return `${value.toFixed(2)} GiB`;
  return `${(value / 1000).toFixed(value < 1000 ? 2 : 1)} s`;
}

function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
