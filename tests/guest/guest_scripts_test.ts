import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import fc from "fast-check";
import {
  LAUNCH_FUNCTION,
  RUN_ON_PORTS_SCRIPT,
  START_COMMAND_SCRIPT,
  WARM_SHELL_SCRIPT,
} from "../../lib/guest/_command_scripts.ts";
import {
  NO_9P_GUEST_PATH,
  PREPARE_SNAPSHOT_SCRIPT,
  SET_UP_GUEST_SCRIPT,
} from "../../lib/guest/_setup_scripts.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { BUSYBOX } from "../support/parts.ts";

/** Shells that guests use as /bin/sh; bash started as sh is in POSIX mode. */
const SHELLS = ["/bin/dash", "/bin/bash", BUSYBOX];

async function isThere(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

const sh = (script: string) => ["/bin/sh", "-c", script];

/** Runs a command with this shell, as a guest does. */
async function launch(shell: string, command: string[], env: string[] = []) {
  await using dir = await temporaryDir();
  await Deno.symlink(shell, join(dir.path, "sh"));
  await runProcess("mkfifo", { args: [join(dir.path, "port")] });
  const main =
    'port=$1 start=$2 group=- session=setsid; shift 2; exec 6<>"$port"' +
    `${LAUNCH_FUNCTION}echo END >&6; launch "$@" </dev/null`;
  const { stdout, stderr } = await runProcess(join(dir.path, "sh"), {
    args: ["-c", main, "sh", join(dir.path, "port"), START_COMMAND_SCRIPT]
      .concat("/", "/", `${env.length}`, env, command),
  });
  return [stdout, stderr];
}

const CARD = "52:55:00:00:00:01 10.0.0.2 24 255.255.255.0 10.0.0.1";

/** A directory for {@linkcode inGuest} whose guest has the card. */
async function dirWithCard() {
  const dir = await temporaryDir();
  const card = join(dir.path, "net/eth0");
  await Deno.mkdir(card, { recursive: true });
  await Deno.writeTextFile(join(card, "address"), "52:55:00:00:00:01\n");
  return dir;
}

/** Shell functions that replace programs, to keep the host's clock and mounts. */
const STUBS = `
date() { [ "$3" = @2 ]; }
mount() {
  [ "$5" != bad ] || { echo "mount: bad: no such directory" >&2; return 1; }
}
umount() { shift; echo "umount $*"; }
sleep() { :; }
timeout() { :; }
udevadm() { :; }
`;
const WITHOUT_9P = `
mount() {
  echo x >>tried
  echo "mount: unknown filesystem type '9p'." >&2
  return 1
}
`;

/** Runs a guest script in a directory of this host. */
async function inGuest(
  { shell, dir, stubs = STUBS }: { shell: string; dir: string; stubs?: string },
  [script, ...words]: string[],
) {
  const here = script.replaceAll(NO_9P_GUEST_PATH, join(dir, "note"))
    .replaceAll("/sys/class/net", join(dir, "net"))
    .replaceAll("/run/systemd/netif/links", join(dir, "links"))
    .replaceAll("/etc/resolv.conf", join(dir, "resolv.conf"))
    .replaceAll("/proc/net/route", join(dir, "route"))
    .replaceAll("/sys/kernel", dir)
    .replaceAll("/run/udev", dir);
  const path = join(dir, "sh");
  if (!await isThere(path)) await Deno.symlink(shell, path);
  const { code, stdout } = await runProcess(path, {
    args: ["-c", stubs + here, "sh", ...words],
    cwd: dir,
  });
  return [code, ...stdout.split("\n").filter(Boolean).sort()];
}

/** Runs a warm shell with these requests; returns its replies and output. */
async function wait(
  { shell, stubs = STUBS }: { shell: string; stubs?: string },
  told: string,
  said = "said",
) {
  await using dir = await temporaryDir();
  const at = (name: string) => join(dir.path, name);
  await Deno.symlink(shell, at("sh"));
  await Deno.writeTextFile(at("told"), told);
  const main =
    `exec 4>out 9>&4 6>${said} 8<told <told${stubs}${WARM_SHELL_SCRIPT}`;
  const args = ["-c", main, "sh", "77"];
  await runProcess(at("sh"), { args, cwd: dir.path });
  return await Promise.all(
    ["said", "out"].map((name) => Deno.readTextFile(at(name)).catch(() => "")),
  );
}

/** Runs the guest setup script with this shell. */
async function setUp(shell: string, words: string[]) {
  await using dir = await temporaryDir();
  return await inGuest({ shell, dir: dir.path }, [
    SET_UP_GUEST_SCRIPT,
    ...words,
  ]);
}

for (const shell of SHELLS) {
  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: sets the clock, mounts all shares or none`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      const good = ["good", "place", "ro"];
      assertEquals(await setUp(shell, ["1.5", "2", "", ...good]), [0]);
      assertEquals(await setUp(shell, ["", "", "", ...good]), [0]);
      assertEquals(await setUp(shell, ["1.5", "9", ""]), [0, "clock"]);
      const all = [...good, "bad", "other", "rw"];
      assertEquals(await setUp(shell, ["1.5", "9", "", ...all]), [
        1,
        "bad: mount: bad: no such directory",
        "clock",
        "umount place",
      ]);
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: gives no terminal to a command that cannot lead a session`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      await using dir = await temporaryDir();
      const at = (name: string) => join(dir.path, name);
      for (const end of ["out", "err"]) {
        await Deno.mkdir(at(`ports/${end}`), { recursive: true });
        await Deno.writeTextFile(at(`ports/${end}/name`), `port.${end}\n`);
      }
      await Deno.writeTextFile(at("out"), "");
      await runProcess("mkfifo", { args: [at("err")] });
      await Deno.symlink(shell, at("sh"));
      const script = RUN_ON_PORTS_SCRIPT.replaceAll('-c "$node"', "-e $node")
        .replace("/sys/class/virtio-ports", at("ports"))
        .replace("node=/dev/", `node=${dir.path}/`);
      // There is no setsid.
      const main = `command() { false; }\n${script}`;
      const start = "echo pid $$ END; readlink /proc/$$/fd/0 >&4";
      const args = ["-c", main, "sh", "port", "/dev/zero", start, "x"];
      await runProcess(at("sh"), { args });
      assertEquals(await Deno.readTextFile(at("out")), "/dev/null\nEND0\n");
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: tries an unsupported mount only once`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      await using dir = await temporaryDir();
      const site = { shell, dir: dir.path, stubs: STUBS + WITHOUT_9P };
      const set = [SET_UP_GUEST_SCRIPT, "", "", "", "work", "place", "ro"];
      const refused = [1, "work: mount: unknown filesystem type '9p'."];
      assertEquals(await inGuest(site, set), refused);
      await inGuest(site, [PREPARE_SNAPSHOT_SCRIPT, "1", "work", "place"]);
      const tried = () => Deno.readTextFile(join(dir.path, "tried"));
      assertEquals(await tried(), "x\nx\n");
      // The recorded result is kept in the snapshot.
      assertEquals(await inGuest(site, set), refused);
      assertEquals(await tried(), "x\nx\n");
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: waits for systemd-networkd's route, not for IPv6`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      await using dir = await dirWithCard();
      const at = (name: string) => join(dir.path, name);
      await Deno.mkdir(at("links"));
      await Deno.writeTextFile(at("net/eth0/ifindex"), "2\n");
      await Deno.writeTextFile(at("links/1"), "ADMIN_STATE=unmanaged\n");
      await Deno.writeTextFile(at("links/2"), "ADMIN_STATE=configuring\n");
      await Deno.writeTextFile(at("waits"), "");
      const stubs = `${STUBS}
sleep() {
  echo x >>waits
  # The first is another card's, the second that of the card's network.
  printf 'Iface\\tDestination\\neth1\\t00000000\\t0\\neth0\\t0000000A\\t0\\n' >route
  [ "$(grep -c x waits)" -lt 3 ] || printf 'eth0\\t00000000\\t0\\n' >>route
}
resolvectl() { :; }
`;
      const set = [SET_UP_GUEST_SCRIPT, "", "", CARD];
      assertEquals(await inGuest({ shell, dir: dir.path, stubs }, set), [0]);
      assertEquals(await Deno.readTextFile(at("waits")), "x\nx\nx\n");
      // Some shells' case leaves the status of an earlier command.
      await Deno.remove(at("route"));
      await Deno.writeTextFile(at("links/2"), "ADMIN_STATE=configured\n");
      assertEquals(await inGuest({ shell, dir: dir.path, stubs }, set), [0]);
      assertEquals(await Deno.readTextFile(at("waits")), "x\nx\nx\n");
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: reports a failed network, not one that the last try configured`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      await using dir = await dirWithCard();
      const at = (name: string) => join(dir.path, name);
      await Deno.writeTextFile(at("net/bonding_masters"), "\n");
      await Deno.writeTextFile(at("control"), "");
      const cases = [
        [120, [0]],
        [999, [0, "network: File exists Network unreachable"]],
      ] as const;
      for (const [tries, output] of cases) {
        await Deno.writeTextFile(at("tries"), "");
        const stubs = `${STUBS}
ip() {
  case $1 in
  addr) echo "File exists" >&2; return 2 ;;
  route)
    echo x >>tries
    [ "$(grep -c x tries)" -ge ${tries} ] || { echo "Network unreachable" >&2; return 2; }
    ;;
  esac
}
resolvectl() { :; }
`;
        const set = [SET_UP_GUEST_SCRIPT, "", "", CARD];
        const how = { shell, dir: dir.path, stubs };
        assertEquals<unknown>(await inGuest(how, set), output);
      }
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: lets udev rename a network card before it is up`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      await using dir = await dirWithCard();
      const at = (name: string) => join(dir.path, name);
      await Deno.writeTextFile(at("control"), "");
      const stubs = `${STUBS}
sleep() { mv net/eth0 net/enp1s0; }
ip() { echo "$*" >>asked; }
resolvectl() { :; }
`;
      const set = [SET_UP_GUEST_SCRIPT, "", "", CARD];
      assertEquals(await inGuest({ shell, dir: dir.path, stubs }, set), [0]);
      assertMatch(
        await Deno.readTextFile(at("asked")),
        /^link set enp1s0 up\n/,
      );
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: configures a network card, and DNS unless the guest has a server`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      await using dir = await dirWithCard();
      const at = (name: string) => join(dir.path, name);
      const stubs = `${STUBS}
