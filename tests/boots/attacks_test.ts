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

const TIMEOUT_S = 30;
/** The machine ends in this time once the limit has passed. */
const AFTERWARDS_S = 15;

/** What `run` ends with: its time is over, or the guest has failed. */
const ENDS: Record<HostileAgent, string> = {
  never_exits: "timeout",
  says_maximum: "guest_failed",
  silent: "timeout",
};

for (const [how, code] of Object.entries(ENDS)) {
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
      const begun = performance.now();
      const { stdout, stderr } = await work.toolsmith(
        ["run", "--json", "--timeout", `${TIMEOUT_S}`, "--", "true"],
        {
          permissions: ["-A"],
          env: { TMPDIR: tmp, TOOLSMITH_QEMU: parts.qemu! },
        },
      );
      const { last } = jsonLines(stdout);
      assertEquals([last.type, last.code], ["error", code], stderr);
      assert(!last.message.includes("\n"), last.message);
      const seconds = (performance.now() - begun) / 1000;
      assert(seconds < TIMEOUT_S + AFTERWARDS_S, `it took ${seconds} s`);
      assertEquals(await processesOf(tmp), []);
      // A file stays: whether KVM is to be used here.
      const left = Array.from(Deno.readDirSync(tmp));
      assertEquals(left.filter(({ isDirectory }) => isDirectory), []);
    },
  });
}
