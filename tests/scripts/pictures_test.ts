import { assertEquals, assertStringIncludes } from "@std/assert";
import { chartOf } from "../../scripts/bench/report.ts";
import { animate } from "../../scripts/pictures/animation.ts";
import { overview } from "../../scripts/pictures/overview.ts";
import { ROOT } from "../../scripts/deno.ts";

/** The lines of a recording: what is seen, from when, for how long. */
function lines(samples: [number, string][]) {
  const svg = animate(samples.map(([at, screen]) => ({ at, screen })), {
    columns: 20,
    rows: 3,
    caption: "here & now",
  });
  const line =
    /<text class="[tk]" style="animation-delay:([\d.]+)s(?:;animation-duration:([\d.]+)s)?"[^>]*>(.*)<\/text>/g;
  return [...svg.matchAll(line)]
    .map(([, from, length, text]) => [text, from, length]);
}

Deno.test("a recording shows each line when it was seen, and as long", () => {
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

Deno.test("a recording keeps the terminal's colours", () => {
  assertEquals(lines([[0, "\x1b[1;31merror:\x1b[0m no"]]), [
    ['<tspan class="b r">error:</tspan> no', "0.00", undefined],
  ]);
});

Deno.test("a recording says where it was made", () => {
  const svg = animate([], { columns: 1, rows: 1, caption: "here & now" });
  assertStringIncludes(svg, "here &amp; now");
});

Deno.test("the drawing that is checked in is the one that is drawn", async () => {
  const path = `${ROOT}/docs/pictures/overview.svg`;
  assertEquals(await Deno.readTextFile(path), overview());
});

Deno.test("the chart that is checked in is that of the figures, for a dark page as well", async () => {
  const path = `${ROOT}/docs/performance`;
  const chart = chartOf(JSON.parse(await Deno.readTextFile(`${path}.json`)));
  assertEquals(await Deno.readTextFile(`${path}.svg`), chart);
  assertStringIncludes(chart, "@media (prefers-color-scheme:dark)");
});
