/** `toolsmith doctor`: checks whether this host can hydrate and run images. */
import { doctor as examine, type Finding } from "../../doctor/doctor.ts";
import { defineSubcommand } from "../subcommand.ts";
import * as shared from "../shared_flags.ts";
import { toSingleLine } from "../render.ts";

export const doctorCommand = defineSubcommand({
  name: "doctor",
  usage: "[flags]",
  summary: "check whether this host can hydrate and run images",
  flags: {
    ...shared.MANIFEST,
    ...shared.CACHE,
    ...shared.TRUST,
    ...shared.REGISTRY,
    ...shared.JSON,
  },
  async run(given, { env, signal, printResult }) {
    const findings = await examine({ ...given, env, signal });
    const ok = findings.every(({ level }) => level !== "fail");
    const width = Math.max(...findings.map(({ check }) => check.length));
    const lines = findings.flatMap(({ check, level, found, hint }) => {
      const head = `${level.padEnd(4)}  ${check.padEnd(width)}  `;
      const indentation = " ".repeat(head.length);
      const hintLines = hint ? [indentation + toSingleLine(hint)] : [];
      return [head + toSingleLine(found), ...hintLines];
    });
    lines.push(nextStepLine(findings));
    printResult({ ok, findings }, lines.join("\n"));
    return ok ? 0 : 1;
  },
});

function nextStepLine(findings: Finding[]): string {
  const failed = findings.find(({ level }) => level === "fail");
  if (failed) {
    return `next: fix ${failed.check}, then run toolsmith doctor again`;
  }
  const stateOf = (name: string) =>
    findings.find(({ check }) => check === name)?.level;
  if (stateOf("manifest") !== "ok") {
    return "next: write a manifest for an image: toolsmith init --ref REF";
  }
  return stateOf("qemu") === "ok"
    ? "next: toolsmith run COMMAND"
    : "next: toolsmith hydrate, or install QEMU to run the image";
}
