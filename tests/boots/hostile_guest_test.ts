import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import {
  buildHostileGuest,
  type HostileAgent,
  needsGuest,
} from "../support/guest.ts";
import { foundTools } from "../support/parts.ts";
import { assertAllEnded } from "../support/processes.ts";
import { jsonLines, workspace } from "../support/workspace.ts";

/** Error code of `run`, and its timeout: guest_failed occurs at once. */
const ENDS: Record<HostileAgent, [code: string, timeoutS: number]> = {
  never_exits: ["timeout", 30],
  says_maximum: ["guest_failed", 600],
  silent: ["timeout", 30],
};

for (const [how, [code, timeoutS]] of Object.entries(ENDS)) {
  Deno.test({
    name: `run --timeout ends a VM with a hostile agent: ${how}`,
    ...needsGuest,
    async fn() {
      await using work = await workspace();
      const qcow2 = await buildHostileGuest(how as HostileAgent);
      const digest = await sha256OfChunks(readFileChunks(qcow2));
      await work.manifest({ qcow2, qcow2_sha256: digest });
      const tmp = join(work.dir, "tmp");
      await Deno.mkdir(tmp);
      const { stdout, stderr } = await work.toolsmith(
        ["run", "--json", "--timeout", `${timeoutS}`, "--", "true"],
        {
          permissions: ["-A"],
          env: { TMPDIR: tmp, TOOLSMITH_QEMU: foundTools.qemu! },
        },
      );
      const { last } = jsonLines(stdout);
      assertEquals([last.type, last.code], ["error", code], stderr);
      assert(!last.message.includes("\n"), last.message);
      await assertAllEnded(tmp);
      // One file stays: the cached KVM verdict.
      const left = Array.from(Deno.readDirSync(tmp));
      assertEquals(left.filter(({ isDirectory }) => isDirectory), []);
    },
  });
}
