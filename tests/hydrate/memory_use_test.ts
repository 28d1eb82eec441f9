import { assert, assertEquals } from "@std/assert";
import { requires } from "../support/parts.ts";
import { runProcess } from "../../lib/system/process.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { startRegistry } from "../support/registry.ts";
import {
  orasPush,
  TYPE,
  type Workspace,
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
      peaks.push(await peakOf(work));
    }
    const [small, large] = peaks;
    assert(
      large - small < 64 * MIB,
      `peak memory grew from ${small} to ${large} bytes`,
    );
  },
});

/** Prints the peak memory when the program ends: a test that polls may miss it. */
const PRELOAD = `data:text/javascript,addEventListener("unload", () =>
  console.error(Deno.readTextFileSync("/proc/self/status")))`;

/** Peak resident memory of a hydrate, in bytes. */
async function peakOf(work: Workspace): Promise<number> {
  const { code, stderr } = await work.toolsmith(["hydrate", "--quiet"], {
    // Deno lets a program read /proc only with all permissions.
    permissions: ["-A", `--preload=${PRELOAD}`],
  });
  assertEquals(code, 0, stderr);
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(stderr)![1]) * 1024;
}
