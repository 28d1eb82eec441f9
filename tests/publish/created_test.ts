import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { createdTime } from "../../lib/publish/_created.ts";

const GIVEN = new Date("2020-01-02T03:04:05.678Z");
const MODIFIED = new Date("2021-01-02T03:04:05.678Z");
const EPOCH = "1700000000";

Deno.test("the time that a manifest records is what was given, the epoch of the build, or the file's", () => {
  const time = (epoch: string | undefined, given?: Date, modified?: Date) =>
    createdTime(new Map(epoch === undefined ? [] : [[NAME, epoch]]), {
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

Deno.test("an epoch that is no count of seconds is refused with what was given", () => {
  // The last is beyond what a date can hold.
  for (const epoch of ["today", "1.5", "-1", " 1", "1e3", "9".repeat(20)]) {
    const error = assertThrows(
      () =>
        createdTime(new Map([[NAME, epoch]]), {
          given: undefined,
          modified: null,
        }),
      ToolsmithError,
      `Cannot use SOURCE_DATE_EPOCH=${epoch}: it is not a count of seconds`,
    );
    assertEquals(error.code, "usage");
    assertStringIncludes(error.hint!, "git log -1 --format=%ct");
  }
});
