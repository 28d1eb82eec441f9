import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { detachedVmPath } from "../../lib/run/workspace_vm.ts";
import { detachedVm, FAKE_PID } from "../support/detached_vm.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";

Deno.test({
  name:
    "stop powers the detached VM down, says which it was, and does not find it again",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    await Deno.mkdir(join(dir.path, ".toolsmith"));
    const manifest = join(dir.path, ".toolsmith", "tools.json");
    // What is in it does not matter: a machine is stopped whatever it has become.
    await Deno.writeTextFile(manifest, "{");
    const args = ["stop", "--manifest", manifest];
    for (const json of [false, true]) {
      await using _vm = await detachedVm(dir.path, "sha256:aa");
      const recorded = recordedIo();
      const line = json ? [...args, "--json"] : args;
      assertEquals(await perform(line, recorded), 0);
      const fields = { outcome: "stopped", pid: FAKE_PID };
      assertEquals(recorded.results, [{ json, fields, text: "" }]);
      const record = await Deno.lstat(detachedVmPath(dir.path)).catch(() => 0);
      assertEquals(record, 0, "its record is left");
    }
    await failure("machine_not_found", () => perform(args, recordedIo()));
    await failure("usage", () => perform([...args, "x"], recordedIo()));
  },
});

Deno.test({
  name: "stop ends its wait at Ctrl-C, and leaves the machine running",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    await Deno.mkdir(join(dir.path, ".toolsmith"));
    const manifest = join(dir.path, ".toolsmith", "tools.json");
    await Deno.writeTextFile(manifest, "{}");
    await using _vm = await detachedVm(dir.path, "sha256:aa");
    const signal = AbortSignal.abort(new Error("enough"));
    const stop = perform(
      ["stop", "--manifest", manifest],
      recordedIo({ signal }),
    );
    const error = await stop.catch((error) => error);
    assertEquals(error, signal.reason);
    assertEquals((await Deno.lstat(detachedVmPath(dir.path))).isFile, true);
  },
});
