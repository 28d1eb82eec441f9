/**
 * Benchmarks Toolsmith against oras, curl and plain QEMU, in turns within one run,
 * and writes medians, ratios and a chart to `docs/performance.md`. Hosts differ:
 * quote the ratios.
 *
 *     deno task bench [PART…] [--std DIR] [--mib N] [--rounds N] [--dry-run]
 *
 * Parts are `digests`; `transfers`, or single ones of `cold`, `slow`, `cut`,
 * `start-over`, `crowd`, `eight`, `warm` and `fleet`; `memory`; `deltas`;
 * `guest`; `egress`; `debian`; `start`; `mcp`. New results replace earlier ones of the same
 * part; `--dry-run` writes no report. Transfers write some 25 GiB at the default size
 * of 1 GiB, and `eight` that again; memory needs an image of 4 GiB.
 *
 * A report needs JSR's packages, as users have them: if jsr.io is unreachable, pass
 * a checkout of denoland/std with `--std`.
 */
import { parseArgs } from "@std/cli/parse-args";
import { measureDigests } from "./bench/digests.ts";
import { reportSections, setRounds } from "./bench/measure.ts";
import { writeReport } from "./bench/report.ts";
import { findImportSource, runDeno, setImportMap } from "./deno.ts";
import { checkoutImportMap } from "./npm/checkout.ts";
import { setUpTools } from "./setup.ts";

const args = parseArgs(Deno.args.filter((arg) => arg !== "--dry-run"), {
  string: ["std", "mib", "rounds", "_"],
  unknown(arg, key) {
    if (key !== undefined) throw new Error(`unknown flag ${arg}`);
  },
});
if (typeof args.std === "string") {
  // Start again with the packages of the checkout.
  setImportMap(await checkoutImportMap(args.std));
  const at = Deno.args.findIndex((arg) => arg.startsWith("--std"));
  const rest = Deno.args.toSpliced(at, Deno.args[at] === "--std" ? 2 : 1);
  Deno.exit((await runDeno("run", "-A", import.meta.filename!, ...rest)).code);
}
const usesNpmStandIns = await findImportSource() === "npm";
const dryRun = Deno.args.includes("--dry-run");
if (usesNpmStandIns && !dryRun) {
  console.error(
    "a report needs JSR's packages: pass a checkout of denoland/std with --std DIR, or --dry-run",
  );
  Deno.exit(2);
}
const requestedParts = new Set(args._.map(String));
const isRequested = (part: string) =>
  requestedParts.size === 0 || requestedParts.has(part);
const tools = await setUpTools([
  "oras",
  "registry",
  "qemuImg",
  "nginx",
  "skopeo",
  "qemu",
  "guest",
  "debian",
]);
if (!tools.oras || !tools.registry || !tools.qemuImg) {
  console.error("the benchmark needs oras, a registry and qemu-img");
  Deno.exit(1);
}
// Import after the setup: these modules look for programs when loaded.
const { measurePeakMemory: memoryRows, measureTransfers: transferRows } =
  await import("./bench/transfers.ts");
const { measureGuest: guestRows } = await import("./bench/guest.ts");
const { measureEgress } = await import("./bench/egress.ts");

if (args.rounds) setRounds(Number(args.rounds));
if (isRequested("digests")) {
  if (usesNpmStandIns) {
    console.error("skipping digests: they need @std/crypto");
  } else await measureDigests();
}
await transferRows(
  Number(args.mib ?? 1024),
  (name) => isRequested("transfers") || requestedParts.has(name),
);
if (isRequested("memory")) await memoryRows(Number(args.mib ?? 4096));
if (isRequested("deltas") && Deno.build.os === "linux" && Deno.uid() === 0) {
  await (await import("./bench/deltas.ts")).measureDeltas();
}
if (isRequested("guest") && tools.qemu && tools.guest) {
  const { buildGuest } = await import("./guest/build.ts");
  await guestRows("a small guest", await buildGuest(), tools.qemu);
}
if (isRequested("egress") && tools.qemu && tools.guest) {
  const { buildGuest } = await import("./guest/build.ts");
  const image = await buildGuest();
  await measureEgress("a small guest", image, Number(args.mib ?? 256));
}
if (isRequested("debian") && tools.qemu && tools.debian) {
  const { buildDebian } = await import("./guest/debian.ts");
  await guestRows("Debian", await buildDebian("agent"), tools.qemu);
}
if (isRequested("start")) {
  const { measureStart } = await import("./bench/start.ts");
  await measureStart();
}
if (isRequested("mcp")) {
  const { measureMcpStart } = await import("./bench/mcp_start.ts");
  await measureMcpStart();
}
if (!dryRun) await writeReport(reportSections);
