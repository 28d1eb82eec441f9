/**
 * The protocol's packages, and what the tools accept and return. It is large: imported
 * dynamically, and compressed in the bundle.
 */
import * as z from "zod";

export { once } from "node:events";
export { Readable, Writable } from "node:stream";
export { McpServer } from "@modelcontextprotocol/server";
export * from "@modelcontextprotocol/server/stdio";

const count = z.int().min(0);

export const ANY_COMMAND = z.strictObject({
  command: z.string(),
  args: z.array(z.string()).optional(),
  stdin: z.string().optional(),
  cwd: z.string().optional().describe("In the guest; default: the workspace"),
  env: z.record(z.string(), z.string()).optional(),
  timeout: z.number().positive().optional().describe("Seconds"),
});
export const NAMED_COMMAND = ANY_COMMAND.omit({ command: true });
/** With variables, such as PATH, a call could run what `operations` lacks. */
export const ALLOWED_COMMAND = NAMED_COMMAND.omit({ env: true });
export const COMMAND_RESULT = z.strictObject({
  code: count.describe("128 plus the number of a signal"),
  signal: z.string().nullable(),
  stdout: z.string(),
  stderr: z.string(),
  truncated: z.boolean().describe("read_output has more"),
  durationMs: count,
  notice: z.string().optional(),
});
export const OUTPUT_POSITION = z.strictObject({
  id: z.string(),
  stream: z.enum(["stdout", "stderr"]),
  offset: count.default(0).describe("Bytes"),
});

export type CommandCall = z.infer<typeof ANY_COMMAND>;
export type OutputPosition = z.infer<typeof OUTPUT_POSITION>;
