/**
 * What the tools accept and return.
 *
 * @module
 */
import type { infer as Infer } from "zod";

const { z } = await import("./_sdk.ts");

const count = z.number().int().min(0);
const namedCommand = {
  args: z.array(z.string()).optional(),
  stdin: z.string().optional(),
  cwd: z.string().optional().describe("In the guest; default: the workspace"),
  env: z.record(z.string(), z.string()).optional(),
  timeout: z.number().positive().optional().describe("Seconds"),
};

export const NAMED_COMMAND = z.strictObject(namedCommand);
/** With variables, such as PATH, a call could run what `operations` lacks. */
export const ALLOWED_COMMAND = NAMED_COMMAND.omit({ env: true });
export const ANY_COMMAND = z.strictObject({
  command: z.string(),
  ...namedCommand,
});
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
  offset: count.optional().describe("Bytes"),
});

export type CommandCall = Infer<typeof ANY_COMMAND>;
export type OutputPosition = Infer<typeof OUTPUT_POSITION>;
