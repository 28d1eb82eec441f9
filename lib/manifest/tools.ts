/**
 * The manifest's tools: which may be run, and where they are in the guest.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/** The part of a manifest that is about tools. */
export interface ToolRules {
  /** Names of tools, and their paths in the guest. */
  tools: Record<string, string>;
  /** Names of the tools that may be run; empty allows all. */
  operations: string[];
}

/**
 * Finds what a command means in the guest.
 *
 * @param rules The manifest, or the part of it that is about tools.
 * @param command What the user asked for.
 * @returns The tool's path in the guest; the command itself if it is no tool.
 * @throws {ToolsmithError} `tool_forbidden` when it may not be run.
 *
 * @example
 * ```ts
 * import { resolveTool } from "./tools.ts";
 *
 * const rules = { tools: { fmt: "/opt/fmt/bin/fmt" }, operations: ["fmt"] };
 * if (resolveTool(rules, "fmt") !== "/opt/fmt/bin/fmt") throw "";
 * ```
 */
export function resolveTool(rules: ToolRules, command: string): string {
  assertToolAllowed(rules, command);
  return Object.hasOwn(rules.tools, command) ? rules.tools[command] : command;
}

/**
 * Refuses a command that the manifest does not allow. Names are compared, not
 * paths: a tool's path does not get around the list.
 *
 * @param rules The manifest, or the part of it that is about tools.
 * @param command What the user asked for.
 * @throws {ToolsmithError} `tool_forbidden`.
 */
export function assertToolAllowed(rules: ToolRules, command: string): void {
  const { operations } = rules;
  if (operations.length === 0 || operations.includes(command)) return;
  throw new ToolsmithError(
    "tool_forbidden",
    `The manifest does not allow this command: ${command}`,
    { hint: `allowed by "operations": ${operations.join(", ")}` },
  );
}
