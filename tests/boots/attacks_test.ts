import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import {
  type HostileAgent,
  hostileGuest,
  needsGuest,
} from "../support/guest.ts";
import { parts } from "../support/parts.ts";
import { processesOf } from "../support/processes.ts";
import { jsonLines, workspace } from "../support/workspace.ts";

/** What `run` ends with: its time is over, or the guest has failed, which takes no time. */
const ENDS: Record<HostileAgent, [code: string, timeoutS: number]> = {
  never_exits: ["timeout", 30],
  says_maximum: ["guest_failed", 600],
  silent: ["timeout", 30],
};

for (const [how, [code, timeoutS]] of Object.entries(ENDS)) {
  Deno.test({
    name: `run --timeout ends whatever an agent does: ${how}`,
    ...needsGuest,
    async fn() {
      await using work = await workspace();
      const qcow2 = await hostileGuest(how as HostileAgent);
      const digest = await sha256(fileChunks(qcow2));
      await work.manifest({ qcow2, qcow2_sha256: digest });
      const tmp = join(work.dir, "tmp");
      await Deno.mkdir(tmp);
      const { stdout, stderr } = await work.toolsmith(
        ["run", "--json", "--timeout", `${timeoutS}`, "--", "true"],
        {
          permissions: ["-A"],
          env: { TMPDIR: tmp, TOOLSMITH_QEMU: parts.qemu! },
        },
      );
      const { last } = jsonLines(stdout);
      assertEquals([last.type, last.code], ["error", code], stderr);
      assert(!last.message.includes("\n"), last.message);
      assertEquals(await processesOf(tmp), []);
      // A file stays: whether KVM is to be used here.
      const left = Array.from(Deno.readDirSync(tmp));
      assertEquals(left.filter(({ isDirectory }) => isDirectory), []);
    },
  });
}
