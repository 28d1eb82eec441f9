/**
 * Measures the program against what a person would do by hand, in turns in the
 * same run, and writes medians and ratios to `docs/performance.md`, with a chart.
 * Machines differ: quote the ratios.
 *
 *     deno task bench [PART…] [--std DIR] [--mib N] [--rounds N] [--dry-run]
 *
 * Parts are `digests`; `transfers`, of which `cold`, `slow`, `cut`, `crowd`, `warm`
 * and `fleet` can be had alone; `memory`; `guest`; `debian`. What is measured again
 * replaces what was before; `--dry-run` writes no report. Transfers take some 25 GiB of
 * writing at the usual size of 1 GiB, and memory an image of 4 GiB.
 *
 * A report shows what users get, so it needs JSR's packages: where jsr.io cannot
 * be reached, `--std` names a checkout of denoland/std.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { digestRows } from "./bench/digests.ts";
import { sections, setRounds } from "./bench/measure.ts";
import { writeReport } from "./bench/report.ts";
import { deno, importsFrom, useImportMap } from "./deno.ts";
import { checkoutMap } from "./npm/checkout.ts";
import { setup } from "./setup.ts";

const args = parseArgs(Deno.args.filter((arg) => arg !== "--dry-run"), {
  string: ["std", "mib", "rounds", "_"],
  unknown(arg, key) {
    if (key !== undefined) throw new Error(`unknown flag ${arg}`);
  },
});
if (typeof args.std === "string") {
  // Once more, with the packages of the checkout.
  useImportMap(await checkoutMap(args.std));
  const at = Deno.args.findIndex((arg) => arg.startsWith("--std"));
  const rest = Deno.args.toSpliced(at, Deno.args[at] === "--std" ? 2 : 1);
  Deno.exit((await deno("run", "-A", import.meta.filename!, ...rest)).code);
}
const standIn = await importsFrom() === "npm";
const dryRun = Deno.args.includes("--dry-run");
if (standIn && !dryRun) {
  console.error(
    "a report needs the packages that users get: name a checkout of denoland/std with --std DIR, or pass --dry-run",
  );
  Deno.exit(2);
}
const asked = new Set(args._.map(String));
const wants = (part: string) => asked.size === 0 || asked.has(part);
const tools = await setup([
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
  console.error("the benchmark needs all of the above");
  Deno.exit(1);
}
// Not before the set-up: they look for the programs when they are loaded.
const { memoryRows, transferRows } = await import("./bench/transfers.ts");
const { guestRows } = await import("./bench/guest.ts");

if (args.rounds) setRounds(Number(args.rounds));
if (wants("digests")) {
  if (standIn) console.error("digests are left out: they need @std/crypto");
  else await digestRows();
}
await transferRows(
  Number(args.mib ?? 1024),
  (name) => wants("transfers") || asked.has(name),
);
if (wants("memory")) await memoryRows(Number(args.mib ?? 4096));
if (wants("guest") && tools.qemu && tools.guest) {
  const { buildGuest } = await import("./guest/build.ts");
  await guestRows("a small guest", await buildGuest(), tools.qemu);
}
if (wants("debian") && tools.qemu && tools.debian) {
  const { buildDebian } = await import("./guest/debian.ts");
  await guestRows("Debian", await buildDebian("agent"), tools.qemu);
}
if (!dryRun) await writeReport(sections);
