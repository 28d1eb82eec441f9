import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { inspectImage } from "../../lib/image/inspect.ts";
import { testWithImage as test } from "../support/workspace.ts";

Deno.test({
  name: "a file that may not be read is reported",
  // To root every file is readable.
  ignore: Deno.build.os === "windows" || Deno.uid() === 0,
  async fn() {
    const path = await Deno.makeTempFile({ suffix: ".qcow2" });
    await Deno.chmod(path, 0);
    const error = await assertRejects(() => inspectImage(path), ToolsmithError);
    assertEquals(error.code, "file_unreadable");
    assertStringIncludes(error.message, "permission denied");
    await Deno.remove(path);
  },
});

test("an image of more than 10 GB is warned of", async ({ image }) => {
  await Deno.truncate(image, 10_000_000_001);
  const { warnings } = await inspectImage(image);
  assert(warnings.some((warning) => warning.includes("10 GB a layer")));
});

test("room that nothing refers to is warned of, but not beside the tables of snapshots", async ({ image }) => {
  // Its data is random: compression alone would save nothing.
  await Deno.truncate(image, 10 * 1024 * 1024);
  const { savings, warnings } = await inspectImage(image);
  assert(savings > 0.8 && savings < 0.95, `${savings}`);
  const percent = Math.round(savings * 100);
  assertStringIncludes(warnings[0], `shrink by about ${percent} % if`);
  using file = await Deno.open(image, { write: true });
  const SNAPSHOTS = 60;
  await file.seek(SNAPSHOTS, Deno.SeekMode.Start);
  await file.write(new Uint8Array([0, 0, 0, 1]));
  const unknown = await inspectImage(image);
  assertEquals([unknown.savings, unknown.warnings], [0, []]);
});