ip() { echo "$(cat rcu_expedited) $*" >>asked; }
resolvectl() { return 1; }
`;
      await Deno.writeTextFile(at("rcu_expedited"), "0\n");
      const set = [SET_UP_GUEST_SCRIPT, "", "", CARD];
      const gateway = "nameserver 10.0.0.1\n";
      const cases = [
        ["nameserver\t9.9.9.9", "nameserver\t9.9.9.9"],
        ["nameserver 127.0.0.53\nnameserver ::1\n", undefined],
        ["nameserver 127.0.0.53\n# nameserver 9.9.9.9\n", gateway],
        ["", gateway],
      ] as const;
      for (const [before, after = before] of cases) {
        // A link, as systemd's, must not make another file change.
        await Deno.writeTextFile(at("stub"), before);
        await Deno.symlink("stub", at("resolv.conf"));
        assertEquals(await inGuest({ shell, dir: dir.path, stubs }, set), [0]);
        assertEquals(await Deno.readTextFile(at("resolv.conf")), after);
        assertEquals(await Deno.readTextFile(at("stub")), before);
        await Deno.remove(at("resolv.conf"));
        assertEquals((await Deno.readTextFile(at("asked"))).split("\n"), [
          "1 link set eth0 name toolsmith0 up",
          "0 addr add 10.0.0.2/24 dev toolsmith0",
          "0 route replace default via 10.0.0.1 dev toolsmith0",
          "",
        ]);
        await Deno.remove(at("asked"));
      }
      // The kernel renames the card before it fails to bring it up.
      const halfWay = `${stubs}
