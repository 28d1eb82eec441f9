/**
 * Demands that something fails as it should.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";

/**
 * Does something that must fail.
 *
 * @param code The code that it must fail with.
 * @param work What to do.
 * @returns The error, to look at its words.
 */
export async function failure(
  code: ErrorCode,
  work: () => unknown,
): Promise<ToolsmithError> {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    assertEquals(error.code, code, `${error.code}: ${error.message}`);
    return error;
  }
  throw new Error(`Nothing failed; ${code} was expected`);
}
