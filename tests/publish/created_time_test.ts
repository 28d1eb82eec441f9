import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { creationTime } from "../../lib/publish/artifact_files.ts";

const GIVEN = new Date("2020-01-02T03:04:05.678Z");
const MODIFIED = new Date("2021-01-02T03:04:05.678Z");
const EPOCH = "1700000000";

Deno.test("creationTime() returns the given time, else SOURCE_DATE_EPOCH, else the file's modification time", () => {
  const time = (epoch: string | undefined, given?: Date, modified?: Date) =>
    creationTime(new Map(epoch === undefined ? [] : [[NAME, epoch]]), {
      given,
      modified: modified ?? null,
    });
  assertEquals(time(EPOCH, GIVEN, MODIFIED), "2020-01-02T03:04:05Z");
  assertEquals(time(EPOCH, undefined, MODIFIED), "2023-11-14T22:13:20Z");
  assertEquals(time("0", undefined, MODIFIED), "1970-01-01T00:00:00Z");
  assertEquals(time("", undefined, MODIFIED), "2021-01-02T03:04:05Z");
  assertEquals(time(undefined, undefined, MODIFIED), "2021-01-02T03:04:05Z");
  assertEquals(time(undefined), "1970-01-01T00:00:00Z");
});

const NAME = "SOURCE_DATE_EPOCH";

Deno.test("creationTime() rejects a malformed SOURCE_DATE_EPOCH and quotes the value", () => {
  // The last one exceeds the range of Date.
  for (const epoch of ["today", "1.5", "-1", " 1", "1e3", "9".repeat(20)]) {
    const error = assertThrows(
      () =>
        creationTime(new Map([[NAME, epoch]]), {
          given: undefined,
          modified: null,
        }),
      ToolsmithError,
      `Cannot use SOURCE_DATE_EPOCH=${epoch}: expected seconds since 1970`,
    );
    assertEquals(error.code, "usage");
    assertStringIncludes(error.hint!, "git log -1 --format=%ct");
  }
});
