/**
 * A guest command on a real terminal, driven by tmux.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { sleep } from "../../lib/system/time.ts";
import { buildTestGuest, needsGuest } from "../support/guest.ts";
import { foundTools, requires } from "../support/parts.ts";
import { assertAllEnded, findProcesses } from "../support/processes.ts";
import { openTerminal, type TestTerminal } from "../support/tmux.ts";
import {
  cleanEnvironment,
  commandLine,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const onTerminal = {
  ignore: needsGuest.ignore || requires("tmux").ignore,
};

for (
  const { args, says } of [
    { args: ["shell"], says: /shell needs a terminal.*\nhint: use toolsmith/ },
    {
      args: ["run", "--tty", "sh"],
      says: /run --tty needs a terminal.*\nhint: use .* without --tty/,
    },
    {
      args: ["run", "--tty", "--json", "sh"],
      says: /Cannot use --tty and --json/,
    },
  ]
) {
  Deno.test(`${args.join(" ")} without a terminal exits with status 2 and an explanation`, async () => {
    await using work = await workspace();
    const { code, stdout, stderr } = await work.toolsmith(args);
    assertEquals(code, 2);
    assertMatch(stdout + stderr, says);
  });
}

Deno.test({
  name: "toolsmith shell behaves like a local shell on a terminal",
  ...onTerminal,
  async fn(t) {
    await using work = await workspace();
    await using terminal = await open(work);
    const { type, press, shows } = terminal;
    /** Types a line at the guest's prompt. */
    const enter = async (line: string) => {
      // A command would read the answer, or the terminal would show it.
      await terminal.asksForCursor();
      await type(line);
    };
    const shell = await commandLine(["shell", "--quiet"]);
    await t.step("shell's terminal has the window's size", async () => {
      await type(`${shell}; echo "status $?"`);
      await shows(/^\/mnt\/work #/m);
      await enter("clear; stty size; tty");
      await shows(/^30 90\n\/dev\/ttyS1$/m);
    });
    await t.step(
      "shell resizes with the window",
      async () => {
        await enter(
          `sh -c 'trap "stty size" WINCH; echo $((1+1)); while sleep 1; do :; done'`,
        );
        await shows(/^2$/m);
        await terminal.resize(110, 40);
        await shows(/^40 110$/m);
        await press("C-c");
        await shows(/\^C\n.*#/);
      },
    );
    await t.step("shell shows colours", async () => {
      await enter(String.raw`printf '\033[31m%s\033[m\n' red`);
      // deno-lint-ignore no-control-regex
      await shows(/^\x1b\[31mred/m, "coloured");
    });
    await t.step(
      "shell passes Ctrl-C to the guest's program only",
      async () => {
        await enter("sh -c 'echo $((41+1)); exec sleep 1000'");
        await shows(/^42$/m);
        await press("C-c");
        await shows(/^42\n\^C\n.*#/m);
        await enter("echo ended $?");
        await shows(/^ended 130$/m);
      },
    );
    await t.step("shell job control: Ctrl-Z stops, fg resumes", async () => {
      await enter("sh -c 'echo $((51+1)); exec cat'");
      await shows(/^52$/m);
      await press("C-z");
      await shows(/Stopped/);
      await enter("fg");
      await shows(/# fg\n.*cat/);
      // The shell prints the command before it gives the terminal away.
      await type("resumed");
      await shows(/^resumed\nresumed$/m);
      await press("C-c");
      await shows(/^resumed\n\^C\n.*#/m);
    });
    await t.step("shell runs less page by page", async () => {
      await enter("seq 500 | less");
      await shows(/^1\n2\n/);
      await press("Space");
      await shows(/^4\d\n/);
      await press("q");
    });
    await t.step("shell runs vi on the full screen", async () => {
      await enter("vi /etc/inittab");
      await shows(/1\/\d+ \d+%/);
      await type(":q!");
    });
    await t.step("toolsmith shell exits with the shell's status", async () => {
      await enter("clear; exit 7");
      // The cursor is back after vi.
      await shows(/^\n{0,2}status 7\n/);
      await assertGivenBack(terminal);
    });
    await t.step("toolsmith shell restores the host terminal", async () => {
      const kept = await commandLine(["shell", "--overlay", "kept.qcow2"]);
      await type(`clear; ${kept}`);
      await shows(/^\/mnt\/work #/m);
      // Wait for a guest that ignores the power button.
      await enter("killall -STOP acpid; exit");
      await shows(/^stopping the VM: /m);
      await press("C-c");
      await shows(/\^C/);
      await press("C-c");
      // Until it has ended, the program may read what is typed.
      await shows(/^[#$]$/m);
      await type('echo "status $?"');
      await shows(/status 130$/m);
      await assertGivenBack(terminal);
    });
    const run = await commandLine(["run", "--tty", "sh", "left"]);
    await Deno.writeTextFile(
      join(work.dir, "left"),
      `printf '${LEFT}'; echo 'it is so'; exec sleep 1000`,
    );
    const ends: Record<string, { signal: Deno.Signal; status?: number }> = {
      "after TERM": { signal: "SIGTERM", status: 143 },
      "after HUP": { signal: "SIGHUP", status: 129 },
      // The shell may print the status before the screen is restored.
      "after KILL": { signal: "SIGKILL" },
      "when QEMU dies": { signal: "SIGKILL", status: 71 },
    };
    for (const [name, { signal, status }] of Object.entries(ends)) {
      await t.step(`run --tty restores the terminal ${name}`, async () => {
        await terminal.type("clear");
        await terminal.type(
          `sh -c 'echo $$ >pid; exec ${run}'; echo "status $?"`,
        );
        // Match no part of the typed command line, wherever it wraps.
        await terminal.shows(/^it is so$/m);
        const set = await modesOf(terminal);
        assertEquals(set.filter((mode) => USUAL.includes(mode)), []);
        const [qemu] = (await findProcesses(join(work.dir, ".toolsmith")))
          .filter(({ line }) => /^\S*qemu-system/.test(line));
        const own = Number(await Deno.readTextFile(join(work.dir, "pid")));
        Deno.kill(name.includes("QEMU") ? qemu.pid : own, signal);
        if (status) {
          await terminal.shows(new RegExp(`^status ${status}$`, "m"));
        }
        await assertGivenBack(terminal);
        // The next step must not find the supervisor of this one's QEMU.
        await assertAllEnded(join(work.dir, ".toolsmith"));
      });
    }
  },
});

/** A terminal in a workspace with a guest. */
async function open(work: Workspace): Promise<TestTerminal> {
  const qcow2 = await buildTestGuest();
  const digest = await sha256OfChunks(readFileChunks(qcow2));
  await work.manifest({ qcow2, qcow2_sha256: digest });
  const { PATH, ...env } = cleanEnvironment();
  return await openTerminal({
    cwd: work.dir,
    env: {
      ...env,
      PATH: `${dirname(foundTools.qemu!)}:${PATH}`,
      TOOLSMITH_QEMU: "",
    },
  });
}

/** Sets all terminal modes that a killed program may leave behind. */
const LEFT = String
  .raw`\033[?1049h\033[5;10r\033[?25l\033[?7l\033(0\033)0\016\033[31m` +
  String
    .raw`\033[?2004h\033[?1003h\033[?1005h\033[?1006h\033[?1h\033=`;

/** tmux's mode flags of a new terminal. */
const USUAL = [
  "alternate_on 0",
  "cursor_flag 1",
  "keypad_cursor_flag 0",
  "keypad_flag 0",
  "mouse_any_flag 0",
  "mouse_sgr_flag 0",
  "mouse_utf8_flag 0",
  "wrap_flag 1",
  "scroll_region_upper 0",
  "e|-:#{pane_height},#{scroll_region_lower} 1",
];

/** The current mode flags. */
async function modesOf(terminal: TestTerminal): Promise<string[]> {
  const names = USUAL.map((mode) => mode.split(" ")[0]);
  const values = await terminal.ask(names.map((it) => `#{${it}}`).join(" "));
  return values.trim().split(" ").map((value, at) => `${names[at]} ${value}`);
}

/** The main screen is shown, and lines are edited and echoed. */
async function assertGivenBack(terminal: TestTerminal) {
  while (`${await modesOf(terminal)}` !== `${USUAL}`) await sleep(50);
  const edited = String
    .raw`stty -a | tr ' ' '\n' | grep -cx 'icanon\|echo\|isig\|opost'`;
  await terminal.type(`clear; echo "modes $(${edited})"`);
  await terminal.shows(/modes 4$/m);
  const screen = await terminal.screen();
  // deno-lint-ignore no-control-regex
  assertEquals(screen.match(/[\x0e\x1b]/g), null, screen);
  await terminal.type("cat -v");
  await terminal.paste("as it is");
  await terminal.shows(/^as it is$/m);
  await terminal.press("C-c");
  // The dying program may still read what is typed.
  await terminal.shows(/^as it is\^C\n[#$]$/m);
}
