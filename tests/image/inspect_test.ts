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
