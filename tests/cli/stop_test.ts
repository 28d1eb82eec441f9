import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { detachedVmRecordPath } from "../../lib/run/workspace_vm.ts";
import { detachedVm, FAKE_PID } from "../support/detached_vm.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";

Deno.test({
  name: "stop powers the detached VM down, prints its pid and then finds no VM",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    await Deno.mkdir(join(dir.path, ".toolsmith"));
    const manifest = join(dir.path, ".toolsmith", "tools.json");
    // The manifest's content does not matter to stop.
    await Deno.writeTextFile(manifest, "{");
    const args = ["stop", "--manifest", manifest];
    for (const json of [false, true]) {
      await using _vm = await detachedVm(dir.path, "sha256:aa");
      const recorded = recordedIo();
      const line = json ? [...args, "--json"] : args;
      assertEquals(await performCommand(line, recorded), 0);
      const fields = { outcome: "stopped", pid: FAKE_PID };
      assertEquals(recorded.results, [{ json, fields, text: "" }]);
      const record = await Deno.lstat(detachedVmRecordPath(dir.path)).catch(
        () => 0,
      );
      assertEquals(record, 0, "its record is left");
    }
    await expectFailure(
      "machine_not_found",
      () => performCommand(args, recordedIo()),
    );
    await expectFailure(
      "usage",
      () => performCommand([...args, "x"], recordedIo()),
    );
  },
});

Deno.test({
  name: "stop stops waiting at Ctrl-C and leaves the VM running",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    await Deno.mkdir(join(dir.path, ".toolsmith"));
    const manifest = join(dir.path, ".toolsmith", "tools.json");
    await Deno.writeTextFile(manifest, "{}");
    await using _vm = await detachedVm(dir.path, "sha256:aa");
    const signal = AbortSignal.abort(new Error("enough"));
    const stop = performCommand(
      ["stop", "--manifest", manifest],
      recordedIo({ signal }),
    );
    const error = await stop.catch((error) => error);
    assertEquals(error, signal.reason);
    assertEquals(
      (await Deno.lstat(detachedVmRecordPath(dir.path))).isFile,
      true,
    );
  },
});
