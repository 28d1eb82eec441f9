/** Asserts that something fails with a given error code. */
import { assertEquals } from "@std/assert";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";

/**
 * Asserts that work fails with a code.
 *
 * @returns The error, to check its message.
 */
export async function expectFailure(
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
