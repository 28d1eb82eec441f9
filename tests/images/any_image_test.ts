/**
 * User scenarios in unprepared images, with another architecture or other
 * firmware.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { dirname, join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { findUefiFirmware } from "../../lib/qemu/firmware.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { env } from "../support/guest.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { buildDebian, type DebianKind } from "../../scripts/guest/debian.ts";
import type { Part } from "../../scripts/setup.ts";
import { foundTools, requires } from "../support/parts.ts";
import { jsonLines, workspace } from "../support/workspace.ts";

/** Differences between the images. */
interface Kind {
  needs: Part[];
  /** Output of `uname -m`. */
  machine: string;
  /** Whether the kernel sees EFI. */
  efi: boolean;
  /** The expected guest agent. */
  agent: RegExp;
  /** Whether its kernel can mount host directories. */
  mounts: boolean;
}

const KINDS: Partial<Record<DebianKind, Kind>> = {
  arm64: {
    needs: ["guest", "arm64"],
    machine: "aarch64",
    efi: true,
    agent: /^qemu-ga \d/,
    mounts: true,
  },
  cloud: {
    needs: [],
    machine: "x86_64",
    efi: false,
    agent: /^toolsmith$/,
    mounts: false,
  },
  "cloud-uefi": {
    needs: [],
    machine: "x86_64",
    efi: true,
    agent: /^toolsmith$/,
    mounts: false,
  },
};

Deno.test({
  name: "boot reports before its deadline that UEFI found nothing to boot",
  ...requires("qemu", "qemuImg", "uefi"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    const args = ["create", "-q", "-f", "qcow2", image, "8M"];
    assertEquals((await runProcess("qemu-img", { args })).code, 0);
    const { code } = await findUefiFirmware("x86_64", {
      program: foundTools.qemu!,
    });
    for (const firmware of ["uefi", code]) {
      const { message } = await expectFailure(
        "boot_failed",
        () => boot({ image, env, firmware, bootTimeoutMs: 1_000_000 }),
      );
      assertStringIncludes(message, "UEFI firmware found nothing to boot");
    }
  },
});

for (const [name, kind] of Object.entries(KINDS)) {
  Deno.test({
    name:
      `run boots the unmodified ${name} image once, then restores its snapshot`,
    ...requires("qemu", "qemuImg", "debian", "uefi", ...kind.needs),
    fn: (t) => behaves(t, name as DebianKind, kind),
  });
}