ip() {
  echo "$*" >>asked
  [ "$*" != "link set eth0 name toolsmith0 up" ] || { mv net/eth0 net/toolsmith0; false; }
}
`;
      const how = { shell, dir: dir.path, stubs: halfWay };
      assertEquals(await inGuest(how, set), [0]);
      const asked = await Deno.readTextFile(at("asked"));
      assertMatch(
        asked,
        /^link set toolsmith0 up\naddr add .*\nroute replace/m,
      );
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: distinguishes a signal from an exit`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      const ends: Record<string, string> = {
        "exit 0": "0",
        "exit 137": "137",
        "kill -KILL $$": "137s",
        "exit 143": "143",
        "kill -TERM $$": "143s",
        "kill -SEGV $$": "139s",
      };
      for (const [script, word] of Object.entries(ends)) {
        const ended = await launch(shell, sh(script));
        assertEquals(ended, [`END${word}\n`, "END\n"], script);
      }
      const both = await launch(shell, sh("echo out; echo err >&2; exit 3"));
      assertEquals(both, ["out\nEND3\n", "err\nEND\n"]);
    },
  });

  Deno.test({
    name: `guest scripts in ${basename(shell)}: passes arguments byte for byte`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      const unit = fc.oneof(
        fc.constantFrom(..."'\"$`\\\\*?[]{}()<>|&;!~# \n\t-"),
        fc.string({ unit: "binary", minLength: 1, maxLength: 1 }),
      );
      const word = fc.string({ unit }).map((text) => text.replaceAll("\0", ""));
      await fc.assert(
        fc.asyncProperty(fc.array(word), async (words) => {
          const print = ["/usr/bin/printf", "%s\\0", "first", ...words];
          const [stdout] = await launch(shell, print);
          assertEquals(stdout.split("\0"), ["first", ...words, "END0\n"]);
        }),
        { numRuns: 25 },
      );
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: allows any variable name in a command`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      const names = ["directory", "count", "end", "program", "rest", "place"];
      names.push("tries", "word", "words", "shell", "fail", "status", "pid");
      const env = names.map((name) => `${name}=7${name}`);
      const print = sh("pwd; env");
      const [stdout, stderr] = await launch(shell, print, env);
      const lines = stdout.split("\n");
      assertEquals([lines[0], stderr], ["/", "END\n"]);
      for (const line of env) assert(lines.includes(line), line);
      const none = await launch(shell, ["nope"], env);
      assertEquals(none, ["END127\n", "END\n"]);
    },
  });

  Deno.test({
    name: `guest scripts in ${
      basename(shell)
    }: warm shell runs setup, then a command`,
    ignore: Deno.build.os !== "linux" || !await isThere(shell),
    async fn() {
      const set = (kind: "setup" | "command", ...words: string[]) =>
        [`${kind} ${words.length} END`, ...words, ""].join("\n");
      const command = (input: string) =>
        set(
          "command",
          input,
          "/",
          "/",
          "1",
          "A=b\\0012 \\0134c\\0303\\0244\\0012",
          ...sh("env"),
        );
      const asked = set("setup", "1.5", "2", "", "good", "place", "ro");
      const [said, out] = await wait(
        { shell },
        `${asked}${command("no")}`,
      );
      assertEquals(said, "ready\nEND0 77\nready\n");
      assertMatch(out, /^A=b\n \\cä\n$/m);
      const refused = set("setup", "1.5", "9", "", "bad", "place", "ro");
      const [failed] = await wait({ shell }, `${refused}${command("no")}`);
      assertEquals(failed.split("\n").filter((it) => it !== "clock"), [
        ...[
          "ready",
          "bad: mount: bad: no such directory",
          "END1 77",
          "ready",
          "",
        ],
      ]);
      const twice = `${asked}${
        set("setup", "", "", "", "good", "place", "rw")
      }`;
      const [both] = await wait({ shell }, `${twice}${command("no")}`);
      assertEquals(both, "ready\nEND0 77\nEND0 77\nready\n");
      // A missing directory.
      const lost = set("command", "yes", "/nope", "/nope", "0", "true");
      const [none] = await wait({ shell }, `${asked}${lost}`);
      assertEquals(none, "ready\nEND0 77\nready\nENDD\n");
      const moved = set("command", "no", "/nope", "/usr", "0", "pwd");
      const started = `${asked}${moved}`;
      const [, elsewhere] = await wait({ shell }, started);
      assertEquals(elsewhere, "/usr\n");
      for (
        const [input, isNothing] of [["no", true], ["yes", false]] as const
      ) {
        const link = set(
          "command",
          input,
          "/",
          "/",
          "0",
          "readlink",
          "/proc/self/fd/0",
        );
        const [, to] = await wait({ shell }, `${asked}${link}`);
        assertEquals(to === "/dev/null\n", isNothing, `${input}: ${to}`);
      }
      // Nobody reads the ready line: another shell runs the command.
      const late = `${asked}${command("no")}`;
      assertEquals(await wait({ shell }, late, "/dev/full"), ["", ""]);
      // The host closes the port.
      const [gone] = await wait(
        { shell },
        `${asked}command 3 END\nno\n`,
      );
      assertEquals(gone, "ready\nEND0 77\n");
    },
  });
}
