import { assertEquals } from "@std/assert";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { EgressReport } from "../../lib/cli/event_lines.ts";

const decision = (host: string, port: number | null, allowed = false) =>
  ({
    ...{ type: "egress", timestamp: "", allowed, host, port },
    reason: "no rule",
  }) as ToolsmithEvent<"egress">;

Deno.test("EgressReport prints the first refusal of each host, and sums all up", () => {
  const report = new EgressReport();
  const lines = [
    decision("b.test", null),
    decision("b.test", 443),
    decision("a.test", 80, true),
    decision("a.test", 80, true),
    decision("a.test", 81),
    decision("b.test", null),
  ].map((event) => report.add(event));
  assertEquals(lines, [
    "network: refused b.test: no rule",
    ...[undefined, undefined, undefined],
    "network: refused a.test:81: no rule",
    undefined,
  ]);
  assertEquals(report.summary(), [
    "network: allowed a.test:80 (2 times)",
    "network: refused b.test (2 times)",
    "network: refused b.test:443 (1 times)",
    "network: refused a.test:81 (1 times)",
  ]);
});

Deno.test("EgressReport keeps a limited number of hosts, and says so", () => {
  const report = new EgressReport();
  const lines: string[] = [];
  for (let index = 0; index < 3000; index++) {
    const line = report.add(decision(`name${index}.test`, null));
    if (line) lines.push(line);
  }
  // What is allowed stays visible.
  report.add(decision("a.test", 443, true));
  assertEquals(lines.length, 1001);
  assertEquals(lines.at(-1), "network: refused *: no rule");
  const summary = report.summary();
  assertEquals(summary.length, 1002);
  assertEquals(summary[0], "network: allowed a.test:443 (1 times)");
  assertEquals(summary.at(-1), "network: refused * (2000 times)");
});
