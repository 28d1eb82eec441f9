/**
 * Tests that commands read only the environment that they are given.
 */
import { assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";
import { makeQcow2, writeImage } from "../support/qcow2.ts";

Deno.test("hydrate, run, boot and stop read TOOLSMITH_MANIFEST from CliIo.env", async () => {
  const env = new Map([["TOOLSMITH_MANIFEST", "/none/tools.json"]]);
  for (const args of [["hydrate"], ["run", "true"], ["boot"]]) {
    const error = await expectFailure(
      "manifest_not_found",
      () => performCommand(args, recordedIo({ env })),
    );
    assertStringIncludes(error.message, "/none/tools.json");
  }
  // stop does not need the manifest to exist.
  const stop = () => performCommand(["stop"], recordedIo({ env }));
  await expectFailure("machine_not_found", stop);
});

Deno.test("init, hydrate and publish read TOOLSMITH_ORAS from CliIo.env", async () => {
  await using dir = await temporaryDir();
  const image = join(dir.path, "image.qcow2");
  await writeImage(image, makeQcow2({}));
  const ref = "oci://127.0.0.1:9/owner/vm:1";
  const manifest = join(dir.path, "tools.json");
  const pinned = { name: "vm", qcow2: ref, qcow2_sha256: "a".repeat(64) };
  await Deno.writeTextFile(manifest, JSON.stringify({ image: pinned }));
  const named = ["--manifest", manifest];
  const env = new Map([["TOOLSMITH_ORAS", "/none/oras"]]);
  for (
    const args of [
      ["init", "--ref", ref, "--manifest", join(dir.path, "new.json")],
      ["hydrate", ...named, "--cache", join(dir.path, "cache")],
      ["publish", image, ref],
    ]
  ) {
    const error = await expectFailure(
      "oras_not_found",
      () => performCommand(args, recordedIo({ env })),
    );
    assertStringIncludes(error.message, "/none/oras");
  }
});
