import { assert, assertEquals } from "@std/assert";
import { spawnProcess } from "../../lib/system/process.ts";
import { requires } from "../support/parts.ts";
import { runProcess } from "../../lib/system/process.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { startRegistry } from "../support/registry.ts";
import {
  cleanEnvironment,
  cliCommand,
  orasPush,
  TYPE,
  workspace,
} from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;

Deno.test({
  name: "hydrate uses constant memory for images of 1 MiB and 256 MiB",
  ...REAL,
  // Peak memory is read from /proc.
  ignore: REAL.ignore || Deno.build.os !== "linux",
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const peaks: number[] = [];
    for (const mib of [1, 256]) {
      const path = `${work.dir}/image.qcow2`;
      const create = ["create", "-q", "-f", "qcow2", "-o"];
      const { code } = await runProcess("qemu-img", {
        args: [...create, "preallocation=full", path, `${mib}M`],
      });
      assertEquals(code, 0);
      const reference = `${registry.host}/owner/image:${mib}`;
      await orasPush(reference, [`image.qcow2:${TYPE}`], { cwd: work.dir });
      const digest = await sha256OfChunks(readFileChunks(path), "runtime");
      await work.manifest({
        qcow2: `oci://${reference}`,
        qcow2_sha256: digest,
      });
      peaks.push(await peakOf(work.dir));
    }
    const [small, large] = peaks;
    assert(
      large - small < 64 * MIB,
      `peak memory grew from ${small} to ${large} bytes`,
    );
  },
});

/** Peak resident memory of a hydrate, in bytes. */
async function peakOf(dir: string): Promise<number> {
  const child = spawnProcess(Deno.execPath(), {
    args: await cliCommand(["hydrate", "--quiet"], ["-P=hydrate"]),
    cwd: dir,
    env: cleanEnvironment(),
    stderr: "inherit",
  });
  let peak = 0;
  let running = true;
  const ended = child.ended.finally(() => running = false);
  while (running) {
    try {
      const status = await Deno.readTextFile(`/proc/${child.pid}/status`);
      const kib = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0);
      peak = Math.max(peak, kib * 1024);
    } catch {
      // It ended in between.
    }
    await new Promise((done) => setTimeout(done, 10));
  }
  assertEquals((await ended).code, 0);
  return peak;
}
