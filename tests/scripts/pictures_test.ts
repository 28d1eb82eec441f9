import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { headlineSvg } from "../../scripts/bench/headline.ts";
import { chartSvg } from "../../scripts/bench/report.ts";
import { animatedSvg } from "../../scripts/pictures/animation.ts";
import { overviewSvg } from "../../scripts/pictures/overview.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

/** The lines of a recording: text, start and duration. */
function lines(samples: [number, string][]) {
  const svg = animatedSvg(samples.map(([at, screen]) => ({ at, screen })), {
    columns: 20,
    rows: 3,
    caption: "here & now",
  });
  const line =
    /<text class="[tk]" style="animation-delay:([\d.]+)s(?:;animation-duration:([\d.]+)s)?"[^>]*>(.*)<\/text>/g;
  return [...svg.matchAll(line)]
    .map(([, from, length, text]) => [text, from, length]);
}

Deno.test("animatedSvg() shows each line at the time and for as long as it was recorded", () => {
  assertEquals(
    lines([
      [0, "$ \n"],
      [500, "$ ls\n"],
      [750, "$ ls\na <b> & c\n"],
      [2000, "$ ls\n\n$\n"],
    ]),
    [
      ["$", "0.00", "0.50"],
      ["$ ls", "0.50", undefined],
      ["a &lt;b> &amp; c", "0.75", "1.25"],
      ["$", "2.00", undefined],
    ],
  );
});

Deno.test("animatedSvg() keeps the terminal's colours", () => {
  assertEquals(lines([[0, "\x1b[1;31merror:\x1b[0m no"]]), [
    ['<tspan class="b r">error:</tspan> no', "0.00", undefined],
  ]);
});

Deno.test("animatedSvg() shows the caption", () => {
  const svg = animatedSvg([], { columns: 1, rows: 1, caption: "here & now" });
  assertStringIncludes(svg, "here &amp; now");
});

Deno.test("overviewSvg() equals the checked-in picture", async () => {
  const path = `${PROJECT_ROOT}/docs/pictures/overview.svg`;
  assertEquals(await Deno.readTextFile(path), overviewSvg());
});

Deno.test("chartSvg() equals the checked-in chart and has colours for a dark page", async () => {
  const path = `${PROJECT_ROOT}/docs/performance`;
  const chart = chartSvg(JSON.parse(await Deno.readTextFile(`${path}.json`)));
  assertEquals(await Deno.readTextFile(`${path}.svg`), chart);
  assertStringIncludes(chart, "@media (prefers-color-scheme:dark)");
});

const FIGURES = JSON.parse(
  await Deno.readTextFile(`${PROJECT_ROOT}/docs/performance.json`),
);

Deno.test("headlineSvg() draws docs/pictures/headline.svg from docs/performance.json", async () => {
  const chart = headlineSvg(FIGURES);
  const path = `${PROJECT_ROOT}/docs/pictures/headline.svg`;
  assertEquals(await Deno.readTextFile(path), chart);
  assertStringIncludes(chart, "@media (prefers-color-scheme:dark)");
});

Deno.test("headlineSvg() draws five groups, and a ratio at every bar", () => {
  const chart = headlineSvg(FIGURES);
  const titles = [...chart.matchAll(/x="10" y="\d+"><tspan class="b">/g)];
  const bars = [...chart.matchAll(/<rect x="290"/g)];
  const ratios = [...chart.matchAll(/<tspan class="b">[\d.]+ ×</g)];
  assertEquals(titles.length, 5);
  assert(bars.length >= 10, `${bars.length}`);
  assertEquals(ratios.length, bars.length);
});

Deno.test("headlineSvg() leaves out a group with a figure that was not measured", () => {
  const some = FIGURES.filter(({ title }: { title: string }) =>
    !title.includes("by hand")
  );
  const chart = headlineSvg(some);
  assert(!chart.includes("Interrupted download"));
  assertStringIncludes(chart, "Cold download");
});

Deno.test("animatedSvg() marks the last line that matches the climax, from when it appears", () => {
  const svg = animatedSvg([
    { at: 0, screen: "restored in 1 s" },
    { at: 500, screen: "restored in 1 s\nrestored in 2 s" },
  ], {
    ...{ columns: 40, rows: 3, caption: "" },
    climax: { line: /restored/, note: "quick" },
  });
  const marks = [...svg.matchAll(/class="k m(\d)" style="([^"]*)"/g)];
  assertEquals(marks.map(([, kind, style]) => [kind, style]), [
    ["1", "animation-delay:0.50s"],
    ["2", "animation-delay:0.50s"],
  ]);
  assertStringIncludes(svg, ">quick</text>");
});

Deno.test("docs/pictures/terminal.svg has no line over 85 characters and no path of the recording host", async () => {
  const svg = await Deno.readTextFile(
    `${PROJECT_ROOT}/docs/pictures/terminal.svg`,
  );
  const lines = [...svg.matchAll(/<text class="[tk]"[^>]*>(.*)<\/text>/g)]
    .map(([, line]) => line.replaceAll(/<[^>]*>/g, ""));
  assert(lines.length > 50, `${lines.length}`);
  assertEquals(lines.filter((line) => line.length > 85), []);
  assertEquals(
    lines.filter((line) => /\/(tmp|home|work|root)\//.test(line)),
    [],
  );
});
