/**
 * `toolsmith doctor`: says whether this host can do what it is asked to do.
 *
 * @module
 */
import {
  doctor as examine,
  type DoctorOptions,
  type Finding,
} from "../../doctor/doctor.ts";
import type { Command } from "../command.ts";
import {
  CACHE,
  JSON_OUTPUT,
  MANIFEST,
  readRegistry,
  REGISTRY,
} from "../flags.ts";
import { flat } from "../render.ts";

interface DoctorRequest {
  options: DoctorOptions;
  json: boolean;
}

/** Prints what a check of this host finds. */
export const doctor: Command<DoctorRequest> = {
  name: "doctor",
  usage: "[flags]",
  summary: "check whether this host can do all that",
  flags: [...MANIFEST, ...CACHE, ...REGISTRY, ...JSON_OUTPUT],
  positionals: [0, 0],
  parse: (given) => ({
    options: {
      manifest: given.text("manifest"),
      cache: given.text("cache"),
      ...readRegistry(given),
    },
    json: given.has("json"),
  }),
  async run({ options, json }, { signal, result }) {
    const findings = await examine({ ...options, signal });
    const ok = findings.every(({ level }) => level !== "fail");
    const width = Math.max(...findings.map(({ check }) => check.length));
    const lines = findings.flatMap((finding) => findingLines(finding, width));
    lines.push(nextLine(findings));
    result(json, { ok, findings }, lines.join("\n"));
    return ok ? 0 : 1;
  },
};

function findingLines(
  { check, level, found, hint }: Finding,
  width: number,
): string[] {
  const head = `${level.padEnd(4)}  ${check.padEnd(width)}  `;
  const lines = [head + flat(found)];
  if (hint) lines.push(" ".repeat(head.length) + flat(hint));
  return lines;
}

/** What to do now: to put right what comes first, or to go on. */
function nextLine(findings: Finding[]): string {
  const failed = findings.find(({ level }) => level === "fail");
  if (failed) {
    return `next: put ${failed.check} right, then run toolsmith doctor again`;
  }
  const stateOf = (name: string) =>
    findings.find(({ check }) => check === name)?.level;
  if (stateOf("manifest") !== "ok") {
    return "next: toolsmith init --ref REF writes a manifest for an image";
  }
  return stateOf("qemu") === "ok"
    ? "next: toolsmith run COMMAND"
    : "next: toolsmith hydrate gets the image; to run it, install QEMU";
}
