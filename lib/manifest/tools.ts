/**
 * Resolves tool names of the manifest to guest paths, and enforces `operations`.
 */
import { ToolsmithError } from "../errors.ts";
import type { Manifest } from "./manifest.ts";

/**
 * The fields `tools`, which maps names of tools to paths in the guest, and `operations`,
 * the names that may run; an empty list permits all.
 */
export type ToolRules = Pick<Manifest, "tools" | "operations">;

/**
 * Resolves a command to its path in the guest.
 *
 * @param rules A manifest, or its `tools` and `operations`.
 * @param command Tool name or command from the user.
 * @returns The tool's path in the guest; an unknown name unchanged.
 * @throws {ToolsmithError} `tool_forbidden`.
 *
 * @example
 * ```ts
 * import { resolveToolPath } from "./tools.ts";
 *
 * const rules = { tools: { fmt: "/opt/fmt/bin/fmt" }, operations: ["fmt"] };
 * if (resolveToolPath(rules, "fmt") !== "/opt/fmt/bin/fmt") throw "";
 * ```
 */
export function resolveToolPath(rules: ToolRules, command: string): string {
  assertToolAllowed(rules, command);
  return Object.hasOwn(rules.tools, command) ? rules.tools[command] : command;
}

/**
 * Rejects a command that the manifest does not allow. It compares names, so that
 * a tool's path cannot bypass the list.
 *
 * @param rules A manifest, or its `tools` and `operations`.
 * @param command Tool name or command from the user.
 * @throws {ToolsmithError} `tool_forbidden`.
 */
export function assertToolAllowed(rules: ToolRules, command: string): void {
  const { operations } = rules;
  if (operations.length === 0 || operations.includes(command)) return;
  const message =
    `Cannot run ${command}: the manifest's "operations" does not list this command`;
  const hint = `run a tool that "operations" allows: ${operations.join(", ")}`;
  throw new ToolsmithError("tool_forbidden", message, { hint });
}