async function behaves(
  t: Deno.TestContext,
  name: DebianKind,
  { machine, efi, agent, mounts }: Kind,
) {
  await using work = await workspace();
  const qcow2 = await buildDebian(name);
  const qcow2_sha256 = await sha256OfChunks(readFileChunks(qcow2));
  await work.manifest({ qcow2, qcow2_sha256 });
  const out = join(work.dir, "out");
  await Deno.mkdir(out);
  const options = {
    permissions: ["-P=run"],
    timeoutMs: 3_600_000,
    env: {
      PATH: `${dirname(foundTools.qemu!)}:${Deno.env.get("PATH")}`,
      TOOLSMITH_QEMU: "",
    },
  };
  const toolsmith = (args: string[], bytes?: Uint8Array<ArrayBuffer>) =>
    work.toolsmith(["run", "--boot-timeout", "2400", ...args], {
      ...options,
      ...bytes ? { input: { bytes } } : {},
    });

  await t.step(
    "run boots the image first, then restores the snapshot",
    async () => {
      for (const how of ["booted", "restored"]) {
        const ran = await toolsmith(["--json", "--", "sh", "-c", "exit 7"]);
        const { events, last } = jsonLines(ran.stdout);
        const ready = events.find(({ type }) => type === "boot_ready");
        assertEquals(
          [ran.code, last.code, ready?.how],
          [7, 7, how],
          ran.stderr,
        );
        if (how === "booted") assertMatch(String(ready?.agent), agent);
      }
    },
  );
  await t.step(
    "run: the guest has the expected architecture and firmware",
    async () => {
      const script = "uname -m; test -e /sys/firmware/efi && echo efi";
      const { stdout } = await toolsmith(["--quiet", "--", "sh", "-c", script]);
      assertEquals(stdout, `${machine}\n${efi ? "efi\n" : ""}`);
    },
  );
  await t.step("run passes stdin and stdout bytes unchanged", async () => {
    const bytes = crypto.getRandomValues(new Uint8Array(2 ** 16));
    const script = "base64 | tr -d '\\n'; echo end of input >&2";
    const ran = await toolsmith(["--quiet", "--", "sh", "-c", script], bytes);
    assertEquals(ran.code, 0);
    assertStringIncludes(ran.stderr, "end of input\n");
    assertEquals(ran.stdout, bytes.toBase64());
  });
  await t.step(
    "run --allow-net lets the guest reach the allowed host and no other",
    async () => {
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen() {} },
        () => new Response("hello\n"),
      );
      const rule = `site.test:80=127.0.0.1:${server.addr.port}`;
      // A guest with cloud-init has Python, another one BusyBox.
      const read =
        "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read())";
      const script =
        `get() { python3 -c '${read}' "$1" || wget -qO- "$1"; }; get http://site.test/; ! get http://other.test/`;
      const args = ["--allow-net", rule, "--", "sh", "-c", script];
      const { code, stdout, stderr } = await toolsmith(args);
      assertEquals(code, 0, stderr);
      assertMatch(stdout, /^(hello\n|b'hello\\n'\n)$/);
      assertStringIncludes(stderr, "network: refused other.test: no rule");
    },
  );
  await t.step("run waits for cloud-init if the image has it", async () => {
    const script =
      "! [ -d /run/cloud-init ] || cat /run/cloud-init/result.json";
    const { stdout } = await toolsmith(["--quiet", "--", "sh", "-c", script]);
    assertMatch(stdout, agent.test("toolsmith") ? /NoCloud/ : /^$/);
  });
  await t.step("hydrate --json reports the image's firmware", async () => {
    const { stdout } = await work.toolsmith(["hydrate", "--json"]);
    const { last } = jsonLines(stdout);
    assertMatch(JSON.stringify(last.boot), efi ? /"uefi"/ : /"bios"/);
  });
  await t.step("run shows the current workspace read-only", async () => {
    await Deno.writeTextFile(join(work.dir, "new.txt"), "written later\n");
    await Deno.chmod(join(work.dir, "new.txt"), 0o755);
    await Deno.symlink("new.txt", join(work.dir, "link"));
    const script =
      "cat link; stat -c %a new.txt; touch here 2>/dev/null && echo wrote";
    const { stdout } = await toolsmith(["--quiet", "--", "sh", "-c", script]);
    assertEquals(stdout, "written later\n755\n");
  });
  await t.step(
    "run warns when a copied workspace exceeds --copy-limit",
    async () => {
      const huge = join(work.dir, "huge");
      await Deno.writeTextFile(huge, "");
      await Deno.truncate(huge, 5 * 2 ** 30);
      const { code, stdout, stderr } = await toolsmith(["--", "pwd"]);
      await Deno.remove(huge);
      assertEquals([code, stdout], [0, mounts ? "/mnt/work\n" : "/\n"], stderr);
      if (!mounts) assertMatch(stderr, /128 MiB.*--copy-limit/);
    },
  );
  await t.step("run: the guest agent leaves no zombie processes", async () => {
    const use = async (...args: string[]) => {
      const { code, stdout, stderr } = await work.toolsmith(args, options);
      assertEquals(code, 0, stderr);
      return stdout;
    };
    await use("boot", "--detach", "--boot-timeout", "2400");
    try {
      for (let n = 0; n < 4; n++) await use("run", "--quiet", "--", "true");
      const count = "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l";
      const zombies = await use("run", "--quiet", "--", "sh", "-c", count);
      assert(Number(zombies) <= 1, zombies);
    } finally {
      await use("stop");
    }
  });
  await t.step(
    "run --export syncs the command's results back to the host",
    async () => {
      await Deno.writeTextFile(join(out, "old"), "old\n");
      const script =
        "cat /mnt/out/old; echo result >/mnt/out/a; chmod 4750 /mnt/out/a; ln -s a /mnt/out/b";
      const words = ["--export", out, "--", "sh", "-c", script];
      const { code, stdout, stderr } = await toolsmith(["--quiet", ...words]);
      assertEquals([code, stdout], [0, "old\n"], stderr);
      assertEquals(await Deno.readTextFile(join(out, "b")), "result\n");
      const { mode } = await Deno.stat(join(out, "a"));
      assertEquals(mode! & 0o7777, 0o750);
    },
  );
}
